"""Normalised mutual information sees any contrast, whatever overlaps."""

import pytest
import torch

from custom_components.losses.information import NormalizedMutualInformation


def stripes(n=4000):
    return (torch.arange(n) % 4).float().view(1, 1, n, 1) / 3


def test_independent_images_have_minus_one():
    torch.manual_seed(0)
    a, b = torch.rand(2, 1, 1, 100, 400)
    assert float(NormalizedMutualInformation()(a, b)) == pytest.approx(-1, abs=0.01)


def test_another_contrast_of_one_image_is_better_than_another_image():
    torch.manual_seed(0)
    image = stripes()
    contrast = torch.tensor([0.6, 0.1, 1.0, 0.3])[(3 * image).long()]
    measure = NormalizedMutualInformation()
    same, other = measure(contrast, image), measure(contrast[:, :, torch.randperm(4000)], image)
    assert same < -1.4 < -1.1 < float(other)


def test_a_mask_leaves_voxels_out():
    image = stripes()
    spoiled = image.clone()
    spoiled[:, :, 2000:] = torch.rand(1, 1, 2000, 1)
    mask = torch.ones_like(image)
    mask[:, :, 2000:] = 0
    measure = NormalizedMutualInformation()
    assert torch.allclose(measure(spoiled, image, mask), measure(image[:, :, :2000], image[:, :, :2000]), atol=1e-5)


def test_it_has_the_slope_of_its_differences():
    torch.manual_seed(0)
    a, b = torch.rand(2, 1, 1, 5, 6, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: NormalizedMutualInformation(8)(x, b), a.requires_grad_())


def test_a_seed_draws_the_same_voxels():
    torch.manual_seed(0)
    a, b = torch.rand(2, 1, 1, 50, 60)
    seeded = NormalizedMutualInformation(num_samples=100, seed=1)
    assert seeded(a, b) == seeded(a, b)
    free = NormalizedMutualInformation(num_samples=100)
    assert free(a, b) != free(a, b)


def test_few_bins_are_refused():
    with pytest.raises(ValueError, match="at least 4 bins"):
        NormalizedMutualInformation(2)
