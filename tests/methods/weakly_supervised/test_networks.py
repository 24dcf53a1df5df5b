"""The networks: the published numbers of parameters, the identity at first, the sum of both parts."""

from __future__ import annotations

import pytest
import torch

from custom_components.affine import affine_to_ddf, centred_to_voxel
from custom_components.methods.weakly_supervised.networks import (
    CompositeNetwork,
    Encoder,
    GlobalNetwork,
    LocalNetwork,
    centred_grid,
    displaced,
    sample_about_centre,
)


def count(module):
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


@pytest.mark.parametrize(("start", "expected"), [(8, 1_201_479), (16, 4_753_023), (32, 18_906_351)])
def test_the_local_network_has_as_many_parameters_as_published(start, expected):
    assert count(LocalNetwork(3, start)) == expected


def test_the_global_network_has_as_many_parameters_as_published():
    assert count(Encoder(3, 2, 8)) == 593_496
    assert count(GlobalNetwork(3, (48, 64, 32)).matrix) == 12 * (128 * 3 * 4 * 2 + 1)
    assert count(GlobalNetwork(3, (96, 64, 64), shrink=2).matrix) == 12 * (128 * 12 + 1)


def composite(dims, size=(16, 32, 16), **options):
    torch.manual_seed(0)
    affine = GlobalNetwork(dims, size[:dims], start=2)
    return CompositeNetwork(affine, LocalNetwork(dims, start=2, **options)).eval()


def moving_somewhere(network):
    """Its heads and dense layer with random weights: what a training makes of the zeros."""
    for parameter in (*network.affine.matrix.parameters(), *network.local.heads.parameters()):
        torch.nn.init.normal_(parameter, std=0.02)
    return network


@pytest.mark.parametrize("dims", [2, 3])
def test_training_starts_at_the_identity(dims):
    image = torch.rand(2, 2, *(16, 32, 16)[:dims])
    assert composite(dims)(image).abs().max() < 1e-6


@pytest.mark.parametrize("dims", [2, 3])
def test_the_answer_is_the_affine_displacement_plus_the_local_one_of_the_aligned_pair(dims):
    network, image = moving_somewhere(composite(dims)), torch.rand(1, 2, *(20, 30, 17)[:dims])
    with torch.no_grad():
        whole, affine = network(image), network(image, part="affine")
        moved = sample_about_centre(image[:, :1], centred_grid(list(image.shape[2:]), image) + affine)
        local = network.local(torch.cat([moved, image[:, 1:]], 1))
    assert whole.shape == (1, dims, *image.shape[2:])
    assert affine.abs().max() > 0.1
    assert local.abs().max() > 0.01
    torch.testing.assert_close(whole, affine + local)


@pytest.mark.parametrize("size", [(12, 20), (12, 20, 16)])
def test_the_affine_displacement_is_that_of_the_matrix_in_centred_coordinates(size):
    d = len(size)
    matrix = torch.eye(d, d + 1) + 0.1 * torch.rand(2, d, d + 1)
    found = displaced(matrix, centred_grid(list(size), matrix), (max(size) - 1) / 2)
    torch.testing.assert_close(found, affine_to_ddf(centred_to_voxel(matrix, size), size), atol=1e-4, rtol=1e-4)


def test_padding_an_image_on_both_sides_does_not_change_the_affine_map():
    """It looks at a box about the centre: a field of view of another size shows the same box."""
    network, image = moving_somewhere(composite(3)), torch.rand(1, 2, 16, 32, 16)
    wide = torch.nn.functional.pad(image, [2, 2, 0, 0, 3, 3])
    with torch.no_grad():
        torch.testing.assert_close(network.affine(wide), network.affine(image), atol=1e-4, rtol=1e-4)


def test_the_affine_network_sees_means_of_blocks():
    network, image = GlobalNetwork(2, (32, 64), start=2, shrink=2).eval(), torch.rand(1, 2, 32, 64)
    torch.nn.init.normal_(network.matrix.weight, std=0.1)
    blocks = torch.nn.functional.avg_pool2d(image, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    with torch.no_grad():
        torch.testing.assert_close(network(blocks), network(image))
        assert (network(image) - torch.eye(2, 3)).abs().max() > 1e-3


def test_the_levels_are_summed():
    network = moving_somewhere(composite(2, extracted=(0, 2, 4))).local
    image = torch.rand(1, 2, 16, 32)
    with torch.no_grad():
        whole, parts = network(image), []
        for chosen in (0, 2, 4):
            alone = composite(2, extracted=(chosen,)).local
            weights = network.state_dict()
            alone.load_state_dict({name: weights[name] for name in alone.state_dict()})
            parts.append(alone(image))
    torch.testing.assert_close(whole, sum(parts))


def test_nothing_is_decoded_beyond_the_finest_level_that_is_extracted():
    assert [len(LocalNetwork(3, 2, levels).decoder) for levels in ((0,), (1, 4), (4,))] == [4, 3, 0]


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="levels from 0 to 4"):
        LocalNetwork(3, extracted=(5,))
    with pytest.raises(ValueError, match="multiples of 16"):
        GlobalNetwork(3, (48, 48, 40))
    with pytest.raises(ValueError, match="bfloat16"):
        GlobalNetwork(3, (32, 48, 48))
    with pytest.raises(ValueError, match="'all' or 'affine'"):
        composite(2)(torch.rand(1, 2, 16, 32), part="local")
