"""A sweep over the hyper-parameter: its table, images and picture say what each field alone does to the pair."""

import csv
import json
import math

import nibabel as nib
import numpy as np
import pytest
import torch
from matplotlib.image import imread
from support import published

from custom_components.data.phantoms import random_velocity, write_phantom_scans
from custom_components.evaluation.metrics import foreground_mask, normalized_cross_correlation
from custom_components.evaluation.overlap import label_overlap
from custom_components.fields import integrate_velocity, warp
from custom_components.files import write_table
from custom_components.methods.hypermorph.reporting import HyperReport, sweep_picture
from custom_components.space import DisplacementField, Grid, load_image, resample, write_image
from custom_components.transforms.load import LoadPaird
from custom_components.transforms.registered import RegisteredPair
from custom_components.transforms.report import PairReport
from custom_components.transforms.save import PairFiles

LABELS = (1, 2, 3, 4)
VALUES = (0.0, 0.5, 1.0)
SCAN_SPACING, MODEL_SPACING = (1.0, 1.5, 2.0), (1.2, 2.0, 2.5)  # mm along R, A, S
TURN = np.array([[0.96, -0.28, 0.0, 5.0], [0.28, 0.96, 0.0, -7.0], [0.0, 0.0, 1.0, 3.0], [0.0, 0.0, 0.0, 1.0]])


@pytest.fixture(
    scope="module",
    params=[((30, 26), "LAS", np.eye(4)), ((30, 26), "LAS", TURN), ((26, 24, 18), "LIA", TURN)],
    ids=["2-D", "2-D oblique", "3-D oblique"],
)
def loaded(request, tmp_path_factory):
    """Two phantoms with labels, on another grid and stored in another axis order than the model's; not to change."""
    size, codes, turn = request.param
    folder = tmp_path_factory.mktemp("scans")
    write_phantom_scans(folder, 2, size, num_validation=0, spacing_mm=SCAN_SPACING[: len(size)], axcodes=codes)
    paths = {}
    for role, number in (("moving", "00"), ("fixed", "01")):
        for key, kind in ((role, "images"), (f"label_{role}", "labels")):
            paths[key] = str(folder / kind / f"phantom_{number}.nii.gz")
            image = nib.load(paths[key])
            nib.save(nib.Nifti1Image(np.asarray(image.dataobj), turn @ image.affine), paths[key])
    return LoadPaird(MODEL_SPACING[: len(size)])(paths)


@pytest.fixture(scope="module")
def ddfs(loaded):
    """Displacements that move by ever less, (K, D, *S): each value of the sweep has its own field."""
    velocity = random_velocity(
        loaded["fixed"].shape[1:],
        amplitude=1.0,
        spacings=(5.0, 10.0),
        batch=3,
        generator=torch.Generator().manual_seed(0),
    )
    return integrate_velocity(velocity * torch.tensor([3.0, 1.5, 0.5]).view(-1, *[1] * (velocity.ndim - 1)))


def registered(loaded, ddf, sweep=None, **extra):
    """The pair with the given field as its prediction, swept over the given ones."""
    pred = {"ddf": ddf, "warped": warp(loaded["moving"][None], ddf[None])[0], "seconds": torch.tensor(0.5)}
    pred["hyper"] = torch.tensor([0.3])
    if sweep is not None:
        pred |= {"sweep_ddf": sweep, "sweep_hyper": torch.tensor(VALUES)[:, None], "sweep_seconds": torch.tensor(0.25)}
    return {**loaded, **extra, "pred": pred | extra.get("pred", {})}


WRITE = ("warped", "warped_label")


def plain_report(item, folder, write=WRITE, *, picture=False):
    """The registration without the report on hyper-parameters."""
    return published(item, folder, PairFiles(write), PairReport(picture=picture))


def full_report(item, folder, write=WRITE, *, picture=False, brain_only=False, **options):
    reporters = PairFiles(write), PairReport(picture=picture), HyperReport(**options)
    return published(item, folder, *reporters, brain_only=brain_only)


def shifted(loaded, scan_voxels):
    """The field that moves by so many of the scans' voxels along A."""
    ddf = torch.zeros(loaded["fixed"].ndim - 1, *loaded["fixed"].shape[1:])
    ddf[1] = scan_voxels * SCAN_SPACING[1] / MODEL_SPACING[1]
    return ddf


def one(folder, name):
    (path,) = folder.glob(f"*/{name}")
    return path


