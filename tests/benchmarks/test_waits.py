"""The stand-in for a GPU counts what makes a host wait for one, and nothing else."""

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.waits import DEVICE, Waits

WAITING = {
    "float": lambda x: float(x[0]),
    "bool": lambda x: bool(x.sum() > 0),
    "item": lambda x: x[0].item(),
    "list": lambda x: x.tolist(),
    "to the host": lambda x: x.cpu(),
    "to the host by name": lambda x: x.to("cpu"),
    "from the host": lambda x: torch.ones(3).to(x.device),
    "to another's device": lambda x: torch.ones(3).to(x),
    "made of a list": lambda x: torch.tensor([1.0, 2.0], device=x.device),
    "made of a list, like another": lambda x: x.new_tensor([1.0]),
    "where a mask says": lambda x: x[x > 0],
    "by a list of places": lambda x: x[[0, 1]],
    "nonzero": lambda x: x.nonzero(),
    "a numpy array": lambda x: np.asarray(x),
    "copied to the host": lambda x: torch.zeros(3).copy_(x),
    "of a gradient": lambda x: float(gradient_of(x)[0]),
}
WORKING = {
    "arithmetic": lambda x: (x + 1).sum() * 2,
    "made there": lambda x: torch.zeros(3, device=x.device) + x.new_full((3,), 2.0),
    "drawn there": lambda x: torch.rand(3, generator=torch.Generator(x.device).manual_seed(0), device=x.device),
    "a type": lambda x: x.to(torch.float16),
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "a number in a place": lambda x: x.clone().__setitem__(0, 1.0),
    "on the host": lambda x: float(torch.ones(3).sum()),
    "copied while it works": lambda x: torch.ones(3).to(x.device, non_blocking=True),
    "copied to the host on the side": lambda x: torch.zeros(3).copy_(x, non_blocking=True).tolist(),
    "a gradient": lambda x: gradient_of(x),
}


def gradient_of(x):
    layer = nn.Linear(3, 1).to(x.device, non_blocking=True)
    layer(x).sum().backward()
    return layer.weight.grad[0]


@pytest.fixture
def waits():
    with Waits() as waits:
        yield waits


@pytest.mark.parametrize("name", WAITING)
def test_it_counts(name, waits):
    x = torch.zeros(3, device=waits.device)
    WAITING[name](x)
    assert waits.total == 1
    assert "test_waits.py" in next(iter(waits.places))


@pytest.mark.parametrize("name", WORKING)
def test_it_does_not_count(name, waits):
    x = torch.zeros(3, device=waits.device)
    WORKING[name](x)
    assert not waits.places
    assert not waits.mixed


def test_what_is_computed_there_says_that_it_is_there(waits):
    x = torch.zeros(3, device=waits.device)
    generator = torch.Generator(x.device)
    found = [(x + 1).device, gradient_of(x).device, generator.device, torch.ones(3).device]
    assert found == [DEVICE, DEVICE, DEVICE, torch.device("cpu")]


def test_it_names_functions_of_tensors_on_two_devices(waits):
    _ = torch.zeros(3, device=waits.device) + torch.ones(3)
    assert list(waits.mixed.values()) == [1]


def test_torch_is_as_before_afterwards():
    before = torch.Generator
    with Waits():
        pass
    assert torch.Generator is before
