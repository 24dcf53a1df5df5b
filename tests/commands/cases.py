"""What several test files of this folder share."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from custom_components.evaluation.overlap import mean_dice
from custom_components.space import load_labels, resample

REPOSITORY = Path(__file__).resolve().parents[2]
VOXELMORPH = REPOSITORY / "bundles" / "voxelmorph"
SCHEMA = REPOSITORY / "tests" / "data" / "meta_schema_20240725.json"
FRAMES = ("LAS", "RAS", "PIR", "oblique")
# `python -m monai.bundle` where the package is not installed.
MONAI_BUNDLE = (
    "import runpy, sys; sys.modules['custom_components'] = None; runpy.run_module('monai.bundle', None, '__main__')"
)
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"CUDA_VISIBLE_DEVICES": ""}


def monai_bundle(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", MONAI_BUNDLE, *map(str, words)]
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)


def change(path: Path, **entries: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def check_labels(answer: Path, studies: Path, name: str) -> None:
    """Labels on the study's very grid, more like the truth than the atlas's where they were."""
    found, truth = nib.load(answer), load_labels(studies / "truth" / f"{name}.nii.gz")
    assert found.shape == truth.file_shape
    np.testing.assert_allclose(found.affine, truth.file_affine, atol=1e-4)
    atlas = load_labels(studies / "atlas_labels.nii.gz")
    before = resample(atlas.data, atlas.affine, truth.grid, mode="nearest")
    labels = torch.from_numpy(np.asarray(found.dataobj).astype(np.int16))[None]
    dice = [float(mean_dice(one[None], truth.data[None])) for one in (before, labels)]
    assert dice[1] > dice[0] + 0.05, f"Dice {dice[0]:.3f} to {dice[1]:.3f}"


def rows_of(path):
    """Rows of a CSV file of numbers."""
    with path.open(newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
