"""Fixtures that several test files of this folder share."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from bundle_cases import BUNDLES, STATISTICS, train, with_ages

from custom_components.data.phantoms import write_phantom_scans

SLOW = {"test_training.py", "test_inference.py", "test_variants.py", "test_waits.py"}
SLOW |= {"test_deterministic.py", "test_compile.py", "test_workers.py"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """VoxelMorph is trained and registers in the fast tests, too: its variants and all other bundles are slow."""
    for item in items:
        if item.path.parent == Path(__file__).parent and item.path.name in SLOW:
            fast = item.path.name != "test_variants.py" and "voxelmorph]" in item.name
            if not fast:
                item.add_marker(pytest.mark.slow)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The bundles that register, or those that a test file names in `bundles`: one fixture for the whole session."""
    if "bundle" in metafunc.fixturenames:
        bundles = getattr(metafunc.module, "bundles", BUNDLES)
        metafunc.parametrize("bundle", bundles, ids=lambda path: path.name, indirect=True, scope="session")


@pytest.fixture(scope="session")
def bundle(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture(scope="session")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five phantoms of 32 x 32 x 32 voxels of 1 mm, two of them for validation, and their labels' statistics."""
    folder = Path(write_phantom_scans(tmp_path_factory.mktemp("scans"), 5, (32, 32, 32))).parent
    (folder / "labels.csv").write_text(STATISTICS)
    return with_ages(folder)


@pytest.fixture(scope="session")
def trained(bundle: Path, scans: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A folder with two epochs of training, and the loss of each step; not to be changed."""
    folder = tmp_path_factory.mktemp(bundle.name)
    return SimpleNamespace(folder=folder, losses=train(bundle, scans, folder))
