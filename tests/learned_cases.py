"""How much each shipped file of weights has learned: a number that is about 0 for a network that has learned nothing.

The images are the MNI152 template of nilearn's wheel, deformed twice at random and rendered, on small grids. Every
measure takes a factor of the network's output: 0 stands for a zeroed last layer, -1 for answers in the wrong direction.
"""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from monai.bundle import ConfigParser
from torch import Tensor, nn

from custom_components.affine import affine_to_ddf, centred_to_voxel, compose_affine, invert_affine, rotation_matrix
from custom_components.commands.subjects import load_template, render
from custom_components.data.angiography import angiogram
from custom_components.data.lists import load_list
from custom_components.data.phantoms import random_velocity
from custom_components.evaluation.metrics import normalized_cross_correlation
from custom_components.fields import integrate_velocity, warp
from custom_components.methods.subtraction.correction import correct
from custom_components.methods.subtraction.measures import true_metrics
from custom_components.transforms.load import LoadPaird
from custom_components.weights import load_weights
from data_lists.prostate import build

Measure = Callable[[Path, Path, float], float]


def registers(bundle: Path, weights: Path, factor: float = 1.0) -> float:
    """The share of the distance of the images' correlation from 1 that the network alone closes."""
    parser = configuration(bundle, weights)
    network = loaded(parser, "network", weights, factor)
    return closed(parser, network)


def registers_in_stages(bundle: Path, weights: Path, factor: float = 1.0) -> float:
    """As `registers`, the factor being of each stage's last layer: no affine map is 0 times another one."""
    parser = configuration(bundle, weights)
    network = loaded(parser, "network", weights)
    for layer in (network.affine.parts, *[spline.points for spline in network.splines]):
        scale_output(layer, factor)
    return closed(parser, network)


def registers_by_few_numbers(bundle: Path, weights: Path, factor: float = 1.0) -> float:
    """As `registers`, mean of three pairs at 4 mm; the factor is of the velocity alone, not of z, too."""
    parser, shares = configuration(bundle, weights), []
    network = loaded(parser, "network", weights)
    scale_output(network.flow, factor)
    for seed in (1, 2, 3):
        pair = brain_pair((40, 56, 48), 4, amplitude=2.0, seed=seed)
        with torch.no_grad():
            shares.append(share_closed(pair, parser.get_parsed_content("inferer")(pair, network)["ddf"]))
    return sum(shares) / len(shares)


def corrects(bundle: Path, weights: Path, factor: float = 1.0) -> float:
    """What a correction network adds to what its prediction network closes."""
    results = []
    for correction in ("none", str(weights)):
        parser = configuration(bundle, bundle / "models" / "model.pt", correction=correction)
        network = loaded(parser, "network", bundle / "models" / "model.pt")
        if correction != "none":
            scale_output(parser.get_parsed_content("predict").correction, factor)
        results.append(closed(parser, network))
    return results[1] - results[0]


def aligns(bundle: Path, weights: Path, factor: float = 1.0) -> float:
    """The share of the error, mean of eight known affine maps, that an affine network takes away."""
    parser = configuration(bundle, weights)
    size, generator = parser["affine_size"], torch.Generator().manual_seed(0)
    network = loaded(parser, "affine_network", weights)
    scale_output(network.network.detector, factor)
    d, moving = len(size), brain(size, int(parser["affine_spacing"])).expand(8, -1, *[-1] * len(size))
    linear = torch.eye(d) + 0.12 * torch.randn(8, d, d, generator=generator)
    true = torch.cat([linear, 0.1 * torch.randn(8, d, 1, generator=generator)], 2)
    truth = affine_to_ddf(centred_to_voxel(true, size), size)
    fixed = 0.8 * warp(moving, truth)
    with torch.no_grad():
        found = affine_to_ddf(centred_to_voxel(network(torch.cat([moving, fixed], 1)), size), size)
    before, after = ((u * (fixed > 0.1)).norm(dim=1).flatten(1).mean(1) for u in (truth, found - truth))
    return float(1 - (after / before).mean())


def walks_home(bundle: Path, weights: Path, factor: float = 1.0) -> float:
    """The share of the way to four known rigid maps that an agent goes, in the mean."""
    parser = configuration(bundle, weights)
    network, walk = loaded(parser, "network", weights, factor), parser.get_parsed_content("walk")
    d, spacing = parser["spatial_dims"], int(parser["spacing"])
    moving, generator = brain((48, 56, 48)[:d] if d == 3 else (96, 112), spacing), torch.Generator().manual_seed(0)
    shares = []
    for _ in range(4):
        turn = 0.3 * (2 * torch.rand(1, 3 if d == 3 else 1, generator=generator) - 1)
        shift = 12 / spacing * (2 * torch.rand(1, d, 1, generator=generator) - 1)
        true = torch.cat([rotation_matrix(turn), shift], 2)
        unit = (max(moving.shape[2:]) - 1) / 2
        matrix = centred_to_voxel(torch.cat([true[:, :, :d], true[:, :, d:] / unit], 2), moving.shape[2:])
        fixed = 0.8 * warp(moving, affine_to_ddf(matrix, moving.shape[2:]))
        way = walk.one(torch.cat([moving, fixed], 1), network)
        start, end = (walk.moves.distance(compose_affine(invert_affine(one[None]), true)) for one in (way[0], way[-1]))
        shares.append(float(1 - end / start))
    return sum(shares) / len(shares)


