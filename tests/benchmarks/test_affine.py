"""The benchmark of the affine stage, on a phantom that is registered to itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import affine
from custom_components.data.phantoms import write_phantom_scans
from custom_components.space import load_image, load_labels


@pytest.fixture(scope="module")
def itself(tmp_path_factory: pytest.TempPathFactory) -> affine.Pair:
    path = Path(write_phantom_scans(tmp_path_factory.mktemp("scan"), 4, (40, 48, 36), spacing_mm=(2.0, 2.0, 2.5)))
    scan = json.loads(path.read_text())["training"][0]
    image, labels = (scan[key] for key in ("image", "label"))
    image, labels = load_image(path.parent / image), load_labels(path.parent / labels)
    return affine.Pair("phantom/itself", image, image, labels, labels, known=np.eye(4))


def test_turns_are_rotations_about_the_centre_all_different() -> None:
    center = np.array([5.0, -7.0, 11.0])
    placed = [affine.header(turn, center) for turn in range(24)]
    for matrix in placed:
        np.testing.assert_allclose(matrix[:3, :3] @ matrix[:3, :3].T, np.eye(3), atol=1e-6)
        assert np.linalg.det(matrix[:3, :3]) > 0
        assert np.linalg.norm(matrix[:3, :3] @ center + matrix[:3, 3] - center) < 150  # the shift alone
    angles = [np.trace(a[:3, :3].T @ b[:3, :3]) for i, a in enumerate(placed) for b in placed[:i]]
    assert max(angles) < 3 - 1e-3


@pytest.mark.slow
def test_a_phantom_with_a_turned_header_is_found_and_the_table_says_so(
    itself: affine.Pair, capsys: pytest.CaptureFixture[str]
) -> None:
    row = affine.measure(itself, 3, "torch", itself.known)
    assert float(str(row["error_mm"])) < 2
    assert float(str(row["dice"])) > 0.8
    lost = {**row, "id": "phantom/itself/torch/4", "error_mm": 96.0, "warned": 1}
    capsys.readouterr()
    affine.print_table([row, lost])
    assert "| phantom | torch | 2 | 1 | 1 |" in capsys.readouterr().out
