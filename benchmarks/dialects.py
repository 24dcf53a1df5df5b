"""Do other tools read the transforms that we write as we mean them? One table, by dialect and tool.

    python -m benchmarks.dialects OUT [--others PYTHON]

Writes an affine transform and a dense one in every dialect for pairs of images in six orientations, and asks ITK, ANTs
(antspyx), nitransforms, surfa (FreeSurfer's Python package) and fslpy (FSL's) where they take voxels of the fixed
image. PYTHON is that of an environment with these five; without it, OUT receives one. The table has the largest
distance in voxels of the finer image. X5 files need nitransforms here, too: pip install 'morphzoo[x5]'.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from benchmarks import dialects_others
from benchmarks.experiments import markdown
from custom_components.fields import identity_grid
from custom_components.space import DisplacementField, Frames, Grid, Step, transform_points_world, write_transform
from custom_components.space.resampling import dense_field

TOOLS = ("ITK", "ANTs", "nitransforms", "surfa", "fslpy")
PACKAGES = ("itk", "antspyx", "pandas", "nitransforms", "surfa", "fslpy")
TURN = nib.eulerangles.euler2mat(x=0.2, y=-0.1, z=0.3)
# Voxel axes in columns, mm.
ORIENTATIONS = {
    "RAS": np.diag([2.0, 2, 2]),
    "LPS": np.diag([-2.0, -2, 2]),
    "LIA": np.array([[-2.0, 0, 0], [0, 0, 2], [0, -2, 0]]),
    "oblique": 2.0 * TURN,
    "anisotropic": np.diag([1.0, 1.5, 4]),
    "oblique anisotropic LIA": TURN @ np.array([[-1.0, 0, 0], [0, 0, 3], [0, -1.5, 0]]),
}
MATRIX_FILES = {"itk": "itk.tfm", "fsl": "fsl.mat", "freesurfer": "freesurfer.lta", "afni": "afni.aff12.1D"}
WHOLE_FILES = {"itk": ("itk.h5", "itk.nii.gz"), "fsl": ("fsl.nii.gz",), "freesurfer": ("freesurfer.mgz",)}


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="receives the images and the transforms")
    parser.add_argument("--others", help="Python of an environment with the tools")
    options = parser.parse_args(words)
    python = options.others or make_environment(options.folder / "tools")
    print(table(compare(options.folder, python)))


def make_environment(folder: Path) -> str:
    """The Python of a new environment that has the tools."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    return str(python)


def compare(folder: Path, python: str) -> list[dict[str, Any]]:
    """Rows of orientation, kind of file, tool and the largest distance in voxels, or why there is none."""
    pairs = [(name, name) for name in ORIENTATIONS] + [("LIA", "oblique"), ("oblique anisotropic LIA", "RAS")]
    cases, truths = zip(*(make_case(folder, *pair) for pair in pairs), strict=True)
    program = dialects_others.__file__
    done = subprocess.run([python, program], input=json.dumps(cases), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{program}: {done.stderr.strip()[-500:]}")
    rows = []
    for pair, truth, answers in zip(pairs, truths, json.loads(done.stdout), strict=True):
        for answer in answers:
            row = {"pair": " to ".join(pair), "kind": answer["kind"], "tool": answer["tool"]}
            if "points" in answer:
                expected = truth["matrix" if answer["kind"] in MATRIX_FILES.values() else "whole"]
                mm = np.linalg.norm(np.array(answer["points"]) - expected, axis=1).max()
                row |= {"voxels": float(mm / truth["voxel_mm"])}
            rows.append(row | ({"error": answer["error"]} if "error" in answer else {}))
    return rows


def make_case(folder: Path, fixed: str, moving: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The files of a case, and where its voxels belong."""
    place = folder / f"{fixed}_{moving}".replace(" ", "_")
    place.mkdir(parents=True, exist_ok=True)
    images, grids = {}, {}
    for role, name, size, at in (("fixed", fixed, (20, 24, 18), 0), ("moving", moving, (22, 19, 25), 1)):
        affine = nib.affines.from_matvec(ORIENTATIONS[name])
        affine[:3, 3] = np.array([5.0, -8, 12]) + at - affine[:3, :3] @ (np.array(size) - 1) / 2
        image = nib.Nifti1Image(np.random.default_rng(0).random(size).astype("f4"), affine)
        image.set_qform(affine, 1)
        image.set_sform(affine, 1)
        images[role], grids[role] = str(place / f"{role}.nii.gz"), Grid(affine, size)
        nib.save(image, images[role])
    matrix = nib.affines.from_matvec(nib.eulerangles.euler2mat(x=0.1, y=0.05, z=-0.15) * 1.05, [4.0, 2, -1])
    whole: list[Step] = [smooth_field(grids["fixed"]), matrix]
    frames = Frames.of_files(images["fixed"], images["moving"])
    files: dict[str, str | list[str]] = {}
    for dialect, name in MATRIX_FILES.items():
        write_transform(place / name, [matrix], frames, dialect=dialect)
        files[name] = str(place / name)
    for dialect, names in WHOLE_FILES.items():
        for name in names:
            write_transform(place / name, whole, frames, dialect=dialect)
            files[name] = str(place / name)
    write_transform(place / "ants_", whole, frames, dialect="ants")
    files["ants"] = [str(place / "ants_1Warp.nii.gz"), str(place / "ants_0GenericAffine.mat")]
    if importlib.util.find_spec("nitransforms"):
        write_transform(place / "x5.x5", whole, frames)
        files["x5.x5"] = str(place / "x5.x5")
    # Tools interpolate fields in different ways; on voxels of the fixed image they need not.
    voxels = identity_grid(grids["fixed"].size, dtype=torch.int64).flatten(1).T.numpy()[::31]
    points = nib.affines.apply_affine(grids["fixed"].affine, voxels)
    np.save(place / "voxels.npy", voxels)
    np.save(place / "points.npy", points)
    case = {**images, "files": files, "points": str(place / "points.npy"), "voxels": str(place / "voxels.npy")}
    expected = {"matrix": nib.affines.apply_affine(matrix, points), "whole": transform_points_world(points, whole)}
    return case, {**expected, "voxel_mm": min(*grids["fixed"].spacing, *grids["moving"].spacing)}


def smooth_field(grid: Grid) -> DisplacementField:
    """A smooth field of up to some millimetres on a grid."""
    voxels = identity_grid(grid.size)
    coarse = DisplacementField(torch.stack([0.8 * torch.sin(voxels[(i + 1) % 3] / 4 + i) for i in range(3)]), grid)
    return dense_field([coarse], grid)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The largest distance over all pairs, by kind of file and tool."""
    lines = []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        line = [kind]
        for tool in TOOLS:
            found = [row for row in rows if row["kind"] == kind and row["tool"] == tool]
            failed = [row["error"] for row in found if "error" in row]
            line.append(f"{max(row['voxels'] for row in found):.0e}" if found and not failed else "")
            if failed:
                line[-1] = f"fails ({len(failed)} of {len(found)})"
                print(kind, tool, failed[0], file=sys.stderr)
        lines.append(line)
    return markdown(["file", *TOOLS], lines)


if __name__ == "__main__":
    main()
