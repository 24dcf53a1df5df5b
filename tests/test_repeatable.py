"""Gradients that are the same numbers in each run: torch's own, in another way."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from benchmarks.refused import Refused
from custom_components import fields, repeatable

SIZES = [(7, 9), (5, 8, 6), (1, 6, 4)]


@pytest.fixture
def asked_for(monkeypatch):
    """As on a GPU that is to be deterministic."""
    monkeypatch.setattr(repeatable, "_DEVICES", {"cpu"})
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def gradients(function, *inputs):
    """Of a sum with weights that all differ, for each input; and what torch would refuse."""
    inputs = [value.clone().requires_grad_() for value in inputs]
    with Refused() as refused:
        result = function(*inputs)
        weights = torch.linspace(-1, 2, result.numel(), dtype=result.dtype).view(result.shape)
        found = torch.autograd.grad((result * weights).sum(), inputs)
    return result.detach(), found, refused.places


def both_ways(function, *inputs):
    """Compare with torch's own kernels."""
    result, found, refused = gradients(function, *inputs)
    assert not refused
    torch.use_deterministic_algorithms(False)
    expected, usual, refused = gradients(function, *inputs)
    assert refused
    assert torch.equal(result, expected)
    for one, other in zip(found, usual, strict=True):
        scale = float(other.abs().max())
        torch.testing.assert_close(one, other, rtol=0, atol=scale * (1e-9 if one.dtype == torch.float64 else 3e-6))
        assert scale > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("padding", ["zeros", "border"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_gradients_of_a_warp_are_those_of_grid_sample(size, padding, dtype, asked_for):
    torch.manual_seed(0)
    image = torch.randn(2, 3, *size, dtype=dtype)
    field = 3 * torch.randn(2, len(size), *size, dtype=dtype)
    both_ways(lambda i, u: fields.warp(i, u, padding=padding), image, field)


def test_an_image_of_many_channels_has_the_same_gradient(asked_for):
    torch.manual_seed(0)
    both_ways(fields.warp, torch.randn(2, 10, 6, 7), torch.randn(2, 2, 6, 7))


def test_a_velocity_is_integrated_with_the_same_gradient(asked_for):
    torch.manual_seed(0)
    velocity = F.interpolate(torch.randn(1, 3, 4, 4, 4), size=(12, 10, 8), mode="trilinear")
    both_ways(fields.integrate_velocity, velocity)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_linear_interpolation_has_the_same_gradient(size, asked_for):
    torch.manual_seed(0)
    values, larger = torch.randn(2, 3, *size), [2 * n + 1 for n in size]
    both_ways(lambda v: repeatable.resize(v, larger), values)
    both_ways_again = [repeatable.resize(values.clone().requires_grad_(), larger) for _ in range(2)]
    assert torch.equal(*both_ways_again)


@pytest.mark.parametrize(
    "function",
    [
        lambda v: repeatable.resize(v, scale_factor=2.0, align_corners=False),
        lambda v: repeatable.resize(v, [3, 2, 2]),
        lambda v: repeatable.cell_means(v, 4),
        lambda v: repeatable.block_means(v, [2, 3, 2]),
        lambda v: repeatable.block_means(v, [1, 5, 1], stride=1, padding=True),
    ],
    ids=["upsample", "shrink", "cells", "blocks", "windows"],
)
def test_other_linear_maps_have_the_same_gradient(function, asked_for):
    torch.manual_seed(0)
    both_ways(function, torch.randn(2, 3, 6, 9, 8))


def test_the_order_of_the_samples_changes_no_digit_of_the_gradient(asked_for):
    """Ten thousand locations on a few voxels: float32 sums of them depend on the order."""
    torch.manual_seed(0)
    image, places, weights = torch.randn(1, 1, 2, 2, 2), 3 * torch.rand(1, 3, 10_000, 1, 1) - 1, torch.rand(10_000)
    found = []
    for order in (torch.arange(10_000), torch.randperm(10_000)):
        given = image.clone().requires_grad_()
        sampled = fields.sample(given, places[:, :, order], padding="border").flatten()
        found.append(torch.autograd.grad((sampled * weights[order]).sum(), given)[0])
    assert torch.equal(*found)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_gradient_that_is_no_number_stays_none(wrong, asked_for):
    image = torch.randn(1, 1, 4, 4, requires_grad=True)
    result = fields.warp(image, torch.full((1, 2, 4, 4), 0.3)) * wrong
    assert not torch.isfinite(torch.autograd.grad(result.sum(), image)[0]).any()


def test_a_gradient_of_zeros_is_zero(asked_for):
    image = torch.randn(1, 1, 4, 4, requires_grad=True)
    result = fields.warp(image, torch.full((1, 2, 4, 4), 0.3)) * 0
    assert torch.equal(torch.autograd.grad(result.sum(), image)[0], torch.zeros(1, 1, 4, 4))


def test_who_asks_for_nothing_gets_torch_s_kernels(monkeypatch):
    monkeypatch.setattr(repeatable, "_DEVICES", {"cpu"})
    assert gradients(fields.warp, torch.randn(1, 1, 6, 6), torch.randn(1, 2, 6, 6))[2]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_digits_in_each_run(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    try:
        velocity = torch.randn(1, 3, 40, 40, 40, device="cuda", requires_grad=True)
        runs = [torch.autograd.grad(fields.integrate_velocity(velocity).square().mean(), velocity) for _ in range(3)]
        assert torch.equal(runs[0][0], runs[1][0])
        assert torch.equal(runs[0][0], runs[2][0])
        enlarged = [torch.autograd.grad(repeatable.resize(velocity, [80] * 3).pow(2).sum(), velocity) for _ in range(2)]
        assert torch.equal(enlarged[0][0], enlarged[1][0])
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("count", [1, 6, 7])
def test_the_median_is_torch_s_without_its_position(count):
    values = torch.randn(3, count, 5)
    for axis in (0, 1, 2):
        with Refused() as seen:
            found = repeatable.median(values, axis)
        assert not seen.places
        assert torch.equal(found, values.median(axis, keepdim=True).values)
