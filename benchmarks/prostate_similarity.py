"""A learned similarity of MR and ultrasound of the prostate: train the network of volumes on pairs that glands align.

    python -m data_lists.prostate PROSTATE/datalist.json -o PAIRS
    python -m benchmarks.prostate_similarity PAIRS --seconds 300 --output DIR          # trains, then measures
    python -m benchmarks.prostate_similarity PAIRS --weights DIR/prostate.pt --output DIR

The right place of a pair is the shift that lays the middle of the gland on that of the other one; how far landmarks
then lie apart tells how well it is known. The network learns from the training people, at 2 mm, in the ultrasound
image's field of view, moved by rigid offsets of known size. The measure is that of `benchmarks.learned_similarity`:
from starts of known TRE, over a ball of 25 mm, on the people of the validation and test sections, by a search over
shifts, and one over rigid maps. A start is captured if it ends below 5 mm. DIR receives
`prostate.pt`, its curve `prostate.csv`, `measured_shifts.csv` and `measured_rigid.csv`.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from benchmarks.device_similarity import Learner, volumes_figures, volumes_loss
from benchmarks.device_training import Curve, working_seconds
from benchmarks.learned_similarity import Measure, Trial, classical, measured
from custom_components.affine import rotation_matrix
from custom_components.fields import identity_grid, sample
from custom_components.inference.rigid_search import Poses
from custom_components.methods.learned_similarity.network import AlignmentNetwork
from custom_components.methods.learned_similarity.similarity import LearnedSimilarity
from custom_components.space.affine_levels import Scan
from custom_components.space.grids import Grid, fixed_size_grid
from custom_components.space.resampling import resample

SPACING, SIZE = 2.0, (46, 34, 32)  # of the network's images: inside the ultrasound image
RADIUS_MM, LARGEST_MM = 25.0, 25.0  # of the ball, and of the TRE in training
TURN_DEGREES = 20.0  # largest turn of an offset, and of the pose of both
TRIAL = Trial(starts_mm=(5.0, 10.0, 15.0, 20.0), radius_mm=RADIUS_MM, captured_mm=5.0)
BATCH = 8


@dataclass(frozen=True)
class Prostates:
    """Pairs in a common world.

    Attributes:
        images: of moving and of fixed, (N, 1, *S), in [0, 1].
        affines: of both grids.
        truths: maps of the world, fixed to moving, (N, 4, 4), float64.
        landmarks_mm: how far each landmark lies from its place with the headers, and with the maps.
    """

    images: tuple[Tensor, Tensor]
    affines: tuple[np.ndarray, np.ndarray]
    truths: Tensor
    landmarks_mm: Tensor

    @classmethod
    def read(cls, folder: Path, sections: Sequence[str]) -> Prostates:
        """Those of sections of a data set of `data_lists.prostate`."""
        lists = json.loads((folder / "datalist.json").read_text())
        images, truths, apart = ([], []), [], []
        for item in [item for section in sections for item in lists[section]]:
            labels = []
            for side, kept in zip(("moving", "fixed"), images, strict=True):
                scan = nib.load(folder / item[side])
                values = torch.from_numpy(np.asarray(scan.dataobj, dtype=np.float32))[None]
                low, high = np.percentile(values.numpy(), [0.5, 99.5])
                kept.append(((values - low) / (high - low)).clamp(0, 1))
                map_ = nib.load(folder / "labels" / f"{item['id']}_{side}.nii.gz")
                labels.append((torch.from_numpy(np.asarray(map_.dataobj))[None], map_.affine))
            truths.append(laid_on(*labels))
            for number in (1, 2):
                there, here = (place(values // 2 == number, affine) for values, affine in labels)
                if there is not None and here is not None:
                    apart.append([np.linalg.norm((m @ here - there)[:3]) for m in (np.eye(4), truths[-1])])
        stacked = tuple(torch.stack(kept) for kept in images)
        affines = tuple(affine for _, affine in labels)
        return cls(stacked, affines, torch.from_numpy(np.stack(truths)), torch.tensor(np.array(apart)))  # type: ignore[arg-type]

    def scans(self) -> list[tuple[Scan, Scan, np.ndarray]]:
        """Of each person the moving and the fixed image, on grids of the network's spacing, and the true map."""
        found = []
        for moving, fixed, truth in zip(*self.images, self.truths, strict=True):
            pair = []
            for image, affine, size in ((moving, self.affines[0], (48, 48, 46)), (fixed, self.affines[1], SIZE)):
                grid = fixed_size_grid(SPACING, size)
                values = resample(image, affine, grid, antialias=True)
                pair.append(Scan(values, torch.ones_like(values), grid))
            found.append((*pair, truth.numpy()))
        return found


