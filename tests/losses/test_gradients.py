"""Normalised gradients compare edges, whatever their contrast."""

import pytest
import torch
from losses.cases import both, textured

from custom_components.losses.gradients import NGF


@both
def test_equal_and_inverted_images_match_best(size):
    image = textured(size)
    assert float(NGF(1e-8)(image, image)) < 0.2
    torch.testing.assert_close(NGF()(1 - image, image), NGF()(image, image))
    assert NGF()(image, image) < NGF()(textured(size, seed=1), image)


@both
def test_flat_images_do_not_match(size):
    assert float(NGF()(torch.zeros(1, 1, *size), torch.rand(1, 1, *size))) == 1


def test_an_axis_of_one_or_two_voxels_has_no_edges():
    image = torch.rand(1, 1, 12, 2)
    assert torch.isfinite(NGF()(image, image))
    assert float(NGF()(torch.rand(1, 1, 2, 1), torch.rand(1, 1, 2, 1))) == 1


@both
@pytest.mark.slow
def test_gradcheck(size):
    size = tuple(n - 3 for n in size)
    a, b = textured(size).requires_grad_(), textured(size, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(NGF(), (a, b))
