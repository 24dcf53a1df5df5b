"""Train `latent_deformation` for a given number of seconds, all of it on one device.

    python -m benchmarks.latent_training MAPS --table labels.csv --seconds 120 --output DIR [--spatial_dims 2]

MAPS is a file of `device_maps`. In 3-D every second voxel of its maps makes images of 4 mm, in 2-D axial slices at full
resolution make images of 2 mm: pairs are made on the device (`device_synthesis`), T1-like. The loss is the bundle's
own; it compares noise-free images within the brain. DIR receives `<name>.pt`, the weights' running mean as the bundle
loads it, and `<name>.csv`, the curve, every 30 seconds and at the end (on a CPU: less often).
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.device_methods import Method
from benchmarks.device_slices import STEP
from benchmarks.device_step import Recipe, Training, label_table, read_maps
from benchmarks.device_synthesis import POOL, Augmentation, DevicePairs
from benchmarks.device_training import run
from benchmarks.experiments import bundle_config
from custom_components.methods.latent_deformation.inference import LatentPredictor
from custom_components.methods.latent_deformation.objective import LatentLoss

# A pair is aligned affinely before; what is left of that is small. Lengths in voxels of 4 mm, or pixels of 2 mm.
AUGMENTATION = Augmentation(rotation_degrees=3.0, scaling=0.05, shift=1.0)
# (scale, largest standard deviation), for each unit of --elastic.
ELASTIC = ((7, 0.4), (20, 1.2))


class LatentRegistration(nn.Module):
    """The bundle's network and deformation, and its answer, as `device_training` asks for them.

    Args:
        settings: of the bundle's train.json.
    """

    method = Method()

    def __init__(self, spatial_dims: int, precision: str, **settings: Any) -> None:
        super().__init__()
        names = ["train", *["train_2d"] * (spatial_dims == 2)]
        config = bundle_config("latent_deformation", names, device=torch.device("cpu"), **settings)
        self.network: nn.Module = config.get_parsed_content("network_def")
        self.deformation: Any = config.get_parsed_content("deformation")
        self.loss: LatentLoss = config.get_parsed_content("loss")
        size = config.get_parsed_content("size")
        self.predict = LatentPredictor(precision, window=size)
        self.drawn = LatentPredictor(precision, window=size, draw=True)

    def ddf(self, image: Tensor) -> Tensor:
        """The displacement of the mean of z."""
        answer = self.predict(image, self.network, self.deformation)
        return self.deformation(answer.parameters, image.shape[2:])["ddf"]

    def terms(self, image: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The loss of a sample of z, in its parts."""
        answer = self.drawn(image, self.network, self.deformation)
        return self.loss.terms({"svf": answer.parameters, **answer.extra}, batch)


class Pool(DevicePairs):
    """Pairs out of a number of images that are made once: on a CPU making them takes longer than a step.

    Args:
        pairs: makes the images, T1-like.
        count: of images, of so many anatomies.
        noise: largest standard deviation, 0 to 255.
    """

    def __init__(self, pairs: DevicePairs, count: int, noise: float = 16.0) -> None:
        self.__dict__.update(pairs.__dict__)
        made: list[list[Tensor]] = []
        for _ in range(0, count, 2):
            labels = pairs.anatomies(1)
            kind = torch.zeros(2, dtype=torch.long, device=labels.device)
            image = pairs.render(labels, pairs.means(2, kind), torch.full((2,), noise, device=labels.device))
            made.append([image, pairs.clean(labels), pairs.brain(labels)])
        self.images, self.cleans, self.brains = (torch.cat(kept) for kept in zip(*made, strict=True))

    def anatomies(self, pairs: int) -> Tensor:
        """Numbers (2 P,) of images, moving ones first, no image with itself."""
        count, device = len(self.images), self.images.device
        moving = torch.randint(count, (pairs,), device=device)
        return torch.cat([moving, (moving + torch.randint(1, count, (pairs,), device=device)) % count])

    def render(self, labels: Tensor, means: Tensor, noisy: Tensor) -> Tensor:
        return super().render(labels, means, noisy) if labels.ndim > 1 else self.images[labels]

    def clean(self, labels: Tensor) -> Tensor:
        return self.cleans[labels]

    def brain(self, labels: Tensor, margin: int = 2) -> Tensor:
        return self.brains[labels]


class LatentTraining(Training):
    """A training step with the bundle's own loss.

    Args:
        shrink: the loss compares images with so many times fewer voxels along each axis.
    """

    names = ("similarity", "regularization")
    registration: LatentRegistration  # type: ignore[assignment]
    ramp = 0.2  # of the time, over which the divergence gets its weight

    def __init__(self, registration: LatentRegistration, pairs: DevicePairs, recipe: Recipe, shrink: int = 1) -> None:
        super().__init__(registration, pairs, recipe)  # type: ignore[arg-type]
        self.shrink = shrink
        self.full_weight = registration.loss.weight
        # A tensor: a captured step reads it anew.
        self.weight = torch.zeros((), device=self.device)
        registration.loss.weight = self.weight  # type: ignore[assignment]

    @torch.no_grad()
    def spread(self, pairs: int = 16) -> None:
        """Let the means of z begin with mean 0 and deviation 1 over pairs: what pairs have in common says nothing."""
        labels = self.pairs.anatomies(pairs)
        image = self.images(labels, torch.zeros(2 * pairs, dtype=torch.long, device=self.device))
        layer: Any = self.network.statistics
        means = self.registration.predict.statistics(image, self.network).chunk(2, 1)[0]
        deviation, k = means.std(0), means.shape[1]
        layer.weight[:k] /= deviation[:, None]
        layer.bias[:k] = (layer.bias[:k] - means.mean(0)) / deviation
        self.mean = [p.detach().clone() for p in self.network.parameters()]

    def schedule(self, progress: float) -> None:
        super().schedule(progress)
        self.weight.fill_(self.full_weight * min(1.0, progress / self.ramp))

    def terms(self, labels: Tensor, kind: Tensor) -> list[Tensor]:
        with torch.no_grad():
            image = self.images(labels, kind)
            shown = (self.pairs.clean(labels), self.pairs.brain(labels))
            if self.shrink > 1:
                shown = tuple(POOL[values.ndim - 2](values, self.shrink) for values in shown)
            clean, brain = (values.chunk(2) for values in shown)
            # Each pair both ways: making images costs as much as learning from them.
            image = torch.cat([image, image.flip(1)])
            (moving, fixed), (mask_moving, mask_fixed) = (
                (torch.cat(sides), torch.cat(sides[::-1])) for sides in (clean, brain)
            )
        batch = {"moving": moving, "fixed": fixed, "mask_moving": mask_moving, "mask_fixed": mask_fixed}
        return list(self.registration.terms(image, batch).values())


