"""Real images of two contrasts whose right answer is known: what a registration adds to the error, beside ANTs SyN.

    python -m benchmarks.real_contrasts OUT.csv [--data FOLDER] [--cases NAMES] [--install FOLDER] [SETTING=VALUE ...]

FOLDER holds `subject_to_template` and `ct_mr_templates` (default: $MORPHZOO_TEST_DATA). Cases: a T1 to two EPI of the
same person, whose rigid map is known (to about 2 and 4 mm); templates of CT, FLAIR and T1 (nilearn's) in one space,
as they are (the answer is the identity, to about 2 mm) and turned, shifted, scaled and warped by a known map. Starts:
from the right affine, where all motion is spurious, and by the bundle's own alignment. A row gives the errors in the
brain, median and 95th percentile in mm, of the alignment, of the whole, and, with FOLDER (for an environment with
antspyx, which is made at the first time), of SyN with Mattes mutual information from the same alignment. Other
settings are those of `morphzoo register`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from nilearn import datasets
from scipy import ndimage

from benchmarks.peers import PEERS, elsewhere
from custom_components.commands.registrar import Registrar
from custom_components.fields import resize_field
from custom_components.files import write_table
from custom_components.space import (
    load_image,
    read_displacement_field,
    resample,
    transform_points_world,
    write_affine_transform,
    write_image,
)
from custom_components.space.grids import Grid
from custom_components.space.resampling import DisplacementField, Step

_TEMPLATES = {"ct": "ct_head", "ct_brain": "ct_brain", "flair": "flair_head"}


@dataclass(frozen=True)
class Case:
    """Files, and points of the fixed image's brain with where they lie in the moving one, RAS mm."""

    name: str
    moving: Path
    fixed: Path
    points: np.ndarray
    right: np.ndarray
    affine: np.ndarray

    def errors(self, steps: list[Step]) -> tuple[float, float]:
        off = np.linalg.norm(transform_points_world(self.points, steps) - self.right, axis=1)
        return round(float(np.median(off)), 2), round(float(np.percentile(off, 95)), 2)


def epi(data: Path, folder: Path) -> Iterator[Case]:
    source = data / "subject_to_template"
    truths = json.loads((source / "transforms.json").read_text())
    for name in ("fullhead", "retinotopy"):
        fixed = source / f"S1_EPI_{name}.nii.gz"
        truth = np.array(truths[f"S1_EPI_{name}"]["EPI_world_to_T1_world"])
        image = load_image(fixed)
        points = _points(_brain_of_epi(image.data[0].numpy()), image.affine)
        right = points @ truth[:3, :3].T + truth[:3, 3]
        yield Case(f"T1 to EPI {name}", source / "S1_T1.nii.gz", fixed, points, right, truth)


def templates(data: Path, folder: Path) -> Iterator[Case]:
    source = data / "ct_mr_templates"
    grid = load_image(source / "ct_head.nii.gz").grid
    t1 = _on(datasets.load_mni152_template(resolution=1), grid)
    tissue = _on(datasets.load_mni152_gm_template(1), grid) + _on(datasets.load_mni152_wm_template(1), grid)
    write_image(folder / "t1.nii.gz", t1, grid.affine)
    inside = (tissue[0] > 0.5).numpy()
    images = {name: load_image(source / f"{file}.nii.gz").data.float() for name, file in _TEMPLATES.items()}
    within = torch.from_numpy(ndimage.binary_dilation(ndimage.binary_fill_holes(inside), iterations=2))
    images["flair_brain"] = images["flair"] * within
    for name, image in images.items():
        write_image(folder / f"{name}.nii.gz", image, grid.affine)
    points = _points(inside, grid.affine)
    for moving, fixed in (("ct_brain", "t1"), ("flair_brain", "t1"), ("ct", "flair"), ("flair", "ct")):
        files = [folder / f"{name}.nii.gz" for name in (moving, fixed)]
        yield Case(f"{moving} to {fixed}", *files, points, points, np.eye(4))
        steps = _known_map(grid, seed=1)
        moved = folder / f"{moving}_moved.nii.gz"
        write_image(moved, resample(images[moving], grid.affine, grid, steps=steps), grid.affine)
        affine = np.linalg.inv(steps[0])
        right = _solved(steps, points)
        known = np.abs(transform_points_world(right, steps) - points).max(1) < 0.05  # the field ends with its grid
        yield Case(f"{moving} to {fixed}, moved", moved, files[1], points[known], right[known], affine)


