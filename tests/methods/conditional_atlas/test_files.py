"""Files of templates, and scans brought to the grid of a template and back."""

import csv
import json
import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from matplotlib.image import imread
from methods.conditional_atlas.cases import LABELS, SIZES, both, make_network, smooth
from monai.data import decollate_batch, list_data_collate
from support import blobs, oriented, published

from custom_components.fields import integrate_velocity
from custom_components.methods.conditional_atlas.files import LoadToTemplated, render, write_sweep, write_template
from custom_components.space import (
    DisplacementField,
    Grid,
    load_image,
    load_labels,
    resample,
    write_affine_transform,
    write_image,
)
from custom_components.transforms.intensities import scale_intensity
from custom_components.transforms.load import LoadPaird
from custom_components.transforms.save import PairFiles


@both
@torch.no_grad()
def test_a_template_is_rendered_by_name(size):
    network = make_network(size, spread=0.3, labels=LABELS, label_stride=2)
    network.template.image.sub_(1.0)
    image, labels = render(network, {"sex": "M", "age": 40})
    expected, logits = network.template.render(torch.tensor([[40.0, 1]]))
    assert torch.equal(image, expected[0].clamp(min=0))
    assert expected.min() < 0
    assert torch.equal(labels, torch.tensor(LABELS, dtype=torch.int16)[logits[0].argmax(0, keepdim=True)])
    assert render(make_network(size), {"sex": "M", "age": 40})[1] is None


def test_rendering_beyond_the_training_data_is_warned_of(caplog):
    network = make_network(SIZES[0])
    with caplog.at_level(logging.WARNING):
        render(network, {"age": 70, "sex": "F"})
        assert not caplog.messages
        render(network, {"age": 90, "sex": "F"})
    assert caplog.messages == ["beyond the training data: age 90 (trained from 20 to 75)"]


def placed(network, size):
    """The network, with its template somewhere in the world."""
    affine = torch.diag(torch.tensor([*[1.5, 2.0, 2.5][: len(size)], 1.0], dtype=torch.float64))
    affine[:-1, -1] = -(torch.tensor(size) - 1) / 2 * affine.diagonal()[:-1] + 1
    network.affine.copy_(affine)
    return network


@both
@pytest.mark.parametrize("labels", [None, LABELS], ids=["plain", "labels"])
def test_files_of_a_template_lie_at_its_place(size, labels, tmp_path):
    network = placed(make_network(size, spread=0.3, labels=labels), size)
    attributes = {"age": 40.5, "sex": "M"}
    files = write_template(tmp_path / "new", network, attributes)
    stem = "template_age-40.5_sex-M"
    names = {"template": f"{stem}.nii.gz", "picture": f"{stem}.png"} | (
        {"label": f"{stem}_label.nii.gz"} if labels else {}
    )
    assert files == {kind: str(tmp_path / "new" / name) for kind, name in names.items()}
    assert {path.name for path in (tmp_path / "new").iterdir()} == {*names.values(), f"{stem}.json", "files.json"}
    expected = render(network, attributes)
    image = load_image(files["template"])
    torch.testing.assert_close(image.data, expected[0])
    np.testing.assert_allclose(image.affine, network.affine.numpy(), atol=1e-5)
    if labels:
        written = load_labels(files["label"])
        assert torch.equal(written.data.short(), expected[1])
        assert set(written.data.unique().tolist()) <= set(LABELS)
        np.testing.assert_allclose(written.affine, network.affine.numpy(), atol=1e-5)
    assert json.loads((tmp_path / "new" / f"{stem}.json").read_text()) == {"attributes": attributes}
    assert imread(files["picture"]).std() > 0.05


def test_a_template_without_attributes_has_a_plain_name(tmp_path):
    files = write_template(tmp_path, make_network(SIZES[0], {}), {}, picture=False)
    assert files == {"template": str(tmp_path / "template.nii.gz")}
    assert {path.name for path in tmp_path.iterdir()} == {"template.nii.gz", "template.json", "files.json"}