def learns_a_metric(bundle: Path, weights: Path, factor: float = 1.0) -> float:
    """By what share a few iterations in the network's metric bring the objective lower than an untrained network's."""
    torch.manual_seed(0)
    parser = configuration(bundle, weights, iterations=[5, 5, 0])
    pairs, losses = torch.cat([brain_pair((32, 40, 32), 2, amplitude=6.0, seed=seed) for seed in (2, 3)]), []
    for prepare in (
        lambda: parser.get_parsed_content("network").eval(),
        lambda: loaded(parser, "network", weights, factor),
    ):
        with torch.no_grad():
            pred = parser.get_parsed_content("inferer")(pairs, prepare())
            moving, fixed = pairs.chunk(2, 1)
            losses.append(float(parser.get_parsed_content("loss")(pred, {"moving": moving, "fixed": fixed})))
    return 1 - losses[1] / losses[0]


def makes_templates(bundle: Path, weights: Path, factor: float = 1.0) -> float:
    """The smaller of: what the registration closes between a template and a deformed one; by what share the template's
    ventricles grow with the attribute that says how large they are."""
    parser = configuration(bundle, weights)
    network = loaded(parser, "network", weights)
    scale_output(network.registration, factor)
    encoder, template = network.template.encoder, network.template
    with torch.no_grad():
        images, logits = template.render(torch.stack([encoder.lowest, encoder.highest]))
        small, large = ((template.most_likely(one[None]) == template.label_ids[1]).sum() for one in logits)
        image = middle(images[:1], (48, 64, 48))
        pair = torch.cat([image, deformed(image, 5.0, torch.Generator().manual_seed(1))], 1)
        pred = parser.get_parsed_content("registration")(pair, network.registration)
    return min(share_closed(pair, pred["ddf"]), float(large) / max(float(small), 1.0) - 1)


def finds_tissue(bundle: Path, weights: Path, factor: float = 1.0) -> float:
    """Mean Dice of cortex and white matter with the template's own maps."""
    network = loaded(configuration(bundle, weights), "network", weights, factor)
    template, tissue, _ = load_template()
    with torch.no_grad():
        classes = network(F.avg_pool3d(template / template.max(), 2, ceil_mode=True)).argmax(1)
    truth = F.avg_pool3d(tissue, 2, ceil_mode=True)[0] > 0.5
    found = [torch.isin(classes, torch.tensor(ids)) for ids in ([2, 6], [1, 5])]
    return float(sum((a & b).sum() / (a.sum() + b.sum()) for a, b in zip(found, truth, strict=True)))


def tells_errors(bundle: Path, weights: Path, factor: float = 1.0) -> float:
    """How much more a network estimates for a shift by 6 mm than for none, in the brain, in units of 6 mm."""
    network, means = loaded(configuration(bundle, weights), "network", weights, factor), []
    image = brain((48, 64, 48), 2)
    fixed, moving = (render(image, torch.Generator().manual_seed(seed)) for seed in (1, 2))
    for shift in (0, 3):
        seen = torch.cat(
            [fixed / fixed.max(), moving.roll(shift, 3) / moving.max(), torch.zeros(1, 3, *image.shape[2:])], 1
        )
        with torch.no_grad():
            means.append(float(network(seen)[image > 0.3].mean()))
    return (means[1] - means[0]) / 6


def frees_of_motion(bundle: Path, weights: Path, factor: float = 1.0) -> float:
    """The share of the background beyond the noise of an angiogram that the network alone takes away."""
    network, series = loaded(configuration(bundle, weights), "network", weights, factor), angiogram((128, 128), 8, 3)
    logs = series.counts.clamp(min=1).log()
    found = true_metrics(correct(logs, network=network, iterations=[]), series.vessels, series.noise, series.ddf)
    return (found["residual_before"] - found["residual_after"]) / (found["residual_before"] - 1)


