"""A training whose scans are loaded by other processes."""

import pytest
from bundle_cases import REPOSITORY, train

pytestmark = pytest.mark.filterwarnings("ignore")
bundles = [REPOSITORY / "bundles" / name for name in ("voxelmorph", "synthmorph")]


def test_two_loading_processes_change_no_loss(bundle, scans, trained, tmp_path):
    losses = train(bundle, scans, tmp_path, cache="none", **{"train#trainer#num_workers": 2})
    assert losses == trained.losses
