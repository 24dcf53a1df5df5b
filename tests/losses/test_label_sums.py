"""Sums over the voxels of each label, in both ways."""

import pytest
import torch
from losses.cases import random_field, stripes

from custom_components.losses import label_sums as module
from custom_components.losses.label_sums import label_sums
from custom_components.losses.overlap import LabelDice

WAYS = {"in place": module._added, "by products": module._multiplied}


@pytest.fixture(params=WAYS, ids=list(WAYS))
def way(request, monkeypatch):
    """Lets the CPU sum as it does, or as a GPU does."""
    monkeypatch.setattr(module, "_added", WAYS[request.param])
    return request.param


def example(num, voxels, dtype=torch.float64):
    generator = torch.Generator().manual_seed(num)
    labels = torch.randint(num, (2, voxels), generator=generator)
    return torch.rand(2, voxels, generator=generator, dtype=dtype), labels


@pytest.mark.parametrize("num", [1, 2, 5, 31, 300, 5000])
@pytest.mark.parametrize("voxels", [1, 4095, 4096, 10000])
def test_sums_are_those_of_one_hot_maps(way, num, voxels):
    values, labels = example(num, voxels)
    expected = torch.stack([torch.bincount(n, v, num) for n, v in zip(labels, values, strict=True)])
    torch.testing.assert_close(label_sums(values, labels, num), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(label_sums(values, labels.short(), num), label_sums(values, labels, num))


def test_a_gradient_is_that_of_the_voxel_s_label(way):
    values, labels = example(7, 50)
    assert torch.autograd.gradcheck(lambda v: label_sums(v, labels, 7), (values.requires_grad_(),))


def test_millions_of_voxels_keep_seven_digits_in_float32(way):
    values, labels = torch.rand(1, 3_000_000), torch.ones(1, 3_000_000, dtype=torch.int16)
    torch.testing.assert_close(label_sums(values, labels, 3)[0, 1].double(), values.double().sum(), rtol=3e-7, atol=0)


def test_factors_that_are_large_come_in_parts(monkeypatch):
    values, labels = example(31, 50_000, torch.float32)
    whole = module._multiplied(values, labels, 31)
    sizes = []
    indicators = module._indicators
    monkeypatch.setattr(module, "_LARGEST", 2**18)
    monkeypatch.setattr(
        module, "_indicators", lambda *given: sizes.append(indicators(*given).numel()) or indicators(*given)
    )
    torch.testing.assert_close(module._multiplied(values, labels, 31), whole)
    assert len(sizes) > 4
    assert max(sizes) <= 2**18


def test_lower_precision_around_them_changes_no_sum(way):
    values, labels = example(31, 10_000, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(label_sums(values, labels, 31), WAYS[way](values, labels, 31))
        assert label_sums(values, labels, 31).dtype == torch.float32


@pytest.mark.parametrize("size", [(40, 36), (24, 20, 22)], ids=str)
@pytest.mark.parametrize("labels", ["all", [2, 4]])
def test_the_dice_loss_is_the_same_in_both_ways(size, labels, monkeypatch):
    moving, fixed, ddf = stripes(size), stripes(size, seed=1), random_field(size).float().requires_grad_()
    found = []
    for one in WAYS.values():
        monkeypatch.setattr(module, "_added", one)
        loss = LabelDice(labels)(ddf, moving, fixed)
        found.append((loss.detach(), torch.autograd.grad(loss, ddf)[0]))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=1e-6)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=0, atol=1e-6 * float(found[0][1].abs().max()))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_cpu_s_sums_and_the_same_digits_in_each_run():
    values, labels = example(31, 300_000, torch.float32)
    there = [label_sums(values.cuda(), labels.cuda(), 31) for _ in range(3)]
    torch.testing.assert_close(there[0].cpu(), label_sums(values, labels, 31), rtol=1e-6, atol=0)
    assert torch.equal(there[0], there[1])
    assert torch.equal(there[0], there[2])
