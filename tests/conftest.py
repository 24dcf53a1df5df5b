"""Shared fixtures: where the real test data lie, phantoms, a folder of phantom scans, statistics of labels."""

from __future__ import annotations

import os
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from custom_components import notices
from custom_components.data.phantoms import phantom_pair, write_phantom_scans

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):  # one of several processes: each has a core of its own
        torch.set_num_threads(1)


def group_of(nodeid: str) -> str:
    """Tests of a group share fixtures: those of a file or, in a folder, of a bundle, which is the first parameter."""
    path, _, name = nodeid.partition("::")
    bundle = re.search(r"\[(\w+)[]-]", name)
    if bundle and (REPOSITORY / "bundles" / bundle[1] / "configs").is_dir():
        return f"{Path(path).parent}/{bundle[1]}"
    return path


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Groups with slow tests start first: at the end no process waits long for the other."""
    slow = {group_of(item.nodeid) for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: group_of(item.nodeid) not in slow)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each group to one process. (`--dist loadgroup` of pytest-xdist 3.8 does not with pytest 9.2.)"""
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return ByGroup(config, log)


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    """A test draws the same numbers at every run, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 (MONAI's transforms and scipy draw from it)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _every_warning_is_new() -> None:
    """A process logs a warning once; each test hears all of its own."""
    notices._log_once.cache_clear()


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Folder of the real data sets: $MORPHZOO_TEST_DATA, else ../shared/data beside the repository."""
    folder = Path(os.environ.get("MORPHZOO_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no test data at {folder}: set MORPHZOO_TEST_DATA")
    return folder


@pytest.fixture(scope="session", params=[(40, 36), (28, 32, 24)], ids=["2d", "3d"])
def phantoms(request: pytest.FixtureRequest) -> dict[str, Tensor]:
    """A pair of phantoms with the true fields, in 2-D and 3-D; not to be changed in place."""
    return phantom_pair(request.param, seed=3)


@pytest.fixture(scope="session")
def phantom_list(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of a data list with five phantom scans of 20 x 24 x 16 voxels, stored as LIA; not to be changed."""
    return write_phantom_scans(
        tmp_path_factory.mktemp("phantoms"), 5, (20, 24, 16), spacing_mm=(1.0, 1.0, 2.0), axcodes="LIA"
    )


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Left and right white matter have equal statistics; id 6 and 7 are not in the file."""
    path = tmp_path / "labels.csv"
    rows = ["id,name,t1_prior_mean,t1_prior_mean_spread", "0,air,7,2", "1,cortex,100,8", "2,left white,160,20"]
    rows += ["3,right white,160,20", "4,ventricle,40,0", "5,pallidum,250,30", "8,skull,30,5", "500,scalp,144,9"]
    path.write_text("\n".join(rows) + "\n")
    return path
