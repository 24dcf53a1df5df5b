"""The comparison of spaces finds no difference between ITK and us; ANTs and nitransforms are not installed here."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import spaces, spaces_headers

DISAGREE = "qform and sform disagree, sform code 2"
SOME = ("oblique, voxels of 2 x 3 x 4 mm", DISAGREE, "microns", "one coronal slice, oblique", "Analyze", "VTK")


def test_there_are_many_kinds_of_headers() -> None:
    assert len(spaces_headers.KINDS) >= 12
    assert set(SOME) <= set(spaces_headers.KINDS)


@pytest.mark.parametrize("kind", SOME)
def test_itk_and_we_do_the_same(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("itk")
    found = spaces.with_itk(spaces.register(kind, tmp_path))
    assert float(found["image"]) < 1e-4
    assert float(found["inverse"]) < 1e-4
    assert found["labels"].startswith("0 of")
    assert max(float(found["points"]), float(found["way back"])) < 1e-4
