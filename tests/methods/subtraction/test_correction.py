"""The claim: the background vanishes into the noise, and the vessels stay."""

from __future__ import annotations

import pytest
import torch

from custom_components.data.angiography import angiogram
from custom_components.fields import warp
from custom_components.methods.subtraction.correction import correct, subtracted
from custom_components.methods.subtraction.measures import noise_of, series_metrics, true_metrics, vessel_preservation
from custom_components.methods.subtraction.objective import SubtractionLoss


@pytest.fixture(scope="module")
def series():
    return angiogram((128, 128), 8, 3)


@pytest.fixture(scope="module")
def logs(series):
    return series.counts.clamp(min=1).log()


@pytest.fixture(scope="module")
def corrected(logs):
    return correct(logs)


def measured(found, series):
    return true_metrics(found, series.vessels, series.noise, series.ddf)


def test_the_background_falls_to_the_noise_and_vessels_stay(corrected, series):
    metrics = measured(corrected, series)
    assert metrics["residual_before"] > 5
    assert metrics["residual_after"] < 1.5
    assert metrics["preservation_after"] > 0.93
    assert metrics["vessel_error_after"] < 0.3 * metrics["vessel_error_before"]
    assert metrics["motion_error_pixels"] < 0.4 * float(series.ddf.square().sum(1).sqrt().mean())


def test_squares_erase_more_of_the_vessels(corrected, logs, series):
    squares = measured(correct(logs, loss=SubtractionLoss(robust="squares")), series)
    assert squares["preservation_after"] < measured(corrected, series)["preservation_after"] - 0.03


def test_a_series_without_motion_stays_where_it_is():
    still = angiogram((96, 96), 6, 1, motion=0.0)
    found = correct(still.counts.clamp(min=1).log(), iterations=(10, 10, 10, 10, 10))
    assert float(found.ddf.square().sum(1).sqrt().mean()) < 0.15
    metrics = measured(found, still)
    assert metrics["residual_before"] == pytest.approx(1, abs=0.08)
    assert metrics["residual_after"] == pytest.approx(1, abs=0.08)


def test_a_known_shift_is_found_in_the_right_direction():
    """Frame 1 shows at x what the mask shows at x + 3 along the first axis: the field is +3 there."""
    torch.manual_seed(0)
    image = torch.nn.functional.interpolate(torch.rand(1, 1, 16, 16), (64, 64), mode="bicubic")
    moved = image.roll(-3, 2)
    found = correct(torch.cat([image, moved]) + 0.003 * torch.randn(2, 1, 64, 64), (0,))
    assert float(found.ddf[1, 0, 12:-12, 12:-12].mean()) == pytest.approx(3, abs=0.2)
    assert float(found.ddf[1, 1, 12:-12, 12:-12].mean()) == pytest.approx(0, abs=0.2)


def test_frames_are_never_resampled(corrected, logs):
    """What is subtracted is the mask, moved once, less the frame itself, but for a constant."""
    moved = warp(corrected.mask.expand_as(logs), corrected.ddf, padding="border")
    constant = corrected.after - (moved - logs)
    torch.testing.assert_close(constant, constant[:, :, :1, :1].expand_as(constant), atol=1e-5, rtol=0)


def test_measures_without_a_truth_agree_with_those_that_know_it(corrected, series):
    blind, true = series_metrics(corrected), measured(corrected, series)
    assert blind["background_to_noise_after"] == pytest.approx(true["residual_after"], abs=0.25)
    assert blind["background_to_noise_before"] > 3 * blind["background_to_noise_after"]


def test_white_noise_is_measured_and_slopes_are_not():
    torch.manual_seed(0)
    slope = torch.linspace(0, 9, 64).view(1, 1, 64, 1).expand(3, 1, 64, 64)
    assert noise_of(slope + 0.2 * torch.randn(3, 1, 64, 64)) == pytest.approx(0.2, rel=0.06)


def test_preservation_is_1_for_the_vessels_themselves():
    vessels = torch.rand(2, 1, 8, 8)
    assert vessel_preservation(vessels, vessels) == pytest.approx(1)
    assert vessel_preservation(0.5 * vessels, vessels) == pytest.approx(0.5)


def test_the_true_motion_leaves_the_noise(logs, series):
    metrics = measured(subtracted(logs, logs[:1], series.ddf, (0,)), series)
    assert metrics["motion_error_pixels"] == 0
    assert metrics["preservation_after"] == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    ("shape", "frames"), [((1, 1, 32, 32), (0,)), ((4, 2, 32, 32), (0,)), ((4, 1, 8, 32), (0,)), ((4, 1, 32, 32), (4,))]
)
def test_what_is_no_series_is_refused(shape, frames):
    with pytest.raises(ValueError, match="expected"):
        correct(torch.rand(shape), frames)
