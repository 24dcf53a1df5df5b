"""The registration networks: sizes, shapes, initialisation."""

import pytest
import torch

from custom_components.networks.voxelmorph_unet import VoxelMorphUNet


def count(network):
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (lambda: VoxelMorphUNet(3), 327_331),
        (lambda: VoxelMorphUNet(2), 109_170),
        (lambda: VoxelMorphUNet.paper(1), 259_675),
        (lambda: VoxelMorphUNet.paper(2), 300_547),
        (lambda: VoxelMorphUNet(3, half_resolution=True, strided=True, decoder_channels=(32, 32, 32, 32, 16)), 265_075),
    ],
    ids=["default 3-D", "default 2-D", "VoxelMorph-1", "VoxelMorph-2", "diffeomorphic, mean head"],
)
def test_parameter_counts_are_the_published_ones(network, expected):
    assert count(network()) == expected


@pytest.mark.parametrize("size", [(33, 18), (16, 16), (17, 30, 19), (5, 16, 21)])
@pytest.mark.parametrize("half", [False, True])
def test_any_size_is_padded_and_cropped_never_stretched(size, half):
    network = VoxelMorphUNet(len(size), half_resolution=half)
    out = network(torch.rand(2, 2, *size))
    assert out.shape == (2, len(size), *[(n + 1) // 2 if half else n for n in size])


def test_padding_does_not_move_the_field():
    torch.manual_seed(0)
    network = VoxelMorphUNet(2, flow_std=0.1)
    image = torch.zeros(1, 2, 32, 32)
    image[:, :, 8:20, 8:20] = torch.rand(1, 2, 12, 12)
    torch.testing.assert_close(network(image)[..., :30, :30], network(image[..., :30, :30]))


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_an_untrained_network_hardly_moves(spatial_dims):
    torch.manual_seed(0)
    out = VoxelMorphUNet(spatial_dims)(torch.rand(1, 2, *[32] * spatial_dims))
    assert out.abs().max() < 1e-3
    network = VoxelMorphUNet(spatial_dims)
    assert network.flow.weight.std().item() == pytest.approx(1e-5, rel=0.1)
    assert network.flow.bias.abs().max() == 0


@pytest.mark.parametrize("make", [VoxelMorphUNet, VoxelMorphUNet.paper], ids=["default", "paper"])
def test_scripted_network_gives_the_same_field(make):
    network = make(spatial_dims=3)
    image = torch.rand(1, 2, 17, 20, 16)
    torch.testing.assert_close(torch.jit.script(network)(image), network(image))


def test_features_can_be_configured():
    network = VoxelMorphUNet(2, in_channels=4, encoder_channels=(8, 6), decoder_channels=(6, 8))
    assert network(torch.rand(1, 4, 20, 21)).shape == (1, 2, 20, 21)
    assert network.encoder[1][0].weight.shape == (6, 8, 3, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: VoxelMorphUNet(1), "spatial_dims 2 or 3"),
        (lambda: VoxelMorphUNet(2, decoder_channels=(8,)), "at least 4 decoder_channels"),
        (lambda: VoxelMorphUNet.paper(3), "variant 1 or 2"),
    ],
)
def test_networks_refuse_settings_and_images_that_do_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(("spatial_dims", "head"), [(2, 290), (3, 1299)])
def test_log_variance_is_one_more_head(spatial_dims, head):
    plain, network = VoxelMorphUNet(spatial_dims), VoxelMorphUNet(spatial_dims, log_variance=-10.0)
    assert count(network) == count(plain) + head
    new = network.state_dict().keys() - plain.state_dict().keys()
    assert new == {"log_variance.0.weight", "log_variance.0.bias"}
    assert plain.state_dict().keys() < network.state_dict().keys()


@pytest.mark.parametrize("size", [(17, 12), (9, 12, 10)], ids=["2-D", "3-D"])
@pytest.mark.parametrize("half", [False, True])
def test_an_untrained_network_is_certain_to_hardly_move(size, half):
    torch.manual_seed(0)
    network = VoxelMorphUNet(len(size), half_resolution=half, log_variance=-10.0)
    out = network(torch.rand(2, 2, *size))
    assert out.shape == (2, 2 * len(size), *[(n + 1) // 2 if half else n for n in size])
    mean, log_variance = out.chunk(2, 1)
    assert 0 < mean.abs().max() < 1e-3
    torch.testing.assert_close(log_variance, torch.full_like(mean, -10.0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_scripted_network_gives_the_same_log_variance(spatial_dims):
    network = VoxelMorphUNet(spatial_dims, encoder_channels=(4, 4), decoder_channels=(4, 4), log_variance=-2.0)
    torch.nn.init.normal_(network.log_variance[0].weight, std=0.1)
    image = torch.rand(1, 2, *(9, 8, 7)[:spatial_dims])
    torch.testing.assert_close(torch.jit.script(network)(image), network(image))
