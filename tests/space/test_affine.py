"""Affine registration of real data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from custom_components.space import (
    load_image,
    register_affine,
    transform_points_world,
)


@pytest.mark.slow
@pytest.mark.parametrize(("epi", "tolerance_mm"), [("S1_EPI_fullhead", 3.0), ("S1_EPI_retinotopy", 5.0)])
def test_known_rigid_transform_between_t1_and_epi_is_recovered(test_data: Path, epi: str, tolerance_mm: float) -> None:
    pytest.importorskip("itk")
    folder = test_data / "subject_to_template"
    fixed, moving = load_image(folder / f"{epi}.nii.gz"), load_image(folder / "S1_T1.nii.gz")
    known = np.array(json.loads((folder / "transforms.json").read_text())[epi]["EPI_world_to_T1_world"])
    found = register_affine(fixed, moving, transform="rigid")
    brain = np.argwhere(fixed.data[0].numpy() > 60)[::50] @ fixed.affine[:3, :3].T + fixed.affine[:3, 3]
    distance = transform_points_world(brain, [found]) - transform_points_world(brain, [known])
    assert np.linalg.norm(distance, axis=1).mean() < tolerance_mm


@pytest.mark.slow
def test_affine_in_the_plane_finds_an_origin_that_is_off_by_100_mm(test_data: Path) -> None:
    pytest.importorskip("itk")
    fixed, moving = (load_image(test_data / "pairs2d_multimodal" / f"{name}.nii.gz") for name in ("r16", "r64"))
    found = register_affine(fixed, moving)
    assert np.linalg.norm(transform_points_world(fixed.grid.center[None], [found]) - moving.grid.center) < 20
    np.testing.assert_array_equal(found, register_affine(fixed, moving))
