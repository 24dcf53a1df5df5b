"""Smooth noise and blurring."""

import pytest
import torch
from synthesis.cases import both, seeded

from custom_components.synthesis.noise import gaussian_blur, smooth_noise


@both
def test_smooth_noise_has_its_size_and_is_linear_between_few_values(size):
    noise = smooth_noise(size, 12, torch.ones(3), seeded(), channels=2)
    assert noise.shape == (3, 2, *size)
    assert noise.std() > 0.3
    for axis, n in enumerate(size):
        pieces = round(n / 12)
        step = (n - 1) / pieces
        assert noise.diff(dim=axis + 2).abs().max() < 8 / step
        bends = noise.diff(n=2, dim=axis + 2).abs().amax([i for i in range(noise.ndim) if i != axis + 2]) > 1e-4
        assert bends.sum() <= 2 * (pieces - 1)


@both
def test_smooth_noise_has_the_deviation_of_each_sample(size):
    """Corners of the grid are values as drawn."""
    unit = smooth_noise(size, 12, torch.ones(400), seeded())
    assert float(unit.flatten(1)[:, 0].std()) == pytest.approx(1, abs=0.1)
    std = torch.linspace(0, 5, 400)
    noise = smooth_noise(size, 12, std, seeded())
    torch.testing.assert_close(noise, unit * std.view(-1, *[1] * (len(size) + 1)))
    assert not noise[0].any()


@both
def test_smooth_noise_of_a_number_is_a_batch_of_one(size):
    noise = smooth_noise(size, 12, 2.0, seeded())
    assert noise.shape == (1, 1, *size)
    assert torch.equal(noise, smooth_noise(size, 12, torch.tensor([2.0]), seeded()))


@both
@pytest.mark.parametrize("sigma", [0.3, 1.0, 1.9])
def test_blur_keeps_sums_and_constants(size, sigma):
    image = torch.zeros(2, 1, *size, dtype=torch.float64)
    inner = (slice(None), slice(None), *[slice(7, -7)] * len(size))
    image[inner] = torch.rand(image[inner].shape, dtype=torch.float64, generator=seeded())
    torch.testing.assert_close(gaussian_blur(image, sigma).sum(), image.sum())
    flat = torch.full((2, 1, *size), 0.7)
    torch.testing.assert_close(gaussian_blur(flat, sigma), flat)


@both
def test_blur_of_sigma_0_is_identity(size):
    image = torch.rand(2, 1, *size, generator=seeded())
    assert torch.equal(gaussian_blur(image, 0.0), image)
    assert torch.equal(gaussian_blur(image, torch.zeros(2, len(size)), radius=3), image)


@both
def test_blur_of_a_point_has_the_deviations_asked_for(size):
    sigma = torch.tensor([[1.0, 2.0, 1.5], [1.5, 0.8, 0.7]], dtype=torch.float64)[:, : len(size)]
    image = torch.zeros(2, 1, *[25] * len(size), dtype=torch.float64)
    image[(slice(None), 0, *[12] * len(size))] = 1
    blurred = gaussian_blur(image, sigma, radius=8)
    for axis in range(len(size)):
        profile = blurred.sum([i for i in range(1, blurred.ndim) if i != axis + 2])
        deviation = (profile * (torch.arange(25) - 12) ** 2).sum(1).sqrt()
        torch.testing.assert_close(deviation, sigma[:, axis], rtol=0.01, atol=0)


@both
def test_each_sample_and_axis_is_blurred_as_if_alone(size):
    d = len(size)
    image = torch.rand(2, 3, *size, generator=seeded())
    sigma = torch.tensor([[0.0, 1.2, 0.4], [2.0, 0.6, 1.0]])[:, :d]
    for i, together in enumerate(gaussian_blur(image, sigma, radius=5)):
        alone = image[i : i + 1]
        for axis in range(d):
            alone = gaussian_blur(alone, sigma[i : i + 1] * (torch.arange(d) == axis), radius=5)
        torch.testing.assert_close(together, alone[0])
    same = gaussian_blur(image, torch.full((2, d), 1.3), radius=4)
    torch.testing.assert_close(gaussian_blur(image, 1.3), same)


@both
def test_blur_continues_border_values(size):
    image = torch.zeros(1, 1, *size)
    image[:, :, 0] = 1
    blurred = gaussian_blur(image, 1.0)
    assert not blurred[:, :, 4:].any()
    assert (blurred[:, :, 0] > 0.5).all()


def test_blur_by_a_tensor_needs_a_radius():
    with pytest.raises(ValueError, match="expected a radius"):
        gaussian_blur(torch.zeros(1, 1, 4, 4), torch.ones(1, 2))
