r"""Learned templates against the mean and a classical average, and templates that follow attributes; 2-D, on a CPU.

    python data_lists/build.py slices SLABS/datalist.json SLICES --pairs SLABS/pairs_validation.json \
      -o SLICES/datalist.json
    python bundles/conditional_atlas/docs/reproduce.py SLICES HEADS OUT [--maps ALIGNED/datalist.json]

SLICES: a folder of 2-D slices with a data list that has the sections training and validation, labels and group (level)
included; the middle level of each person's first scan is taken. HEADS: a folder of 2-D skull-stripped T1 slices, one
for a person, 128 x 128, with a data list. The shapes are made here. Every variant is trained by the bundle's train.json
and train_2d.json; what is there is not done again. OUT gets a folder for each variant, and tables.md with the tables
of docs/README.md, and the pictures. ALIGNED: label maps with the attribute `ventricles` as the shipped weights were
trained on, by which these are measured, too.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigParser
from scipy import ndimage
from torch import Tensor

REPOSITORY = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(REPOSITORY))

from benchmarks.experiments import chosen_variants, train
from custom_components.data.lists import load_list
from custom_components.data.phantoms import random_velocity
from custom_components.deformations.velocity import StationaryVelocity
from custom_components.evaluation.metrics import (
    folding_fraction,
    gradient_energy,
    normalized_cross_correlation,
    sd_log_jacobian,
)
from custom_components.evaluation.overlap import mean_dice
from custom_components.fields import compose, identity_grid, integrate_velocity, warp
from custom_components.files import write_metrics
from custom_components.inference.refinement import PairwiseOptimizer
from custom_components.inference.registration import RegistrationInferer
from custom_components.losses.overlap import label_indicators
from custom_components.losses.registration import RegistrationLoss
from custom_components.losses.regularization import GradientPenalty
from custom_components.losses.similarity import LNCC
from custom_components.methods.conditional_atlas.averaging import average_scans
from custom_components.methods.conditional_atlas.inference import TemplateInferer
from custom_components.methods.conditional_atlas.network import AtlasNetwork
from custom_components.methods.conditional_atlas.pictures import template_animation
from custom_components.methods.conditional_atlas.template import ConditionalTemplate, template_settings
from custom_components.networks.voxelmorph_unet import VoxelMorphUNet
from custom_components.transforms.load import LoadScand

BRAINS, HEADS, SHAPES = [144, 176], [128, 128], [64, 64]
INTENSITY = {
    "similarity": {"_target_": "custom_components.losses.similarity.MSE", "sigma": 0.05},
    "forward_weight": 1.0,
}
SHAPES_SETTINGS = {"size": SHAPES, "conditions": {"size": "numeric", "elongation": "numeric"}, **INTENSITY}
VENTRICLES_SETTINGS = {"size": HEADS, "conditions": {"ventricles": "numeric"}, **INTENSITY}
HELD_OUT = {"size": [(14.0, 15.0), (18.0, 19.5)], "elongation": [(0.9, 1.0), (1.2, 1.3)]}
HELD_OUT_VENTRICLES = [(4.0, 5.2), (9.5, 11.5)]
# Folder of the data, steps, batch, settings.
VARIANTS: dict[str, tuple[str, int, int, dict[str, Any]]] = {
    "brains": ("brains", 2000, 4, {}),
    "brains_mse": ("brains", 2000, 4, INTENSITY),
    "brains_backward": ("brains", 2000, 4, {"forward_weight": 2.5, "backward_weight": 2.5}),
    "brains_gamma_0": ("brains", 2000, 4, {"mean_weight": 0.0}),
    "brains_labels": ("brains", 2000, 4, {"template_labels": [0, 1, 2, 3, 4]}),
    "brains_seed_1": ("brains", 2000, 4, {"seed": 1}),
    "brains_seed_2": ("brains", 2000, 4, {"seed": 2}),
    "brains_batch_1": ("brains", 2000, 1, {}),
    "brains_stopped": ("brains", 2000, 4, {}),
    "brains_processes": ("brains", 2000, 4, {}),
    "heads": ("heads", 2000, 4, {"size": HEADS}),
    "shapes": ("shapes", 2500, 8, SHAPES_SETTINGS),
    "shapes_shuffled": ("shapes_shuffled", 2500, 8, SHAPES_SETTINGS),
    "ventricles": ("ventricles", 3000, 4, VENTRICLES_SETTINGS),
    "ventricles_paper": ("ventricles", 3000, 4, {**VENTRICLES_SETTINGS, "network_def#template#paper": True}),
    **{
        f"ventricles_{smoothness:g}_{size:g}": (
            "ventricles",
            3000,
            4,
            {**VENTRICLES_SETTINGS, "smoothness_weight": smoothness, "size_weight": size},
        )
        for smoothness, size in ((1.0, 0.01), (5.0, 0.1), (5.0, 1.0), (20.0, 1.0))
    },
}
LABELS = [1, 2, 3, 4]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slices", type=Path)
    parser.add_argument("heads", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--maps", type=Path, help="data list of label maps, for the shipped 3-D weights")
    parser.add_argument("--only", default=",".join(VARIANTS), help="variants, separated by commas")
    parser.add_argument("--workers", type=int, default=2, help="trainings at a time, one thread each")
    args = parser.parse_args()
    names = chosen_variants(parser, args, VARIANTS)
    make_lists(args.slices, args.heads, args.output)
    with ThreadPoolExecutor(args.workers) as pool:
        list(pool.map(lambda name: run(name, args.output), names))
    torch.set_num_threads(args.workers)
    for data in ("brains", "heads"):
        baselines(data, args.output)
    for name in names:
        measure(name, args.output)
    if args.maps is not None:
        write_metrics(args.output / "shipped.json", shipped(args.maps))
    text = tables(args.output)
    (args.output / "tables.md").write_text(text)
    pictures(args.output)
    print(text)


def make_lists(slices: Path, heads: Path, output: Path) -> None:
    """Data lists with absolute paths in OUTPUT/data."""
    folder = output / "data"
    folder.mkdir(parents=True, exist_ok=True)
    sections = json.loads((slices / "datalist.json").read_text())
    levels = sorted({item["group"] for item in sections["training"]})
    found: dict[str, list[dict[str, Any]]] = {}
    for section in ("training", "validation"):
        first: dict[str, Any] = {}
        for item in sections[section]:
            if item["group"] == levels[len(levels) // 2]:
                paths = {key: str((slices / item[key]).absolute()) for key in ("image", "label")}
                first.setdefault(item["subject"], {"subject": item["subject"], **paths})
        found[section] = list(first.values())
    (folder / "brains.json").write_text(json.dumps(found))
    sections = json.loads((heads / "datalist.json").read_text())
    for section in ("training", "validation"):
        items = [
            {"subject": item["subject"], "image": str((heads / item["image"]).absolute())} for item in sections[section]
        ]
        for item in items:
            image = np.asarray(nib.load(item["image"]).dataobj, dtype=float).squeeze()
            item["ventricles"] = round(dark_share(image), 4)
        found[section] = items
    (folder / "heads.json").write_text(json.dumps(found))
    kept = [i for i in found["training"] if not within(i["ventricles"], HELD_OUT_VENTRICLES)]
    (folder / "ventricles.json").write_text(json.dumps({**found, "training": kept}))
    if not (folder / "shapes.json").exists():
        make_shapes(folder)


def dark_share(image: np.ndarray) -> float:
    """Percentage of a skull-stripped slice's pixels that are dark and at least 18 pixels inside its outline: in the
    main the lateral and third ventricles."""
    scaled = image / np.percentile(image, 99.9)
    brain = ndimage.binary_fill_holes(ndimage.binary_opening(scaled > 0.1))
    deep = ndimage.distance_transform_edt(brain) > 18
    return 100 * float((deep & (scaled < 0.3)).sum() / brain.sum())


def within(value: float, ranges: Sequence[tuple[float, float]]) -> bool:
    return any(low <= value <= high for low, high in ranges)


def ellipse(size: float, elongation: float) -> Tensor:
    """A soft ellipse with a bright core, (1, 1, *SHAPES): radii size * elongation and size / elongation, pixels."""
    x = identity_grid(SHAPES) - torch.tensor([(n - 1) / 2 for n in SHAPES]).view(2, 1, 1)
    distance = torch.stack([x[0] / (size * elongation), x[1] * elongation / size]).norm(dim=0)
    return (0.6 * torch.sigmoid(6 * (1 - distance)) + 0.3 * torch.sigmoid(10 * (0.5 - distance)))[None, None]


def make_shapes(folder: Path) -> None:
    """250 ellipses, each bent by a random smooth deformation, with noise; shapes of held-out values are left out."""
    generator = torch.Generator().manual_seed(0)
    items = []
    (folder / "shapes").mkdir(exist_ok=True)
    for i in range(250):
        size, elongation = (
            torch.rand(2, generator=generator) * torch.tensor([10.0, 0.6]) + torch.tensor([12.0, 0.8])
        ).tolist()
        velocity = random_velocity(SHAPES, amplitude=2.5, spacings=(16.0, 24.0), generator=generator)
        image = warp(ellipse(size, elongation), integrate_velocity(velocity))
        image = image + 0.03 * torch.randn(image.shape, generator=generator)
        path = folder / "shapes" / f"shape_{i:03d}.nii.gz"
        nib.save(nib.Nifti1Image(image[0, 0].numpy(), np.eye(4)), path)
        if not within(size, HELD_OUT["size"]) and not within(elongation, HELD_OUT["elongation"]):
            values = {"size": round(10 + 3 * size, 4), "elongation": round(elongation, 4)}
            items.append({"subject": f"shape_{i:03d}", "image": str(path.absolute()), **values})
    shuffled = torch.randperm(len(items), generator=generator).tolist()
    mixed = [
        {**item, **{key: items[k][key] for key in ("size", "elongation")}}
        for item, k in zip(items, shuffled, strict=True)
    ]
    for name, some in (("shapes", items), ("shapes_shuffled", mixed)):
        (folder / f"{name}.json").write_text(json.dumps({"training": some[:-10], "validation": some[-10:]}))


def run(name: str, output: Path) -> None:
    data, steps, batch, settings = VARIANTS[name]
    settings = {"num_val_pairs": 12, **settings}
    if "conditions" not in settings:
        settings = {"conditions": {}, "size_weight": 0.01, **settings}  # as train_unconditional.json
    options: dict[str, Any] = {"steps": steps, "batch_size": batch, "data_list": output / "data" / f"{data}.json"}
    folder = output / name
    if name == "brains_processes":
        overlay = REPOSITORY / "bundles" / "overlays" / "multi_gpu.json"
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "monai.bundle", "run"]
        # Two processes share the pairs: half the batch in each.
        settings |= {"batch_size": batch // 2}
        train("conditional_atlas", folder, output, settings, **options, launcher=launcher, overlays=[overlay])
        return
    if name == "brains_stopped" and not (folder / "model.pt").exists():
        stop_halfway(folder, lambda: train("conditional_atlas", folder, output, settings, **options))
    train("conditional_atlas", folder, output, settings, **options)


def stop_halfway(folder: Path, start: Callable[[], None]) -> None:
    """Start a training and kill it in its sixth epoch of ten."""
    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(start)
        while not training.done():
            curve = folder / "curve.csv"
            if curve.exists() and len(curve.read_text().splitlines()) > 5:
                time.sleep(2)
                subprocess.run(["pkill", "-9", "-f", "--", f"--ckpt_dir {re.escape(str(folder))}( |$)"], check=False)
                break
            time.sleep(0.5)
        error = training.exception()
        assert isinstance(error, subprocess.CalledProcessError), error
        assert error.returncode == -signal.SIGKILL


def network_of(folder: Path) -> AtlasNetwork:
    weights = torch.load(folder / "model.pt", weights_only=True)
    template = ConditionalTemplate(**template_settings(weights))
    network = AtlasNetwork(template, VoxelMorphUNet(2, half_resolution=True)).eval()
    network.load_state_dict(weights)
    return network


def load(data: str, section: str, output: Path) -> dict[str, Any]:
    """Images (N, 1, *S), labels where there are, items."""
    items = json.loads((output / "data" / f"{data}.json").read_text())[section]
    size = {"brains": BRAINS, "heads": HEADS, "ventricles": HEADS}[data]
    loaded = [LoadScand(1.0, size, "image")(item) for item in items]
    result: dict[str, Any] = {"image": torch.stack([torch.as_tensor(item["image"]) for item in loaded]), "items": items}
    if "label" in loaded[0]:
        result["label"] = torch.stack([torch.as_tensor(item["label"]) for item in loaded])
    return result


def brain_of(scans: Mapping[str, Any]) -> Tensor:
    """Where more than half of the scans have brain, (1, 1, *S)."""
    inside = scans["label"] > 0 if "label" in scans else scans["image"] > 0.1
    return inside.float().mean(0, keepdim=True) > 0.5


def optimizer(**options: Any) -> PairwiseOptimizer:
    """Training-free, with the objective of the bundle's refinement: LNCC, weight 0.1, folding penalty."""
    loss = RegistrationLoss(LNCC(9), GradientPenalty(), 0.1, folding_weight=30.0)
    return PairwiseOptimizer(StationaryVelocity(7), loss, **options)


