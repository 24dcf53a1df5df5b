"""A template is the middle of its group: in shape, in brightness, and whatever order, round or interruption."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from support import run

from custom_components.commands import registrar
from custom_components.data.phantoms import phantom, write_phantom_scans
from custom_components.evaluation.overlap import mean_dice
from custom_components.fields import identity_grid
from custom_components.space.transform import Transform

SIZE = (40, 36)
FAST = ("--affine", "none", "--model", "svf", "--iterations", "[10,10,5]", "--spacing", "1")


@pytest.fixture(scope="module")
def people(tmp_path_factory) -> Path:
    """Four 2-D phantoms with labels."""
    return Path(write_phantom_scans(tmp_path_factory.mktemp("people"), n=6, size=SIZE))


@pytest.fixture(scope="module")
def made(people, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("made") / "out"
    (people.parent / "labels.csv").write_text("id,name\n3,ventricle\n")
    assert run("template", people, "-o", output, *FAST, "--rounds", "3") is None
    return output


def load(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def rows(output: Path) -> list[dict[str, str]]:
    lines = [line.split(",") for line in (output / "rounds.csv").read_text().splitlines()]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]


def test_the_rounds_converge_to_a_sharp_middle(made):
    found = rows(made)
    assert [row["kind"] for row in found] == ["deformable"] * 3
    assert float(found[-1]["off_centre_mm"]) < 0.5 * float(found[0]["off_centre_mm"])
    assert float(found[-1]["change"]) < 0.5 * float(found[0]["change"])
    assert float(found[-1]["sharpness"]) > 0.7
    assert float(found[-1]["ncc"]) > 0.95


def test_labels_become_shares_and_the_most_frequent_ones(made):
    shares, ids = load(made / "label_shares.nii.gz"), json.loads((made / "label_shares.json").read_text())["labels"]
    assert ids == [0, 1, 2, 3, 4]
    table = [line.split(",") for line in (made / "volumes.csv").read_text().splitlines()]
    assert table[0] == ["label", "name", "volume_ml"]
    assert [row[:2] for row in table[1:]] == [["1", ""], ["2", ""], ["3", "ventricle"], ["4", ""]]
    voxel_ml = float(np.prod(nib.load(made / "labels.nii.gz").header.get_zooms()[:3])) / 1000
    assert float(table[3][2]) == pytest.approx((load(made / "labels.nii.gz") == 3).sum() * voxel_ml, rel=1e-4)
    np.testing.assert_allclose(shares.sum(-1), 1, atol=1e-6)
    voted = load(made / "labels.nii.gz")
    np.testing.assert_array_equal(voted.squeeze(), np.array(ids)[shares.argmax(-1)].squeeze())
    table = (made / "people.csv").read_text().splitlines()
    assert table[0] == "id,weight,ncc_after,dice_after"
    assert all(float(line.split(",")[3]) > 0.8 for line in table[1:])


def test_the_page_shows_every_person_on_the_template(made):
    page = (made / "index.html").read_text(encoding="utf-8")
    assert "People on their template" in page
    assert all(f"phantom_0{k}" in page for k in range(4))
    assert page.count("data:image/webp") >= 12


def test_each_person_has_the_transforms_to_and_from_the_template(people, made):
    label = people.parent / "labels" / "phantom_00.nii.gz"
    folder = next((made / "people").glob("*phantom_00*"))
    there, back = (Transform.read(folder / f"{name}transform.h5") for name in ("", "inverse_"))
    template = str(made / "labels.nii.gz")
    carried = there.warp(str(label), template, interpolation="nearest")
    voted = torch.from_numpy(load(made / "labels.nii.gz").astype(np.int16))[None]
    assert float(mean_dice(carried.as_tensor()[None].int(), voted[None].int())) > 0.85
    points = np.array([[3.0, -4.0, 0.0], [-6.0, 2.0, 0.0]])
    np.testing.assert_allclose(back.points(there.points(points)), points, atol=0.3)


@pytest.mark.slow
def test_a_second_call_does_nothing_and_more_rounds_only_those(people, tmp_path, monkeypatch):
    output = tmp_path / "out"
    asked: list[object] = []
    known = registrar.Registrar.__call__

    def counted(self, *args, **kwargs):
        asked.append(args)
        return known(self, *args, **kwargs)

    monkeypatch.setattr(registrar.Registrar, "__call__", counted)
    assert run("template", people, "-o", output, *FAST, "--rounds", "1") is None
    assert len(asked) == 4
    first = load(output / "template.nii.gz")
    assert run("template", people, "-o", output, *FAST, "--rounds", "1") is None
    assert len(asked) == 4
    np.testing.assert_array_equal(load(output / "template.nii.gz"), first)
    assert run("template", people, "-o", output, *FAST, "--rounds", "2") is None
    assert len(asked) == 8


def test_a_run_that_was_killed_does_only_the_rest(people, tmp_path, monkeypatch):
    output = tmp_path / "out"
    asked: list[object] = []
    known = registrar.Registrar.__call__

    def dying(self, *args, **kwargs):
        asked.append(args)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return known(self, *args, **kwargs)

    monkeypatch.setattr(registrar.Registrar, "__call__", dying)
    assert run("template", people, "-o", output, *FAST, "--rounds", "1") == 130
    assert run("template", people, "-o", output, *FAST, "--rounds", "1") is None
    assert len(asked) == 5
    assert not list(output.glob(".unfinished*"))


def test_a_damaged_scan_is_left_out_and_said_at_the_end(people, tmp_path):
    items = json.loads(people.read_text())["training"]
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"nothing")
    items = [{**item, **{key: str(people.parent / item[key]) for key in ("image", "label")}} for item in items]
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"training": [*items, {"image": str(broken), "subject": "broken"}]}))
    said = run("template", path, "-o", tmp_path / "out", *FAST, "--rounds", "1")
    assert "1 of 5 people failed, the template is that of the others; broken" in said
    assert "\n" not in said
    assert "broken.nii.gz" in (tmp_path / "out" / "people.csv").read_text().splitlines()[-1]
    assert len(list((tmp_path / "out" / "people").iterdir())) == 4
    assert "broken.nii.gz" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")


def test_a_symmetric_template_is_its_own_mirror_image(people, tmp_path):
    output = tmp_path / "out"
    assert run("template", people, "-o", output, *FAST, "--rounds", "1", "--symmetric") is None
    image = load(output / "template.nii.gz")
    np.testing.assert_allclose(image, image[::-1], atol=1e-5)


@pytest.mark.slow
def test_several_processes_make_the_same_template(people, made, tmp_path):
    output = tmp_path / "out"
    assert run("template", people, "-o", output, *FAST, "--rounds", "1", "--jobs", "2") is None
    first = load(made / "rounds" / "01" / "template.nii.gz")
    np.testing.assert_allclose(load(output / "template.nii.gz"), first, atol=1e-4)


def test_workers_of_a_scheduler_make_the_same_template(people, made, tmp_path, scheduler):
    output = tmp_path / "out"
    assert run("template", people, "-o", output, *FAST, "--rounds", "1", "--scheduler", scheduler) is None
    first = load(made / "rounds" / "01" / "template.nii.gz")
    np.testing.assert_allclose(load(output / "template.nii.gz"), first, atol=1e-4)


def test_a_template_that_starts_from_an_image_keeps_its_grid(people, made, tmp_path):
    """Of another size, spacing and brightness; after two rounds it is the people's all the same."""
    affine = np.array([[1.5, 0, 0, -2], [0, 1.2, 0, 3], [0, 0, 1, 0], [0, 0, 0, 1]])
    own = nib.Nifti1Image(np.zeros((26, 28, 1), np.float32), affine)
    initial = Transform((np.eye(4),)).warp(str(made / "template.nii.gz"), own).numpy()[0].reshape(26, 28, 1)
    nib.save(nib.Nifti1Image(300 * initial, affine), tmp_path / "initial.nii.gz")
    words = ("template", people, *FAST, "--rounds", "2", "--initial", tmp_path / "initial.nii.gz")
    assert run(*words, "-o", tmp_path / "out") is None
    found = nib.load(tmp_path / "out" / "template.nii.gz")
    assert found.shape == (26, 28, 1)
    np.testing.assert_allclose(found.affine[:, :2], affine[:, :2], atol=1e-5)
    np.testing.assert_allclose(found.affine[:2, 3], affine[:2, 3], atol=1e-5)
    start = load(tmp_path / "out" / "rounds" / "00" / "template.nii.gz")
    assert np.corrcoef(start.ravel(), initial.ravel())[0, 1] > 0.9999
    assert np.corrcoef(load(tmp_path / "out" / "template.nii.gz").ravel(), initial.ravel())[0, 1] > 0.97
    assert float(load(tmp_path / "out" / "template.nii.gz").max()) < 1.1
    both = f"{tmp_path / 'initial.nii.gz'},{tmp_path / 'initial.nii.gz'}"
    said = run(*words[:-1], both, "-o", tmp_path / "two")
    assert "--initial: expected 1 images, one for each contrast, got 2" in said
    assert not (tmp_path / "two").exists()


