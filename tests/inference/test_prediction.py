"""Networks' answers, alone and averaged over symmetric versions of a pair."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

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
    on_gpu = SimpleNamespace(device=torch.device("cuda"), ndim=4)
    runs[0](on_gpu)
    if has:
        runs[1](on_gpu)
    else:
        with pytest.raises(ValueError, match="this GPU has no bfloat16: give precision float32, or float16"):
            runs[1](on_gpu)
    runs[1](torch.rand(1, 2, 64, 8, 8))


@pytest.mark.parametrize(
    ("size", "trains", "dtype"),
    [
        ((32, 64, 64), True, torch.float32),
        ((32, 64, 64), False, torch.bfloat16),
        ((48, 32, 32), True, torch.bfloat16),
        ((32, 32), True, torch.bfloat16),
    ],
)
def test_small_volumes_are_trained_in_float32_on_a_cpu(size, trains, dtype):
    seen = []
    network = torch.nn.Conv3d(2, 3, 3) if len(size) == 3 else torch.nn.Conv2d(2, 3, 3)
    network.register_forward_hook(lambda module, given, output: seen.append(output.dtype))
    with torch.set_grad_enabled(trains):
        Precision("bfloat16").run(network, torch.rand(1, 2, *size))
    assert seen == [dtype]


@pytest.mark.slow
def test_no_gradient_reads_memory_that_nobody_wrote():
    """A process whose freed memory is full of NaN trains a network on volumes of 32 voxels."""
    script = """
import torch
from custom_components.inference.prediction import Precision
from custom_components.networks.voxelmorph_unet import VoxelMorphUNet
network, precision = VoxelMorphUNet(3), Precision("bfloat16")
for _ in range(20):
    for n in (1_000, 10_000, 100_000, 1_000_000):
        torch.full((n,), torch.nan), torch.full((n,), torch.nan, dtype=torch.bfloat16)
    network.zero_grad()
    precision.run(network, torch.rand(1, 2, 32, 32, 32)).square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "4294967296"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