def brings_glands_together(bundle: Path, weights: Path, factor: float = 1.0) -> float:
    """The share of the distance of the glands' mean Dice from 1, over the test people, that the network closes."""
    source = Path(os.environ.get("MORPHZOO_TEST_DATA", "absent")) / "prostate_mrus" / "datalist.json"
    if not source.is_file():
        pytest.skip("needs a folder with test data, named by MORPHZOO_TEST_DATA")
    parser = configuration(bundle, weights)
    network, dice = loaded(parser, "network", weights, factor), torch.zeros(2)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for item in load_list(build(str(source), folder), "test"):
            pair = LoadPaird(spacing=parser["spacing"])(item)
            moving, fixed = (pair[f"label_{side}"][None].float() for side in ("moving", "fixed"))
            ddf = parser.get_parsed_content("inferer")(pair["image"][None], network)["ddf"]
            for i, one in enumerate((moving, warp(moving, ddf))):
                dice[i] += float(2 * (one * fixed).sum() / (one + fixed).sum()) / 4
    return float((dice[1] - dice[0]) / (1 - dice[0]))


def measure_of(weights: Path) -> tuple[Measure, float]:
    """How a file is measured, and the least that it must reach, far below what was found on the day of writing."""
    if weights.stem.startswith("affine"):
        return aligns, 0.55
    if weights.stem.startswith("correction"):
        return corrects, 0.03
    if not weights.stem.startswith("model"):
        raise ValueError(f"{weights}: say here how to measure what it has learned")
    special = {"metric_learning": (learns_a_metric, 0.05), "conditional_atlas": (makes_templates, 0.3)}
    special["brain_extraction"] = (finds_tissue, 0.4)
    special["weakly_supervised"] = (brings_glands_together, 0.05)
    special["error_estimation"] = (tells_errors, 0.2)
    special["subtraction"] = (frees_of_motion, 0.3)
    special["dlir"] = (registers_in_stages, 0.3)
    special["latent_deformation"] = (registers_by_few_numbers, 0.2)
    special["rigid_agent"] = (walks_home, 0.2)
    return special.get(weights.parents[1].name, (registers, 0.3))


def configuration(bundle: Path, weights: Path, **settings: object) -> ConfigParser:
    """The bundle's inference.json with the overlays that name the file, for the network alone, on the CPU."""
    overlays = sorted(bundle.glob("configs/inference_*.json"))
    overlays = [path for path in overlays if f"/models/{weights.name}'" in path.read_text()]
    parser = ConfigParser()
    parser.read_config([str(bundle / "configs" / "inference.json"), *map(str, overlays)])
    alone = {"optimize": 0, "average": [], "correction": "none", "refinement#progress": False}
    settings = {"bundle_root": str(bundle), "device": torch.device("cpu"), **alone, **settings}
    parser.update({name: value for name, value in settings.items() if name.split("#")[0] in parser.config})
    return parser


def loaded(parser: ConfigParser, name: str, weights: Path, factor: float = 1.0) -> nn.Module:
    network = parser.get_parsed_content(name).eval()
    load_weights(network, weights, name)
    scale_output(network, factor)
    return network


def scale_output(module: nn.Module, factor: float) -> None:
    if factor != 1:
        module.register_forward_hook(lambda _, inputs, output: factor * output)


def closed(parser: ConfigParser, network: nn.Module) -> float:
    d = parser["spatial_dims"]
    pair = brain_pair((48, 64, 48), 2, amplitude=5.0) if d == 3 else brain_pair((160, 192), 1, amplitude=6.0)
    with torch.no_grad():
        return share_closed(pair, parser.get_parsed_content("inferer")(pair, network)["ddf"])


def share_closed(pair: Tensor, ddf: Tensor) -> float:
    moving, fixed = pair.chunk(2, 1)
    before, after = (float(normalized_cross_correlation(image, fixed)) for image in (moving, warp(moving, ddf)))
    return (after - before) / (1 - before)


def brain_pair(size: Sequence[int], spacing: int, *, amplitude: float, seed: int = 1) -> Tensor:
    """Two people (1, 2, *size): the template, deformed by up to `amplitude` voxels (before integration), rendered."""
    generator = torch.Generator().manual_seed(seed)
    people = [render(deformed(brain(size, spacing), amplitude, generator), generator) for _ in range(2)]
    return torch.cat([person / person.max() for person in people], 1)


def deformed(image: Tensor, amplitude: float, generator: torch.Generator) -> Tensor:
    velocity = random_velocity(image.shape[2:], amplitude=amplitude, spacings=(8.0, 16.0), generator=generator)
    return warp(image, integrate_velocity(velocity))


def brain(size: Sequence[int], spacing: int) -> Tensor:
    """The template (1, 1, *size) in [0, 1], or its middle slice, at a spacing in mm."""
    image, pool = mni152(), F.avg_pool3d
    if len(size) == 2:
        image, pool = image[..., image.shape[-1] // 2], F.avg_pool2d
    image = pool(image, spacing, ceil_mode=True)
    return middle(image, size) / image.max()


@functools.cache
def mni152() -> Tensor:
    return load_template()[0]


def middle(image: Tensor, size: Sequence[int]) -> Tensor:
    """An image cut or filled with zeros about its middle."""
    margins = [((m - n) // 2, m - n - (m - n) // 2) for n, m in zip(image.shape[2:], size, strict=True)]
    return F.pad(image, [margin for both in reversed(margins) for margin in both])
