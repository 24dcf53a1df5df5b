"""Measurements behind the figures on the page of `simulated_fields`.

    python -m benchmarks.simulated_fields errors ALIGNED/datalist.json WEIGHTS [...]   # on held-out simulated fields
    python -m benchmarks.simulated_fields between ALIGNED/datalist.json NAME=WEIGHTS [...]  # Dice between people
    python -m benchmarks.simulated_fields growing ALIGNED/datalist.json OUT [--seconds 120]  # grown or all at once, 2-D
    python -m benchmarks.simulated_fields lungs LUNGS/datalist.json OUT [--seconds 120]  # landmarks of lungs

NAME is a bundle. `labels.csv` lies beside ALIGNED's list. Seconds are CPU seconds of each training; times of a training
include the making of its images. OUT keeps the networks: a second call measures without training.
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from benchmarks.experiments import bundle_config, markdown
from benchmarks.rendered_people import STRUCTURES, load_people, rendered_pairs
from custom_components.data.batches import Prepared, SynthesizedBatch
from custom_components.evaluation.metrics import folding_fraction, landmark_error_mm, sd_log_jacobian
from custom_components.evaluation.overlap import label_overlap, mean_dice
from custom_components.fields import resize_field, resize_map, transform_points, warp
from custom_components.inference.prediction import Precision
from custom_components.methods.simulated_fields.fields import RandomFields
from custom_components.methods.simulated_fields.growth import Growth
from custom_components.methods.simulated_fields.network import GrowingUNet
from custom_components.methods.simulated_fields.objective import KnownFieldLoss, length
from custom_components.methods.simulated_fields.scans import ScanLook
from custom_components.methods.simulated_fields.simulation import SimulatedPairs
from custom_components.synthesis.brains import BrainContrast
from custom_components.synthesis.noise import gaussian_blur
from custom_components.synthesis.slices import TakeSlices
from custom_components.training import default_precision
from custom_components.weights import load_weights

SIZE_4MM, EDGES_4MM = (48, 56, 48), (0.0, 1.0, 2.0, 3.0)
SIZE_2D, SPACING_2D, EDGES_2D = (128, 128, 112), 1.75, (0.0, 5.0, 10.0, 20.0)
VARIANTS: dict[str, dict[str, Any]] = {
    "all at once": {},
    "grown": {"shares": (0.3, 0.3, 0.25, 0.15)},
    "all at once, no correlations": {"match_channels": 0},
    "grown, no correlations": {"match_channels": 0, "shares": (0.3, 0.3, 0.25, 0.15)},
    "two paths": {"paths": 2},
}
LUNG_MM, LUNG_SIZE = 6.0, (64, 48, 48)


class Errors:
    """Mean error in classes of the known displacement's length, both in voxels, where the mask says that it counts."""

    def __init__(self, edges: Sequence[float]) -> None:
        self.edges = [*edges, float("inf")]
        self.sums = torch.zeros(len(edges), 3)  # of errors, of lengths, of voxels

    def add(self, ddf: Tensor, known: Tensor, mask: Tensor) -> None:
        error, lengths = length(ddf - known)[mask], length(known)[mask]
        for k in range(len(self.sums)):
            own = (lengths >= self.edges[k]) & (lengths < self.edges[k + 1])
            self.sums[k] += torch.stack([error[own].sum(), lengths[own].sum(), own.sum()])

    def rows(self, spacing: float) -> list[list[object]]:
        """Class and mean of all: length and error in mm, share of the voxels."""
        names = [f"{a:g}-{b:g}" for a, b in zip(self.edges, self.edges[1:], strict=False)]
        sums = torch.cat([self.sums, self.sums.sum(0, keepdim=True)])
        values = [
            (float(spacing * s[1] / s[2]), float(spacing * s[0] / s[2]), float(s[2] / self.sums[:, 2].sum()))
            for s in sums
        ]
        return [[name, *value] for name, value in zip([*names, "all"], values, strict=True)]


def errors(data_list: str, *weights: str, repeats: int = 10) -> None:
    """Errors of the shipped network, or of others of its kind, on simulated pairs of the validation people, 4 mm."""
    labels, made = _labels(data_list, "validation", 4.0, SIZE_4MM), []
    parser = bundle_config("simulated_fields", ["train"], statistics=_table(data_list), inter_subject=False)
    batch = SynthesizedBatch(parser.get_parsed_content("synthesis"))
    for seed in range(repeats):
        batch.seed = seed
        made.append(batch({"label_moving": labels, "label_fixed": labels}))
    for path in weights or [""]:
        model, found = Model("simulated_fields", path), Errors(EDGES_4MM)
        for image, targets, _, _ in made:
            found.add(model(image), targets["known_ddf"], targets["known_mask"])
        print(path or "shipped", markdown(["voxels", "known, mm", "error, mm", "share"], found.rows(4.0)), sep="\n")