def test_sharpening_brings_back_what_the_average_blurs(people, made, tmp_path):
    output = tmp_path / "out"
    assert run("template", people, "-o", output, *FAST, "--rounds", "2", "--sharpen", "0.2") is None
    for plain, sharp in zip(rows(made), rows(output), strict=False):
        assert float(sharp["sharpness"]) > 1.1 * float(plain["sharpness"])
        assert float(sharp["ncc"]) > float(plain["ncc"]) - 0.02
    plain, sharp = load(made / "rounds" / "02" / "template.nii.gz"), load(output / "template.nii.gz")
    assert float(sharp.mean()) == pytest.approx(float(plain.mean()), rel=0.02)
    assert np.corrcoef(plain.ravel(), sharp.ravel())[0, 1] > 0.97


def test_further_contrasts_and_weights_of_people_count(people, tmp_path):
    """The second contrast is the negative of the first; one person counts for all."""
    items = json.loads(people.read_text())["training"]
    for k, item in enumerate(items):
        image = nib.load(people.parent / item["image"])
        negative = tmp_path / f"negative{k}.nii.gz"
        nib.save(nib.Nifti1Image(1 - np.asarray(image.dataobj), image.affine), negative)
        item |= {"image": str(people.parent / item["image"]), "t2": negative.name, "weight": 1e-4 if k else 1}
        del item["label"]
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"training": items}))
    output = tmp_path / "out"
    words = ["--contrasts", "t2", "--contrast_weights", "1,0.5", "--rounds", "1"]
    assert run("template", path, "-o", output, *FAST, *words) is None
    one, other = (load(output / f"{name}.nii.gz") for name in ("template", "template_t2"))
    assert np.corrcoef(one.ravel(), other.ravel())[0, 1] < -0.95
    person = np.asarray(nib.load(items[0]["image"]).dataobj)
    assert np.corrcoef(one.ravel(), person.ravel())[0, 1] > 0.99


