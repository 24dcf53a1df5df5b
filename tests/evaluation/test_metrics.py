"""Claims: closed forms on simple shapes and fields, agreement with MONAI, and honest numbers for undefined cases."""

import csv
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import compute_dice, compute_hausdorff_distance
from monai.networks.utils import one_hot

from custom_components.affine import affine_to_ddf
from custom_components.data.phantoms import phantom_pair
from custom_components.evaluation.metrics import (
    field_metrics,
    folding_fraction,
    foreground_mask,
    gradient_energy,
    image_metrics,
    inverse_consistency_mm,
    landmark_error_mm,
    normalized_cross_correlation,
    normalized_mutual_information,
    sd_log_jacobian,
)
from custom_components.evaluation.overlap import hausdorff95, label_overlap, mean_dice
from custom_components.evaluation.summary import write_cohort
from custom_components.fields import warp
from custom_components.files import write_metrics
from custom_components.methods.hypermorph.tuning import best_values
from custom_components.results import replacing


def box(size, start, stop, label=1):
    image = torch.zeros(1, 1, *size, dtype=torch.int16)
    image[(..., *(slice(a, b) for a, b in zip(start, stop, strict=True)))] = label
    return image


@pytest.mark.parametrize("shift", [0, 1, 3, 6])
def test_dice_of_shifted_boxes(shift):
    a, b = box((16, 16), (2, 2), (8, 8)), box((16, 16), (2 + shift, 2), (8 + shift, 8))
    assert mean_dice(a, b).item() == pytest.approx(max(0, 6 - shift) / 6)


def test_dice_agrees_with_monai(phantoms):
    a, b = phantoms["label_moving"], phantoms["label_fixed"]
    ours = label_overlap(a, b, [1, 2, 3, 4])
    theirs = compute_dice(one_hot(a, 5), one_hot(b, 5), include_background=False)
    torch.testing.assert_close(ours, theirs.double(), rtol=1e-6, atol=1e-6)


def test_dice_of_a_label_absent_in_both_is_nan_and_ignored():
    a = box((8, 8), (1, 1), (4, 4), label=507)
    overlap = label_overlap(a, a, [3, 507, 2])
    assert overlap[0, 1] == 1
    assert overlap[0, [0, 2]].isnan().all()
    assert mean_dice(a, a, [3, 507]).item() == 1


def test_dice_of_a_label_lost_by_one_is_zero():
    a = box((8, 8), (1, 1), (4, 4))
    assert mean_dice(a, torch.zeros_like(a)).item() == 0


def test_empty_label_maps_have_no_overlap():
    empty = torch.zeros(2, 1, 4, 4)
    assert label_overlap(empty, empty).shape == (2, 0)
    assert mean_dice(empty, empty).isnan().all()


def test_order_of_labels_is_kept():
    a = box((8, 8), (0, 0), (4, 4), 7) + box((8, 8), (4, 4), (8, 8), 2)
    b = box((8, 8), (0, 0), (4, 2), 7) + box((8, 8), (4, 4), (8, 8), 2)
    torch.testing.assert_close(label_overlap(a, b, [7, 2]), torch.tensor([[2 / 3, 1]], dtype=torch.float64))


def test_interpolated_label_map_is_refused():
    with pytest.raises(ValueError, match="whole numbers"):
        label_overlap(torch.full((1, 1, 4, 4), 0.5), torch.zeros(1, 1, 4, 4))


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="one shape"):
        label_overlap(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 5))


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (2.0, 0.5)])
def test_hausdorff_of_a_shifted_box_is_the_shift_in_mm(spacing):
    a, b = box((30, 30), (5, 5), (12, 12)), box((30, 30), (9, 5), (16, 12))
    assert hausdorff95(a, b, spacing_mm=spacing).item() == pytest.approx(4 * spacing[0], rel=0.3)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.0, 2.0, 3.0)])