Registration = Callable[[Tensor], dict[str, Tensor]]


def by_optimization(template: Tensor) -> Registration:
    def register(scans: Tensor) -> dict[str, Tensor]:
        optimize, deformation = optimizer(), StationaryVelocity(7)
        velocities = [optimize(scan[None], template) for scan in scans]
        return deformation(torch.cat(velocities), scans.shape[2:], inverse=True)

    return register


def by_network(network: AtlasNetwork) -> Registration:
    inferer = TemplateInferer(RegistrationInferer(StationaryVelocity(7), inverse=True))
    return torch.no_grad()(lambda scans: inferer(scans, network))


@torch.no_grad()
def judge(
    template: Tensor, register: Registration, training: dict[str, Any], validation: dict[str, Any]
) -> dict[str, float]:
    """Sharpness, centrality, folding, and how well people agree through the template."""
    brain = brain_of(training)
    average = training["image"].mean(0, keepdim=True)
    fields = {name: register(scans["image"]) for name, scans in (("training", training), ("validation", validation))}
    inside = brain[0, 0]
    mean = {name: f["ddf"].mean(0).norm(dim=0)[inside] for name, f in fields.items()}
    ddf, inverse = fields["validation"]["ddf"], fields["validation"]["inverse_ddf"]
    result = {
        "sharpness": energy(template, brain) / energy(average, brain),
        "sharpness_scaled": energy(scaled(template, brain), brain) / energy(scaled(average, brain), brain),
        "central": float(mean["training"].mean()),
        "central_max": float(mean["training"].max()),
        "central_validation": float(mean["validation"].mean()),
        "displacement": float(fields["training"]["ddf"].norm(dim=1)[:, inside].mean()),
        "folded": 100 * float(folding_fraction(ddf, brain).mean()),
        "sd_log_jacobian": float(sd_log_jacobian(ddf, brain).mean()),
    }
    pairs = [(a, b) for a in range(len(ddf)) for b in range(len(ddf)) if a != b]
    through = torch.cat([compose(ddf[a : a + 1], inverse[b : b + 1]) for a, b in pairs])
    first, second = ([pair[k] for pair in pairs] for k in (0, 1))
    images = validation["image"]
    here = images[second] > 0.05
    result["ncc_pairs"] = float(normalized_cross_correlation(warp(images[first], through), images[second], here).mean())
    result["ncc_template"] = float(
        normalized_cross_correlation(warp(images, ddf), template.expand_as(images), brain).mean()
    )
    if "label" in training:
        labels = validation["label"]
        warped = warp(labels[first], through, mode="nearest")
        result["dice_pairs"] = float(mean_dice(warped, labels[second], LABELS).mean())
        shares = label_indicators(warp(training["label"], fields["training"]["ddf"], mode="nearest"), [0, *LABELS])
        voted = shares.float().mean(0, keepdim=True).argmax(1, keepdim=True).expand_as(labels)
        result["dice_voted"] = float(mean_dice(warp(voted, inverse, mode="nearest"), labels, LABELS).mean())
    return result


