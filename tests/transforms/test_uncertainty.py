"""The uncertainty of a registered pair: what is known of the samples is what the maps, files and metrics say."""

import json
import math

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import published

from custom_components.commands.subjects import sd_correlation, tissue_points
from custom_components.data.phantoms import write_phantom_scans
from custom_components.fields import identity_grid
from custom_components.space import Grid, write_image
from custom_components.transforms.load import LoadPaird
from custom_components.transforms.report import PairReport
from custom_components.transforms.save import PairFiles
from custom_components.transforms.uncertainty import UncertaintyReport, displacement_sd, label_entropy

SIZES = [(13, 16), (11, 12, 10)]
both = pytest.mark.parametrize("size", SIZES, ids=["2-D", "3-D"])
MAPS = {"displacement_sd.nii.gz", "velocity_sd.nii.gz", "label_entropy.nii.gz", "uncertainty.png"}
SAMPLES = {f"sample_{i:02d}_{kind}.nii.gz" for i in (1, 2) for kind in ("warped", "field")}
# The scans' voxels along R, A, S, and those of the model grid. A sample moves by two of the scans' voxels along A.
SCAN_SPACING, MODEL_SPACING = (1.0, 1.5, 2.0), (1.2, 2.0, 2.5)
SHIFT = 2 * SCAN_SPACING[1] / MODEL_SPACING[1]


# The measures


@pytest.mark.parametrize("num", [1, 2, 3, 7])
def test_labels_that_all_agree_have_no_entropy(num):
    labels = torch.randint(0, 5, (1, 6, 7)).expand(num, 6, 7)
    assert (label_entropy(labels) == 0).all()


@pytest.mark.parametrize("num", [2, 3, 7])
def test_labels_that_all_differ_have_the_largest_entropy(num):
    labels = torch.arange(num).view(-1, 1, 1).expand(num, 6, 7)
    torch.testing.assert_close(label_entropy(labels), torch.full((6, 7), math.log(num)))


def test_labels_that_stand_half_and_half_have_one_bit():
    labels = torch.tensor([3, 0, 0, 3]).view(-1, 1, 1, 1).expand(4, 2, 3, 4)
    torch.testing.assert_close(label_entropy(labels), torch.full((2, 3, 4), math.log(2)))


