"""Reading of weights from several files."""

import pytest
import torch

from custom_components.files import load_parts
from custom_components.methods.avsm.networks import AffineMomentumNetwork, AffineNetwork
from custom_components.networks.affine_keypoints import MultiStepAffine
from custom_components.networks.momentum_net import MomentumNetwork


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
