"""Images that are no head get one sentence each, odd ones the answer that the plain one has, and the others go on."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_cases import REPOSITORY
from monai.data import MetaTensor
from torch import Tensor

from custom_components.commands.segment import segment
from custom_components.commands.strip import strip
from custom_components.methods.brain_extraction.segmenter import BrainSegmenter, grid_of, head_box, network_input
from custom_components.space.grids import Grid
from custom_components.space.resampling import resample
from custom_components.space.volumes import load_image, load_labels

pytestmark = pytest.mark.filterwarnings("ignore")
WEIGHTS = REPOSITORY / "bundles" / "brain_extraction" / "models" / "model.pt"
SIZE, SPACING = (40, 44, 38), 4.0
Save = Callable[..., str]


@pytest.fixture(scope="module")
def head() -> np.ndarray:
    """A bright ball with darker ones in it: the shipped weights find a brain of some structures."""
    places = [(x - (n - 1) / 2) * SPACING for x, n in zip(np.indices(SIZE), SIZE, strict=True)]
    image = np.zeros(SIZE)
    for middle, radius, value in ((0, 68, 300), (0, 60, 900), (20, 15, 500), (-20, 12, 400)):
        image[sum((x - middle) ** 2 for x in places) < radius**2] = value
    return (image + np.random.default_rng(0).integers(0, 30, SIZE)).astype(np.int16)


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def saved(name: str, array: np.ndarray, affine: np.ndarray | None = None) -> str:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(array, np.diag([SPACING] * 3 + [1]) if affine is None else affine), path)
        return str(path)

    return saved


def with_one(array: np.ndarray, value: float) -> np.ndarray:
    changed = array.astype(np.float32)
    changed[3, 3, 3] = value
    return changed


BAD: dict[str, tuple[Callable[[np.ndarray], np.ndarray], np.ndarray | None, str]] = {
    "slice": (lambda head: head[:, :, 15:16], None, "expected a 3-D image of a head, got shape (40, 44, 1)"),
    "slice2d": (lambda head: head[:, :, 15], None, "expected a 3-D image of a head, got shape (40, 44)"),
    "series": (lambda head: np.stack([head] * 3, -1), None, "one channel and one frame, got shape (40, 44, 38, 3)"),
    "bytes": (lambda head: np.stack([head.astype(np.uint8)] * 3, -1), None, "one channel and one frame, got shape"),
    "zero": (lambda head: 0 * head, None, "expected an image, got the constant 0 in every voxel"),
    "nothing": (lambda head: head[:, :, :0].astype(np.uint8), None, "expected an image, got no voxels"),
    "nan": (lambda head: head * np.float32(np.nan), None, "expected an image, got NaN in every voxel"),
    "inf": (lambda head: with_one(head, np.inf), None, "expected values below 1e+30, got inf"),
    "mask": (lambda head: (head > 200).astype(np.uint8), None, "got a mask: each voxel is 0 or 1"),
    "metres": (lambda head: head, np.diag([0.004, 0.004, 0.004, 1]), "expected a head, got an image of 0.16 x 0.176 x"),
    "far": (lambda head: head, np.diag([4000.0, 4000, 4000, 1]), "an image of 1.6e+05 x 1.76e+05 x 1.52e+05 mm needs"),
}


def test_what_is_no_head_has_one_sentence_and_the_others_are_done(save, head, tmp_path):
    paths = {name: save(f"{name}.nii.gz", change(head), affine) for name, (change, affine, _) in BAD.items()}
    with pytest.raises(RuntimeError, match=f"^{len(BAD)} of {len(BAD) + 1} images failed, the others are done"):
        strip(*paths.values(), save("good.nii.gz", head), output=str(tmp_path / "out"))
    with (tmp_path / "out" / "volumes.csv").open(newline="") as file:
        failures = {Path(row["image"]).name.split(".")[0]: row["failure"] for row in csv.DictReader(file)}
    assert not failures.pop("good")
    for name, (_, _, words) in BAD.items():
        assert f"/{name}.nii.gz: " in failures[name]
        assert words in failures[name]
        assert "\n" not in failures[name]
    assert {path.name for path in (tmp_path / "out").glob("*.nii.gz")} == {"good_mask.nii.gz", "good_stripped.nii.gz"}


def test_a_label_map_is_told_and_missing_voxels_are_background(save, head, tmp_path):
    labels = save("labels.nii.gz", head // 100)
    holes = save("holes.nii.gz", with_one(head, np.nan))
    first, second = segment(labels, holes, output=str(tmp_path / "out"), atlases=0).heads
    assert any("is it a label map?" in sentence for sentence in first.warnings)
    assert any("1 voxels are NaN" in sentence for sentence in second.warnings)
    assert not any("label map" in sentence for sentence in second.warnings)


def test_files_of_one_name_in_two_folders_keep_apart(save, head, tmp_path):
    paths = [save(f"{folder}/same.nii.gz", head) for folder in "xy"]
    strip(*paths, output=str(tmp_path / "out"))
    assert {path.name for path in (tmp_path / "out").glob("*_mask.nii.gz")} == {
        "x_same_mask.nii.gz",
        "y_same_mask.nii.gz",
    }


def meta(data: Tensor, grid: Grid) -> MetaTensor:
    return MetaTensor(data, affine=torch.from_numpy(grid.affine))


def around(grid: Grid, size: tuple[int, ...]) -> Grid:
    """A grid of another size with the same voxels."""
    affine = grid.affine.copy()
    affine[:3, 3] = grid.affine[:3] @ [*((n - m) // 2 for n, m in zip(grid.size, size, strict=True)), 1]
    return Grid(affine, size)


def test_the_network_sees_the_head_and_no_air_around_it(head):
    grid = Grid(np.diag([2.0, 2, 2, 1]), tuple(2 * n for n in SIZE))
    own = Grid(np.diag([SPACING, SPACING, SPACING, 1]), SIZE)
    given = meta(resample(torch.from_numpy(head)[None].float(), own.affine, grid, fill=0.0), grid)
    wide = around(grid, (160, 170, 180))
    noise = torch.randint(0, 30, wide.size, generator=torch.Generator().manual_seed(0))[None].float()
    padded = torch.maximum(resample(given.as_tensor(), grid.affine, wide, fill=0.0), noise)
    alone, among = network_input(given), network_input(meta(padded, wide))
    assert [max(n, m) for n, m in zip(alone.shape[1:], (80, 112, 96), strict=True)] == list(among.shape[1:])
    assert all(n % 8 == 0 for n in among.shape[1:])
    inside = resample(among.as_tensor(), among.affine.numpy(), grid_of(alone), fill=0.0)
    bright = alone.as_tensor() > 0.3
    assert (inside - alone.as_tensor())[bright].abs().max() < 0.05


def test_the_box_holds_what_is_bright_and_no_less_than_is_asked_for():
    assert head_box(torch.zeros(16, 24, 8), (8, 8, 8)) == (slice(0, 16), slice(0, 24), slice(0, 8))
    image = torch.zeros(64, 48, 32)
    image[20:30, 2:40, 10:12] = 1
    assert head_box(image, (8, 8, 8)) == (slice(17, 33), slice(1, 41), slice(7, 15))
    assert head_box(image, (30, 8, 100)) == (slice(9, 41), slice(1, 41), slice(0, 32))


def test_a_slab_keeps_its_air(head):
    slab = meta(torch.from_numpy(head[:, :, 15:20])[None].float(), Grid(np.diag([8.0, 8, 4, 1]), (*SIZE[:2], 5)))
    given = network_input(slab)
    assert given.shape[1] >= 8 * SIZE[0] // 2
    np.testing.assert_allclose(grid_of(given).center, grid_of(slab).center, atol=1e-6)


def dice(one: Tensor, other: Tensor) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["256 mm", "300 mm, noisy", "oblique", "0.3 mm in plane"])
def test_a_real_head_has_its_brain_in_any_field_of_view(test_data, kind):
    folder = test_data / "real_heads3d"
    image, truth = load_image(folder / "head_c_t1.nii.gz"), load_labels(folder / "head_c_brain.nii.gz")
    grid = around(image.grid, (256, 256, 256))
    if kind == "300 mm, noisy":
        grid = around(image.grid, (300, 300, 300))
    elif kind == "oblique":
        turn = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.25, 0.2, 0.15))
        middle = nib.affines.from_matvec(np.eye(3), image.grid.center)
        grid = Grid(middle @ turn @ np.linalg.inv(middle) @ grid.affine, grid.size)
    elif kind == "0.3 mm in plane":
        size = [round(n / step) for n, step in zip(image.grid.size, (2, 0.3, 0.3), strict=True)]
        grid = Grid(image.grid.affine @ np.diag([2, 0.3, 0.3, 1]), tuple(size))
    data = resample(image.data, image.affine, grid, fill=0.0)
    if kind == "300 mm, noisy":
        noise = torch.randint(0, 10, grid.size, generator=torch.Generator().manual_seed(0))[None].float()
        data = torch.maximum(data, noise)
    wanted = resample(truth.data.float(), truth.affine, grid, mode="nearest", fill=0.0) > 0
    assert dice(BrainSegmenter(WEIGHTS).mask(meta(data, grid)).as_tensor() > 0, wanted) > 0.94


def test_what_strip_and_segment_find_stands_side_by_side(save, head, tmp_path):
    path, output = save("head.nii.gz", head), tmp_path / "found"
    strip(path, output=str(output))
    segment(path, output=str(output), atlases=0)
    kinds = ("labels", "mask", "stripped")
    assert sorted(file.name for file in output.glob("*.nii.gz")) == [f"head_{kind}.nii.gz" for kind in kinds]
    strip(path, output=str(output))
    strip(save("other.nii.gz", head), output=str(output))
    assert (output / "head_labels.nii.gz").is_file()
    with open(output / "volumes.csv", newline="") as file:
        rows = {Path(row["image"]).name: row for row in csv.DictReader(file)}
    assert list(rows) == ["head.nii.gz", "other.nii.gz"]
    assert rows["head.nii.gz"]["thalamus_ml"] != "" == rows["other.nii.gz"]["thalamus_ml"]
    assert rows["head.nii.gz"]["brain_ml"] == rows["other.nii.gz"]["brain_ml"]


def test_a_failure_of_an_earlier_run_goes_when_the_image_is_good(save, head, tmp_path):
    path, output = save("head.nii.gz", head[:, :, 15]), tmp_path / "found"
    with pytest.raises(RuntimeError, match="3-D"):
        strip(path, output=str(output))
    save("head.nii.gz", head)
    strip(path, output=str(output))
    with open(output / "volumes.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert "failure" not in row
