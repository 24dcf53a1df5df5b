"""A brain with its skull and one without are no pair for a registration, and a warning says so."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from custom_components.transforms.load import LoadPaird

SIZES = {2: (60, 64), 3: (60, 64, 56)}


def head(dims: int, *, skull: bool, noise: float = 0.0) -> np.ndarray:
    """A bright ball of 17 voxels, with a dark layer of 4 and a bright one of 5 around it."""
    size = SIZES[dims]
    grid = np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in size], indexing="ij")
    r = np.sqrt(sum(x**2 for x in grid))
    image = np.where(r < 17, 150.0, 0) + (np.where((r > 21) & (r < 26), 200.0, 0) if skull else 0)
    return image + noise * np.random.default_rng(0).random(size)


def warnings(folder: Path, moving: np.ndarray, fixed: np.ndarray, spacing: float = 1.5) -> str:
    paths = {}
    for role, image in (("moving", moving), ("fixed", fixed)):
        paths[role] = str(folder / f"{role}.nii.gz")
        affine = np.diag([spacing] * image.ndim + [1.0] * (4 - image.ndim))
        nib.save(nib.Nifti1Image(image.astype(np.float32), affine), paths[role])
    return str(LoadPaird()(paths)["warnings"])


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("alone", ["moving", "fixed"])
def test_one_stripped_image_is_warned_of_and_both_or_neither_is_not(tmp_path: Path, dims: int, alone: str) -> None:
    brain, whole = head(dims, skull=False), head(dims, skull=True, noise=5.0)
    images = {"moving": whole, "fixed": whole} | {alone: brain}
    found = warnings(tmp_path, **images)
    other = "fixed" if alone == "moving" else "moving"
    assert f"{alone}.nii.gz: shows nothing around its object" in found
    assert f"--mask_{other}" in found
    assert "around its object" not in warnings(tmp_path, brain, brain)
    assert "around its object" not in warnings(tmp_path, whole, whole)


def test_a_head_whose_air_was_set_to_0_is_no_stripped_brain(tmp_path: Path) -> None:
    found = warnings(tmp_path, head(3, skull=True), head(3, skull=True, noise=5.0))
    assert "around its object" not in found
