"""Weights are loaded whole or not at all."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine
from torch import nn

from custom_components.files import read_state, save_tensors
from custom_components.inference.weights import WeightsLoader
from custom_components.weights import write_sidecar


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "model.pt"
    save_tensors(path, nn.Linear(40, 30).state_dict())
    return path


def load(path, network, **options):
    engine = Engine(lambda *_: None)
    WeightsLoader(network, path, **options).attach(engine)
    engine.run([0])


def test_weights_are_loaded(weights):
    network = nn.Linear(40, 30)
    load(weights, network)
    torch.testing.assert_close(network.weight, read_state(weights)["weight"])


@pytest.mark.parametrize("place", [0.2, 0.4, 0.6])
@pytest.mark.parametrize("bit", [0, 6])
def test_one_wrong_bit_in_the_weights_is_found(weights, place, bit):
    content = bytearray(weights.read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    weights.write_bytes(content)
    with pytest.raises(ValueError, match=r"model.pt: this is no file of weights, or a damaged one"):
        load(weights, nn.Linear(40, 30))


def test_weights_of_another_network_are_refused_in_one_sentence(weights):
    with pytest.raises(ValueError, match=r"model.pt: these are not weights of this registration network"):
        load(weights, nn.Linear(40, 31))


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="there are no weights of the registration network"):
        load(tmp_path / "none.pt", nn.Linear(40, 30))


def test_weights_for_another_use_are_refused_when_a_run_starts(weights):
    write_sidecar(weights, {"spacing": 2.0})
    load(weights, nn.Linear(40, 30), settings={"spacing": 2.0})
    with pytest.raises(ValueError, match="trained at a spacing of 2 mm, not 8 mm"):
        load(weights, nn.Linear(40, 30), settings={"spacing": 8.0})
    load(weights, nn.Linear(40, 30), settings={"spacing": 8.0}, spacing_factor=4.0)
