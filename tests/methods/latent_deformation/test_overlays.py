"""The bundle's overlays: samples of the prior, paths, and transport of another pair's deformation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from bundle_cases import FIRST, REPOSITORY, infer, read_image, read_json

from custom_components.data.phantoms import write_phantom_scans
from custom_components.methods.latent_deformation.network import LatentNetwork

pytestmark = pytest.mark.filterwarnings("ignore")
BUNDLE = REPOSITORY / "bundles" / "latent_deformation"
CONFIGS = BUNDLE / "configs"
PAIR = "phantom_03-to-phantom_04"


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    return Path(write_phantom_scans(tmp_path_factory.mktemp("scans"), 5, (32, 32, 32))).parent


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Weights of a network that answers with small, differing deformations, on a window of the phantoms' size."""
    torch.manual_seed(0)
    network = LatentNetwork(3, 4, coarse=(4, 4, 4), levels=2)
    torch.nn.init.normal_(network.flow.weight, std=0.2)
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.save(network.state_dict(), path)
    return {"weights": str(path), "latent_size": 4, "latent_grid": [4, 4, 4], "window_size": [32, 32, 32], **FIRST}


def pair_at(scans, moving, fixed):
    images = scans / "images"
    return {
        "source_moving": str(images / f"phantom_0{moving}.nii.gz"),
        "source_fixed": str(images / f"phantom_0{fixed}.nii.gz"),
    }


def warped(folder, name="warped"):
    return read_image(folder / PAIR / f"{name}.nii.gz")


@pytest.fixture(scope="module")
def plain(scans, settings, tmp_path_factory):
    return infer(BUNDLE, scans, tmp_path_factory.mktemp("plain"), **settings)


def test_samples_of_the_prior_stand_beside_the_registration(scans, settings, plain, tmp_path):
    infer(BUNDLE, scans, tmp_path, str(CONFIGS / "sample.json"), samples=2, **settings)
    np.testing.assert_array_equal(warped(tmp_path), warped(plain))
    assert read_json(tmp_path / PAIR / "metrics.json")["samples"] == 2
    first, second = (warped(tmp_path, f"sample_0{k}_warped") for k in (1, 2))
    assert not np.allclose(first, second)


def test_a_path_leads_from_the_registration_to_the_sources_deformation(scans, settings, plain, tmp_path):
    source = pair_at(scans, 0, 1)
    infer(BUNDLE, scans, tmp_path / "path", str(CONFIGS / "interpolate.json"), samples=3, **source, **settings)
    infer(BUNDLE, scans, tmp_path / "end", str(CONFIGS / "transport.json"), **source, **settings)
    np.testing.assert_allclose(warped(tmp_path / "path", "sample_01_warped"), warped(plain), atol=1e-4)
    np.testing.assert_allclose(warped(tmp_path / "path", "sample_03_warped"), warped(tmp_path / "end"), atol=1e-4)
    assert not np.allclose(warped(tmp_path / "end"), warped(plain), atol=1e-3)


def test_transport_of_a_pairs_own_deformation_changes_nothing(scans, settings, plain, tmp_path):
    infer(BUNDLE, scans, tmp_path, str(CONFIGS / "transport.json"), **pair_at(scans, 3, 4), **settings)
    np.testing.assert_allclose(warped(tmp_path), warped(plain), atol=1e-5)
