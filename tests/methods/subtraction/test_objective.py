"""The objective: what it costs to be darker, to be brighter, and to move."""

from __future__ import annotations

import pytest
import torch

from custom_components.methods.subtraction.objective import (
    SubtractionLoss,
    half_square,
    huber,
    inside,
    robust_scale,
    vessel_robust,
)

ONE = torch.tensor(1.0)


def test_near_0_all_costs_are_half_the_square():
    x = torch.tensor([-0.01, 0.01], dtype=torch.float64)
    for cost in (vessel_robust, huber, half_square):
        torch.testing.assert_close(cost(x, ONE), x.square() / 2, rtol=1e-4, atol=0.0)


def test_a_vessel_costs_the_same_however_dark_and_a_bright_edge_ever_more():
    dark = vessel_robust(torch.tensor([-5.0, -50.0]), ONE)
    bright = vessel_robust(torch.tensor([5.0, 50.0]), ONE)
    torch.testing.assert_close(dark, torch.full((2,), 4.685**2 / 6))
    assert bright[1] > 9 * bright[0]


def test_costs_are_in_deviations():
    x = torch.randn(100)
    torch.testing.assert_close(vessel_robust(3 * x, 3 * ONE), vessel_robust(x, ONE))


def test_the_scale_is_the_deviation_of_most_pixels_and_frames():
    torch.manual_seed(0)
    frames = 2.0 * torch.randn(7, 1, 100, 100) + 5.0
    frames[0] *= 30  # one was jerked
    frames[1:, :, :20] = -20.0  # a fifth is vessel
    middle, scale = robust_scale(frames)
    assert float(scale) == pytest.approx(2.0, rel=0.45)
    assert float(middle[3]) == pytest.approx(5.0, abs=1.2)


def pred(ddf, warped):
    return {"ddf": ddf, "warped": warped}


def test_a_constant_of_exposure_costs_nothing():
    torch.manual_seed(0)
    image = torch.randn(1, 1, 32, 32, dtype=torch.float64)
    fixed = torch.cat([image, image + 0.3])
    loss = SubtractionLoss()(pred(torch.zeros(2, 2, 32, 32), image.expand(2, 1, 32, 32)), {"fixed": fixed})
    assert float(loss) == pytest.approx(0, abs=1e-9)


def test_motion_that_lasts_costs_once_and_trembling_each_time():
    """A jerk by 3 pixels that remains, and one that goes back at once, over 6 frames."""
    still = torch.zeros(6, 1, 32, 32)
    loss = SubtractionLoss(smoothness=0.0, temporal=1.0)
    lasting, trembling = torch.zeros(2, 6, 2, 32, 32)
    lasting[3:, 0], trembling[3, 0] = 3.0, 3.0
    costs = [float(loss(pred(ddf, still), {"fixed": still})) for ddf in (lasting, trembling)]
    assert costs[0] == pytest.approx((3.0017 - 0.1) / 5, rel=1e-2)
    assert costs[1] == pytest.approx(2 * costs[0], rel=1e-4)


def test_smooth_motion_costs_less():
    still = torch.zeros(1, 1, 32, 32)
    loss = SubtractionLoss(smoothness=1.0, temporal=0.0)
    shift, slope = torch.ones(1, 2, 32, 32), torch.linspace(0, 3.1, 32).expand(1, 2, 32, 32)
    assert float(loss(pred(shift, still), {"fixed": still})) == 0
    assert float(loss(pred(slope, still), {"fixed": still})) == pytest.approx(0.01 / 2, rel=1e-3)


def test_what_comes_from_beyond_the_mask_does_not_count():
    ddf = torch.zeros(1, 2, 16, 16)
    ddf[:, 0] = 4.0
    assert inside(ddf)[0, 0].sum(1).tolist() == [16] * 12 + [0] * 4
    fixed, warped = torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 16, 16)
    warped[:, :, 12:] = -100.0
    assert float(SubtractionLoss(smoothness=0.0)(pred(ddf, warped), {"fixed": fixed})) == 0


@pytest.mark.parametrize("options", [{"smoothness": -1.0}, {"temporal": -1.0}, {"robust": "never"}])
def test_impossible_settings_are_refused(options):
    with pytest.raises(ValueError, match=r"-1|never"):
        SubtractionLoss(**options)
