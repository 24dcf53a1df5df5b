"""Fixtures that several test files of this folder share."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import nibabel as nib
import pytest
import torch
from commands.cases import FRAMES, VOXELMORPH
from support import run

from benchmarks import monai_label
from custom_components.commands.bundles import find_bundle
from custom_components.commands.label_server_export import export_for_monai_label
from custom_components.data.phantoms import STRUCTURES, write_phantom_scans


@pytest.fixture(scope="session")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms of 48 x 44 x 40 voxels of 2 mm: atlas and, in studies/ and truth/, others in four frames."""
    folder = tmp_path_factory.mktemp("label")
    for name in ("studies", "truth"):
        (folder / name).mkdir()
    sections = json.loads(Path(write_phantom_scans(folder, 5, (48, 44, 40), spacing_mm=2.0)).read_text())
    people = sections["training"] + sections["validation"]
    shutil.copy(folder / people[0]["image"], folder / "atlas.nii.gz")
    shutil.copy(folder / people[0]["label"], folder / "atlas_labels.nii.gz")
    for person, name in zip(people[1:], FRAMES, strict=True):
        for kind, place in (("image", "studies"), ("label", "truth")):
            volume = monai_label.orient(nib.load(folder / person[kind]), name)
            nib.save(volume, folder / place / f"{name}.nii.gz")
    with open(folder / "names.csv", "w", newline="") as file:
        csv.writer(file).writerows([["id", "name"], *([id, name] for id, (name, _) in STRUCTURES.items())])
    return folder


@pytest.fixture(scope="session")
def label_bundle(studies: Path) -> Path:
    files = {"atlas": str(studies / "atlas.nii.gz"), "atlas_labels": str(studies / "atlas_labels.nii.gz")}
    (folder,) = export_for_monai_label(
        VOXELMORPH, studies / "exported", **files, label_names=str(studies / "names.csv")
    )
    return folder


@pytest.fixture(scope="session")
def scans(tmp_path_factory):
    """Two phantoms with labels, as (image, label) paths each."""
    folder = tmp_path_factory.mktemp("scans")
    path = write_phantom_scans(folder, n=3, size=(40, 36, 32), spacing_mm=2.0, num_validation=1)
    items = [item for section in ("training", "validation") for item in json.loads(Path(path).read_text())[section]]
    return [(Path(path).parent / item["image"], Path(path).parent / item["label"]) for item in items]


@pytest.fixture(scope="session")
def registered(scans, tmp_path_factory):
    """A pair registered without a network."""
    output = tmp_path_factory.mktemp("registered")
    (moving, label_moving), (fixed, label_fixed) = scans[:2]
    words = ["optimize", moving, fixed, "-o", output, "--label_moving", label_moving, "--label_fixed", label_fixed]
    assert run(*words, "--iterations", "[15,15,10]", "--affine", "none") is None
    return next(path for path in output.iterdir() if path.is_dir())


@pytest.fixture(scope="session")
def slices(tmp_path_factory):
    """A data list of two 2-D phantoms with labels, each to be registered to the other."""
    return Path(write_phantom_scans(tmp_path_factory.mktemp("slices"), n=4, size=(40, 36)))


@pytest.fixture(scope="session")
def hyper_weights(tmp_path_factory):
    """An untrained 2-D network whose fields move by some voxels, by how many depends on lambda."""
    from monai.bundle import ConfigParser

    configs = [str(find_bundle("hypermorph") / "configs" / f"inference{part}.json") for part in ("", "_2d")]
    network = ConfigParser(ConfigParser.load_config_files(configs)).get_parsed_content("network_def")
    generator = torch.Generator().manual_seed(7)
    weights = network.state_dict()
    for name, value in weights.items():
        if value.ndim > 1:
            size = 1 / value[0].numel() ** 0.5 * (1 if name.endswith("project.weight") else 2**0.5)
            weights[name] = size * torch.randn(value.shape, generator=generator)
    path = tmp_path_factory.mktemp("weights") / "model_2d.pt"
    torch.save(weights, path)
    return path