@given(num=st.integers(1, 6), seed=st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_entropy_is_that_of_the_counted_shares(num, seed):
    labels = torch.randint(0, 4, (num, 5, 4, 3), generator=torch.Generator().manual_seed(seed))
    share = torch.stack([(labels == label).float().mean(0) for label in range(4)])
    torch.testing.assert_close(label_entropy(labels), -torch.xlogy(share, share).sum(0), atol=1e-6, rtol=0)


@both
def test_displacement_sd_of_a_known_offset_is_in_millimetres(size):
    spacing = [0.8, 1.5, 3.0][: len(size)]
    grid = Grid(np.diag([*spacing, 1.0]), size)
    mean = torch.randn(len(size), *size)
    for axis in range(len(size)):
        offset = torch.zeros_like(mean)
        offset[axis] = 0.7
        # The sample variance of K / 2 offsets to either side is a^2 K / (K - 1).
        for num in (2, 6):
            samples = torch.stack([mean + offset, mean - offset] * (num // 2))
            expected = torch.full(size, 0.7 * spacing[axis] * math.sqrt(num / (num - 1)))
            torch.testing.assert_close(displacement_sd(samples, grid), expected, rtol=1e-4, atol=0)


@both
def test_displacement_sd_is_the_length_of_the_components_standard_deviations(size):
    samples = torch.randn(5, len(size), *size)
    spacing = np.array([0.8, 1.5, 3.0][: len(size)])
    turn = np.eye(len(size) + 1)
    turn[:2, :2] = [[0.6, 0.8], [-0.8, 0.6]]  # oblique axes keep their lengths
    result = displacement_sd(samples, Grid(turn @ np.diag([*spacing, 1.0]), size))
    length = np.sqrt((samples.numpy().var(0, ddof=1) * spacing.reshape(-1, *[1] * len(size)) ** 2).sum(0))
    np.testing.assert_allclose(result, length, rtol=1e-4)


# The report of a pair


@pytest.fixture(scope="module", params=[(26, 24), (26, 24, 18)], ids=["2-D", "3-D"])
def loaded(request, tmp_path_factory):
    """Two phantoms with labels, stored in another axis order and on another grid than the model's; not to change."""
    axes = len(request.param)
    folder = tmp_path_factory.mktemp("scans")
    codes = "LIA" if axes == 3 else "LAS"
    write_phantom_scans(folder, 2, request.param, num_validation=0, spacing_mm=SCAN_SPACING[:axes], axcodes=codes)
    paths = {"moving": "images/phantom_00", "fixed": "images/phantom_01"}
    paths |= {"label_moving": "labels/phantom_00", "label_fixed": "labels/phantom_01"}
    return LoadPaird(MODEL_SPACING[:axes])({key: str(folder / f"{name}.nii.gz") for key, name in paths.items()})


def registered(loaded, ddf, samples, **extra):
    """The pair with the given field and samples as its prediction."""
    pred = {"ddf": ddf, "warped": loaded["moving"], "seconds": torch.tensor(0.5)}
    if samples is not None:
        half = [(n + 1) // 2 for n in ddf.shape[1:]]
        pred |= {"ddf_samples": torch.stack(samples), "velocity_sd": torch.full((ddf.shape[0], *half), 0.25)}
    return {**loaded, **extra, "pred": pred}


WRITE = ("warped", "warped_label", "forward")


def plain_report(item, folder, write=WRITE, picture=False):
    """The registration without the report on uncertainty."""
    return published(item, folder, PairFiles(write), PairReport(picture=picture))


def full_report(item, folder, write=WRITE, picture=False):
    return published(item, folder, PairFiles(write), PairReport(picture=picture), UncertaintyReport())


def shifted(loaded, voxels):
    """A field that moves by so many voxels of the model grid along A."""
    size = loaded["fixed"].shape[1:]
    field = torch.zeros(len(size), *size)
    field[1] = voxels
    return field


def moved(path, voxels):
    """A stored scan read so many of its voxels further along A, its last axis in LAS and LIA; beyond it 0."""
    values = np.pad(np.asarray(nib.load(path).dataobj).squeeze(), 2)
    return np.roll(values, -voxels, -1)[(slice(2, -2),) * values.ndim]


def names(folder):
    return {path.name for path in folder.glob("*/*")}


def read(folder, name):
    (path,) = folder.glob(f"*/{name}")
    return nib.load(path)


def array(folder, name):
    return np.asarray(read(folder, name).dataobj).squeeze()


@pytest.fixture(scope="module")
def reported(loaded, tmp_path_factory):
    """The report on two samples, one moved to either side; its folder, and the item."""
    folder = tmp_path_factory.mktemp("reported")
    samples = [shifted(loaded, SHIFT), shifted(loaded, -SHIFT)]
    item = registered(loaded, shifted(loaded, 0.0), samples)
    return full_report(item, folder), folder, item


def test_nothing_is_said_of_a_pair_without_samples(loaded, tmp_path):
    item = registered(loaded, shifted(loaded, 0.0), None)
    before, after = plain_report(item, tmp_path / "plain"), full_report(item, tmp_path / "full")
    assert before.metrics == after.metrics
    assert names(tmp_path / "plain") == names(tmp_path / "full")


def test_two_samples_give_exactly_the_documented_files(loaded, tmp_path):
    pytest.importorskip("matplotlib")
    item = registered(loaded, shifted(loaded, 0.0), [shifted(loaded, SHIFT), shifted(loaded, -SHIFT)])
    before = plain_report(item, tmp_path / "plain", picture=True)
    result = full_report(item, tmp_path / "full", picture=True)
    assert names(tmp_path / "full") - names(tmp_path / "plain") == MAPS | SAMPLES
    assert {path.name for path in result.files.values()} - {p.name for p in before.files.values()} == MAPS | SAMPLES
    assert all(path.is_file() for path in result.files.values())


def test_files_of_an_earlier_run_with_more_samples_are_removed(loaded, tmp_path):
    samples = [shifted(loaded, SHIFT), shifted(loaded, -SHIFT)]
    full_report(registered(loaded, shifted(loaded, 0.0), samples), tmp_path)
    full_report(registered(loaded, shifted(loaded, 0.0), samples[:1]), tmp_path)
    assert names(tmp_path) & (MAPS | SAMPLES) == {"sample_01_warped.nii.gz", "sample_01_field.nii.gz"}
    full_report(registered(loaded, shifted(loaded, 0.0), None), tmp_path)
    assert not names(tmp_path) & (MAPS | SAMPLES)


def test_one_sample_has_files_but_no_standard_deviation(loaded, tmp_path):
    item = registered(loaded, shifted(loaded, 0.0), [shifted(loaded, SHIFT)])
    before, after = plain_report(item, tmp_path / "plain"), full_report(item, tmp_path / "full")
    added = names(tmp_path / "full") - names(tmp_path / "plain")
    assert added == {"sample_01_warped.nii.gz", "sample_01_field.nii.gz"}
    assert after.metrics.keys() - before.metrics.keys() == {"samples", "sample_folding_percent"}


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (("warped",), {"sample_01_warped.nii.gz", "sample_02_warped.nii.gz"}),
        (("forward",), {"sample_01_field.nii.gz", "sample_02_field.nii.gz"}),
        (("warped_label",), set()),
    ],
)
def test_files_of_a_sample_are_those_written_of_the_mean(loaded, tmp_path, write, expected):
    full_report(registered(loaded, shifted(loaded, 0.0), [shifted(loaded, SHIFT)] * 2), tmp_path, write)
    assert {name for name in names(tmp_path) if name.startswith("sample")} == expected


def test_pair_without_moving_labels_has_no_entropy(loaded, tmp_path):
    item = registered(loaded, shifted(loaded, 0.0), [shifted(loaded, SHIFT)] * 2, label_moving_path="")
    metrics = full_report(item, tmp_path).metrics
    assert "label_entropy" not in metrics
    assert "label_entropy.nii.gz" not in names(tmp_path)
    assert "displacement_sd_mm" in metrics


def test_metrics_get_the_documented_numbers_and_keep_the_others(reported, tmp_path):
    result, folder, item = reported
    before = plain_report(item, tmp_path)
    added = {"samples", "sample_folding_percent", "displacement_sd_mm", "velocity_sd_mm", "label_entropy"}
    assert result.metrics.keys() - before.metrics.keys() == added
    assert before.metrics.items() <= result.metrics.items()
    (path,) = folder.glob("*/metrics.json")
    assert json.loads(path.read_text()) == result.metrics
    assert result.metrics["samples"] == 2


def test_displacement_sd_is_on_the_model_grid(reported):
    result, folder, before = reported
    size = tuple(before["fixed"].shape[1:])
    expected = SHIFT * MODEL_SPACING[1] * math.sqrt(2)
    np.testing.assert_allclose(array(folder, "displacement_sd.nii.gz"), np.full(size, expected), rtol=1e-5)
    assert result.metrics["displacement_sd_mm"] == pytest.approx(expected, rel=1e-5)
    image, field = read(folder, "displacement_sd.nii.gz"), read(folder, "forward_field.nii.gz")
    # The field of slices has two layers, one on either side of their plane.
    middle = field.affine @ [0, 0, (field.shape[2] - 1) / 2 if len(size) == 2 else 0, 1]
    np.testing.assert_allclose(image.affine, np.column_stack([field.affine[:, :3], middle]), atol=1e-5)
    assert size == array(folder, "forward_field.nii.gz").shape[: len(size)]


def test_velocity_sd_is_brought_from_its_own_voxels_to_millimetres(reported):
    result, folder, before = reported
    size = before["fixed"].shape[1:]
    # Corners are aligned: n voxels of the image span what (n + 1) // 2 of the velocity do.
    steps = [s * (n - 1) / ((n + 1) // 2 - 1) for s, n in zip(MODEL_SPACING, size, strict=False)]
    expected = 0.25 * math.hypot(*steps)
    np.testing.assert_allclose(array(folder, "velocity_sd.nii.gz"), np.full(tuple(size), expected), rtol=1e-5)
    assert result.metrics["velocity_sd_mm"] == pytest.approx(expected, rel=1e-5)


def test_label_entropy_is_on_the_fixed_images_own_grid(reported):
    """Two samples differ where the moving labels, moved by two voxels to either side, do."""
    result, folder, before = reported
    warped = [moved(before["label_moving_path"], voxels) for voxels in (2, -2)]
    expected = np.where(warped[0] == warped[1], 0, math.log(2))
    entropy, fixed = read(folder, "label_entropy.nii.gz"), nib.load(before["fixed_path"])
    assert entropy.shape == fixed.shape
    np.testing.assert_allclose(entropy.affine, fixed.affine, atol=1e-6)
    np.testing.assert_allclose(array(folder, "label_entropy.nii.gz"), expected, atol=1e-6)
    anywhere = (warped[0] > 0) | (warped[1] > 0)
    assert result.metrics["label_entropy"] == pytest.approx(expected[anywhere].mean(), rel=1e-5)


def test_warped_samples_are_on_the_fixed_images_own_grid(reported):
    _, folder, before = reported
    for i, voxels in ((1, 2), (2, -2)):
        expected = moved(before["moving_path"], voxels)
        np.testing.assert_allclose(array(folder, f"sample_{i:02d}_warped.nii.gz"), expected, atol=1e-3)
        assert read(folder, f"sample_{i:02d}_warped.nii.gz").shape == nib.load(before["fixed_path"]).shape


def test_samples_equal_to_the_mean_have_its_files_and_no_uncertainty(loaded, tmp_path):
    """A pre-alignment counts for the samples, too."""
    size = loaded["fixed"].shape[1:]
    ddf = 0.8 * torch.randn(len(size), *size, generator=torch.Generator().manual_seed(0))
    matrix = torch.eye(len(size) + 1, dtype=torch.float64)
    matrix[0, -1] = 3.3
    metrics = full_report(registered(loaded, ddf, [ddf, ddf], world_matrix=matrix), tmp_path).metrics
    for i in (1, 2):
        for sample, mean in (("warped", "warped"), ("field", "forward_field")):
            np.testing.assert_array_equal(
                array(tmp_path, f"sample_{i:02d}_{sample}.nii.gz"), array(tmp_path, f"{mean}.nii.gz")
            )
    assert (array(tmp_path, "displacement_sd.nii.gz") == 0).all()
    assert (array(tmp_path, "label_entropy.nii.gz") == 0).all()
    assert metrics["displacement_sd_mm"] == metrics["label_entropy"] == 0
    assert metrics["sample_folding_percent"] == pytest.approx(metrics["folding_percent"])


def test_folding_of_the_samples_is_their_mean(loaded, tmp_path):
    mirror = torch.zeros_like(shifted(loaded, 0.0))
    mirror[0] = -2 * identity_grid(mirror.shape[1:])[0]
    item = registered(loaded, shifted(loaded, 0.0), [mirror, shifted(loaded, SHIFT)])
    metrics = full_report(item, tmp_path).metrics
    assert (metrics["folding_percent"], metrics["sample_folding_percent"]) == (0, 50)


def test_uncertainty_outside_the_foreground_does_not_count(loaded, tmp_path):
    background = (loaded["fixed"][0] == loaded["fixed"].min()).float()
    samples = [sign * shifted(loaded, 1.0) * background for sign in (1, -1)]
    item = registered(loaded, shifted(loaded, 0.0), samples)
    assert full_report(item, tmp_path).metrics["displacement_sd_mm"] == 0
    assert array(tmp_path, "displacement_sd.nii.gz").max() > 1


def test_demo_correlates_the_error_with_the_written_deviation(tmp_path):
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[:3, 3] = [-4, 7, 2]
    write_image(tmp_path / "label.nii.gz", torch.ones(12, 14, 10, dtype=torch.uint8), affine)
    coarse = np.diag([2.0, 2.0, 2.0, 1.0])
    coarse[:3, 3] = affine[:3, 3]
    ramp = torch.arange(6.0).view(-1, 1, 1).expand(6, 7, 5)
    write_image(tmp_path / "sd.nii.gz", ramp.contiguous(), coarse)
    points = tissue_points(tmp_path / "label.nii.gz")
    assert len(points) == 12 * 14 * 10
    error = points[:, 0].clamp(max=10).numpy() / 2  # the ramp at the points, its last voxel lies at 10
    assert sd_correlation(error, tmp_path / "sd.nii.gz", affine, tmp_path / "label.nii.gz") == pytest.approx(
        1, abs=1e-6
    )