def _known_map(grid: Grid, *, seed: int) -> list[Step]:
    """A turn of 8 degrees, a shift of 9 mm, a scale of 1.05, and a smooth warp of about 3 mm."""
    rng = np.random.default_rng(seed)
    matrix, (c, s) = np.eye(4), (np.cos(np.radians(8)), np.sin(np.radians(8)))
    matrix[:2, :2] = 1.05 * np.array([[c, -s], [s, c]])
    matrix[:3, 3] = (5, -6, 4)
    coarse = torch.from_numpy(rng.standard_normal((1, 3, 5, 6, 5))).float()
    field = resize_field(coarse, grid.size)
    field = field * (3.0 / grid.spacing[0] / field.square().sum(1).mean().sqrt())
    return [matrix, DisplacementField(field[0], grid)]


def _solved(steps: list[Step], points: np.ndarray) -> np.ndarray:
    """Where the map takes on the values `points`."""
    found = points.copy()
    for _ in range(20):
        found = found - (transform_points_world(found, steps) - points)
    return found


def _on(image: nib.Nifti1Image, grid: Grid) -> torch.Tensor:
    data = torch.from_numpy(image.get_fdata(dtype=np.float32))[None]
    return resample(data, image.affine, grid, antialias=True)


def _points(inside: np.ndarray, affine: np.ndarray) -> np.ndarray:
    voxels = np.argwhere(inside)
    return voxels[:: max(1, len(voxels) // 5000)] @ affine[:3, :3].T + affine[:3, 3]


def _brain_of_epi(image: np.ndarray) -> np.ndarray:
    """The largest part that is bright, without thin bridges."""
    bright = ndimage.binary_erosion(image > 0.3 * np.percentile(image, 99), iterations=2)
    parts, _ = ndimage.label(bright)
    return parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])


def syn(environments: Path, case: Case, affine: np.ndarray) -> list[Step]:
    with tempfile.TemporaryDirectory() as folder:
        write_affine_transform(Path(folder) / "affine.tfm", affine)
        job = {"moving": str(case.moving), "label_moving": str(case.moving), "fixed": str(case.fixed)}
        job |= {"affine": f"{folder}/affine.tfm", "folder": folder}
        elsewhere(environments, {**job, "dimension": 3, **asdict(PEERS["SyN"])})
        return [read_displacement_field(Path(folder) / "field.nii.gz"), affine]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("settings", nargs="*", help="NAME=VALUE")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("MORPHZOO_TEST_DATA", "")))
    parser.add_argument("--cases", default="", help="parts of their names, separated by commas; default: all")
    parser.add_argument("--starts", default="truth,own")
    parser.add_argument("--install", type=Path, help="folder of the peers' environments; SyN is left out without it")
    args = parser.parse_intermixed_args()
    settings: dict[str, object] = dict(setting.split("=", 1) for setting in args.settings)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for case in itertools.chain(epi(args.data, folder), templates(args.data, folder)):
            if args.cases and not any(part in case.name for part in args.cases.split(",")):
                continue
            for start in args.starts.split(","):
                own = settings
                if start == "truth":
                    write_affine_transform(folder / "truth.tfm", case.affine)
                    own = settings | {"affine": str(folder / "truth.tfm")}
                result = Registrar(**own)(str(case.moving), str(case.fixed))
                steps = list(result.transform.steps)
                matrix = next((step for step in steps if isinstance(step, np.ndarray)), np.eye(4))
                row = {"case": case.name, "start": start, "before": case.errors([])}
                row |= {"aligned": case.errors([matrix]), "after": case.errors(steps)}
                row["seconds"] = result.metrics["seconds"]
                if args.install:
                    row["SyN"] = case.errors(syn(args.install, case, matrix))
                row["warnings"] = " | ".join(result.metrics.get("warnings", []))
                rows.append(row)
                print(row, flush=True)
                write_table(args.out, rows)


if __name__ == "__main__":
    main()
