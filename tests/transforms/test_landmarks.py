"""Landmarks of a pair: every way to give them, measured through the whole transform."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from support import published, run

from custom_components.data.phantoms import write_phantom_scans
from custom_components.space import write_affine_transform
from custom_components.transforms.load import LoadPaird
from custom_components.transforms.report import PairReport

AFFINES = {
    "fixed": nib.affines.from_matvec(np.diag([-1.5, 2, 2.5]), [20, -15, -10]),
    "moving": nib.affines.from_matvec(np.array([[0, 0, 2.0], [-2, 0, 0], [0, 2, 0]]), [-18, 20, -16]),
}
SIZES = {"fixed": (24, 18, 12), "moving": (19, 18, 20)}
MATRIX = nib.affines.from_matvec(nib.eulerangles.euler2mat(z=0.1), [2.0, -1, 1])


def write(path: Path, columns: str, points: np.ndarray) -> str:
    rows = [",".join(columns), *(",".join(f"{x:.8f}" for x in point) for point in points)]
    path.write_text("\n".join(rows) + "\n")
    return str(path)


@pytest.fixture
def pair(tmp_path: Path) -> dict[str, str]:
    """Two images, and points of the one that a known affine takes to those of the other."""
    rng = np.random.default_rng(0)
    item = {}
    for role, affine in AFFINES.items():
        item[role] = str(tmp_path / f"{role}.nii.gz")
        nib.save(nib.Nifti1Image(rng.random(SIZES[role]).astype("f4"), affine), item[role])
    points = {"fixed": nib.affines.apply_affine(AFFINES["fixed"], rng.uniform(3, 9, (7, 3)))}
    points["moving"] = nib.affines.apply_affine(MATRIX, points["fixed"])
    for role, world in points.items():
        item[f"landmarks_{role}"] = write(tmp_path / f"{role}.csv", "xyz", world)
        lps = "# CoordinateSystem = LPS\n" + "".join(f"{i},{-x},{-y},{z}\n" for i, (x, y, z) in enumerate(world))
        (tmp_path / f"{role}.fcsv").write_text(lps)
        write(tmp_path / f"{role}_voxels.csv", "ijk", nib.affines.apply_affine(np.linalg.inv(AFFINES[role]), world))
    write_affine_transform(tmp_path / "true.tfm", MATRIX)
    item["affine"] = str(tmp_path / "true.tfm")
    return item


def measured(item: dict[str, str], folder: Path, shift: float = 0.0) -> dict:
    data = LoadPaird(3.0)(item)
    data["pred"] = {"ddf": torch.full((3, *data["fixed"].shape[1:]), shift), "warped": data["fixed"]}
    return dict(published(data, folder, PairReport(picture=False)).metrics)


@pytest.mark.parametrize("kind", [".csv", ".fcsv", "_voxels.csv"])
def test_points_that_the_whole_transform_brings_together_have_no_error(pair: dict, tmp_path: Path, kind: str) -> None:
    files = {f"landmarks_{role}": str(tmp_path / f"{role}{kind}") for role in ("moving", "fixed")}
    metrics = measured(pair | files, tmp_path / "out")
    fixed, moving = (np.loadtxt(tmp_path / f"{role}.csv", delimiter=",", skiprows=1) for role in ("fixed", "moving"))
    before = np.linalg.norm(fixed - moving, axis=1)
    found = [metrics[f"tre_{name}mm_before"] for name in ("", "median_", "max_")]
    np.testing.assert_allclose(found, [before.mean(), np.median(before), before.max()], atol=1e-4)
    assert metrics["num_landmarks"] == 7
    assert metrics["tre_max_mm_after"] < 1e-3
    assert not any("landmarks" in text for text in metrics["warnings"])


def test_a_registration_that_drives_landmarks_apart_says_so(pair: dict, tmp_path: Path) -> None:
    metrics = measured(pair, tmp_path / "out", shift=2.0)
    after = 2 * float(np.linalg.norm(metrics["model_spacing_mm"]))
    assert metrics["tre_mm_after"] == pytest.approx(after, abs=1e-3)
    assert any(f"farther apart after registration, {after:.2f} mm" in text for text in metrics["warnings"])


def test_a_deformation_that_undoes_a_part_of_the_alignment_says_so(pair: dict, tmp_path: Path) -> None:
    metrics = measured(pair, tmp_path / "out", shift=0.3)
    after = 0.3 * float(np.linalg.norm(metrics["model_spacing_mm"]))
    assert metrics["tre_mm_aligned"] < 1e-3 < after < metrics["tre_mm_before"]
    assert any(f"drove the landmarks apart, from 0.00 to {after:.2f} mm" in text for text in metrics["warnings"])


def test_labels_correspond_by_number_and_lie_at_their_centres(pair: dict, tmp_path: Path) -> None:
    maps = {role: np.zeros(SIZES[role], np.uint8) for role in SIZES}
    maps["fixed"][4:7, 5:8, 6:9], maps["fixed"][12:14, 3, 2] = 3, 5
    maps["moving"][9:12, 9:12, 9:12], maps["moving"][2, 2, 2] = 3, 9
    for role, array in maps.items():
        pair[f"landmarks_{role}"] = str(tmp_path / f"{role}_marks.nii.gz")
        nib.save(nib.Nifti1Image(array, AFFINES[role]), pair[f"landmarks_{role}"])
    del pair["affine"]
    metrics = measured(pair, tmp_path / "out")
    ends = AFFINES["fixed"] @ [5, 6, 7, 1], AFFINES["moving"] @ [10, 10, 10, 1]
    assert metrics["num_landmarks"] == 1
    assert metrics["tre_mm_before"] == pytest.approx(np.linalg.norm(ends[0] - ends[1]), abs=1e-4)
    assert metrics["tre_mm_after"] == pytest.approx(metrics["tre_mm_before"], abs=1e-4)


def test_landmarks_without_partners_are_refused(pair: dict, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got those of one"):
        LoadPaird(3.0)({key: value for key, value in pair.items() if key != "landmarks_moving"})
    write(tmp_path / "moving.csv", "xyz", np.zeros((6, 3)))
    with pytest.raises(ValueError, match="got 6 and 7"):
        LoadPaird(3.0)(pair)
    write(tmp_path / "moving.csv", "xy", np.zeros((7, 2)))
    with pytest.raises(ValueError, match=r"moving\.csv: expected points of 3 coordinates"):
        LoadPaird(3.0)(pair)


def test_points_of_a_slice_are_measured_in_its_plane(tmp_path: Path) -> None:
    item = {}
    rng = np.random.default_rng(0)
    for role, place in (("fixed", 0.0), ("moving", 30.0)):
        affine = nib.affines.from_matvec(np.diag([2, 2, 2.0]), [0, 0, place])
        item[role] = str(tmp_path / f"{role}.nii.gz")
        nib.save(nib.Nifti1Image(rng.random((16, 18, 1)).astype("f4"), affine), item[role])
        points = np.array([[10.0, 12, place], [20, 8, place]]) + (3 if role == "moving" else 0) * np.array([1, 0, 0])
        item[f"landmarks_{role}"] = write(tmp_path / f"{role}.csv", "xyz", points)
    data = LoadPaird(None)(item)
    data["pred"] = {"ddf": torch.zeros(2, *data["fixed"].shape[1:]), "warped": data["fixed"]}
    metrics = published(data, tmp_path / "out", PairReport(picture=False)).metrics
    assert metrics["tre_mm_before"] == pytest.approx(3, abs=1e-5)


@pytest.mark.slow
def test_landmarks_of_a_command_and_of_a_list_stand_in_summary_and_table(tmp_path: Path, capsys) -> None:
    path = Path(write_phantom_scans(tmp_path, n=3, size=(40, 36), num_validation=1))
    scans = json.loads(path.read_text())["training"]
    points = write(tmp_path / "points.csv", "xy", np.array([[1.0, 2], [5, -3]]))
    pair = {"moving": scans[0]["image"], "fixed": scans[1]["image"]}
    pair |= {"landmarks_moving": points, "landmarks_fixed": points}
    words = ["--landmarks_moving", points, "--landmarks_fixed", points, "--optimize", 2, "--affine", "none"]
    assert run("register", tmp_path / pair["moving"], tmp_path / pair["fixed"], "-o", tmp_path / "out", *words) is None
    assert "mean distance of the landmarks, mm" in capsys.readouterr().out
    (tmp_path / "pairs.json").write_text(json.dumps({"test": [pair | {"id": name} for name in "ab"]}))
    words = ["--section", "test", "--optimize", 2, "--affine", "none"]
    assert run("evaluate", tmp_path / "pairs.json", "-o", tmp_path / "evaluated", *words) is None
    assert "tre_mm_after" in (tmp_path / "evaluated" / "metrics.csv").read_text()
