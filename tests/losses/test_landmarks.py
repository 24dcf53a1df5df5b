"""The landmark term: zero where the field is right, in millimetres where it is not, and worth what it costs."""

from __future__ import annotations

import pytest
import torch

from custom_components.deformations.velocity import StationaryVelocity
from custom_components.fields import identity_grid, jacobian_determinant, transform_points
from custom_components.inference.pyramid import at_level
from custom_components.inference.refiner import refiner
from custom_components.losses.landmarks import LandmarkDistance


def landmarks(d: int, shift: list[float], spacing: list[float]) -> dict[str, torch.Tensor]:
    fixed = torch.tensor([[[9.0, 8, 10], [14, 12, 9]]])[..., :d]
    moving = fixed + torch.tensor(shift[:d])
    return {"landmarks_fixed": fixed, "landmarks_moving": moving, "landmarks_mm": torch.tensor(spacing[:d])[None, None]}


@pytest.mark.parametrize("d", [2, 3])
def test_the_distance_is_in_millimetres_and_zero_under_the_right_shift(d: int) -> None:
    spacing, shift = [1.0, 2.0, 3.0], [1.0, -2.0, 1.0]
    batch = landmarks(d, shift, spacing)
    right = torch.tensor(shift[:d]).view(1, d, *[1] * d).expand(1, d, *[24, 22, 20][:d])
    term = LandmarkDistance()
    assert float(term(right, batch)) == pytest.approx(0, abs=1e-5)
    expected = sum((a * b) ** 2 for a, b in zip(shift[:d], spacing[:d], strict=True)) ** 0.5
    assert float(term(0 * right, batch)) == pytest.approx(expected, abs=0.11)


def test_an_affine_field_is_not_blurred_by_the_window() -> None:
    ddf = 0.05 * (identity_grid((24, 22, 20)) - 10)[None]
    batch = landmarks(3, [0, 0, 0], [2, 2, 2])
    batch["landmarks_moving"] = transform_points(batch["landmarks_fixed"], ddf)
    assert float(LandmarkDistance()(ddf, batch)) == pytest.approx(0, abs=1e-4)


def test_the_gradient_where_landmarks_meet_is_a_number() -> None:
    ddf = torch.zeros(1, 3, 24, 22, 20, requires_grad=True)
    LandmarkDistance()(ddf, landmarks(3, [0, 0, 0], [1, 1, 1])).backward()
    assert torch.isfinite(ddf.grad).all()


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_a_coarser_level_sees_the_same_landmarks(factor: int) -> None:
    batch = {"fixed": torch.rand(1, 1, 25, 21, 29), **landmarks(3, [4, 4, 4], [1, 1.5, 2])}
    level = at_level(batch, factor)
    size = torch.tensor(level["fixed"].shape[2:])
    expected = batch["landmarks_fixed"] / torch.tensor([24, 20, 28])
    torch.testing.assert_close(level["landmarks_fixed"] / (size - 1), expected)
    zeros = torch.zeros(1, 3, *size)
    assert float(LandmarkDistance()(zeros, level)) == pytest.approx(float(torch.tensor([4.0, 6, 8]).norm()), abs=0.11)


@pytest.mark.parametrize("d", [2, 3])
def test_landmarks_move_tissue_that_the_images_say_nothing_about(d: int) -> None:
    size = [32, 30, 28][:d]
    image = torch.full((1, 1, *size), 0.5)
    points = landmarks(d, [1.5, -1, 1], [2, 2, 2])
    moved = {}
    for weight in (0.0, 0.3):
        optimizer = refiner(StationaryVelocity(), 0.2, landmark_weight=weight, iterations=(30, 30), levels=(2, 1))
        ddf = StationaryVelocity()(optimizer(image, image, masks=points), size)["ddf"]
        after = transform_points(points["landmarks_fixed"], ddf)
        moved[weight] = 2 * float((after - points["landmarks_moving"]).norm(dim=-1).mean())
        assert float(jacobian_determinant(ddf).min()) > 0
    assert moved[0.3] < 0.35 * moved[0.0]