def test_hausdorff_agrees_with_monai(spacing):
    pair = phantom_pair((24, 28, 20), 5)
    a, b = pair["label_moving"], pair["label_fixed"]
    ours = hausdorff95(a, b, [1, 2, 3, 4], spacing_mm=spacing)
    theirs = compute_hausdorff_distance(one_hot(a, 5), one_hot(b, 5), percentile=95, spacing=list(spacing))
    torch.testing.assert_close(ours, theirs.double(), rtol=1e-5, atol=1e-5)


def test_hausdorff_of_an_absent_label_is_nan():
    a = box((8, 8), (1, 1), (4, 4))
    assert hausdorff95(a, torch.zeros_like(a), spacing_mm=(1, 1)).isnan().all()


def test_landmark_error_is_in_mm():
    a, b = torch.zeros(1, 2, 3), torch.tensor([[[3.0, 4.0, 0.0], [0.0, 0.0, 2.0]]])
    assert landmark_error_mm(a, b).tolist() == [[5, 2]]
    assert landmark_error_mm(a, b, spacing_mm=(1, 1, 3)).tolist() == [[5, 6]]


@given(rate=st.floats(-0.8, 1.5))
@settings(max_examples=20, deadline=None)
def test_jacobian_measures_of_a_linear_field(rate):
    ddf = affine_to_ddf(torch.diag(torch.tensor([1 + rate, 1 + rate, 1.0], dtype=torch.float64))[None], (8, 9))
    assert folding_fraction(ddf).item() == 0
    assert sd_log_jacobian(ddf).item() == pytest.approx(0, abs=1e-6)


def test_mirrored_axis_folds_everywhere_and_has_no_log():
    ddf = affine_to_ddf(torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0]))[None], (6, 7, 8))
    assert folding_fraction(ddf).item() == 1
    assert sd_log_jacobian(ddf).isnan().all()


def test_folding_counts_within_the_mask_only():
    ddf = torch.zeros(1, 2, 12, 12)
    ddf[:, 0, 6:] = -3.0  # det J = -0.5 on the two rows about the jump
    assert folding_fraction(ddf).item() == pytest.approx(2 / 12)
    mask = torch.zeros(1, 1, 12, 12)
    mask[:, :, :4] = 1
    assert folding_fraction(ddf, mask).item() == 0
    assert folding_fraction(ddf, 1 - mask).item() == pytest.approx(2 / 8)


def test_field_that_is_not_a_number_counts_as_folded():
    assert folding_fraction(torch.full((1, 2, 5, 5), math.nan)).item() == 1


def test_two_halves_of_known_volume_change_have_known_sd():
    ddf = torch.zeros(1, 2, 40, 10, dtype=torch.float64)
    x = torch.arange(40, dtype=torch.float64)
    ddf[:, 0] = torch.where(x < 20, x, 20 + 0.25 * (x - 20))[:, None]  # det J = 2, then 1.25
    expected = math.log(2 / 1.25) / 2
    assert sd_log_jacobian(ddf).item() == pytest.approx(expected, rel=0.03)


def test_inverse_consistency_of_a_known_error_is_in_mm():
    ddf = torch.full((1, 2, 20, 20), 2.0)
    inverse = torch.full((1, 2, 20, 20), -2.0)
    inverse[:, 1] += 0.5
    mean, largest = inverse_consistency_mm(ddf, inverse, spacing_mm=(1.0, 3.0))
    assert mean.item() == pytest.approx(1.5)
    assert largest.item() == pytest.approx(1.5)


def test_inverse_consistency_where_everything_leaves_the_grid_is_nan():
    ddf = torch.full((1, 2, 8, 8), 50.0)
    mean, largest = inverse_consistency_mm(ddf, -ddf, spacing_mm=(1, 1))
    assert mean.isnan().all()
    assert largest.isnan().all()


def test_correlation_is_invariant_to_scale_and_signed():
    a = torch.rand(2, 1, 9, 9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(normalized_cross_correlation(a, 3 * a + 1), torch.ones(2).double())
    torch.testing.assert_close(normalized_cross_correlation(a, -a), -torch.ones(2).double())
    assert normalized_cross_correlation(a, torch.full_like(a, 0.1)).isnan().all()


def test_mutual_information_reaches_its_bounds():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(1, 1, 300, 300, generator=generator) for _ in range(2))
    assert normalized_mutual_information(a, a).item() == pytest.approx(2)
    assert normalized_mutual_information(a, 5 - 2 * a).item() == pytest.approx(2, abs=0.02)
    assert normalized_mutual_information(a, b).item() == pytest.approx(1, abs=0.005)
    assert normalized_mutual_information(a, b, torch.zeros_like(a)).isnan().all()