def energy(images: Tensor, brain: Tensor) -> float:
    return float(gradient_energy(images, brain, spacing_mm=[1.0, 1.0]).mean())


def scaled(images: Tensor, brain: Tensor) -> Tensor:
    """Images of standard deviation 1 in the brain, so that contrast does not count as sharpness."""
    return torch.stack([image / image[brain[0]].std() for image in images])


def baselines(data: str, output: Path) -> None:
    """The mean image and the classical average, registered to by optimisation: OUTPUT/<data>_baselines.json."""
    if (output / f"{data}_baselines.json").exists():
        return
    training, validation = (load(data, section, output) for section in ("training", "validation"))
    mean = training["image"].mean(0, keepdim=True)
    start = time.process_time()
    classical, _ = average_scans(
        training["image"],
        optimizer(),
        StationaryVelocity(7),
        later=optimizer(levels=[1], iterations=20),
        rounds=10,
        progress=True,
    )
    seconds = time.process_time() - start
    torch.save(classical, output / f"{data}_classical.pt")
    result: dict[str, Any] = {"classical_cpu_seconds": seconds}
    for name, template in (("mean", mean), ("classical", classical)):
        result[name] = judge(template, by_optimization(template), training, validation)
    scans, brain = training["image"], brain_of(training)
    result["scans_sharpness"] = energy(scans, brain) / energy(mean, brain)
    result["scans_sharpness_scaled"] = energy(scaled(scans, brain), brain) / energy(scaled(mean, brain), brain)
    write_metrics(output / f"{data}_baselines.json", result)


