"""`morphzoo atlas` renders, sweeps and registers."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from support import run

from custom_components.data.phantoms import phantom_pair, write_phantom_scans
from custom_components.evaluation.overlap import mean_dice
from custom_components.losses.overlap import label_indicators
from custom_components.methods.conditional_atlas.files import render
from custom_components.methods.conditional_atlas.network import AtlasNetwork
from custom_components.methods.conditional_atlas.template import ConditionalTemplate
from custom_components.networks.voxelmorph_unet import VoxelMorphUNet
from custom_components.space import load_image, load_labels, resample

ATTRIBUTES = {"age": "numeric", "sex": ["F", "M"]}
PEOPLE = torch.tensor([[20.0, 0], [35, 1], [50, 1], [75, 0], [60, 1]])


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    """Weights of a 2-D atlas of phantoms whose templates change with the attributes; a scan on another grid, labels."""
    folder = tmp_path_factory.mktemp("atlas")
    size = (40, 36)
    torch.manual_seed(0)
    template = ConditionalTemplate(size, ATTRIBUTES, labels=[0, 1, 2, 3, 4], label_stride=2)
    network = AtlasNetwork(template, VoxelMorphUNet(2, half_resolution=True))
    scans = [phantom_pair(size, seed=i, amplitude=1.0) for i in range(6)]
    shares = torch.stack([label_indicators(scan["label_fixed"], range(5))[0].float() for scan in scans]).mean(0)
    template.initialize(torch.cat([scan["fixed"] for scan in scans]).mean(0, keepdim=True), shares[None])
    template.encoder.fit(PEOPLE)
    torch.nn.init.normal_(template.last[0].weight, std=0.2)
    affine = torch.eye(3, dtype=torch.float64)
    affine[:2, 2] = -(torch.tensor(size) - 1) / 2
    network.affine.copy_(affine)
    torch.save(network.state_dict(), folder / "model.pt")
    path = Path(write_phantom_scans(folder, 2, (30, 27), spacing_mm=4 / 3, axcodes="LPS", num_validation=0))
    item = json.loads(path.read_text())["training"][0]
    return network, folder / "model.pt", path.parent / item["image"], path.parent / item["label"]


def atlas_command(atlas, output, *words, scan=False):
    scans = [atlas[2], "--affine", "none", "--label", atlas[3]] if scan else []
    return run("atlas", *scans, "-o", output, "--weights", atlas[1], *words)


def test_the_command_renders_a_template(atlas, tmp_path, capsys):
    assert atlas_command(atlas, tmp_path, "--attributes", "sex=F,age=40") is None
    names = {f"template_age-40_sex-F{ending}" for ending in (".nii.gz", "_label.nii.gz", ".png", ".json")}
    assert {path.name for path in tmp_path.iterdir()} == names | {"files.json"}
    image, labels = render(atlas[0], {"age": 40, "sex": "F"})
    torch.testing.assert_close(load_image(tmp_path / "template_age-40_sex-F.nii.gz").data, image)
    assert torch.equal(load_labels(tmp_path / "template_age-40_sex-F_label.nii.gz").data.short(), labels)
    assert str(tmp_path / "template_age-40_sex-F.nii.gz") in capsys.readouterr().out


def test_a_number_that_is_not_given_is_the_training_datas_mean(atlas, tmp_path, capsys):
    assert atlas_command(atlas, tmp_path, "--attributes", "sex=F") is None
    assert (tmp_path / "template_age-48_sex-F.nii.gz").is_file()
    assert "age: not given, the training data's mean 48 is taken" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("sweep", "given", "values", "single"),
    [
        ("age=20:70:3", "sex=M", [20.0, 45.0, 70.0], "template_age-48_sex-M.nii.gz"),
        ("sex=F:M", "age=30", ["F", "M"], "template_age-30_sex-F.nii.gz"),
    ],
)
def test_the_command_sweeps_over_an_attribute(atlas, tmp_path, sweep, given, values, single):
    assert atlas_command(atlas, tmp_path, "--attributes", given, "--sweep", sweep) is None
    assert (tmp_path / single).is_file()
    image = np.asarray(nib.load(tmp_path / "sweep.nii.gz").dataobj)
    assert image.shape == (40, 36, 1, len(values))
    name, attributes = sweep.partition("=")[0], {"age": 30.0, "sex": "M"}
    for i, value in enumerate(values):
        expected = render(atlas[0], {**attributes, name: value})[0][0].numpy()
        np.testing.assert_allclose(image[..., 0, i], expected, atol=1e-5)
    assert np.abs(image[..., 0] - image[..., -1]).max() > 0.01
    with Image.open(tmp_path / "sweep.gif") as picture:
        assert picture.n_frames == 2 * len(values) - 2


@pytest.mark.slow
def test_the_command_registers_a_scan_and_carries_the_labels_to_it(atlas, tmp_path, capsys):
    assert atlas_command(atlas, tmp_path, "--attributes", "age=40,sex=F", "--optimize", 15, scan=True) is None
    folder = tmp_path / atlas[2].name.split(".")[0]
    names = {path.name for path in folder.iterdir()}
    wanted = {"warped", "warped_label", "warped_fixed", "warped_fixed_label", "forward_field", "inverse_field"}
    assert {f"{name}.nii.gz" for name in wanted} | {"metrics.json", "picture.png"} <= names
    own, theirs = load_image(atlas[2]), load_image(tmp_path / "template_age-40_sex-F.nii.gz")
    for name, expected in (("warped_fixed", own), ("warped_fixed_label", own), ("warped", theirs)):
        written = nib.load(folder / f"{name}.nii.gz")
        assert written.shape[:2] == expected.file_shape[:2], name
        np.testing.assert_allclose(written.affine, nib.load(expected.path).affine, atol=1e-5)
    carried, truth = load_labels(folder / "warped_fixed_label.nii.gz").data, load_labels(atlas[3]).data
    placed_only = resample(
        load_labels(tmp_path / "template_age-40_sex-F_label.nii.gz").data, theirs.affine, own.grid, mode="nearest"
    )
    before, after = (float(mean_dice(labels[None].short(), truth[None].short())) for labels in (placed_only, carried))
    assert after > max(0.6, before + 0.02)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["dice_after"] > metrics["dice_before"] + 0.02
    assert metrics["ncc_after"] > metrics["ncc_aligned"]
    assert f"results in {folder}" in capsys.readouterr().out


def test_without_refinement_the_networks_field_is_taken(atlas, tmp_path):
    assert atlas_command(atlas, tmp_path, "--attributes", "age=40,sex=F", scan=True) is None
    (path,) = tmp_path.glob("*/metrics.json")
    assert json.loads(path.read_text())["displacement_mean_mm"] < 0.01


@pytest.fixture(scope="module")
def single_atlas(tmp_path_factory):
    """Weights of a 2-D template of one phantom, without attributes and labels."""
    torch.manual_seed(0)
    network = AtlasNetwork(ConditionalTemplate((40, 36)), VoxelMorphUNet(2, half_resolution=True))
    network.template.initialize(phantom_pair((40, 36))["fixed"])
    network.affine[:2, 2] = -(torch.tensor([40, 36]) - 1) / 2
    path = tmp_path_factory.mktemp("single") / "model.pt"
    torch.save(network.state_dict(), path)
    return path


def test_an_atlas_without_attributes_and_labels_is_rendered_and_registered(atlas, single_atlas, tmp_path):
    words = ["atlas", atlas[2], "-o", tmp_path, "--weights", single_atlas, "--affine", "none"]
    assert run(*words) is None
    files = {"template.nii.gz", "template.png", "template.json", "files.json"}
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == files
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert (folder / "warped_fixed.nii.gz").is_file()
    assert not (folder / "warped_fixed_label.nii.gz").exists()


def test_an_atlas_whose_categories_are_numbers_is_rendered(tmp_path):
    torch.manual_seed(0)
    network = AtlasNetwork(ConditionalTemplate((40, 36), {"stage": [1, 2]}), VoxelMorphUNet(2, half_resolution=True))
    torch.save(network.state_dict(), tmp_path / "model.pt")
    words = ["atlas", "-o", tmp_path / "out", "--weights", tmp_path / "model.pt"]
    assert run(*words, "--attributes", "stage=2", "--sweep", "stage=1:2") is None


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--attributes", "age=40,sex=F,iq=3"], "the template's attributes are age, sex; given were age, sex, iq"),
        (["--attributes", "age=40"], "the template's attributes are age, sex; given were age"),
        (["--attributes", "age=40,sex=X"], "attribute sex: expected one of F, M, got X"),
        (["--attributes", "age=old,sex=F"], "attribute age: expected a number, got 'old'"),
        (["--attributes", "age"], "--attributes: expected name=value"),
        (["--attributes"], "--attributes needs a value, --attributes="),
        (["--attributes", "sex=F", "--sweep", "age=20:80"], "--sweep: expected name=first:last:number"),
        (["--attributes", "sex=F", "--sweep", "age=20:80:1"], "--sweep: expected name=first:last:number"),
        (["--attributes", "sex=F", "--sweep", "age=20:old:3"], "--sweep: expected name=first:last:number"),
        (["--attributes", "sex=F", "--sweep", "age"], "--sweep: expected name=first:last:number"),
        (["--attributes", "sex=F", "--sweep"], "--sweep"),
        (["--attributes", "sex=F", "--sweep", "iq=1:2:3"], "--sweep: the template's attributes are age, sex"),
        (["--attributes", "age=40", "--sweep", "sex=F:X"], "attribute sex: expected one of F, M, got X"),
        (["--attributes", "age=40", "--sweep", "sex=F"], "at least two values of sex"),
        (["--attributes", "sex=F", "--spaccing", 3], "conditional_atlas has no setting 'spaccing'"),
        (["--attributes", "sex=F", "--weights", "none.pt"], "none.pt: bundle conditional_atlas has no weights there"),
        (["--attributes", "sex=F", "--bundle", "voxelmorph"], "voxelmorph has no template; conditional_atlas has"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_wrong_words_are_refused_in_one_line(atlas, tmp_path, words, part):
    message = atlas_command(atlas, tmp_path, *words)
    assert message.startswith("morphzoo: error: ")
    assert part in message
    assert "\n" not in message
    assert not list(tmp_path.rglob("sweep*"))


def test_weights_of_another_bundle_are_refused_in_one_line(atlas, tmp_path):
    torch.save(VoxelMorphUNet(2).state_dict(), tmp_path / "model.pt")
    message = run("atlas", "-o", tmp_path, "--weights", tmp_path / "model.pt")
    assert message.startswith(f"morphzoo: error: {tmp_path / 'model.pt'}: these are not the weights of an atlas")
    assert "\n" not in message


def test_a_missing_scan_is_named_before_anything_is_written(atlas, tmp_path):
    words = ["-o", tmp_path / "out", "--weights", atlas[1], "--attributes", "age=40,sex=F"]
    message = run("atlas", tmp_path / "none.nii.gz", *words)
    assert message.startswith("morphzoo: error: ")
    assert "none.nii.gz: there is no such file" in message
    assert not list((tmp_path / "out").glob("*"))


def test_a_pair_is_not_for_an_atlas(atlas, tmp_path):
    words = ["-o", tmp_path, "--bundle", "conditional_atlas", "--weights", atlas[1]]
    message = run("register", atlas[2], atlas[2], *words)
    assert message.startswith("morphzoo: error: ")
    assert message.endswith("registers single scans to its template, not pairs: morphzoo atlas SCAN")


@pytest.mark.slow
def test_scans_of_a_list_are_evaluated_with_their_attributes(atlas, tmp_path, capsys):
    image, label = (str(path) for path in atlas[2:])
    scans = [{"id": sex, "image": image, "label": label, "age": 40, "sex": sex} for sex in "FM"]
    (tmp_path / "list.json").write_text(json.dumps({"test": scans}))
    words = ["evaluate", tmp_path / "list.json", "-o", tmp_path / "out", "--section", "test"]
    words += ["--bundle", "conditional_atlas", "--weights", atlas[1]]
    assert run(*words) is None
    summary = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert summary["num_pairs"] == 2
    assert summary["summary"]["dice_after"]["mean"] > 0.5
    assert {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()} == {"F", "M"}


def test_pairs_of_a_list_are_not_for_an_atlas(atlas, tmp_path):
    image = str(atlas[2])
    (tmp_path / "list.json").write_text(json.dumps({"validation_pairs": [{"moving": image, "fixed": image}]}))
    words = ["--bundle", "conditional_atlas", "--weights", atlas[1]]
    message = run("evaluate", tmp_path / "list.json", "-o", tmp_path / "out", *words)
    assert message.startswith("morphzoo: error: section 'validation_pairs' of ")
    assert message.endswith("holds pairs of moving and fixed, expected single scans")