def place(where: Tensor, affine: np.ndarray) -> np.ndarray | None:
    """The middle of a structure in the world, (4,), or None if it is empty."""
    voxels = where[0].nonzero().double()
    return affine @ np.append(voxels.mean(0).numpy(), 1) if len(voxels) else None


def laid_on(moving: tuple[Tensor, np.ndarray], fixed: tuple[Tensor, np.ndarray]) -> np.ndarray:
    """The shift of the world, fixed to moving, that lays the middle of a gland (odd labels) on that of the other."""
    there, here = (place(labels % 2 == 1, affine) for labels, affine in (moving, fixed))
    if there is None or here is None:
        raise ValueError("expected a gland in both label maps, got none")
    found = np.eye(4)
    found[:3, 3] = (there - here)[:3]
    return found


class Shifts(Poses):
    """Poses that do not turn."""

    def matrices(self, poses: Tensor) -> Tensor:
        return super().matrices(torch.cat([torch.zeros_like(poses[:, : self.turns]), poses[:, self.turns :]], 1))


def offsets(count: int) -> Tensor:
    """Rigid offsets (B, 3, 4) about the grid's centre, mm: uniform in TRE, by turns up to 20 degrees and shifts."""
    tre, share = LARGEST_MM * torch.rand(count), torch.rand(count)
    # `affine.ball_displacement` of a turn: TRE^2 = 8 sin(angle / 2)^2 r^2 / 5.
    most = math.sqrt(8 / 5) * RADIUS_MM * math.sin(math.radians(TURN_DEGREES) / 2)
    turned = (tre * share.sqrt()).clamp(max=most)
    angle = 2 * (turned / (math.sqrt(8 / 5) * RADIUS_MM)).arcsin()
    shift = direction(count) * (tre.square() - turned.square()).clamp(min=0).sqrt()[:, None]
    return torch.cat([rotation_matrix(direction(count) * angle[:, None]), shift[:, :, None]], 2)


def direction(count: int) -> Tensor:
    way = torch.randn(count, 3)
    return way / way.norm(dim=1, keepdim=True)


class Pairs:
    """Batches of pairs and of how far their points lie from their places.

    Of both images the same random pose is shown: turned, moved, scaled, and mirrored left to right; intensities differ
    by gamma, scale and noise.
    """

    def __init__(self, people: Prostates) -> None:
        self.people = people
        grid = fixed_size_grid(SPACING, SIZE)
        self.world = points_of(grid)

    def __call__(self, count: int, varied: bool = True) -> tuple[Tensor, Tensor]:
        """Images (B, 2, *S), moving then fixed, and the distance of each voxel from its place (B, 1, *S), mm."""
        people = self.people
        which = torch.randint(len(people.truths), (count,))
        rigid, pose = offsets(count), poses(count) if varied else identity(count)
        there = rigid[:, :, :3] @ self.world + rigid[:, :, 3:]
        distance = (there - self.world).norm(dim=1).view(count, 1, *SIZE)
        here, there = (pose[:, :, :3] @ points + pose[:, :, 3:] for points in (self.world.expand_as(there), there))
        truth = people.truths[which].float()
        there = truth[:, :3, :3] @ there + truth[:, :3, 3:]
        shown = []
        for image, affine, points in zip(people.images, people.affines, (there, here), strict=True):
            back = torch.from_numpy(np.linalg.inv(affine)).float()
            voxels = (back[:3, :3] @ points + back[:3, 3:]).view(count, 3, *SIZE)
            shown.append(sample(image[which], voxels))
        images = torch.cat(shown, 1)
        return (looks(images) if varied else images), distance