@pytest.mark.slow
def test_affine_rounds_give_the_mean_size_of_people_who_lie_anywhere(tmp_path):
    """Three times one brain, of 0.85, 1 and 1.2 times the size, turned and moved."""
    size = (72, 56)
    centre = torch.tensor([35.5, 27.5]).view(2, 1, 1)
    for k, (scale, angle, shift) in enumerate(((1.0, 0.0, 0.0), (0.85, 0.1, 2.0), (1.2, -0.05, -1.0))):
        turn = torch.tensor([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]).float() / scale
        places = torch.einsum("ij,j...->i...", turn, identity_grid(size) - centre - shift) * 1.3 + centre
        image = phantom(places[None], size)[0][0, 0].numpy()
        nib.save(nib.Nifti1Image(image[..., None], np.eye(4)), tmp_path / f"person{k}.nii.gz")
    output = tmp_path / "out"
    assert run("template", tmp_path, "-o", output, "--rounds", "0", "--affine_rounds", "2") is None
    areas = [(load(tmp_path / f"person{k}.nii.gz") > 0.3).sum() for k in range(3)]
    assert (load(output / "template.nii.gz") > 0.3).sum() == pytest.approx(np.prod(areas) ** (1 / 3), rel=0.06)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--affine", "learned"], "--affine: expected torch, itk, none, got 'learned'"),
        (["--average", "mode"], "--average: expected mean, median, got 'mode'"),
        (["--sharpen", "2"], "expected sharpen to be a number of at least 0 and of at most 1, got 2"),
        (["--model", "spline"], "there is no model 'spline'; there are svf"),
        (["--section", "nobody"], "has no section 'nobody'"),
        (["--contrasts", "t2"], "there is no contrast 't2'"),
        (["--nonsense", "1"], "synthmorph has no setting 'nonsense'"),
        (["--bundle", "conditional_atlas"], "registers single scans to its template"),
    ],
)
def test_what_is_wrong_is_one_line(people, tmp_path, words, message):
    said = run("template", people, "-o", tmp_path / "out", *words)
    assert message in said
    assert "\n" not in said
    assert not (tmp_path / "out").exists()