def measure(name: str, output: Path) -> None:
    """OUTPUT/NAME/measures.json."""
    path = output / name / "measures.json"
    if path.exists():
        return
    network, data = network_of(output / name), VARIANTS[name][0]
    result: dict[str, Any] = {}
    if data in ("brains", "heads"):
        training, validation = (load(data, section, output) for section in ("training", "validation"))
        template = network.template().detach()
        result["network"] = judge(template, by_network(network), training, validation)
        if name in ("brains", "heads", "brains_mse"):
            result["optimized"] = judge(template, by_optimization(template), training, validation)
        if name == "brains_labels":
            pred = by_network(network)(validation["image"])
            score = mean_dice(pred["warped_template_label"], validation["label"], LABELS)
            result["network"]["dice_template_labels"] = float(score.mean())
    elif data == "ventricles":
        result = ventricles(network, output)
    else:
        result = shapes(network)
    write_metrics(path, result)


@torch.no_grad()
def shapes(network: AtlasNetwork) -> dict[str, Any]:
    """Requested and rendered size and elongation of shapes, and how they agree; of held-out values, too."""
    rows = []
    for size in np.arange(12.5, 21.6, 0.5):
        for elongation in np.arange(0.825, 1.38, 0.05):
            image = network.template(
                network.template.encoder.values({"size": 10 + 3 * size, "elongation": elongation})[None]
            )
            new = within(size, HELD_OUT["size"]), within(elongation, HELD_OUT["elongation"])
            rows.append([*moments(ellipse(size, elongation)), *moments(image), *new])
    table = np.array(rows, dtype=float)
    result: dict[str, Any] = {}
    for key, chosen in (
        ("all", table[:, 0] > 0),
        ("held_out", (table[:, 4] + table[:, 5]) > 0),
        ("both", table[:, 4] * table[:, 5] > 0),
    ):
        some = table[chosen]
        for k, attribute in enumerate(("size", "elongation")):
            slope = np.polyfit(some[:, k], some[:, k + 2], 1)[0] if np.ptp(some[:, k]) else float("nan")
            varies = np.ptp(some[:, k + 2]) > 1e-6
            result[f"{key}_{attribute}"] = {
                "correlation": float(np.corrcoef(some[:, k], some[:, k + 2])[0, 1]) if varies else 0.0,
                "slope": float(slope),
                "mean_error": float(np.abs(some[:, k] - some[:, k + 2]).mean()),
                "number": len(some),
            }
    return result


