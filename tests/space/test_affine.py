"""Affine registration of real data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from space.cases import save

from custom_components.notices import collecting
from custom_components.space import load_image, register_affine, transform_points_world
from custom_components.space.volumes import load_mask


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["itk", "torch"])
@pytest.mark.parametrize(("epi", "tolerance_mm"), [("S1_EPI_fullhead", 3.0), ("S1_EPI_retinotopy", 5.0)])
def test_known_rigid_transform_between_t1_and_epi_is_recovered(
    test_data: Path, epi: str, tolerance_mm: float, engine: str
) -> None:
    if engine == "itk":
        pytest.importorskip("itk")
    folder = test_data / "subject_to_template"
    fixed, moving = load_image(folder / f"{epi}.nii.gz"), load_image(folder / "S1_T1.nii.gz")
    known = np.array(json.loads((folder / "transforms.json").read_text())[epi]["EPI_world_to_T1_world"])
    found = register_affine(fixed, moving, stage="rigid", engine=engine)
    brain = np.argwhere(fixed.data[0].numpy() > 60)[::50] @ fixed.affine[:3, :3].T + fixed.affine[:3, 3]
    distance = transform_points_world(brain, [found]) - transform_points_world(brain, [known])
    assert np.linalg.norm(distance, axis=1).mean() < tolerance_mm


@pytest.mark.slow
def test_affine_in_the_plane_finds_an_origin_that_is_off_by_100_mm(test_data: Path) -> None:
    fixed, moving = (load_image(test_data / "pairs2d_multimodal" / f"{name}.nii.gz") for name in ("r16", "r64"))
    found = register_affine(fixed, moving)
    assert np.linalg.norm(transform_points_world(fixed.grid.center[None], [found]) - moving.grid.center) < 20
    np.testing.assert_array_equal(found, register_affine(fixed, moving))


def shapes(size: tuple[int, ...]) -> np.ndarray:
    """An image without symmetries."""
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in size], indexing="ij"))
    blob = lambda center, width: np.exp(-(((grid.T - center) / width) ** 2).sum(-1)).T  # noqa: E731
    d = len(size)
    centers = np.array([[0, 0, 0], [0.5, 0.2, -0.1], [-0.2, 0.55, 0.3], [0.1, -0.3, 0.5]])[:, :d]
    return sum(
        weight * blob(c, w) for c, w, weight in zip(centers, (0.6, 0.2, 0.15, 0.25), (1, 1, 2, 1.5), strict=True)
    )


@pytest.mark.parametrize(
    "turn",
    [
        pytest.param([[0, -1], [1, 0]], id="90"),
        pytest.param([[-1, 0], [0, -1]], id="180"),
        pytest.param([[0, 0, 1], [0, 1, 0], [-1, 0, 0]], id="90 about A", marks=pytest.mark.slow),
    ],
)
def test_a_header_turned_by_90_or_180_degrees_is_undone_and_said(tmp_path: Path, turn: list[list[int]]) -> None:
    d = len(turn)
    size = (40, 44, 36)[:d]
    image = shapes(size).astype(np.float32)[(..., *[None] * (3 - d))]
    affine = np.diag([*[3.0] * d, *[1.0] * (4 - d)])
    turned = np.eye(4)
    turned[:d, :d] = turn
    center = np.append((affine @ np.append((np.array(image.shape) - 1) / 2, 1))[:3], 0)
    turned[:3, 3] = (center - turned @ center)[:3]
    fixed, moving = (
        load_image(save(tmp_path / f"{name}.nii.gz", image, matrix))
        for name, matrix in (("fixed", affine), ("moving", turned @ affine))
    )
    with collecting() as warnings:
        found = register_affine(fixed, moving, stage="rigid")
    points = np.random.default_rng(0).normal(center[:d], 20, (50, d))
    expected = points @ turned[:d, :d].T + turned[:d, 3]
    assert np.linalg.norm(transform_points_world(points, [found]) - expected, axis=1).mean() < 2
    assert len(warnings) == 1
    assert "turned by 90 or 180 degrees" in warnings[0]


@pytest.mark.slow
def test_a_masked_square_does_not_move_the_answer(test_data: Path) -> None:
    folder = test_data / "pairs2d_multimodal"
    fixed, moving = (load_image(folder / f"{name}.nii.gz") for name in ("r16", "r64"))
    data = fixed.data.clone()
    data[:, 90:150, 100:160] = float(data.max())
    kept = torch.ones_like(data)
    kept[:, 88:152, 98:162] = 0
    painted, mask = replace(fixed, data=data), replace(fixed, data=kept)
    points = fixed.grid.center + np.random.default_rng(0).normal(0, 40, (99, 2))
    answers = [
        transform_points_world(points, [register_affine(image, moving, stage="rigid", mask_fixed=weights)])
        for image, weights in ((fixed, None), (painted, mask))
    ]
    assert np.linalg.norm(answers[0] - answers[1], axis=1).mean() < 3


@pytest.mark.slow
def test_an_image_is_aligned_with_itself_by_the_identity(tmp_path: Path) -> None:
    image = shapes((40, 44, 36)).astype(np.float32)
    volume = load_image(save(tmp_path / "a.nii.gz", image, np.diag([3.0, 3, 3, 1])))
    np.testing.assert_array_equal(register_affine(volume, volume), np.eye(4))


@pytest.mark.slow
def test_images_that_share_nothing_are_said_to(tmp_path: Path) -> None:
    affine = np.diag([3.0, 3, 3, 1])
    noise = np.random.default_rng(0).normal(size=(36, 40, 32)).astype(np.float32)
    fixed = load_image(save(tmp_path / "fixed.nii.gz", shapes((40, 44, 36)).astype(np.float32), affine))
    moving = load_image(save(tmp_path / "moving.nii.gz", noise, affine))
    with collecting() as warnings:
        register_affine(fixed, moving)
    assert len(warnings) == 1
    assert "may have failed" in warnings[0]


@pytest.mark.parametrize("settings", [{"stage": "elastic"}, {"engine": "elastix"}])
def test_unknown_stages_and_engines_are_refused(tmp_path: Path, settings: dict[str, str]) -> None:
    volume = load_image(save(tmp_path / "a.nii.gz", shapes((12, 12, 12)).astype(np.float32), np.eye(4)))
    with pytest.raises(ValueError, match="expected a stage"):
        register_affine(volume, volume, **settings)  # type: ignore[arg-type]


def test_a_translation_turns_nothing(tmp_path: Path) -> None:
    fixed = load_image(save(tmp_path / "fixed.nii.gz", shapes((40, 44)), np.diag([2.0, 2, 1, 1])))
    turned = fixed.affine.copy()
    c, s = np.cos(0.4), np.sin(0.4)
    turned[:2, :2] = np.array([[c, -s], [s, c]]) @ turned[:2, :2]
    matrix = register_affine(fixed, replace(fixed, affine=turned), stage="translation")
    np.testing.assert_allclose(matrix[:2, :2], np.eye(2), atol=1e-6)


def test_a_mask_of_nothing_that_shows_is_refused_in_one_sentence(tmp_path: Path) -> None:
    image, frame = np.zeros((40, 44)), np.diag([2.0, 2, 1, 1])
    image[20:] = shapes((20, 44))
    fixed = load_image(save(tmp_path / "fixed.nii.gz", image, frame))
    mask = load_mask(save(tmp_path / "mask.nii.gz", (np.arange(40) < 8)[:, None].repeat(44, 1).astype(np.uint8), frame))
    with pytest.raises(ValueError, match="masks leave something"):
        register_affine(fixed, fixed, stage="rigid", mask_fixed=mask)
