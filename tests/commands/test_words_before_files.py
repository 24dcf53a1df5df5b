"""A setting that takes a word or a file takes the word, whatever lies in the folder where the command runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from custom_components.checks import is_word
from custom_components.commands.bundles import all_bundles, find_bundle
from custom_components.commands.subtract import numbers
from custom_components.commands.train import _initial
from custom_components.commands.workflow import check_settings
from custom_components.data.lists import load_list
from custom_components.preparation.template import named_template
from custom_components.space.affine import ENGINES
from custom_components.space.volumes import Volume
from custom_components.transforms.alignment import ALIGNERS, Alignment, world_matrix_of

WORDS = (*ENGINES, *ALIGNERS, "none")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("word", WORDS)
def test_a_pairs_affine(here, word):
    for name in ("a.nii.gz", "b.nii.gz", word):
        (here / name).touch()
    texts = (word, f"./{word}")
    pairs = [{"moving": "a.nii.gz", "fixed": "b.nii.gz", "affine": affine} for affine in texts]
    (here / "list.json").write_text(json.dumps({"pairs": pairs}))
    assert [item["affine"] for item in load_list("list.json", "pairs", here)] == [word, str(here / word)]


def test_the_affine_of_a_command(here):
    (here / "none").write_text("no transform")
    volume = Volume(torch.rand(1, 8, 8, 8), np.eye(4), "a.nii", np.eye(4), (8, 8, 8), np.dtype("float32"))
    volumes = {"fixed": volume, "moving": volume}
    assert (world_matrix_of(Alignment("none"), volumes, volumes, {}, None) == np.eye(4)).all()
    with pytest.raises(ValueError, match=r"--affine: expected torch, itk, .* or a file; got 'itkk'"):
        world_matrix_of(Alignment("itkk"), volumes, volumes, {}, None)


@pytest.mark.parametrize("bundle", all_bundles(), ids=lambda path: path.name)
def test_a_bundle(here, bundle):
    shutil.copytree(bundle / "configs", here / bundle.name / "configs")
    assert find_bundle(bundle.name) == bundle
    assert find_bundle(f"./{bundle.name}").resolve() == here / bundle.name


@pytest.mark.parametrize("word", ["none", "group"])
def test_the_template_of_prepare(here, word):
    (here / word).touch()
    assert named_template(word) is None


def test_the_weights_that_a_training_begins_from(here):
    root = find_bundle("voxelmorph")
    for word, found in {"none": None, "shipped": root / "models" / "model.pt"}.items():
        (here / word).touch()
        assert _initial(root, word, 3) == found


def test_several_words_with_commas_between_them(here):
    for name in ("rigid,affine", "2,3"):
        (here / name).touch()
    assert numbers("2,3") == [2, 3]
    configs, _ = check_settings(find_bundle("synthmorph"), (), {"stages": "rigid,affine"}, 3)
    assert Path(configs[-1]).stem == "linear"


def test_a_word_has_no_ending_and_no_folder():
    assert all(map(is_word, (*WORDS, "voxelmorph")))
    assert not any(map(is_word, ("./itk", "there.tfm", "folder/itk", "itk.mat")))
