"""Networks' answers, alone and averaged over symmetric versions of a pair."""

from __future__ import annotations

import pytest
import torch

from custom_components.deformations.velocity import StationaryVelocity
from custom_components.fields import warp
from custom_components.inference import prediction
from custom_components.inference.prediction import NetworkPredictor, Precision
from custom_components.networks.voxelmorph_unet import VoxelMorphUNet

SIZES = pytest.mark.parametrize("size", [(17, 20), (9, 12, 15)], ids=["2-D", "3-D"])


def network_of(size, **options):
    torch.manual_seed(0)
    return VoxelMorphUNet(len(size), encoder_channels=(4, 4), decoder_channels=(4, 4), flow_std=0.5, **options).eval()


@torch.no_grad()
def answer(image, network, average):
    return NetworkPredictor(average=average)(image, network, StationaryVelocity()).parameters


def swapped(image):
    return image.flip(1)


@SIZES
class TestAverage:
    def test_a_mirrored_pair_gets_the_mirrored_field(self, size):
        network, image = network_of(size), torch.rand(2, 2, *size)
        one, other = (answer(pair, network, ["mirror"]) for pair in (image, image.flip(2)))
        mirrored = other.flip(2)
        mirrored[:, 0] *= -1
        torch.testing.assert_close(one, mirrored)
        assert not torch.allclose(answer(image, network, []), one)

    def test_a_mirrored_image_moves_as_the_mirrored_field_says(self, size):
        """The sign of the mirrored component, by what it does to an image."""
        network, image = network_of(size), torch.rand(1, 2, *size)
        fields = [answer(pair, network, ["mirror"]) for pair in (image, image.flip(2))]
        first, second = (warp(pair[:, :1], field) for pair, field in zip((image, image.flip(2)), fields, strict=True))
        torch.testing.assert_close(first, second.flip(2), atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize("average", [["swap"], ["mirror", "swap"]])
    def test_the_swapped_pair_gets_the_negated_velocity(self, size, average):
        network, image = network_of(size), torch.rand(2, 2, *size)
        one, other = (answer(pair, network, average) for pair in (image, swapped(image)))
        torch.testing.assert_close(one, -other)
        assert one.abs().max() > 0.01

    def test_a_log_variance_is_not_negated(self, size):
        network, image = network_of(size, log_variance=-3.0), torch.rand(1, 2, *size)
        one = answer(image, network, ["swap"])
        plain, back = (answer(pair, network, []) for pair in (image, swapped(image)))
        torch.testing.assert_close(one[:, len(size) :], (plain + back)[:, len(size) :] / 2)


@pytest.mark.parametrize("average", ["mirror", ["flip"]])
def test_unknown_words_are_refused(average):
    with pytest.raises(ValueError, match="expected a list of mirror and swap"):
        NetworkPredictor(average=average)


@pytest.mark.parametrize("has", [True, False])
def test_bfloat16_is_refused_where_a_gpu_only_emulates_it(monkeypatch, has):
    monkeypatch.setattr(prediction, "_has_bfloat16", lambda: has)
    runs = [Precision(name).autocast for name in ("float32", "bfloat16")]
    runs[0](torch.device("cuda"))
    if has:
        runs[1](torch.device("cuda"))
    else:
        with pytest.raises(ValueError, match="this GPU has no bfloat16: give precision float32, or float16"):
            runs[1](torch.device("cuda"))
    runs[1](torch.device("cpu"))