def moments(image: Tensor) -> tuple[float, float]:
    """Size and elongation of a shape from the second moments of where it exceeds a third of its range.

    Loading maps the noise's minimum to 0, so that templates have a brighter background than the shapes themselves."""
    low, high = image.quantile(0.05), image.max()
    mask, x = (image[0, 0] > low + (high - low) / 3).float(), identity_grid(SHAPES)
    area = mask.sum().clamp(min=1)
    center = (x * mask).flatten(1).sum(1) / area
    variance = ((x - center.view(2, 1, 1)).square() * mask).flatten(1).sum(1) / area
    return 2 * float(variance.prod()) ** 0.25, float(variance[0] / variance[1].clamp(min=1e-6)) ** 0.25


@torch.no_grad()
def ventricles(network: AtlasNetwork, output: Path) -> dict[str, Any]:
    """Requested and rendered share of dark pixels in the depth, and how alike people are to the template for theirs."""
    template = network.template
    values = np.arange(3.0, 15.01, 0.5)
    rendered = [dark_share(template(template.encoder.values({"ventricles": v})[None])[0, 0].numpy()) for v in values]
    held = np.array([within(v, HELD_OUT_VENTRICLES) for v in values])
    found = np.array(rendered)
    result: dict[str, Any] = {"requested": values.tolist(), "rendered": rendered, "is_held_out": held.tolist()}
    for key, chosen in (("all", held | True), ("held_out", held)):
        result[key] = {
            "correlation": float(np.corrcoef(values[chosen], found[chosen])[0, 1]),
            "slope": float(np.polyfit(values[chosen], found[chosen], 1)[0]),
            "mean_error": float(np.abs(values[chosen] - found[chosen]).mean()),
        }
    result["monotone"] = bool((np.diff(found) > 0).all())
    validation = load("ventricles", "validation", output)
    inferer = TemplateInferer(RegistrationInferer(StationaryVelocity(7), inverse=True))
    rows = [template.encoder.values({"ventricles": item["ventricles"]}) for item in validation["items"]]
    for key, attributes in (("own", torch.stack(rows)), ("average", None)):
        pred = inferer(validation["image"], network, attributes=attributes)
        image, scan = template(attributes).expand_as(pred["template"]), validation["image"]
        result[f"ncc_{key}_before"] = float(normalized_cross_correlation(image, scan, scan > 0.05).mean())
        result[f"ncc_{key}_after"] = float(
            normalized_cross_correlation(pred["warped_template"], scan, scan > 0.05).mean()
        )
        result[f"displacement_{key}"] = float(pred["ddf"].norm(dim=1).mean())
    return result


