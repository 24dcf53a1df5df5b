"""Thick slices."""

import pytest
import torch
from synthesis.cases import both, textured

from custom_components.synthesis.thick_slices import thick_slices


@both
def test_slices_of_one_voxel_change_nothing(size):
    torch.testing.assert_close(thick_slices(textured(size), torch.ones(2, len(size))), textured(size))


@both
@pytest.mark.parametrize("stride", [2, 3, 5, 8, 60])
def test_thick_slices_of_a_constant_are_the_constant(size, stride):
    flat = torch.full((2, 1, *size), 0.7)
    torch.testing.assert_close(thick_slices(flat, torch.full((2, len(size)), float(stride))), flat)


@both
@pytest.mark.parametrize("stride", [3, 5])
def test_middle_of_a_slab_takes_the_mean_of_the_slab(size, stride):
    """21, 24, 33 and 38 voxels: with a rest that fills no slab, and without."""
    image = textured(size)
    for axis, n in enumerate(size):
        strides = torch.ones(2, len(size))
        strides[:, axis] = stride
        result = thick_slices(image, strides)
        whole = n // stride
        slabs = image.narrow(axis + 2, 0, whole * stride).unflatten(axis + 2, (whole, stride)).mean(axis + 3)
        middles = torch.arange(whole) * stride + stride // 2
        torch.testing.assert_close(result.index_select(axis + 2, middles), slabs)
        between = [(a + b) / 2 for a, b in zip(slabs.unbind(axis + 2)[:-1], slabs.unbind(axis + 2)[1:], strict=True)]
        halfway = middles[:-1] + stride // 2
        halves = result.index_select(axis + 2, torch.cat([halfway, halfway + 1])).unflatten(axis + 2, (2, -1))
        torch.testing.assert_close(halves.mean(axis + 2), torch.stack(between, axis + 2))


@both
def test_thick_slices_of_a_sample_have_its_own_strides(size):
    image = textured(size)
    strides = torch.tensor([[1.0, 4.0, 1.0], [7.0, 1.0, 2.0]])[:, : len(size)]
    result = thick_slices(image, strides)
    for i in range(2):
        torch.testing.assert_close(result[i : i + 1], thick_slices(image[i : i + 1], strides[i : i + 1]))
    assert image.amin() <= result.amin() <= result.amax() <= image.amax()


@both
def test_slab_of_the_whole_axis_is_its_mean(size):
    strides = torch.ones(2, len(size))
    strides[:, 0] = size[0] + 3
    expected = textured(size).mean(2, keepdim=True).expand(-1, -1, size[0], *[-1] * (len(size) - 1))
    torch.testing.assert_close(thick_slices(textured(size), strides), expected)
