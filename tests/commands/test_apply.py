"""`morphzoo apply` for many files and headers, and `morphzoo convert`."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from support import run

from custom_components.commands.apply import apply
from custom_components.space import (
    Frames,
    dialects,
    read_transform,
    transform_points_world,
    write_affine_transform,
    write_transform,
)

SHIFT = nib.affines.from_matvec(np.eye(3), [2.0, 0, 0])  # one voxel


def image(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> str:
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([2.0, 2, 2, 1]) if affine is None else affine), path)
    return str(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images, labels and frames of two people, and the transform that shifts them."""
    rng = np.random.default_rng(0)
    for person in "ab":
        image(tmp_path / person / "t1.nii.gz", rng.random((6, 7, 8)).astype(np.float32))
    labels = np.kron(rng.integers(0, 3, (3, 4, 4)), np.ones((2, 2, 2)))[:, :7]
    image(tmp_path / "labels.nii.gz", labels.astype(np.int16))
    image(tmp_path / "series.nii.gz", rng.random((6, 7, 8, 3)).astype(np.float32))
    image(tmp_path / "fixed.nii.gz", rng.random((6, 7, 8)).astype(np.float32))
    write_affine_transform(tmp_path / "shift.tfm", SHIFT)
    return tmp_path


def voxels(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def test_many_images_go_into_a_folder_each_with_its_interpolation(folder: Path) -> None:
    names = ["a/t1.nii.gz", "b/t1.nii.gz", "labels.nii.gz", "series.nii.gz"]
    sources = ",".join(str(folder / name) for name in names)
    words = ["--reference", folder / "fixed.nii.gz", "--interpolation", "linear,cubic,nearest,auto"]
    assert run("apply", folder / "shift.tfm", sources, folder / "out", *words) is None
    written = sorted(path.name for path in (folder / "out").iterdir())
    assert written == ["a_t1.nii.gz", "b_t1.nii.gz", "labels.nii.gz", "series.nii.gz"]
    for name, result in zip(names, ["a_t1.nii.gz", "b_t1.nii.gz", "labels.nii.gz", "series.nii.gz"], strict=True):
        moved, source = voxels(folder / "out" / result), voxels(folder / name)
        np.testing.assert_allclose(moved[:-1], source[1:], atol=1e-5)
    assert voxels(folder / "out" / "labels.nii.gz").dtype == np.int16


@pytest.mark.parametrize(("name", "times"), [("shift.tfm", 1), ("shift.mat", 2)])
def test_a_transform_is_read_once_unless_it_depends_on_the_source(folder: Path, monkeypatch, name, times) -> None:
    fixed, sources = str(folder / "fixed.nii.gz"), [str(folder / "a" / "t1.nii.gz"), str(folder / "labels.nii.gz")]
    if name.endswith(".mat"):
        write_transform(folder / name, [SHIFT], Frames.of_files(fixed, sources[0]), dialect="fsl")
    reads, read = [], dialects.read_chain
    monkeypatch.setattr(dialects, "read_chain", lambda *args, **options: reads.append(args) or read(*args, **options))
    assert len(apply(str(folder / name), sources, str(folder / "out"), reference=fixed)) == 2
    assert len(reads) == times


def test_an_output_that_is_a_folder_takes_a_single_file_and_points_too(folder: Path) -> None:
    (folder / "p.csv").write_text("x,y,z\n1,2,3\n")
    (folder / "out").mkdir()
    assert run("apply", folder / "shift.tfm", folder / "p.csv", folder / "out") is None
    assert (folder / "out" / "p.csv").read_text().splitlines()[1] == "3.000000,2.000000,3.000000"


@pytest.mark.parametrize(
    ("sources", "output", "words", "said"),
    [
        (["a/t1.nii.gz", "labels.nii.gz"], "fixed.nii.gz", [], "need a folder"),
        (["a/t1.nii.gz", "a/t1.nii.gz"], "out", [], "sources that differ"),
        (["labels.nii.gz", "series.nii.gz"], ".", [], "was given"),
        (["labels.nii.gz"], "fixed.nii.gz", [], "was given"),
        (["labels.nii.gz", "series.nii.gz"], "out", ["--interpolation", "linear,nearest,nearest"], "one for each of 2"),
        (["labels.nii.gz", "p.csv"], "out", [], "points move the other way"),
        (["labels.nii.gz", "absent.nii.gz"], "out", [], "no such image file"),
    ],
)
def test_what_would_overwrite_or_mean_nothing_is_refused(
    folder: Path, sources: list[str], output: str, words: list[str], said: str
) -> None:
    (folder / "p.csv").write_text("x,y,z\n1,2,3\n")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    joined = ",".join(str(folder / name) for name in sources)
    words = [*words, "--reference", str(folder / "fixed.nii.gz")]
    assert said in run("apply", folder / "shift.tfm", joined, folder / output, *words)
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_header_moves_as_the_image_would(folder: Path) -> None:
    turn = nib.affines.from_matvec(nib.eulerangles.euler2mat(z=0.2) * 1.1, [3.0, -2, 1])
    write_affine_transform(folder / "turn.tfm", turn)
    for name in ("labels.nii.gz", "series.nii.gz"):
        assert run("apply", folder / "turn.tfm", folder / name, folder / "moved.nii.gz", "--header_only") is None
        moved, source = nib.load(folder / "moved.nii.gz"), nib.load(folder / name)
        assert np.array_equal(moved.dataobj, source.dataobj)
        assert moved.get_data_dtype() == source.get_data_dtype()
        np.testing.assert_allclose(moved.affine, np.linalg.inv(turn) @ source.affine, atol=1e-5)


def test_what_no_header_can_say_is_refused(folder: Path) -> None:
    write_affine_transform(folder / "shear.tfm", nib.affines.from_matvec([[1, 0.2, 0], [0, 1, 0], [0, 0, 1]]))
    said = run("apply", folder / "shear.tfm", folder / "labels.nii.gz", folder / "moved.nii.gz", "--header_only")
    assert "shears the image" in said
    assert not (folder / "moved.nii.gz").exists()


def test_transforms_of_fsl_apply_with_the_images_at_hand(folder: Path) -> None:
    fixed, moving = folder / "fixed.nii.gz", folder / "a" / "t1.nii.gz"
    words = ["--fixed", fixed, "--moving", moving]
    assert "say which" in run("convert", folder / "shift.tfm", folder / "shift.mat", *words)
    assert run("convert", folder / "shift.tfm", folder / "shift.mat", "--dialect", "fsl", *words) is None
    np.testing.assert_allclose(np.loadtxt(folder / "shift.mat")[:3, 3], [2, 0, 0], atol=1e-9)
    outputs = []
    for name in ("shift.tfm", "shift.mat"):
        outputs.append(folder / f"{name}.nii.gz")
        assert run("apply", folder / name, moving, outputs[-1], "--reference", fixed) is None
    np.testing.assert_allclose(*map(voxels, outputs), atol=1e-6)
    (folder / "p.csv").write_text("x,y,z\n1,2,3\n")
    assert "name both" in run("apply", folder / "shift.mat", folder / "p.csv", folder / "q.csv")
    words = ["--reference", fixed, "--moving", moving]
    assert run("apply", folder / "shift.mat", folder / "p.csv", folder / "q.csv", *words) is None
    assert (folder / "q.csv").read_text().splitlines()[1] == "3.000000,2.000000,3.000000"


def test_convert_joins_transforms_and_inverts_them(folder: Path) -> None:
    pair = f"{folder / 'shift.tfm'},{folder / 'shift.tfm'}"
    assert run("convert", pair, folder / "twice.tfm") is None
    np.testing.assert_allclose(read_transform(folder / "twice.tfm")[0][:3, 3], [4, 0, 0])
    assert run("convert", folder / "twice.tfm", folder / "back.tfm", "--invert") is None
    np.testing.assert_allclose(read_transform(folder / "back.tfm")[0][:3, 3], [-4, 0, 0])
    assert run("convert", pair, folder / "f.nii.gz", "--fixed", folder / "fixed.nii.gz") is None
    assert run("convert", folder / "f.nii.gz", folder / "g.nii.gz", "--invert") is None
    here = np.array([[5.0, 6, 7]])
    there = transform_points_world(here, read_transform(folder / "f.nii.gz"))
    np.testing.assert_allclose(there, [[9, 6, 7]], atol=1e-5)
    np.testing.assert_allclose(transform_points_world(there, read_transform(folder / "g.nii.gz")), here, atol=0.02)