def read_pairs(
    path: Path,
    table: Path,
    spatial_dims: int,
    device: torch.device,
    *,
    strip: float = 0.5,
    same_person: float = 0.5,
    elastic: float = 1.0,
    affine: float = 1.0,
) -> list[DevicePairs]:
    """Pairs of the training people, and of the validation people as they are.

    Args:
        strip: share of the pairs of training people that lose what lies outside the brain.
        same_person: share of their pairs that show one person twice. 16 people alone are learned by heart.
        elastic, affine: strength of the random warps, and of what affine alignment leaves.
    """
    found = []
    for part in ("training", "validation"):
        augmentation = replace(AUGMENTATION, zero_background=1.0) if part == "validation" else AUGMENTATION
        warps = tuple((scale, elastic * largest) for scale, largest in ELASTIC)
        augmentation = replace(augmentation, strip=strip, same_person=same_person, elastic=warps)
        left = {name: affine * getattr(augmentation, name) for name in ("rotation_degrees", "scaling", "shift")}
        augmentation = replace(augmentation, **left)
        (maps, ids), runs = read_maps(path, part, device), (1, 1)
        if spatial_dims == 3:
            maps = maps[:, ::2, ::2, ::2].contiguous()
        else:
            maps, runs = axial_slices(maps)
        found.append(DevicePairs(maps, label_table(table, ids, device), augmentation, runs))
    return found


def axial_slices(maps: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Axial slices (N * K, R, A) of the middle half of maps (N, R, A, S), one person's in a row; one run of K."""
    count = maps.shape[3] // (2 * STEP)
    first = maps.shape[3] // 2 - count // 2 * STEP
    cut = maps[..., first : first + count * STEP : STEP].movedim(3, 1)
    return cut.flatten(0, 1).contiguous(), (1, count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("maps", type=Path)
    parser.add_argument("--table", type=Path, required=True, help="CSV file of the labels' T1-like intensities")
    parser.add_argument("--spatial_dims", type=int, choices=[2, 3], default=3)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--until", type=float, help="Unix time at which to be done, in place of --seconds")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--name", default="model")
    parser.add_argument("--pause", type=float, default=30.0, help="seconds between looks at the validation people")
    parser.add_argument("--latent", type=int, default=32)
    parser.add_argument("--smoothing", type=float, help="default: the bundle's")
    parser.add_argument("--weight", type=float, default=2e-5, help="of the divergence")
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--ema", type=float, default=0.995)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--pool", type=int, default=0, help="make so many images once, and pairs of them")
    parser.add_argument("--shrink", type=int, default=1, help="of the images that the loss compares, with its window")
    parser.add_argument("--strip", type=float, default=0.5, help="share of stripped brains")
    parser.add_argument("--same_person", type=float, default=0.5, help="share of pairs of one person, warped twice")
    parser.add_argument("--elastic", type=float, default=1.0, help="strength of the random warps")
    parser.add_argument("--affine", type=float, default=1.0, help="strength of what affine alignment leaves")
    parser.add_argument("--initial", type=Path)
    parser.add_argument("--no_graph", action="store_true", help="no CUDA graph")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    torch.backends.cudnn.benchmark = True
    device = torch.device(options.device)
    chosen = {name: getattr(options, name) for name in ("strip", "same_person", "elastic", "affine")}
    pairs, held_out = read_pairs(options.maps, options.table, options.spatial_dims, device, **chosen)
    settings: dict[str, Any] = {"latent_size": options.latent}
    settings |= {} if options.smoothing is None else {"velocity_smoothing": options.smoothing}
    settings |= {"divergence_weight": options.weight, "local_correlation": 9 // options.shrink // 2 * 2 + 1}
    registration = LatentRegistration(options.spatial_dims, options.precision, **settings).to(device)
    if options.initial is not None:
        registration.network.load_state_dict(torch.load(options.initial, weights_only=True))
    recipe = Recipe(options.pairs, options.learning_rate, ema=options.ema)
    training = LatentTraining(
        registration, Pool(pairs, options.pool) if options.pool else pairs, recipe, options.shrink
    )
    if options.initial is None:  # a decoder that has learned takes z as it is
        training.spread()
    options.output.mkdir(parents=True, exist_ok=True)
    graph = device.type == "cuda" and not options.no_graph
    time_left = options.seconds if options.until is None else options.until - time.time()
    seconds = run(training, held_out, time_left / 60, options.output, options.name, graph=graph, pause=options.pause)
    memory = torch.cuda.max_memory_reserved() / 2**30 if device.type == "cuda" else math.nan
    print(f"{options.name}: {seconds:.4f} s a step of {recipe.pairs} pairs, {memory:.2f} GiB", flush=True)


if __name__ == "__main__":
    main()
