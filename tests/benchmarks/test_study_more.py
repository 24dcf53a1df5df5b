"""The study's further parts: spoiled images, and few people."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from benchmarks import study_limited as limited
from benchmarks import study_spoiled as spoiled
from benchmarks.study_t1t2 import measure

SHAPE = (64, 80)


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Discs of two brightnesses for five people."""
    folder = tmp_path_factory.mktemp("people")
    x, y = np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij")
    sections: dict[str, list[dict[str, str]]] = {"training": [], "validation": []}
    for number in range(5):
        section = "training" if number < 3 else "validation"
        radius = np.hypot(x - 32, y - 40)
        values = 100.0 * (radius < 20 + number) + 100.0 * (radius < 8 + number)
        name = f"{number}_t1.nii.gz"
        nib.save(nib.Nifti1Image(values.astype(np.float32), np.diag([2.0, 2, 2, 1])), folder / name)
        sections[section].append({"image_t1": name, "image_t2": name, "subject": str(number)})
    (folder / "datalist.json").write_text(json.dumps(sections))
    return folder


@pytest.mark.parametrize("kind", spoiled.KINDS)
def test_people_are_spoiled_and_the_clean_ones_lie_where_they_do(people: Path, tmp_path: Path, kind: str) -> None:
    folder = spoiled.spoil(people, tmp_path / kind, kind)
    assert [pair["kind"] for pair in spoiled.pairs_of(folder)] == [kind] * 2
    listed = json.loads((folder / "datalist.json").read_text())
    original = nib.load(people / "0_t1.nii.gz").get_fdata()
    worse, clean = (nib.load(folder / listed["training"][0][f"image_{c}"]).get_fdata() for c in ("t1", "t2"))
    assert worse.shape == original.shape
    assert np.isfinite(worse).all()
    assert np.allclose(clean, original) == (kind != "unaligned")
    assert np.allclose(worse, clean) == (kind in ("prepared", "unaligned"))
    assert np.corrcoef(worse.ravel(), clean.ravel())[0, 1] > (0.4 if kind == "cut" else 0.8)
    again = spoiled.spoil(people, tmp_path / "again", kind)
    found = nib.load(again / listed["training"][0]["image_t1"]).get_fdata()
    assert np.array_equal(found, worse)


def test_organs_are_found_again_in_deformed_slices(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in spoiled.ORGANS.values():
        nib.save(nib.Nifti1Image(rng.random((40, 36, 30)).astype(np.float32), np.diag([3.0, 3, 5, 1])), tmp_path / name)
    pairs = spoiled.organ_pairs(tmp_path / "pairs", tmp_path)
    assert len(pairs) == len(spoiled.ORGANS) * spoiled.LEVELS
    moving, fixed = (nib.load(pairs[0][role]).get_fdata() for role in ("moving", "fixed"))
    assert moving.shape == fixed.shape
    assert not np.allclose(moving, fixed)


def test_a_spoiled_pair_is_judged_by_its_clean_images(people: Path, tmp_path: Path) -> None:
    import custom_components as mz

    pair = spoiled.pairs_of(spoiled.spoil(people, tmp_path / "noisy", "noisy"))[0]
    row = measure(mz.Registrar("synthmorph", optimize=0, affine="none", average=[]), pair)
    assert row["kind"] == "noisy"
    assert float(str(row["t1_ncc_before"])) > 0.5
    rows = [{"trained": name, **row} for name in ("prepared", spoiled.REFINED)]
    assert spoiled.table(rows).count("\n") == 3


def test_people_are_drawn_whole_and_never_more_than_there_are() -> None:
    scans = [{"image": f"{person}{level}", "subject": person} for person in "abcd" for level in range(3)]
    chosen = limited.people_of(scans, 2, 0)
    assert len(chosen) == 6
    assert len({scan["subject"] for scan in chosen}) == 2
    assert chosen != limited.people_of(scans, 2, 1)
    with pytest.raises(ValueError, match="at most 4 people"):
        limited.people_of(scans, 5, 0)


def test_the_table_says_how_far_trainings_differ() -> None:
    rows = [
        {"people": n, "seed": s, "dice_before": 0.4, "dice_after": 0.6 + n / 100 + s / 100, "sd_log_jacobian": 0.2}
        | {"folding_percent": 0.0}
        for n in (2, 5)
        for s in (0, 1)
    ]
    assert "| 2 | 2 | 0.625 | 0.620 to 0.630 |" in limited.table(rows)
