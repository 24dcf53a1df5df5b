"""No step of a bundle's training does what a GPU that is to be deterministic refuses."""

from __future__ import annotations

import pytest
import torch
from bundle_cases import EVERY_BUNDLE, RENDERED, label_maps, needs, read_json, train

from benchmarks.refused import Refused
from custom_components import repeatable

pytestmark = pytest.mark.filterwarnings("ignore")
bundles = EVERY_BUNDLE


def refused(monkeypatch, *training, **settings):
    """What an epoch and its validation do that would be refused."""
    monkeypatch.setattr(repeatable, "_DEVICES", {"cpu"})
    torch.use_deterministic_algorithms(True)
    try:
        with Refused() as seen:
            assert train(*training, max_epochs=1, num_pairs=2, **settings)
    finally:
        torch.use_deterministic_algorithms(False)
    return seen.places


def test_a_training_does_nothing_in_another_order_in_each_run(bundle, scans, tmp_path, monkeypatch):
    labels = {"labels": [1, 2, 3]} if "labels" in read_json(bundle / "configs" / "train.json") else {}
    assert not refused(monkeypatch, bundle, scans, tmp_path, num_patches=2, **labels)


@pytest.mark.parametrize(
    ("names", "settings"),
    [
        ([RENDERED, "train_affine.json"], {}),
        (["train_affine_published.json"], {}),
        ([RENDERED, "train_labelmaps.json", "train_joint.json"],
         {"affine_weights": "none", "momentum_weights": "none", "num_steps": 1}),
    ],
    ids=["affine", "published", "joint"],
)  # fmt: skip
def test_nor_do_trainings_with_affine_maps(bundle, scans, tmp_path, monkeypatch, names, settings):
    if not (bundle / "configs" / names[-1]).exists():
        pytest.skip(f"the bundle has no {names[-1]}")
    data = label_maps(scans, tmp_path) if RENDERED in names else scans
    assert not refused(monkeypatch, bundle, data, tmp_path, *names, **settings)


def test_nor_does_a_training_with_surfaces(bundle, scans, tmp_path, monkeypatch):
    needs(bundle, "surfaces")
    assert not refused(monkeypatch, bundle, scans, tmp_path, surfaces=[1, 2])