def between(data_list: str, *networks: str, optimize: int = 0) -> None:
    """All ordered pairs of the validation people, rendered T1-like and stripped: Dice, folds, SD log J, seconds.

    Images and labels are those of 2 mm; a network sees every second voxel of the slightly blurred images, and its field
    is enlarged: at 4 mm a label map moved by nearest neighbour loses more than registration can win.
    """
    people, rows = load_people(Path(data_list), spacing=2.0, size=[2 * n - 1 for n in SIZE_4MM]), []
    pairs = [pair for _, _, pair in rendered_pairs(people, _table(data_list), "t1")]
    rows.append(["unregistered", *_overlaps(pairs, lambda image: torch.zeros(1, 3, *image.shape[2:]))])
    for network in networks or ["simulated_fields="]:
        bundle, _, path = network.partition("=")
        rows.append([network, *_overlaps(pairs, Model(bundle, path, optimize))])
    print(markdown(["", "Dice", "folds, %", "SD log J", "mean |u|, mm", "s"], rows))


class Model:
    """The network of a bundle, one answer, refined or not: images (B, 2, *S) to displacements."""

    def __init__(self, bundle: str, weights: str = "", optimize: int = 0) -> None:
        settings: dict[str, Any] = {"refinement#progress": False, "finest": 0, "spacing": 4.0}
        parser = bundle_config(bundle, ["inference"], optimize=optimize, average=[], **settings)
        self.network, self.inferer = parser.get_parsed_content("network").eval(), parser.get_parsed_content("inferer")
        self.inferer.inverse = False
        load_weights(self.network, weights or parser.get_parsed_content("weights"), "network")

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Tensor:
        ddf: Tensor = self.inferer(image, self.network)["ddf"]
        return ddf


def _overlaps(pairs: Sequence[Mapping[str, Tensor]], register: Callable[[Tensor], Tensor]) -> list[float]:
    rows, second = [], (..., *[slice(None, None, 2)] * 3)
    for pair in pairs:
        image = gaussian_blur(torch.cat([pair["moving"], pair["fixed"]], 1), 1.0)[second]
        start = time.process_time()
        field = register(image)
        seconds, labels = time.process_time() - start, pair["label_fixed"]
        ddf, brain = resize_field(field, labels.shape[2:]), labels > 0
        warped = warp(pair["label_moving"], ddf, mode="nearest")
        dice = float(label_overlap(warped, labels, STRUCTURES).nanmean())
        folds, spread = 100 * float(folding_fraction(ddf, brain)), float(sd_log_jacobian(ddf, brain))
        rows.append((dice, folds, spread, 2 * float(length(ddf)[brain].mean()), seconds))
    return [float(value) for value in np.mean(rows, 0)]


def growing(data_list: str, output: str, seconds: float = 120.0, seeds: int = 1, only: str = "") -> None:
    """2-D slices of 128 x 128 voxels: networks trained for equal time, errors by the length of the known field."""
    parts = [_labels(data_list, section, SPACING_2D, SIZE_2D) for section in ("training", "validation")]
    fields = RandomFields((64, 32, 16), (0.36, 0.24, 0.16))
    look = BrainContrast(_table(data_list))
    batches = [
        _slices(maps, SimulatedPairs(fields, look, place=fields, inter_subject=False, strip=0.5)) for maps in parts
    ]
    held_out = [batches[1](seed) for seed in range(10)]
    for name in only.split(";") if only else VARIANTS:
        found, steps = Errors(EDGES_2D), 0
        for seed in range(seeds):
            path = Path(output) / f"{name} {seed}.pt"
            network, steps = kept(path, 2, VARIANTS[name], batches[0], seconds, seed)
            for image, targets, _, _ in held_out:
                found.add(answer(network, image), targets["known_ddf"], targets["known_mask"])
        print(
            f"{name}, {steps} steps",
            markdown(["voxels", "known, mm", "error, mm", "share"], found.rows(SPACING_2D)),
            sep="\n",
        )


def _slices(maps: Tensor, synthesis: SimulatedPairs) -> Callable[[int], Prepared]:
    """Batches of 8 slices of one map, drawn by a seed."""
    prepare = SynthesizedBatch(synthesis, TakeSlices(8, {2: (40, 75)}))

    def make(seed: int) -> Prepared:
        prepare.seed, one = seed, maps[seed % len(maps)][None]
        return prepare({"label_moving": one, "label_fixed": one})

    return make


def kept(
    path: Path, dims: int, settings: Mapping[str, Any], make: Callable[[int], Prepared], seconds: float, seed: int
) -> tuple[GrowingUNet, int]:
    """A network that was trained here before, or is now, and its number of steps."""
    torch.manual_seed(seed)
    network = GrowingUNet(dims, **{key: value for key, value in settings.items() if key != "shares"})
    growth = Growth(network, settings["shares"]) if "shares" in settings else None
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        steps = train_for(seconds, network, make, growth, seed)
        torch.save({"network": network.state_dict(), "steps": steps}, path)
    saved = torch.load(path, weights_only=True)
    network.load_state_dict(saved["network"])
    return network.eval(), saved["steps"]