def test_measures_of_the_true_map_are_near_perfect(phantoms):
    spatial_dims = phantoms["ddf"].shape[1]
    points = torch.full((1, 3, spatial_dims), 12.0)
    batch = {k: phantoms[k] for k in ("moving", "fixed", "label_moving", "label_fixed")}
    batch |= {"landmarks_fixed": points, "landmarks_moving": points, "id": ["a"]}
    pred = {"ddf": phantoms["ddf"]}
    spacing = (1.5,) * spatial_dims
    result = image_metrics(batch, pred, spacing_mm=spacing, surfaces=True)
    mask, inverse = foreground_mask(batch), phantoms["inverse_ddf"]
    result |= field_metrics(phantoms["ddf"], mask, spacing_mm=spacing, inverse_ddf=inverse)
    assert result["ncc_after"] > 0.99 > result["ncc_before"]
    assert result["nmi_after"] > result["nmi_before"]
    assert result["dice_after"] > 0.88 > result["dice_before"]
    assert result["hd95_after_mm"] <= 1.5 < result["hd95_before_mm"]
    assert result["folding_percent"] == 0
    assert 0 < result["inverse_consistency_mm"] < 0.05
    assert 0 < result["sd_log_jacobian"] < 0.6
    assert result["landmark_error_before_mm"] == 0 < result["landmark_error_after_mm"]
    assert {f"dice_after_{i}" for i in (1, 2, 3, 4)} <= result.keys()


def test_image_metrics_take_what_is_given(phantoms):
    spacing = (1.0,) * phantoms["ddf"].shape[1]
    labels_only = {k: phantoms[k] for k in ("label_moving", "label_fixed")}
    result = image_metrics(labels_only, {"ddf": phantoms["ddf"]}, spacing_mm=spacing)
    assert "dice_after" in result
    assert "ncc_after" not in result
    given = image_metrics(phantoms, {"ddf": phantoms["ddf"], "warped": phantoms["fixed"]}, spacing_mm=spacing)
    assert given["ncc_after"] == pytest.approx(1)
    computed = image_metrics(phantoms, {"ddf": phantoms["ddf"]}, spacing_mm=spacing)
    warped = warp(phantoms["moving"], phantoms["ddf"])
    assert computed["ncc_after"] == pytest.approx(
        normalized_cross_correlation(warped, phantoms["fixed"], phantoms["fixed"] > 0).item()
    )


def test_image_metrics_without_a_field_are_refused(phantoms):
    with pytest.raises(ValueError, match="key ddf"):
        image_metrics(phantoms, {"warped": phantoms["fixed"]}, spacing_mm=(1, 1))


def test_foreground_is_the_mask_else_what_is_above_the_background():
    fixed = torch.full((1, 1, 4, 4), -2.0)
    fixed[..., 1:3, 1:3] = 1.0
    assert foreground_mask({"fixed": fixed}).sum() == 4
    assert foreground_mask({"fixed": fixed, "mask_fixed": torch.ones_like(fixed)}).sum() == 16
    assert foreground_mask({"fixed": torch.ones_like(fixed)}).all()


def test_cohort_is_written_with_mean_and_sd(tmp_path):
    rows = [{"id": "a", "dice": 0.5, "hd": math.nan}, {"id": "b", "dice": 0.7, "hd": 2.0, "extra": 1}]
    summary = write_cohort(tmp_path / "new", rows)
    assert summary["dice"] == pytest.approx({"mean": 0.6, "sd": math.sqrt(0.02), "n": 2})
    assert summary["hd"]["n"] == 1
    written = json.loads((tmp_path / "new" / "metrics.json").read_text())
    assert written["pairs"][0] == {"id": "a", "dice": 0.5, "hd": None}
    assert written["summary"]["hd"] == {"mean": 2.0, "sd": None, "n": 1}
    table = list(csv.DictReader((tmp_path / "new" / "metrics.csv").open()))
    assert [row["dice"] for row in table] == ["0.5", "0.7"]
    assert table[0]["extra"] == ""


