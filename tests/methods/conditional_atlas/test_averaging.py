"""The iterative average of scans: as sharp as they are, in the middle of them."""

import pytest
import torch

from custom_components.data.phantoms import phantom_pair, random_velocity
from custom_components.deformations.velocity import StationaryVelocity
from custom_components.evaluation.metrics import gradient_energy, normalized_cross_correlation
from custom_components.fields import integrate_velocity, warp
from custom_components.inference.refinement import PairwiseOptimizer
from custom_components.losses.registration import RegistrationLoss
from custom_components.losses.regularization import GradientPenalty
from custom_components.losses.similarity import MSE
from custom_components.methods.conditional_atlas.averaging import average_scans

SIZES = [(36, 32), (20, 22, 18)]
both = pytest.mark.parametrize("size", SIZES, ids=["2-D", "3-D"])
DEFORMATION = StationaryVelocity()


def optimizer(iterations=15):
    loss = RegistrationLoss(MSE(), GradientPenalty(), 0.01)
    return PairwiseOptimizer(DEFORMATION, loss, levels=[2, 1], iterations=iterations)


def scans_of(size, number=4, amplitude=3.0):
    """An image, and scans deformed from it by velocities whose mean is 0."""
    image = phantom_pair(size, amplitude=0.0)["moving"]
    generator = torch.Generator().manual_seed(2)
    velocity = random_velocity(size, amplitude=amplitude, spacings=(8.0,), batch=number // 2, generator=generator)
    scans = warp(image.expand(number, *image.shape[1:]), integrate_velocity(torch.cat([velocity, -velocity])))
    return image, scans


@pytest.fixture(scope="module", params=SIZES, ids=["2-D", "3-D"])
def averaged(request):
    image, scans = scans_of(request.param)
    return image, scans, *average_scans(scans, optimizer(), DEFORMATION, rounds=3)


def spacing(image):
    return [1.0] * (image.ndim - 2)


def test_the_average_is_more_like_the_image_they_come_from_than_their_mean(averaged):
    image, scans, template, _ = averaged
    assert template.shape == image.shape
    mean = normalized_cross_correlation(scans.mean(0, keepdim=True), image)
    found = normalized_cross_correlation(template, image)
    assert 1 - found < 0.5 * (1 - mean)


def test_the_average_is_nearly_as_sharp_as_the_scans(averaged):
    _, scans, template, _ = averaged
    sharpness = [
        float(gradient_energy(x, spacing_mm=spacing(x)).mean()) for x in (scans, template, scans.mean(0)[None])
    ]
    assert sharpness[1] > 0.85 * sharpness[0]
    assert sharpness[1] > 1.1 * sharpness[2]


def test_the_average_lies_in_the_middle_of_the_scans(averaged):
    _, scans, _, velocities = averaged
    assert velocities.shape == (len(scans), scans.ndim - 2, *DEFORMATION.parameter_size(scans.shape[2:]))
    assert velocities.mean(0).abs().max() < 1e-5
    assert velocities.square().sum(1).sqrt().mean() > 0.1


def test_the_velocities_lead_from_the_average_to_the_scans(averaged):
    _, scans, template, velocities = averaged
    warped = warp(scans, DEFORMATION(velocities, scans.shape[2:])["ddf"])
    target = template.expand_as(scans)
    before, after = (float(normalized_cross_correlation(x, target).mean()) for x in (scans, warped))
    assert 1 - after < 0.5 * (1 - before)


@both
def test_scans_that_all_lie_off_are_met_in_their_middle(size):
    """Not where the first template, or one of the scans, happens to lie."""
    image = phantom_pair(size, amplitude=0.0)["moving"]
    scans = torch.cat([image.roll(shift, 2) for shift in (-1, 2, 2)])
    template, _ = average_scans(scans, optimizer(), DEFORMATION, rounds=3)
    index = torch.arange(size[0]).view(1, 1, -1, *[1] * (len(size) - 1))
    place = [float((x * index).sum() / x.sum()) for x in (template, image)]
    assert place[0] - place[1] == pytest.approx(1.0, abs=0.25)


@both
def test_equal_scans_are_their_own_average(size):
    image = phantom_pair(size)["fixed"]
    template, velocities = average_scans(image.repeat(3, *[1] * (image.ndim - 1)), optimizer(), DEFORMATION, rounds=1)
    assert normalized_cross_correlation(template, image) > 0.999
    assert velocities.abs().max() < 1e-4


@both
def test_each_round_starts_from_the_last_ones_velocities(size):
    _, scans = scans_of(size, 2)
    starts, results = [], []
    refine = optimizer(3)

    def record(moving, fixed, parameters):
        starts.append(parameters)
        results.append(refine(moving, fixed, parameters))
        return results[-1]

    _, velocities = average_scans(scans, record, DEFORMATION, rounds=2)
    assert starts[:2] == [None, None]
    middles = [torch.cat(results[i : i + 2]).mean(0, keepdim=True) for i in (0, 2)]
    for i in (0, 1):
        torch.testing.assert_close(starts[2 + i], results[i] - middles[0])
    torch.testing.assert_close(velocities, torch.cat(results[2:]) - middles[1])


def test_averaging_repeats_and_needs_no_gradient():
    _, scans = scans_of(SIZES[0], 2)
    scans = scans.requires_grad_()
    runs = [average_scans(scans, optimizer(3), DEFORMATION, rounds=1) for _ in range(2)]
    for one, two in zip(*runs, strict=True):
        assert torch.equal(one, two)
        assert not one.requires_grad


@pytest.mark.parametrize(("number", "rounds"), [(1, 2), (0, 2), (3, 0)])
def test_fewer_scans_or_rounds_are_refused(number, rounds):
    message = f"expected at least 2 scans and 1 round, got {number} and {rounds}"
    with pytest.raises(ValueError, match=message):
        average_scans(torch.rand(number, 1, 16, 16), optimizer(), DEFORMATION, rounds=rounds)
