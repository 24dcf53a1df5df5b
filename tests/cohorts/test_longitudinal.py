"""Two time points of one person: no change where there is none, a known one where there is, and no side preferred."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from support import oriented, run

from custom_components.commands.longitudinal import longitudinal
from custom_components.data.phantoms import phantom
from custom_components.fields import identity_grid
from custom_components.space.transform import Transform

SIZE = (72, 64)
FAST = {"optimize": 10, "spacing": 1.0}


def write(path, image, affine=None) -> str:
    array = image[0, 0].numpy()
    array = array if array.ndim == 3 else array[..., None]
    nib.save(nib.Nifti1Image(array, np.diag([1.0, 1.2, 1, 1]) if affine is None else affine), path)
    return str(path)


def person(growth: float = 0.0, turn: float = 0.0, size=SIZE) -> tuple[torch.Tensor, torch.Tensor]:
    """A phantom whose ventricles' surroundings grow, in a rotated and shifted head (2-D)."""
    centre = torch.tensor([(n - 1) / 2 for n in size]).view(-1, 1, 1)
    x = identity_grid(size) - centre
    rotation = torch.tensor([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]).float()
    x = torch.einsum("ij,j...->i...", rotation, x) + 20 * turn
    inner = torch.exp(-(x / 14).square().sum(0))
    return phantom((x * (1 - growth * inner) + centre)[None], size)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """A, B with larger ventricles in a turned head, and their label maps."""
    folder = tmp_path_factory.mktemp("time")
    (a, label_a), (b, label_b) = person(), person(0.12, 0.06)
    images = {"a": a, "b": b, "label_a": label_a, "label_b": label_b}
    return {name: write(folder / f"{name}.nii.gz", image) for name, image in images.items()}


def ventricles(path: str) -> float:
    return float((np.asarray(nib.load(path).dataobj) == 3).sum())


@pytest.fixture(scope="module")
def changed(scans, tmp_path_factory):
    output = tmp_path_factory.mktemp("ab") / "out"
    labels = {"label_first": scans["label_a"], "label_second": scans["label_b"]}
    return longitudinal(scans["a"], scans["b"], output, **labels, **FAST)


def test_equal_scans_have_no_change_at_all(scans, tmp_path):
    found = longitudinal(scans["a"], scans["a"], tmp_path / "out", label_first=scans["label_a"], **FAST)
    assert [row["percent"] for row in found.volumes] == [0.0] * 4
    assert np.abs(np.asarray(nib.load(tmp_path / "out" / "percent_change.nii.gz").dataobj)).max() == 0
    a, b = (np.asarray(nib.load(tmp_path / "out" / f"{name}.nii.gz").dataobj) for name in ("first", "second"))
    np.testing.assert_array_equal(a, b)


def test_a_known_growth_is_found(scans, changed):
    truth = 100 * (ventricles(scans["label_b"]) / ventricles(scans["label_a"]) - 1)
    found = {row["label"]: row["percent"] for row in changed.volumes}
    assert truth > 15
    assert found[3] == pytest.approx(truth, rel=0.25)
    assert changed.measures["ncc_after"] > changed.measures["ncc_aligned"]


def test_exchanging_the_time_points_exchanges_the_volumes(scans, changed, tmp_path):
    """Growth and shrinkage are found alike, to the last digits of float32."""
    found = longitudinal(
        scans["b"], scans["a"], tmp_path / "out", label_first=scans["label_b"], label_second=scans["label_a"], **FAST
    )
    for here, there in zip(changed.volumes, found.volumes, strict=True):
        assert here["volume_first"] == pytest.approx(there["volume_second"], rel=2e-3)
        assert here["symmetric_percent"] == pytest.approx(-there["symmetric_percent"], abs=0.1)


def test_a_turn_of_the_head_is_no_change(tmp_path):
    paths = [write(tmp_path / f"{k}.nii.gz", person(0.0, turn)[0]) for k, turn in enumerate((0.0, 0.08))]
    label = write(tmp_path / "label.nii.gz", person()[1])
    found = longitudinal(*paths, tmp_path / "out", label_first=label, **FAST)
    assert all(abs(row["percent"]) < 3 for row in found.volumes)


def test_the_transforms_lead_from_one_time_point_to_the_other(scans, changed):
    folder = changed.folder
    names = ("first_to_middle", "middle_to_second")
    to_middle, to_second = (Transform.read(folder / f"{name}.h5") for name in names)
    moved = (to_second @ to_middle).warp(scans["b"], scans["a"]).numpy()[0]
    a, b = (np.asarray(nib.load(scans[name]).dataobj) for name in "ab")
    inside = slice(8, -8), slice(8, -8)
    before, after = (float(np.abs(one - a)[inside].mean()) for one in (b, moved))
    assert after < 0.4 * before


@pytest.mark.slow
def test_volumes_on_grids_of_their_own_meet_half_way(tmp_path):
    """3-D, of two orientations and spacings."""
    from support import blobs

    frames = [oriented("RAS", (36, 40, 30), (2.0, 2.0, 2.5)), oriented("LPI", (40, 36, 38), (2.0, 2.2, 2.0))]
    sizes = ((36, 40, 30), (40, 36, 38))
    paths = []
    for k, (size, affine) in enumerate(zip(sizes, frames, strict=True)):
        paths.append(tmp_path / f"{k}.nii.gz")
        nib.save(nib.Nifti1Image(blobs(size, affine), affine), paths[-1])
    found = longitudinal(*map(str, paths), tmp_path / "out", optimize=5, spacing=2.0)
    assert found.measures["ncc_after"] > 0.98
    assert abs(found.measures["percent_mean"]) < 1
    assert nib.load(tmp_path / "out" / "first.nii.gz").header.get_zooms() == pytest.approx((2, 2, 2), abs=1e-3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.nii.gz"], "nowhere.nii.gz: no such image file"),
        (["a", "--affine", "learned"], "expected a stage of"),
        (["a", "--nonsense", "1"], "synthmorph has no setting 'nonsense'"),
    ],
)
def test_what_is_wrong_is_one_line(scans, tmp_path, words, message):
    b = scans.get(words[0], words[0])
    said = run("longitudinal", scans["a"], b, "-o", tmp_path / "out", *words[1:])
    assert message in said
    assert "\n" not in said
    assert not (tmp_path / "out").exists()
