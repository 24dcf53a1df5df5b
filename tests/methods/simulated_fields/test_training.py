"""The bundle's other trainings: levels that join, scans in place of label maps."""

from pathlib import Path

import numpy as np
import pytest
import torch
from bundle_cases import REPOSITORY, STATISTICS, read_curve, train

from custom_components.data.phantoms import write_phantom_scans

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
BUNDLE = REPOSITORY / "bundles" / "simulated_fields"
SMALL = {"channels": [4, 6, 8], "control_spacings": [16, 8, 4]}


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    folder = Path(write_phantom_scans(tmp_path_factory.mktemp("scans"), 4, (32, 32, 32))).parent
    (folder / "labels.csv").write_text(STATISTICS)
    return folder


def test_levels_join_while_it_trains(scans, tmp_path):
    settings = {**SMALL, "stage_shares": [0.5, 0.25, 0.25], "inter_subject": False}
    whole = train(BUNDLE, scans, tmp_path / "whole", "train_growing.json", max_epochs=4, **settings)
    states = [torch.load(tmp_path / "whole" / name, weights_only=True) for name in ("model.pt", "last.pt")]
    assert torch.equal(states[1]["network"]["weight_of_level"], torch.ones(3))
    assert states[0]["weight_of_level"].min() >= 0
    assert len(whole) == 16
    assert np.isfinite(whole).all()


def test_scans_train(scans, tmp_path):
    losses = train(BUNDLE, scans, tmp_path, "train_scans.json", max_epochs=1, **SMALL)
    assert np.isfinite(losses).all()
    assert float(read_curve(tmp_path)[0]["score"]) > 0


def test_two_paths_classes_and_huber_train(scans, tmp_path):
    losses = train(BUNDLE, scans, tmp_path, max_epochs=1, paths=2, penalty="huber", bins=[0, 1, 2], **SMALL)
    assert np.isfinite(losses).all()
    assert float(read_curve(tmp_path)[0]["huber"]) > 0