def test_a_picture_stays_as_long_as_it_shows_the_template(tmp_path):
    network = make_network(SIZES[0])
    attributes = {name: 40.0 if name == "age" else "F" for name in network.template.encoder.names}
    picture = Path(write_template(tmp_path, network, attributes)["picture"])
    write_template(tmp_path, network, attributes, picture=False)
    assert picture.is_file()
    with torch.no_grad():
        network.template.image.add_(1.0)
    write_template(tmp_path, network, attributes, picture=False)
    assert not picture.exists()


def test_names_of_files_are_made_of_any_category(tmp_path):
    network = make_network(SIZES[0], {"group": ["AD/MCI", "control"]})
    for _ in range(2):
        files = write_template(tmp_path, network, {"group": "AD/MCI"}, picture=False)
        assert Path(files["template"]).is_file()


def test_nothing_is_written_of_an_impossible_template(tmp_path):
    with pytest.raises(ValueError, match="the template's attributes are age, sex; given were age"):
        write_template(tmp_path / "new", make_network(SIZES[0]), {"age": 40})
    assert not (tmp_path / "new").exists()


@both
@pytest.mark.parametrize(("name", "values"), [("age", [20.0, 47.5, 75.0]), ("sex", ["F", "M"])])
def test_frames_of_a_sweep_are_single_templates(size, name, values, tmp_path):
    network = placed(make_network(size, spread=0.3, labels=LABELS), size)
    attributes = {"age": 30.0, "sex": "M"}
    files = write_sweep(tmp_path, network, attributes, name, values)
    assert all(Path(path).is_file() for path in files.values())
    names = {"sweep.nii.gz", "sweep_label.nii.gz", "sweep.csv", "sweep.gif"}
    assert {Path(path).name for path in files.values()} == names
    assert {path.name for path in tmp_path.iterdir()} == names | {"files.json"}
    image, labels = (nib.load(tmp_path / f"sweep{part}.nii.gz") for part in ("", "_label"))
    assert image.shape == (*size, *[1] * (3 - len(size)), len(values))
    single = write_template(tmp_path / "single", network, {**attributes, name: values[0]}, picture=False)
    np.testing.assert_allclose(image.affine, nib.load(single["template"]).affine)
    rows = list(csv.DictReader((tmp_path / "sweep.csv").open(newline="")))
    for i, (row, value) in enumerate(zip(rows, values, strict=True)):
        expected = render(network, {**attributes, name: value})
        np.testing.assert_allclose(np.asarray(image.dataobj)[..., i].reshape(size), expected[0][0].numpy(), atol=1e-6)
        np.testing.assert_array_equal(np.asarray(labels.dataobj)[..., i].reshape(size), expected[1][0].numpy())
        assert int(row.pop("frame")) == i
        assert {k: float(v) if k == "age" else v for k, v in row.items()} == {**attributes, name: value}


