"""Networks that are compiled for a training."""

import copy
import shutil

import pytest
import torch
from torch import nn

from custom_components.training import compiling
from custom_components.training.compiling import compile_network

CPU = torch.device("cpu")


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 2, 1)

    def forward(self, image):
        return self.last(self.first(image).relu())


def network() -> nn.Module:
    torch.manual_seed(0)
    return Network()


@pytest.fixture
def compiled(monkeypatch):
    """How many graphs a compiler was given, which runs them as they are."""
    graphs = []
    monkeypatch.setattr(compiling, "_BACKEND", lambda graph, inputs: graphs.append(graph) or graph.forward)
    torch._dynamo.reset()
    yield graphs
    torch._dynamo.reset()


def test_a_compiled_network_is_the_same_object_with_the_same_names_and_numbers(compiled):
    plain, image = network(), torch.rand(1, 2, 8, 8)
    ours = network()
    compile_network(ours, CPU)
    assert not compiled
    assert torch.equal(ours(image), plain(image))
    assert len(compiled) == 1
    assert list(ours.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(ours.state_dict())


def test_copies_are_not_compiled(compiled):
    ours = network()
    compile_network(ours, CPU)
    copy.deepcopy(ours)(torch.rand(1, 2, 8, 8))
    assert not compiled
    torch.export.export(ours, (torch.rand(1, 2, 8, 8),))


def test_a_machine_without_a_compiler_is_told_so(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"needs a C\+\+ compiler .*give compile false"):
        compile_network(network(), CPU)


def test_a_gpu_without_triton_is_told_so(monkeypatch):
    monkeypatch.setattr(compiling.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs the package triton"):
        compile_network(network(), torch.device("cuda"))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_what_torch_makes_of_it_gives_the_same_gradient():
    torch._dynamo.reset()
    plain, ours, image = network(), network(), torch.rand(1, 2, 16, 16)
    compile_network(ours, CPU)
    for one in (plain, ours):
        one(image).square().sum().backward()
    for one, other in zip(plain.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
