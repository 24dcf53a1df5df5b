"""Weights, and what their sidecars say."""

import json

import pytest
import torch
from torch import nn

from custom_components.deformations.kernels import MultiGaussianKernel
from custom_components.deformations.momentum import VectorMomentum
from custom_components.methods.avsm.networks import AffineMomentumNetwork, AffineNetwork
from custom_components.networks.affine_keypoints import MultiStepAffine
from custom_components.networks.momentum_net import MomentumNetwork
from custom_components.notices import collecting
from custom_components.weights import (
    FixedNetwork,
    check_settings,
    load_parts,
    load_weights,
    read_sidecar,
    write_sidecar,
)


def test_parts_of_a_network_are_loaded_from_their_files(tmp_path):
    def make(seed):
        torch.manual_seed(seed)
        return AffineMomentumNetwork(MultiStepAffine(AffineNetwork(2)), MomentumNetwork(2, (4, 4, 4)))

    network, other = make(0), make(1)
    torch.save(other.affine.state_dict(), tmp_path / "affine.pt")
    before = {name: value.clone() for name, value in network.momentum.state_dict().items()}
    load_parts(network, {"affine": tmp_path / "affine.pt", "momentum": "none"})
    torch.testing.assert_close(dict(network.affine.state_dict()), dict(other.affine.state_dict()))
    torch.testing.assert_close(dict(network.momentum.state_dict()), before)
    with pytest.raises(ValueError, match="not weights of this momentum network"):
        load_parts(network, {"momentum": tmp_path / "affine.pt"})


@pytest.fixture
def weights(tmp_path):
    """Weights for 3-D images at 2 mm, with a sidecar."""
    path = tmp_path / "model.pt"
    torch.save(nn.Linear(2, 2).state_dict(), path)
    deformation = VectorMomentum(MultiGaussianKernel([2.0, 4.0]), 2.0).description()
    write_sidecar(path, {"spatial_dims": 3, "spacing": 2.0, "hyper_names": ["lambda"], "deformation": deformation})
    return path


def warnings_of(path, **settings):
    with collecting() as found:
        load_weights(nn.Linear(2, 2), path, "registration", settings)
    return found


def test_a_sidecar_names_the_weights_it_describes(weights):
    assert json.loads(weights.with_name("model.json").read_text())["state"] == read_sidecar(weights)["state"]


def test_what_agrees_is_loaded_in_silence(weights):
    deformation = VectorMomentum(MultiGaussianKernel((2.0, 4.0)), 1.0, num_steps=5).description()
    same = {"spatial_dims": 3, "spacing": 2.0, "hyper_names": ["lambda"], "deformation": deformation}
    assert warnings_of(weights, **same) == []


@pytest.mark.parametrize("spacing", [1.7, [2.0, 2.0, 2.4], None, 0, "wide"])
def test_a_spacing_near_that_of_the_training_and_what_is_none_pass(weights, spacing):
    """What is no spacing is refused where it is used."""
    assert warnings_of(weights, spacing=spacing) == []


@pytest.mark.parametrize(("spacing", "text"), [(1.0, "1 mm"), (4.0, "4 mm"), ([2.0, 2.0, 3.0], "2 x 2 x 3 mm")])
def test_another_spacing_brings_a_warning(weights, spacing, text):
    (warning,) = warnings_of(weights, spacing=spacing)
    assert warning == (
        f"{weights}: these weights were trained at a spacing of 2 mm, not {text}; expect less of the network"
    )


@pytest.mark.parametrize("spacing", [0.5, 5.0, [2.0, 2.0, 9.0]])
def test_a_spacing_far_from_that_of_the_training_is_refused_unless_asked_for(weights, spacing):
    with pytest.raises(ValueError, match=r"trained at a spacing of 2 mm, not .* mm; give --spacing 2, or --load_w"):
        check_settings(weights, {"spacing": spacing})
    check_settings(weights, {"spacing": spacing}, spacing_factor=5.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"spatial_dims": 2, "spacing": 9.0}, "these weights are for 3-D images, not for 2-D ones"),
        ({"hyper_names": ["gamma"]}, "trained for hyper_names lambda, the configuration has gamma"),
        (
            {"deformation": VectorMomentum(MultiGaussianKernel([2.0, 5.0]), 2.0).description()},
            r"trained for deformation kind VectorMomentum, kernel MultiGaussianKernel\(.*the configuration has kind",
        ),
    ],
    ids=["dimension", "hyper-parameters", "kernel"],
)
def test_weights_for_something_else_are_refused_in_one_sentence(weights, settings, message):
    with pytest.raises(ValueError, match=message) as error:
        check_settings(weights, settings)
    assert "\n" not in str(error.value)


def test_a_sidecar_of_other_weights_is_noticed_and_not_believed(weights):
    torch.save(nn.Linear(2, 2).state_dict(), weights)
    (warning,) = warnings_of(weights, spacing=9.0)
    assert warning.endswith("model.json: describes other weights than model.pt; it is not used")


def test_weights_without_a_sidecar_and_keys_it_does_not_tell_are_not_compared(weights, tmp_path):
    alone = tmp_path / "alone.pt"
    torch.save(nn.Linear(2, 2).state_dict(), alone)
    assert warnings_of(alone, spacing=9.0) == []
    write_sidecar(alone, {"spacing": None})
    assert warnings_of(alone, spacing=9.0, spatial_dims=2) == []


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_sidecar_that_is_no_object_is_refused(weights, text):
    weights.with_name("model.json").write_text(text)
    with pytest.raises(ValueError, match=r"model.json: expected (JSON|a JSON object)"):
        read_sidecar(weights)


def test_a_fixed_network_loads_its_weights_once_when_it_is_asked_for(tmp_path):
    weights = nn.Linear(2, 2)
    network = FixedNetwork(nn.Sequential(nn.Linear(2, 2), nn.Dropout()), tmp_path / "model.pt", "small")
    torch.save({f"0.{name}": value for name, value in weights.state_dict().items()}, tmp_path / "model.pt")
    x = torch.rand(3, 2)
    assert torch.equal(network.on()(x), weights(x))
    (tmp_path / "model.pt").unlink()
    found = network.on(torch.device("cpu"))
    assert torch.equal(found(x), weights(x))
    assert not any(parameter.requires_grad for parameter in found.parameters())


def test_a_fixed_network_without_its_file_says_so_each_time(tmp_path):
    network = FixedNetwork(nn.Linear(2, 2), tmp_path / "model.pt", "small")
    for _ in range(2):
        with pytest.raises(FileNotFoundError, match="there are no weights of the small network"):
            network.on()
    assert FixedNetwork(nn.Linear(2, 2), None, "small").on()(torch.rand(1, 2)).shape == (1, 2)