def share(groups: Tensor) -> float:
    """Percentage of ventricles, the fourth included, in the brain, of a map of the template's labels."""
    return 100 * float((groups == 1).sum() / ((groups > 0) & (groups != 2)).sum())


@torch.no_grad()
def shipped(maps: Path) -> dict[str, Any]:
    """The shipped 3-D weights on images rendered of label maps: the template, and people not trained on."""
    root = REPOSITORY / "bundles" / "conditional_atlas"
    weights = torch.load(root / "models" / "model.pt", weights_only=True)
    network = AtlasNetwork(ConditionalTemplate(**template_settings(weights)), VoxelMorphUNet(3, half_resolution=True))
    network.load_state_dict(weights)
    network.eval()
    template, inferer = network.template, TemplateInferer(RegistrationInferer(StationaryVelocity(7), inverse=True))
    configs = [str(root / "configs" / f"{name}.json") for name in ("train", "train_labelmaps")]
    parser = ConfigParser(ConfigParser.load_config_files(configs))
    parser.update({"bundle_root": ".", "dataset_dir": str(maps.parent)})
    synthesis, generator = parser.get_parsed_content("synthesis"), torch.Generator().manual_seed(0)
    spacing = [2.0] * 3
    rows: dict[str, list[dict[str, Any]]] = {}
    fields, images, brains = [], [], []
    for section in ("training", "validation"):
        for item in load_list(maps, section, maps.parent):
            labels = LoadScand(2.0, template.size, "world")(item)["label"][None].to(torch.int16)
            scan = synthesis(labels, synthesis.draw(1, template.size, generator))
            own = template.encoder.values({"ventricles": item["ventricles"]})[None]
            known = not template.encoder.outside(own[0])
            brain = (scan["label_moving"] > 0) & (scan["label_moving"] != 2)
            row: dict[str, Any] = {"ventricles": item["ventricles"], "in_range": float(known)}
            row["share"] = share(scan["label_moving"])
            row["share_template"] = share(template.most_likely(template.render(own)[1]))
            for name, attributes in (("own", own), ("average", None)):
                pred = inferer(scan["moving"], network, attributes=attributes)
                identity = template.most_likely(pred["template_labels"])
                row[f"dice_{name}_before"] = float(mean_dice(identity, scan["label_moving"], range(1, 7)))
                row[f"dice_{name}"] = float(mean_dice(pred["warped_template_label"], scan["label_moving"], range(1, 7)))
                ncc = normalized_cross_correlation(pred["warped_template"], scan["moving"], brain)
                row[f"ncc_{name}"] = float(ncc)
                row[f"folded_{name}"] = 100 * float(folding_fraction(pred["inverse_ddf"], brain))
                row[f"displacement_{name}"] = 2 * float(pred["inverse_ddf"].norm(dim=1)[brain[:, 0]].mean())
                if section == "training" and name == "own":
                    fields.append(pred["ddf"])
                    images.append(scan["moving"])
                    brains.append(brain)
            rows.setdefault(section, []).append(row)
    inside = torch.cat(brains).float().mean(0, keepdim=True) > 0.5
    mean = torch.cat(images).mean(0, keepdim=True)
    central = 2 * torch.cat(fields).mean(0).norm(dim=0)[inside[0, 0]]

    def sharp(some: Tensor) -> float:
        return float(gradient_energy(some, inside, spacing_mm=spacing).mean())

    result: dict[str, Any] = {
        "sharpness": sharp(template()) / sharp(mean),
        "sharpness_scaled": sharp(scaled(template(), inside)) / sharp(scaled(mean, inside)),
        "sharpness_scans": sharp(torch.cat(images)) / sharp(mean),
        "central": float(central.mean()),
        "central_max": float(central.max()),
    }
    for section, some in rows.items():
        result[section] = {key: float(np.mean([row[key] for row in some])) for key in some[0]}
        result[f"{section}_rows"] = some
    requested = np.arange(1, 7.6, 0.5)
    rendered = []
    for value in requested:
        logits = template.render(template.encoder.values({"ventricles": value})[None])[1]
        rendered.append(share(template.most_likely(logits)))
    result["requested"], result["rendered"] = requested.tolist(), rendered
    result["correlation"] = float(np.corrcoef(requested, rendered)[0, 1])
    result["slope"] = float(np.polyfit(requested, rendered, 1)[0])
    return result