def names(folder):
    return {path.name for path in folder.glob("*/*")}


def table(folder, name="sweep.csv"):
    with one(folder, name).open(newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def canonical(path):
    """Values of a file along R, A, S (and the fourth axis)."""
    return np.asarray(nib.as_closest_canonical(nib.load(path)).dataobj)


@pytest.fixture(scope="module")
def swept(loaded, ddfs, tmp_path_factory):
    """The report on a sweep of three values, its folder, and the item."""
    folder = tmp_path_factory.mktemp("swept")
    item = registered(loaded, ddfs[1], ddfs)
    return full_report(item, folder), folder, item


# The table


def test_table_has_a_line_for_each_value_with_what_its_field_does(swept, ddfs):
    _, folder, item = swept
    rows = table(folder)
    assert [row["lambda"] for row in rows] == list(VALUES)
    fixed, mask = item["fixed"][None], foreground_mask({"fixed": item["fixed"][None]})
    for row, ddf in zip(rows, ddfs[:, None], strict=True):
        label = warp(item["label_moving"][None], ddf, mode="nearest")
        dice = label_overlap(label, item["label_fixed"][None], LABELS)[0].tolist()
        expected = {f"dice_{label}": value for label, value in zip(LABELS, dice, strict=True)}
        written = RegisteredPair.of(item).as_written(ddf[0]).metrics  # at the voxels of the fixed image
        expected |= {"dice": np.mean(dice), **{key: written[key] for key in ("folding_percent", "sd_log_jacobian")}}
        expected["ncc_aligned"] = float(normalized_cross_correlation(item["moving"][None], fixed, mask))
        expected["ncc_after"] = float(normalized_cross_correlation(warp(item["moving"][None], ddf), fixed, mask))
        assert {key: row[key] for key in expected} == pytest.approx(expected, rel=1e-4)


def test_each_structure_is_listed_with_its_best_value(swept):
    _, folder, _ = swept
    rows, best = table(folder), table(folder, "sweep_structures.csv")
    assert [int(row["label"]) for row in best] == list(LABELS)
    for row in best:
        most = max(rows, key=lambda line: line[f"dice_{int(row['label'])}"])
        assert row == {"label": row["label"], "lambda": most["lambda"], "dice": most[f"dice_{int(row['label'])}"]}


@pytest.mark.parametrize("best", range(len(VALUES)))
def test_the_value_that_does_not_move_is_best_for_a_scan_and_itself(loaded, tmp_path, best):
    same = {key: loaded["fixed" if key == "moving" else "label_fixed"] for key in ("moving", "label_moving")}
    sweep = torch.stack([shifted(loaded, 2.0 * (k - best)) for k in range(len(VALUES))])
    full_report(registered({**loaded, **same}, sweep[0], sweep), tmp_path)
    structures = table(tmp_path, "sweep_structures.csv")
    assert structures == [{"label": label, "lambda": VALUES[best], "dice": 1} for label in LABELS]
    assert table(tmp_path)[best]["ncc_after"] == pytest.approx(1)


@pytest.mark.parametrize("brain_only", [False, True])
def test_line_of_the_pairs_own_field_has_the_pairs_own_measures(loaded, ddfs, tmp_path, brain_only):
    """Where the pair is judged the sweep is, too."""
    metrics = full_report(registered(loaded, ddfs[1], ddfs), tmp_path, brain_only=brain_only).metrics
    row = table(tmp_path)[1]
    keys = {key for key in row if not key.startswith(("dice", "lambda"))}
    assert keys >= {"ncc_after", "nmi_after", "sd_log_jacobian", "displacement_mean_mm"}
    assert {key: row[key] for key in keys} == pytest.approx({key: metrics[key] for key in keys}, rel=1e-4)


def test_only_the_labels_asked_for_count(loaded, ddfs, tmp_path):
    """A label that the pair does not have spoils no mean and is best nowhere."""
    full_report(registered(loaded, ddfs[1], ddfs), tmp_path, labels=[2, 99])
    rows = table(tmp_path)
    assert [key for key in rows[0] if key.startswith("dice")] == ["dice", "dice_2", "dice_99"]
    assert all(row["dice"] == row["dice_2"] and math.isnan(row["dice_99"]) for row in rows)
    assert [row["label"] for row in table(tmp_path, "sweep_structures.csv")] == [2]


def test_table_names_every_hyper_parameter(loaded, ddfs, tmp_path):
    values = torch.tensor([[value, 0.25] for value in VALUES])
    pred = {"hyper": torch.tensor([0.3, 0.25]), "sweep_hyper": values}
    item = registered(loaded, ddfs[1], ddfs, pred=pred)
    metrics = full_report(item, tmp_path, names=["lambda", "gamma"]).metrics
    assert (metrics["lambda"], metrics["gamma"]) == (pytest.approx(0.3), 0.25)
    assert [(row["lambda"], row["gamma"]) for row in table(tmp_path)] == [tuple(row) for row in values.tolist()]
    assert table(tmp_path, "sweep_structures.csv")[0].keys() == {"label", "lambda", "dice"}


def test_pair_without_labels_is_compared_by_its_images(loaded, ddfs, tmp_path):
    plain = {key: value for key, value in loaded.items() if "label" not in key}
    full_report(registered(plain, ddfs[1], ddfs), tmp_path, picture=True)
    assert {"sweep.csv", "sweep.png", "sweep_warped.nii.gz"} <= names(tmp_path)
    assert "sweep_structures.csv" not in names(tmp_path)
    assert not [key for key in table(tmp_path)[0] if key.startswith("dice")]


# The images


def test_warped_images_lie_along_the_fourth_axis_of_the_fixed_images_own_grid(swept, ddfs):
    _, folder, item = swept
    found, fixed = nib.load(one(folder, "sweep_warped.nii.gz")), load_image(item["fixed_path"])
    assert found.shape == (*fixed.file_shape, len(VALUES))
    np.testing.assert_allclose(found.affine, nib.load(item["fixed_path"]).affine, atol=1e-5)
    moving = load_image(item["moving_path"])
    grid = Grid(item["grid_affine"].numpy(), tuple(item["fixed"].shape[1:]))
    for k, ddf in enumerate(ddfs):
        expected = resample(
            moving.data, moving.affine, fixed.grid, steps=[DisplacementField(ddf, grid)], fill=moving.background
        )
        volume = np.asarray(found.dataobj)[..., k]
        np.testing.assert_allclose(volume, expected.numpy().reshape(volume.shape), atol=1e-5)
        assert volume.std() > 0.1


def test_a_shift_of_two_voxels_shows_as_one(loaded, tmp_path):
    sweep = torch.stack([shifted(loaded, voxels) for voxels in (2, 0, -2)])
    full_report(registered(loaded, sweep[0], sweep), tmp_path)
    found, source = canonical(one(tmp_path, "sweep_warped.nii.gz")), canonical(loaded["moving_path"])
    for k, voxels in enumerate((2, 0, -2)):
        expected = np.roll(np.pad(source, ((0, 0), (2, 2), (0, 0))), -voxels, 1)[:, 2:-2]
        np.testing.assert_allclose(found[..., k], expected, atol=1e-3)


def test_image_of_the_pairs_own_field_is_the_pairs_own_image(loaded, ddfs, tmp_path):
    """A pre-alignment counts for the sweep, too."""
    matrix = torch.eye(loaded["fixed"].ndim, dtype=torch.float64)
    matrix[0, -1] = 3.3
    full_report(registered(loaded, ddfs[1], ddfs, world_matrix=matrix), tmp_path)
    swept, single = (
        np.asarray(nib.load(one(tmp_path, name)).dataobj) for name in ("sweep_warped.nii.gz", "warped.nii.gz")
    )
    np.testing.assert_array_equal(swept[..., 1].squeeze(), single.squeeze())
    assert np.abs(swept[..., 0].squeeze() - single.squeeze()).max() > 0.05


# The files


def test_sweep_adds_exactly_the_documented_files_and_names_them(loaded, ddfs, tmp_path):
    item = registered(loaded, ddfs[1], ddfs)
    before = plain_report(item, tmp_path / "plain", picture=True)
    result = full_report(item, tmp_path / "full", picture=True)
    added = {"sweep.csv", "sweep_structures.csv", "sweep_warped.nii.gz", "sweep.png"}
    assert names(tmp_path / "full") - names(tmp_path / "plain") == added
    assert imread(one(tmp_path / "full", "sweep.png")).std() > 0.05
    assert {path.name for path in result.files.values()} - {path.name for path in before.files.values()} == added


def test_what_is_not_written_of_the_pair_is_not_written_of_the_sweep(loaded, ddfs, tmp_path):
    full_report(registered(loaded, ddfs[1], ddfs), tmp_path, ())
    assert names(tmp_path) == {
        *("metrics.json", "files.json", "views.json", "report.html"),
        *("sweep.csv", "sweep_structures.csv"),
    }


def test_metrics_get_the_value_and_the_time_and_keep_the_others(swept, tmp_path):
    result, folder, item = swept
    added = {"lambda": pytest.approx(0.3), "sweep_seconds": 0.25}
    assert result.metrics == plain_report(item, tmp_path).metrics | added
    assert json.loads(one(folder, "metrics.json").read_text()) == result.metrics


def test_pair_without_a_sweep_gets_its_value_alone(loaded, ddfs, tmp_path):
    item = registered(loaded, ddfs[1])
    before = plain_report(item, tmp_path / "plain", picture=True)
    result = full_report(item, tmp_path / "full", picture=True)
    assert names(tmp_path / "full") == names(tmp_path / "plain")
    assert result.files.keys() == before.files.keys()
    assert result.metrics == before.metrics | {"lambda": pytest.approx(0.3)}
    assert json.loads(one(tmp_path / "full", "metrics.json").read_text()) == result.metrics


def test_files_of_an_earlier_sweep_are_removed(loaded, ddfs, tmp_path):
    full_report(registered(loaded, ddfs[1], ddfs), tmp_path, picture=True)
    assert {name for name in names(tmp_path) if name.startswith("sweep")}
    full_report(registered(loaded, ddfs[1]), tmp_path, picture=True)
    assert not {name for name in names(tmp_path) if name.startswith("sweep")}
    assert "sweep_seconds" not in json.loads(one(tmp_path, "metrics.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "failing"),
    [
        ("methods.hypermorph.reporting", "write_table"),
        ("methods.hypermorph.reporting", "sweep_picture"),
        ("transforms.publish", "write_image"),
        ("transforms.publish", "write_metrics"),
    ],
)
def test_a_failing_sweep_leaves_the_pairs_files_as_they_were(loaded, ddfs, tmp_path, monkeypatch, module, failing):
    item = registered(loaded, ddfs[1], ddfs)
    plain_report(item, tmp_path, picture=True)
    before = {path: path.read_bytes() for path in tmp_path.glob("*/*")}

    def fail(path, *args, **kwargs):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"custom_components.{module}.{failing}", fail)
    with pytest.raises(OSError, match=r"cannot write the results here \(No space left"):
        full_report(item, tmp_path, picture=True)
    assert before == {path: path.read_bytes() for path in tmp_path.glob("*/*")}
    assert not list(tmp_path.rglob(".*"))


def test_fewer_values_than_fields_are_refused(loaded, ddfs, tmp_path):
    item = registered(loaded, ddfs[1], ddfs, pred={"sweep_hyper": torch.tensor([[0.0], [1.0]])})
    with pytest.raises(ValueError, match="zip"):
        full_report(item, tmp_path)
    assert not names(tmp_path)


# Several images in a file


@pytest.mark.parametrize("size", [(7, 6), (7, 6, 1), (7, 6, 5)], ids=str)
@pytest.mark.parametrize("like", [False, True], ids=["alone", "like a file"])
def test_several_images_come_back_along_the_fourth_axis(tmp_path, size, like):
    affine = TURN @ np.diag([-1.5, 2.0, 2.5, 1.0])
    flat = tuple(n for n in size if n > 1)
    nib.save(nib.Nifti1Image(np.random.default_rng(0).random(size).astype(np.float32), affine), tmp_path / "like.nii")
    volume = load_image(tmp_path / "like.nii")
    images = torch.randn(3, *flat)
    write_image(tmp_path / "new.nii.gz", images, volume.affine, like=volume if like else None)
    found = nib.load(tmp_path / "new.nii.gz")
    assert found.shape == (*flat, *[1] * (3 - len(flat)), 3)
    assert found.get_data_dtype() == np.float32
    for k, image in enumerate(images.numpy()):
        np.testing.assert_array_equal(np.asarray(found.dataobj)[..., k].reshape(flat), image)
    in_plane = len(flat)
    np.testing.assert_allclose(found.affine[:in_plane, :in_plane], affine[:in_plane, :in_plane], atol=1e-6)
    np.testing.assert_allclose(found.affine[:in_plane, 3], affine[:in_plane, 3], atol=1e-6)
    if like:
        np.testing.assert_allclose(found.affine, affine, atol=1e-6)


@pytest.mark.parametrize("size", [(7, 6), (7, 6, 5)], ids=str)
def test_one_image_has_no_fourth_axis(tmp_path, size):
    image = torch.randn(1, *size)
    for name, given in (("one", image), ("none", image[0])):
        write_image(tmp_path / f"{name}.nii.gz", given, np.eye(len(size) + 1))
        found = nib.load(tmp_path / f"{name}.nii.gz")
        assert found.shape == size
        np.testing.assert_array_equal(np.asarray(found.dataobj), image[0].numpy())


# The picture


def sheet(path, pair, number, **options):
    ddf, warped = pair["ddf"][0], warp(pair["moving"], pair["ddf"])[0]
    options = {"spacing_mm": [1.0] * ddf.shape[0], "headings": [f"{k}" for k in range(number)], **options}
    sweep_picture(path, pair["fixed"][0], [warped] * number, [ddf] * number, **options)
    return imread(path)


def test_picture_grows_by_a_row_when_one_is_full(tmp_path, phantoms):
    one_row, two_rows = (sheet(tmp_path / "new" / f"{k}.png", phantoms, k, columns=3) for k in (2, 3))
    assert one_row.std() > 0.05
    assert two_rows.shape[0] == pytest.approx(2 * one_row.shape[0], abs=2)
    assert two_rows.shape[1] == one_row.shape[1]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["2.png", "3.png"]


def test_picture_shows_every_image_and_its_field(tmp_path, phantoms):
    """Panels of a still and of a moved image differ."""
    still = torch.zeros_like(phantoms["ddf"][0])
    given = {"headings": ["a", "b"], "spacing_mm": [1.0] * still.shape[0]}
    warped, moving = warp(phantoms["moving"], phantoms["ddf"])[0], phantoms["moving"][0]
    pictures = []
    for name, images, fields in (
        ("alike", [moving] * 2, [still] * 2),
        ("field", [moving] * 2, [still, phantoms["ddf"][0]]),
        ("image", [moving, warped], [still] * 2),
    ):
        sweep_picture(tmp_path / f"{name}.png", phantoms["fixed"][0], images, fields, **given)
        pictures.append(imread(tmp_path / f"{name}.png"))
    for other in pictures[1:]:
        changed = np.abs(other - pictures[0]).max((0, 2)) > 0.1
        assert changed[-len(changed) // 3 :].any()
        assert not changed[: len(changed) // 2].any()


def test_a_wrong_shape_is_refused_and_nothing_is_drawn(tmp_path, phantoms):
    fixed, moving, ddf = (phantoms[key][0] for key in ("fixed", "moving", "ddf"))
    given = {"headings": ["a"], "spacing_mm": [1.0] * ddf.shape[0]}
    with pytest.raises(ValueError, match="expected fixed of shape"):
        sweep_picture(tmp_path / "p.png", fixed[:, 1:], [moving], [ddf], **given)
    with pytest.raises(ValueError, match="expected warped of shape"):
        sweep_picture(tmp_path / "p.png", fixed, [moving[:, 1:]], [ddf], **given)
    with pytest.raises(ValueError, match="expected a spacing for each"):
        sweep_picture(tmp_path / "p.png", fixed, [moving], [ddf], headings=["a"], spacing_mm=[1.0])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_images_without_contrast_can_be_drawn(tmp_path, value):
    image = torch.full((1, 16, 18), value)
    sweep_picture(tmp_path / "p.png", image, [image], [torch.zeros(2, 16, 18)], ["a"], spacing_mm=(1, 1))
    assert (tmp_path / "p.png").stat().st_size > 1000


# The writer of tables


def test_rows_of_different_keys_leave_cells_empty(tmp_path):
    rows = [{"lambda": 0.1, "dice": 1 / 3}, {"lambda": 1, "note": 'a, "b"'}, {"hd": math.nan}]
    write_table(tmp_path / "new" / "table.csv", rows)
    with (tmp_path / "new" / "table.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert list(found[0]) == ["lambda", "dice", "note", "hd"]
    assert found[0] == {"lambda": "0.1", "dice": "0.333333", "note": "", "hd": ""}
    assert found[1] == {"lambda": "1", "dice": "", "note": 'a, "b"', "hd": ""}
    assert found[2] == {"lambda": "", "dice": "", "note": "", "hd": "nan"}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["table.csv"]