def test_failing_run_leaves_the_old_result_and_nothing_else(tmp_path):
    path = tmp_path / "metrics.json"
    write_metrics(path, {"dice": 0.5})
    with pytest.raises(TypeError):
        write_metrics(path, {"dice": object()})
    with pytest.raises(FileNotFoundError), replacing(path):
        pass  # wrote nothing
    assert json.loads(path.read_text()) == {"dice": 0.5}
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]


def test_no_rows_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one row"):
        write_cohort(tmp_path, [])


def test_best_values_leave_out_labels_that_are_nowhere():
    dice = torch.tensor([[0.2, float("nan"), float("nan")], [0.1, float("nan"), 0.5]])
    assert best_values([0.0, 1.0], dice, [1, 2, 3], "lambda") == [
        {"label": 1, "lambda": 0.0, "dice": pytest.approx(0.2)},
        {"label": 3, "lambda": 1.0, "dice": pytest.approx(0.5)},
    ]


SIZES = [(24, 28), (12, 14, 10)]
both = pytest.mark.parametrize("size", SIZES, ids=["2-D", "3-D"])
# Phantoms move along axes of 16 voxels and more.
phantom_sizes = pytest.mark.parametrize("size", [(24, 28), (18, 20, 16)], ids=["2-D", "3-D"])


def random(*shape, seed=1):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (2.0, 0.5), (1.0, 1.0, 1.0), (0.7, 1.5, 3.0)], ids=str)
def test_energy_of_a_ramp_is_the_square_of_its_slope(spacing):
    size, slopes = (9, 7, 5)[: len(spacing)], torch.tensor([0.3, -1.2, 0.5][: len(spacing)])
    grids = torch.meshgrid(*[torch.arange(n) * s for n, s in zip(size, spacing, strict=True)], indexing="ij")
    ramp = sum(slope * grid for slope, grid in zip(slopes, grids, strict=True))[None, None]
    images = torch.cat([ramp, 2 * ramp, torch.ones_like(ramp)])
    expected = slopes.square().sum() * torch.tensor([1.0, 4, 0], dtype=torch.float64)
    torch.testing.assert_close(gradient_energy(images, spacing_mm=spacing), expected, rtol=1e-4, atol=1e-6)


@both
def test_energy_is_that_within_the_mask(size):
    image = torch.zeros(2, 1, *size)
    image[:, :, 6:] = torch.arange(size[0] - 6.0).view(-1, *[1] * (len(size) - 1)) * 2
    mask = torch.zeros(1, 1, *size)
    mask[:, :, 8:] = 1
    assert gradient_energy(image, mask, spacing_mm=[1.0] * len(size)).tolist() == pytest.approx([4, 4])
    assert gradient_energy(image, 1 - mask, spacing_mm=[1.0] * len(size)).max() < 4


@both
def test_energies_of_channels_are_averaged(size):
    image, spacing = random(2, 3, *size), [1.0] * len(size)
    each = torch.stack([gradient_energy(image[:, i : i + 1], spacing_mm=spacing) for i in range(3)])
    torch.testing.assert_close(gradient_energy(image, spacing_mm=spacing), each.mean(0))


@phantom_sizes
def test_blurring_lowers_the_energy(size):
    image, spacing = phantom_pair(size)["fixed"], [1.0] * len(size)
    pool = torch.nn.functional.avg_pool2d if len(size) == 2 else torch.nn.functional.avg_pool3d
    energies = [float(gradient_energy(image, spacing_mm=spacing))]
    for _ in range(3):
        image = pool(image, 3, 1, 1, count_include_pad=False)
        energies.append(float(gradient_energy(image, spacing_mm=spacing)))
    assert energies == sorted(energies, reverse=True)
    assert energies[-1] < 0.6 * energies[0]
