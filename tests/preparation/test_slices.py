"""Slices are prepared as heads are: cleaned, brought to the group's average, on one grid."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from support import run


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three people's T1 and T2 slices, an ellipse with two discs, each person elsewhere by some millimetres."""
    folder = tmp_path_factory.mktemp("slices")
    x, y = np.meshgrid(np.arange(64) * 2.0, np.arange(72) * 2.0, indexing="ij")
    for person, (dx, dy) in {"ann": (0, 0), "ben": (8, -6), "cai": (-6, 8)}.items():
        u, v = x - 64 - dx, y - 72 - dy
        inside = (u / 44) ** 2 + (v / 56) ** 2 < 1
        discs = [np.hypot(u - a, v - b) < 10 for a, b in ((-16, 12), (18, -20))]
        for contrast, levels in (("t1", (90, 160, 40)), ("t2", (120, 60, 220))):
            values = np.select([*discs, inside], [levels[1], levels[2], levels[0]], 0) + 3 * np.sin(x / 9) * inside
            image = nib.Nifti1Image(values.astype(np.float32), np.diag([2.0, 2, 2, 1]))
            nib.save(image, folder / f"{person}_{contrast}.nii.gz")
    return folder


def correlations(images: list[np.ndarray]) -> list[float]:
    return [float(np.corrcoef(a.ravel(), b.ravel())[0, 1]) for k, a in enumerate(images) for b in images[:k]]


@pytest.mark.slow
def test_slices_of_a_group_lie_on_one_another_afterwards(slices: Path, tmp_path: Path) -> None:
    words = ["--template", "group", "--template_rounds", "2", "--brain", "False"]
    assert run("prepare", slices, "-o", tmp_path / "out", *words, "--stripped", "False", "--spacing", "2") is None
    for contrast in ("t1", "t2"):
        found = sorted((tmp_path / "out").rglob(f"*_space-*_desc-preproc_{contrast.upper()}w.nii.gz"))
        assert len(found) == 3
        before = correlations([nib.load(slices / f"{p}_{contrast}.nii.gz").get_fdata() for p in ("ann", "ben", "cai")])
        images = [nib.load(path).get_fdata() for path in found]
        assert len({image.shape for image in images}) == 1
        assert min(correlations(images)) > 0.97 > 0.93 > max(before)
