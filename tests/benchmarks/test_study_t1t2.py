"""The study of contrasts, on phantoms: what is trained, on which pairs, and what is drawn."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

import custom_components as mz
from benchmarks import study_t1t2 as study
from benchmarks.study_pictures import draw, rendered_pairs
from custom_components.data.phantoms import write_phantom_scans


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five people, slices in two contrasts; the second one is the first one inverted."""
    folder = tmp_path_factory.mktemp("people")
    made = Path(write_phantom_scans(folder / "scans", 5, (48, 64), num_validation=2))
    content = json.loads(made.read_text())
    sections = {}
    for section in ("training", "validation"):
        sections[section] = []
        for number, scan in enumerate(content[section]):
            image = nib.load(made.parent / scan["image"])
            other = image.get_fdata().max() - image.get_fdata()
            names = {f"image_{c}": f"{section}_{number}_{c}.nii.gz" for c in ("t1", "t2")}
            nib.save(image, folder / names["image_t1"])
            nib.save(nib.Nifti1Image(other.astype(np.float32), image.affine), folder / names["image_t2"])
            sections[section].append({**names, "subject": f"{section}{number}"})
    (folder / "datalist.json").write_text(json.dumps(sections))
    return folder


def test_the_fixed_image_across_contrasts_is_the_other_one_of_its_person() -> None:
    moving, fixed, other = torch.rand(3, 2, 1, 6, 5)
    batch = {"moving": moving, "fixed": fixed, "contrast_fixed": other, "image": torch.cat([moving, fixed], 1)}
    image, targets, _, _ = study.across(batch)
    assert torch.equal(image, torch.cat([moving, other], 1))
    assert torch.equal(targets["fixed"], other)


def test_pairs_are_those_of_different_people_in_the_contrasts_of_their_kind(people: Path) -> None:
    pairs = study.test_pairs(people)
    assert [pair["kind"] for pair in pairs] == [kind for kind in study.KINDS for _ in range(2)]
    for pair in pairs:
        first, second = pair["kind"].split("-")
        assert pair["moving"].endswith(f"{first}.nii.gz")
        assert pair["fixed"].endswith(f"{second}.nii.gz")
        assert pair["moving"][:-9] != pair["fixed"][:-9]


def test_weights_are_in_proportion_to_what_a_voxel_costs(people: Path) -> None:
    weights = study.smoothness_weights(people, 1.5)
    assert weights["lncc"] == pytest.approx(study.WEIGHT)
    assert all(weight > 0 for weight in weights.values())
    assert weights == study.smoothness_weights(people, 1.5)


def test_trainings_choose_nothing_by_the_people_that_are_measured(
    people: Path, tmp_path: Path, commands: list[list[str]]
) -> None:
    weights = {"lncc": 0.1, "mi": 0.1, "mind": 0.02}
    study.train(tmp_path / "a", people, "t2-t2", "mind", 40, weights, 1.5)
    study.train(tmp_path / "b", people, "t1-t2", "lncc", 80, weights, 1.5)
    settings = [json.loads((tmp_path / name / "settings.json").read_text()) for name in "ab"]
    assert [one["val_interval"] for one in settings] == [one["max_epochs"] for one in settings] == [40, 80]
    assert [one["weight"] for one in settings] == [0.02, 0.1]
    assert "train#batch" not in settings[0]
    first = json.loads((tmp_path / "a" / "datalist.json").read_text())["training"][0]
    assert first["image"].endswith("t2.nii.gz")
    assert len(commands) == 2
    with pytest.raises(ValueError, match="other settings"):
        study.train(tmp_path / "a", people, "t2-t2", "mind", 80, weights, 1.5)


def test_measures_are_those_of_the_t1s_whatever_is_registered(people: Path, tmp_path: Path) -> None:
    registrar = mz.Registrar("synthmorph", optimize=0, affine="none")
    pairs = study.test_pairs(people)
    row = study.measure(registrar, pairs[-1])
    assert row["kind"] == "t1-t2"
    assert 0.3 < float(str(row["t1_ncc_before"])) < 1
    text = study.table({study.SYNTHMORPH: [study.measure(registrar, pair) for pair in pairs]})
    assert text.count("\n") == 4
    draw(tmp_path / "pictures.png", {"t1-t2 mind 80": registrar}, pairs)
    assert (tmp_path / "pictures.png").stat().st_size > 10_000


def test_pictures_are_of_rendered_people_whose_thalamus_is_in_the_middle(test_data: Path, tmp_path: Path) -> None:
    pairs = rendered_pairs(test_data / "labelmaps3d", tmp_path)
    assert [pair["kind"] for pair in pairs] == list(study.KINDS)
    images = {path: nib.load(path).get_fdata() for pair in pairs for path in (pair["moving"], pair["fixed"])}
    assert {image.shape for image in images.values()} == {(160, 224)}
    assert len(images) == 4
    for image in images.values():
        left, right = (image[part, 60:160].mean() for part in (slice(80), slice(80, None)))
        assert abs(left - right) < 0.1 * (left + right)
        assert image[:, :20].mean() != image[:, -20:].mean()