def points_of(grid: Grid) -> Tensor:
    """The world points (3, N) of a grid's voxels."""
    affine = torch.from_numpy(grid.affine).float()
    return affine[:3, :3] @ identity_grid(grid.size).flatten(1) + affine[:3, 3:]


def identity(count: int) -> Tensor:
    return torch.eye(3, 4).expand(count, -1, -1)


def poses(count: int) -> Tensor:
    turn = math.radians(TURN_DEGREES) * (2 * torch.rand(count, 3) - 1)
    mirror = torch.ones(count, 3, 1)
    mirror[:, 0] = torch.where(torch.rand(count, 1) < 0.5, -1.0, 1.0)
    linear = rotation_matrix(turn) * mirror * (1 + 0.15 * (2 * torch.rand(count, 3, 1) - 1))
    return torch.cat([linear, 10 * (2 * torch.rand(count, 3, 1) - 1)], 2)


def looks(images: Tensor) -> Tensor:
    """Of another gamma and brightness, with noise."""
    shape = (*images.shape[:2], 1, 1, 1)
    images = images.clamp(min=1e-4) ** torch.exp(0.25 * torch.randn(shape)) * (1 + 0.1 * torch.randn(shape))
    return (images + 0.04 * torch.rand(shape) * torch.randn_like(images)).clamp(0, 1)


def network() -> AlignmentNetwork:
    """That of volumes with fewer features: 99,249 parameters."""
    return AlignmentNetwork(3, (16, 32), (1, 2), context=2)


def train(folder: Path, seconds: float, output: Path) -> Path:
    """Train for some seconds; the path of the weights."""
    training, held_out = (Pairs(Prostates.read(folder, [name])) for name in ("training", "validation"))
    learner = Learner("prostate", network(), lambda n, i, d: volumes_loss(n, i, d, 1.0))
    curve, begin, steps, shown = Curve(output / "prostate.csv"), working_seconds(torch.device("cpu")), 0, 0.0
    while (progress := (working_seconds(torch.device("cpu")) - begin) / seconds) < 1:
        learner.step(*training(BATCH), progress)
        steps += 1
        if progress >= shown:
            shown += 0.1
            curve.add({"seconds": progress * seconds, "steps": steps, **figures(learner, training, held_out)})
            learner.write(output)
    learner.write(output)
    return output / "prostate.pt"


def figures(learner: Learner, *pairs: Pairs) -> dict[str, float]:
    """How estimated distances follow the true ones on training and validation people."""
    found, network = {}, learner.mean.module.eval()
    with torch.random.fork_rng([]), torch.no_grad():
        torch.manual_seed(0)
        for name, one in zip(("training", "validation"), pairs, strict=True):
            values = volumes_figures(network, [one(BATCH, varied=False) for _ in range(4)])
            found |= {f"{name}_{key}": value for key, value in values.items()}
    total, steps = learner.sum.tolist()
    learner.sum.zero_()
    return {"loss": total / max(steps, 1), **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--seconds", type=float, default=300.0, help="of training, CPU time")
    parser.add_argument("--weights", type=Path, help="measure these and train none")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--each", type=int, default=2, help="starts of each TRE and person")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    options.output.mkdir(parents=True, exist_ok=True)
    weights = options.weights or train(options.pairs, options.seconds, options.output)
    people = Prostates.read(options.pairs, ["validation", "test"])
    print(f"landmarks apart, headers and glands, median mm: {people.landmarks_mm.median(0).values.tolist()}")
    volumes = Measure.of(LearnedSimilarity("volumes", weights=weights, network=network()))
    measures = {"volumes of prostates": volumes, **classical()}
    for name, kind in (("shifts", Shifts), ("rigid", Poses)):
        trial = replace(TRIAL, each=options.each, poses=kind)
        measured(measures, {f"mr to us, {name}": people.scans()}, options.output / f"measured_{name}.csv", trial)


if __name__ == "__main__":
    main()