@pytest.mark.parametrize(
    ("attributes", "name", "values", "message"),
    [
        ({"age": 30, "sex": "F"}, "age", [20], "at least two values of age to sweep over, got 1"),
        ({"age": 30, "sex": "F"}, "iq", [1, 2], "given were age, sex, iq"),
        ({"age": 30}, "age", [20, 30], "given were age"),
        ({"age": 30, "sex": "F"}, "sex", ["F", "X"], "expected one of F, M, got X"),
    ],
)
def test_impossible_sweeps_are_refused_and_nothing_is_written(attributes, name, values, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_sweep(tmp_path / "new", make_network(SIZES[0]), attributes, name, values)
    assert not (tmp_path / "new").exists()


WORLD = ("RAS", (16, 18, 14), (2.5, 2.5, 2.5))
STORED = ("LIA", (33, 28, 37), (1.2, 1.5, 1.3))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """An atlas at a place in the world, and a scan with labels and mask of another orientation, spacing and size."""
    folder = tmp_path_factory.mktemp("world")
    network = make_network(WORLD[1], spread=0.1, labels=LABELS)
    network.affine.copy_(torch.tensor(oriented(*WORLD)))
    affine = oriented(*STORED)
    image = blobs(STORED[1], affine)
    files = {"image": image, "label": (image > 50).astype("u1") * 7, "mask": (image > 20).astype("u1")}
    for name, array in files.items():
        nib.save(nib.Nifti1Image(array, affine), folder / f"{name}.nii.gz")
    return network, {name: str(folder / f"{name}.nii.gz") for name in files}


def test_a_scan_of_any_grid_lands_on_the_templates(world, tmp_path):
    network, item = world
    loaded = LoadToTemplated(network, str(tmp_path))({**item, "age": 40, "sex": "F"})
    for key in ("moving", "fixed", "label_moving", "label_fixed", "mask_moving"):
        assert loaded[key].shape == (1, *WORLD[1]), key
    np.testing.assert_allclose(loaded["grid_affine"].numpy(), network.affine.numpy(), atol=1e-5)
    expected = blobs(WORLD[1], network.affine.numpy())
    inside = (slice(3, -3),) * 3
    scaled = scale_intensity(load_image(item["image"]).data).max() / load_image(item["image"]).data.max()
    found = loaded["moving"][0].numpy()[inside]
    assert np.corrcoef(found.ravel(), expected[inside].ravel())[0, 1] > 0.99
    assert np.abs(found - expected[inside] * float(scaled)).mean() < 0.05
    for key, threshold, value in (("label_moving", 50, 7), ("mask_moving", 20, 1)):
        labels, truth = loaded[key][0].numpy(), (expected > threshold) * value
        assert set(np.unique(labels)) == {0, value}
        assert (labels == truth)[inside].mean() > 0.95
    assert (loaded["age"], loaded["sex"]) == (40, "F")


def test_the_template_of_a_scans_attributes_is_its_fixed_image(world, tmp_path):
    network, item = world
    loaded = LoadToTemplated(network, str(tmp_path))({**item, "age": 40, "sex": "F"})
    image, labels = render(network, {"age": 40, "sex": "F"})
    torch.testing.assert_close(loaded["fixed"], scale_intensity(image))
    assert torch.equal(loaded["label_fixed"].short(), labels)
    assert Path(loaded["fixed_path"]) == tmp_path / "template_age-40_sex-F.nii.gz"
    assert Path(loaded["label_fixed_path"]) == tmp_path / "template_age-40_sex-F_label.nii.gz"
    assert loaded["id"] == "image"
    torch.testing.assert_close(loaded["image"], torch.cat([loaded["moving"], loaded["fixed"]]))


def test_another_label_map_can_be_carried(world, tmp_path):
    network, item = world
    other = torch.full((1, *WORLD[1]), 3, dtype=torch.int16)
    write_image(tmp_path / "other.nii.gz", other, network.affine.numpy())
    load = LoadToTemplated(network, str(tmp_path / "out"), template_label=str(tmp_path / "other.nii.gz"))
    assert (load({**item, "age": 40, "sex": "F"})["label_fixed"] == 3).all()


def test_a_scan_is_read_through_its_affine(world, tmp_path):
    network, item = world
    matrix = np.eye(4)
    matrix[:3, 3] = [2.5, 0, -5]
    write_affine_transform(tmp_path / "shift.tfm", matrix)
    person = {"image": item["image"], "age": 40, "sex": "F"}
    plain = LoadToTemplated(network, str(tmp_path))(person)
    by_item = LoadToTemplated(network, str(tmp_path))({**person, "affine": str(tmp_path / "shift.tfm"), "id": "one"})
    by_setting = LoadToTemplated(network, str(tmp_path), str(tmp_path / "shift.tfm"))(person)
    torch.testing.assert_close(by_item["moving"][:, :-1, :, 2:], plain["moving"][:, 1:, :, :-2], rtol=0, atol=1e-4)
    assert torch.equal(by_item["moving"], by_setting["moving"])
    assert by_item["id"] == "one"
    assert "label_moving" not in by_item


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": None}, "expected an item with one scan under 'image'"),
        ({"fixed": "other.nii.gz"}, "expected an item with one scan under 'image'"),
        ({"age": None}, "attribute age: expected a number, got None"),
        ({"sex": "X"}, "attribute sex: expected one of F, M, got X"),
    ],
)
def test_items_that_are_no_scan_with_attributes_are_refused(world, tmp_path, change, message):
    network, item = world
    with pytest.raises(ValueError, match=message):
        LoadToTemplated(network, str(tmp_path))({**item, "age": 40, "sex": "F", **change})