def train_for(
    seconds: float, network: GrowingUNet, make: Callable[[int], Prepared], growth: Growth | None, seed: int
) -> int:
    """Train for so many CPU seconds, the learning rate along a cosine; returns the number of steps."""
    optimizer, objective = torch.optim.Adam(network.parameters(), lr=1e-3), KnownFieldLoss()
    precision, steps, start = Precision(default_precision()), 0, time.process_time()
    while (progress := (time.process_time() - start) / seconds) < 1:
        if growth is not None:
            network.grow(*growth.at(progress))
        optimizer.param_groups[0]["lr"] = 5e-4 * (1 + np.cos(np.pi * progress))
        image, targets, _, _ = make(1000 * (seed + 1) + steps)
        loss = objective({"ddf": precision.run(network, image)}, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
    network.grow(0) if growth is not None else None
    return steps


@torch.no_grad()
def answer(network: GrowingUNet, image: Tensor) -> Tensor:
    return Precision().run(network, image)


def lungs(data_list: str, output: str, seconds: float = 120.0) -> None:
    """Masks of lungs, softened, as images; for each two people a network trained on the two others' masks alone."""
    listed, folder = json.loads(Path(data_list).read_text()), Path(data_list).parent
    cases = [load_lungs(folder, item, listed["evaluation_spacing"]) for item in listed["pairs"]]
    fields = RandomFields((24, 12, 6), (0.36, 0.24, 0.16), affine={"scaling": 0.15, "shift": 3.0})
    rows = []
    for fold in (0, 2):
        tested, others = cases[fold : fold + 2], cases[:fold] + cases[fold + 2 :]
        sources = torch.cat([torch.cat([case["moving"], case["fixed"]]) for case in others])
        synthesis = SimulatedPairs(fields, ScanLook(), place=fields, inter_subject=False)
        network, _ = kept(Path(output) / f"{fold}.pt", 3, VARIANTS["grown"], _scans(sources, synthesis), seconds, 0)
        for case in tested:
            for name, ddf in (
                ("none", None),
                ("network", answer(network, torch.cat([case["moving"], case["fixed"]], 1))),
            ):
                rows.append([case["subject"], name, *_lung_errors(case, ddf)])
    print(markdown(["case", "", "TRE, mm", "SD", "Dice of the masks", "folds, %"], rows))


def _scans(sources: Tensor, synthesis: SimulatedPairs) -> Callable[[int], Prepared]:
    prepare = SynthesizedBatch(synthesis)

    def make(seed: int) -> Prepared:
        prepare.seed = seed
        two = sources[[seed % len(sources), (seed + 1) % len(sources)]]
        return prepare({"label_moving": two, "label_fixed": two})

    return make


def load_lungs(folder: Path, item: Mapping[str, Any], spacing: Sequence[float]) -> dict[str, Any]:
    """A case's masks as images (1, 1, *LUNG_SIZE), and its landmarks as shares of the grid's extent in mm."""
    case: dict[str, Any] = {"subject": item["subject"]}
    for side in ("moving", "fixed"):
        mask = torch.from_numpy(np.asarray(nib.load(folder / item[f"{side}_mask"]).dataobj))[None, None].float()
        case["last"] = torch.tensor(mask.shape[2:]) - 1
        case[side] = resize_map(torch.nn.functional.avg_pool3d(mask, 3, 1, 1), LUNG_SIZE)
    case["extent"] = case["last"] * torch.tensor(spacing)
    with (folder / item["landmarks"]).open(newline="") as file:
        rows = torch.tensor([[float(value) for value in row[1:]] for row in list(csv.reader(file))[1:]])
    return case | {"points_fixed": rows[None, :, :3] / case["last"], "points_moving": rows[None, :, 3:] / case["last"]}


def _lung_errors(case: Mapping[str, Any], ddf: Tensor | None) -> Iterator[float]:
    field = torch.zeros(1, 3, *LUNG_SIZE) if ddf is None else ddf
    last = torch.tensor(LUNG_SIZE) - 1
    found = transform_points(case["points_fixed"] * last, field) / last
    error = landmark_error_mm(found * case["extent"], case["points_moving"] * case["extent"])
    warped = warp(case["moving"], resize_field(field, LUNG_SIZE))
    dice = mean_dice((warped > 0.5).int(), (case["fixed"] > 0.5).int())
    yield from (float(error.mean()), float(error.std()), float(dice), 100 * float(folding_fraction(field)))


def _labels(data_list: str, section: str, spacing: float, size: Sequence[int]) -> Tensor:
    people = load_people(Path(data_list), section, spacing=spacing, size=size)
    return torch.stack([person["label"].to(torch.int16) for person in people])


def _table(data_list: str) -> Path:
    return Path(data_list).parent / "labels.csv"


if __name__ == "__main__":
    import fire

    torch.set_num_threads(1)
    fire.Fire({"errors": errors, "between": between, "growing": growing, "lungs": lungs})
