"""Layers by number of axes; padding to a multiple; what is refused."""

import pytest
import torch
from torch import nn

from custom_components.networks.blocks import (
    AveragePool,
    check_pair,
    check_spatial_dims,
    convolution,
    crop,
    half,
    initialize_layers,
    max_pool,
    pad_to_multiple,
    transposed_convolution,
)

SIZES = [(9, 12), (9, 12, 7)]
both = pytest.mark.parametrize("size", SIZES, ids=["2d", "3d"])


@both
@pytest.mark.parametrize("width", [1, 3, 5])
def test_convolutions_of_odd_width_keep_the_size(size, width):
    assert convolution(len(size), 2, 3, width)(torch.rand(1, 2, *size)).shape == (1, 3, *size)


@both
def test_transposed_convolution_doubles_the_size(size):
    layer = transposed_convolution(len(size), 2, 3)
    assert layer(torch.rand(1, 2, *size)).shape == (1, 3, *[2 * n for n in size])


@both
def test_pools_take_blocks_of_two_voxels(size):
    image = torch.rand(1, 1, *size)
    for pool, reduce in ((max_pool(len(size)), torch.amax), (AveragePool(), torch.mean)):
        block = image[(0, 0, *[slice(2, 4)] * len(size))]
        assert torch.isclose(pool(image)[(0, 0, *[1] * len(size))], reduce(block))


def test_voxels_that_padding_adds_do_not_count_in_a_mean():
    assert torch.equal(AveragePool(3, stride=2, padding=True)(torch.ones(1, 1, 5, 5)), torch.ones(1, 1, 3, 3))


@both
@pytest.mark.parametrize("multiple", [1, 3, 4, 16])
def test_padding_ends_at_the_next_multiple_and_is_cropped_again(size, multiple):
    image = torch.rand(2, 1, *size)
    padded = pad_to_multiple(image, multiple)
    assert [*padded.shape[2:]] == [multiple * -(-n // multiple) for n in size]
    assert torch.equal(crop(padded, list(size)), image)
    assert padded.sum() == pytest.approx(float(image.sum()))
    assert half(list(size)) == [-(-n // 2) for n in size]


def test_padding_and_checks_can_be_scripted():
    def run(image: torch.Tensor) -> torch.Tensor:
        check_pair(image, 2)
        return crop(pad_to_multiple(image, 4), half(list(image.shape[2:])))

    image = torch.rand(1, 2, 6, 5)
    assert torch.equal(torch.jit.script(run)(image), run(image))


def test_initial_weights_keep_the_size_of_a_signal():
    torch.manual_seed(0)
    network = nn.Sequential(convolution(2, 64, 64), nn.LeakyReLU(0.2), nn.BatchNorm2d(64))
    initialize_layers(network, 0.2)
    assert network[0].weight.std().item() == pytest.approx((2 / 1.04 / (64 * 9)) ** 0.5, rel=0.02)
    assert not network[0].bias.any()
    assert (network[2].weight == 1).all()


@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (1, 3, 8, 8), (2, 8, 8), (1, 2, 8, 8, 8)])
def test_what_is_no_pair_is_refused(shape):
    with pytest.raises(ValueError, match="expected a pair of 2-D images of one channel each, got shape"):
        check_pair(torch.rand(*shape), 2)


def test_other_numbers_of_axes_are_refused():
    for wrong in (1, 4):
        with pytest.raises(ValueError, match=f"expected spatial_dims 2 or 3, got {wrong}"):
            check_spatial_dims(wrong)