def tables(output: Path) -> str:
    """What docs/README.md shows, of all that is measured so far."""
    files = [p for p in sorted(output.glob("*/measures.json")) if p.parent.name in VARIANTS]
    found = {path.parent.name: json.loads(path.read_text()) for path in files}
    lines = []
    columns = [
        "sharpness",
        "sharpness_scaled",
        "central",
        "central_max",
        "central_validation",
        "displacement",
        "folded",
        "sd_log_jacobian",
    ]
    columns += ["ncc_pairs", "ncc_template", "dice_pairs", "dice_voted"]
    for data in ("brains", "heads"):
        lines += ["", f"| {data} | " + " | ".join(columns) + " |", "|" + "---|" * (len(columns) + 1)]
        rows = {}
        if (output / f"{data}_baselines.json").exists():
            base = json.loads((output / f"{data}_baselines.json").read_text())
            rows = {name: base[name] for name in ("mean", "classical")}
            text = f"Scans: sharpness {base['scans_sharpness']:.2f}, scaled {base['scans_sharpness_scaled']:.2f}"
            lines[-2] = f"{text}\n\n{lines[-2]}"
        for name in [n for n in VARIANTS if n in found and VARIANTS[n][0] == data]:
            rows |= {f"{name}, {way}": value for way, value in found[name].items()}
        for name, row in rows.items():
            lines.append(f"| {name} | " + " | ".join(f"{row[c]:.3f}" if c in row else "" for c in columns) + " |")
    images = {name: network_of(output / name).template().detach() for name in found if VARIANTS[name][0] == "brains"}
    if "brains" in images:
        brain = brain_of(load("brains", "training", output))
        lines += [
            "",
            "| template against that of `brains` | RMS difference in the brain | correlation |",
            "|---|---|---|",
        ]
        for name, image in images.items():
            rms = (image - images["brains"]).square()[brain].mean().sqrt()
            ncc = normalized_cross_correlation(image, images["brains"], brain)
            lines.append(f"| {name} | {rms:.4f} | {float(ncc):.4f} |")
    for name in ("shapes", "shapes_shuffled"):
        if name in found:
            lines += ["", f"| {name} | correlation | slope | mean error | shapes |", "|" + "---|" * 5]
            for key, value in found[name].items():
                cells = (
                    f"{value['correlation']:.3f} | {value['slope']:.2f} | {value['mean_error']:.3f} | {value['number']}"
                )
                lines.append(f"| {key} | {cells} |")
    for name, one in found.items():
        if VARIANTS[name][0] == "ventricles":
            lines += ["", f"{name}: monotone {one['monotone']}, all {one['all']}, held out {one['held_out']}", ""]
            lines.append(", ".join(f"{k} {v:.4f}" for k, v in one.items() if k.startswith(("ncc", "displacement"))))
            lines.append(
                ", ".join(
                    f"{r:g}{'*' if h else ''}: {v:.2f}"
                    for r, v, h in zip(one["requested"], one["rendered"], one["is_held_out"], strict=True)
                )
            )
    lines += ["", "| variant | training, CPU s |", "|---|---|"]
    # Of one process, and since the last start.
    for path in [output / name / "curve.csv" for name in found if name not in ("brains_stopped", "brains_processes")]:
        lines.append(f"| {path.parent.name} | {path.read_text().splitlines()[-1].split(',')[3]} |")
    return "\n".join(lines) + "\n"