def test_an_item_without_an_attribute_is_refused(world, tmp_path):
    network, item = world
    with pytest.raises(ValueError, match="the template's attributes are age, sex; given were sex"):
        LoadToTemplated(network, str(tmp_path))({**item, "sex": "F"})


def saved(folder, load, item, write=("warped_fixed", "warped_fixed_label")):
    """The item with a smooth random diffeomorphism as its prediction, and what `PairFiles` wrote of it."""
    loaded = load(item)
    velocity = smooth(loaded["fixed"].shape[1:], 1.5)
    batch = list_data_collate([loaded])
    batch["pred"] = {"ddf": integrate_velocity(velocity), "inverse_ddf": integrate_velocity(-velocity)}
    (one,) = decollate_batch(batch)
    return one, published(one, folder / "out", PairFiles(write)).files


def test_labels_of_the_template_are_carried_to_the_scans_own_grid(world, tmp_path):
    network, item = world
    load = LoadToTemplated(network, str(tmp_path))
    data, files = saved(tmp_path, load, {**item, "age": 40, "sex": "F"})
    fixed, moving = load_labels(data["label_fixed_path"]), load_image(item["image"])
    inverse = DisplacementField(data["pred"]["inverse_ddf"], Grid(network.affine.numpy(), WORLD[1])).fading()
    expected = resample(fixed.data, fixed.affine, moving.grid, steps=[inverse], mode="nearest", fill=0)
    written = load_labels(files["warped_fixed_label"])
    assert torch.equal(written.data, expected)
    np.testing.assert_allclose(written.affine, moving.affine, atol=1e-5)
    assert nib.load(files["warped_fixed_label"]).get_data_dtype() == np.int32
    assert set(written.data.unique().tolist()) == set(LABELS)


def test_labels_of_the_template_are_carried_through_the_affine_too(world, tmp_path):
    network, item = world
    matrix = np.eye(4)
    matrix[:3, 3] = [3.0, -2, 4]
    write_affine_transform(tmp_path / "shift.tfm", matrix)
    load = LoadToTemplated(network, str(tmp_path), str(tmp_path / "shift.tfm"))
    data, files = saved(tmp_path, load, {**item, "age": 40, "sex": "F"})
    fixed, moving = load_labels(data["label_fixed_path"]), load_image(item["image"])
    inverse = DisplacementField(data["pred"]["inverse_ddf"], Grid(network.affine.numpy(), WORLD[1])).fading()
    steps = [np.linalg.inv(matrix), inverse]
    expected = resample(fixed.data, fixed.affine, moving.grid, steps=steps, mode="nearest", fill=0)
    assert torch.equal(load_labels(files["warped_fixed_label"]).data, expected)


def test_without_fixed_labels_none_are_carried(world, tmp_path):
    _, item = world
    pair = {"moving": item["image"], "fixed": item["image"], "label_moving": item["label"]}
    _, files = saved(tmp_path, LoadPaird(3.0), pair)
    assert files.keys() == {"warped_fixed"}


def test_without_an_inverse_no_labels_are_carried(world, tmp_path):
    _, item = world
    pair = {"moving": item["image"], "fixed": item["image"], "label_fixed": item["label"]}
    data, _ = saved(tmp_path, LoadPaird(3.0), pair)
    data["pred"] = {"ddf": data["pred"]["ddf"]}
    files = published(data, tmp_path / "other", PairFiles(["warped", "warped_fixed_label"])).files
    assert files.keys() == {"warped"}