def pictures(output: Path) -> None:
    """templates.png: mean, classical, learned, a scan; ventricles.png and .gif: templates for several values."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    def sheet(path: Path, images: Mapping[str, Tensor]) -> None:
        figure, axes = pyplot.subplots(1, len(images), figsize=(3 * len(images), 3.7), squeeze=False)
        for axis, (title, image) in zip(axes[0], images.items(), strict=True):
            axis.imshow(image[0, 0].T, origin="lower", cmap="gray", vmin=0, vmax=float(image.quantile(0.995)))
            axis.set_title(title, size=10)
            axis.set_axis_off()
        figure.savefig(path, dpi=90, bbox_inches="tight")

    if (output / "brains" / "measures.json").exists():
        scans = load("brains", "training", output)["image"]
        templates = {
            f"mean of {len(scans)} scans": scans.mean(0, keepdim=True),
            "classical average": torch.load(output / "brains_classical.pt"),
        }
        templates |= {"learned": network_of(output / "brains").template().detach(), "one scan": scans[:1]}
        sheet(output / "templates.png", templates)
    if (output / "ventricles" / "measures.json").exists():
        template = network_of(output / "ventricles").template
        values = np.linspace(3, 15, 13)
        with torch.no_grad():
            images = [template(template.encoder.values({"ventricles": v})[None]) for v in values]
        sheet(
            output / "ventricles.png", {f"{v:g} %": image for v, image in list(zip(values, images, strict=True))[::2]}
        )
        titles = [f"ventricles {v:g} %" for v in values]
        template_animation(output / "ventricles.gif", [image[0] for image in images], titles, spacing_mm=[1.0, 1.0])


if __name__ == "__main__":
    main()
