"""Variants of the training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from bundle_cases import (
    OVERLAYS,
    REPOSITORY,
    STATISTICS,
    TINY,
    needs,
    network_of,
    read_curve,
    read_json,
    steps_of,
    train,
    with_ages,
)

from custom_components.data.phantoms import write_phantom_scans

pytestmark = pytest.mark.filterwarnings("ignore")


def test_labels_add_a_segmentation_term(bundle, scans, tmp_path):
    needs(bundle, "labels")
    train(bundle, scans, tmp_path, labels=[1, 2, 3], max_epochs=1, num_pairs=2)
    assert float(read_curve(tmp_path)[0]["segmentation"]) > 0


def test_one_scan_can_be_the_fixed_image_of_all(bundle, scans, tmp_path):
    needs(bundle, "atlas")
    losses = train(
        bundle,
        scans,
        tmp_path,
        atlas=str(scans / "images" / "phantom_04.nii.gz"),
        max_epochs=1,
        num_pairs=4,
        num_patches=4,
    )
    assert len(losses) == 2
    assert np.isfinite(losses).all()


def test_two_dimensional_variant_trains(bundle, scans, tmp_path):
    if not (bundle / "configs" / "train_2d.json").exists():
        pytest.skip("the bundle has no 2-D variant")
    if "slices" in read_json(bundle / "configs" / "train_2d.json"):  # cut from volumes
        levels = {1: [10, 20], 2: [10, 20]}
        losses = train(bundle, scans, tmp_path, "train_2d.json", **{"slices#levels": levels})
        assert np.isfinite(losses).all()
        assert float(read_curve(tmp_path)[1]["score"]) > 0
        return
    slabs = with_ages(Path(write_phantom_scans(tmp_path / "slabs", 4, (32, 32))).parent)
    losses = train(bundle, slabs, tmp_path, "train_2d.json", size=[32, 32], learning_rate=0.002)
    half = len(losses) // 2
    assert half == (4 if steps_of(bundle) == 8 else 1)  # two scans make two ordered pairs
    assert np.mean(losses[half:]) < np.mean(losses[:half])


def label_maps(scans: Path, folder: Path) -> Path:
    """The phantoms' label maps without their images, as a data set of its own."""
    sections = read_json(scans / "datalist.json")
    maps = {
        name: [{**scan, "label": str(scans / scan["label"])} for scan in sections[name] if scan.pop("image")]
        for name in ("training", "validation")
    }
    (folder / "datalist.json").write_text(json.dumps(maps))
    (folder / "labels.csv").write_text(STATISTICS)
    return folder


def test_label_maps_alone_train(bundle, scans, tmp_path):
    if not (bundle / "configs" / "train_labelmaps.json").exists():
        pytest.skip("the bundle has no variant for label maps")
    losses = train(bundle, label_maps(scans, tmp_path), tmp_path, "train_labelmaps.json", max_epochs=1)
    assert np.isfinite(losses).all()
    assert float(read_curve(tmp_path)[0]["score"]) > 0


@pytest.mark.parametrize(
    ("names", "settings", "terms"),
    [
        (["train_affine"], {}, {"points", "anchors"}),
        (["train_affine", "train_affine_2d"], {"slices#levels": {1: [10, 20], 2: [10, 20]}, "num_slices": 4}, set()),
        (
            ["train_labelmaps", "train_joint"],
            {"affine_weights": "none", "momentum_weights": "none", "num_steps": 1},
            {"similarity", "affine", "symmetry"},
        ),
    ],
    ids=["affine", "affine 2-D", "joint"],
)
def test_stages_of_a_training_train(bundle, scans, tmp_path, names, settings, terms):
    if not (bundle / "configs" / f"{names[-1]}.json").exists():
        pytest.skip(f"the bundle has no {names[-1]}.json")
    overlays = [f"{name}.json" for name in names]
    losses = train(bundle, label_maps(scans, tmp_path), tmp_path, *overlays, max_epochs=1, **settings)
    assert np.isfinite(losses).all()
    row = read_curve(tmp_path)[0]
    assert float(row["score"]) > 0
    assert all(float(row[term]) > 0 for term in terms), row
    assert (tmp_path / "affine.pt").exists() == (names[-1] == "train_joint")


def test_the_published_affine_stage_follows_its_schedules(bundle, scans, tmp_path):
    if not (bundle / "configs" / "train_affine_published.json").exists():
        pytest.skip("the bundle has no train_affine_published.json")
    settings = {"max_epochs": 3, "num_pairs": 2, "symmetric_from": 1, "steps_from": 2, "late_steps": 2}
    losses = train(bundle, scans, tmp_path, "train_affine_published.json", **settings)
    assert np.isfinite(losses).all()
    symmetry = [float(row.get("symmetry") or 0) for row in read_curve(tmp_path)]
    assert symmetry[0] == 0
    assert min(symmetry[1:]) > 0


def test_random_shapes_train_without_data(bundle, tmp_path):
    if not (bundle / "configs" / "train_shapes.json").exists():
        pytest.skip("the bundle has no variant for random shapes")
    losses = train(bundle, tmp_path / "nowhere", tmp_path, "train_shapes.json", num_maps=3, max_epochs=1)
    assert np.isfinite(losses).all()
    assert float(read_curve(tmp_path)[0]["score"]) > 0


def test_surfaces_add_a_term(bundle, scans, tmp_path):
    needs(bundle, "surfaces")
    pytest.importorskip("scipy")
    losses = train(bundle, scans, tmp_path, surfaces=[1, 2], max_epochs=1, num_pairs=2)
    surface = float(read_curve(tmp_path)[0]["surface"])
    assert np.isfinite([*losses, surface]).all()
    assert surface > 0


def test_labels_can_have_a_gaussian_likelihood(bundle, scans, tmp_path):
    needs(bundle, "segmentation_sigma")
    settings = {"labels": [1, 2, 3], "max_epochs": 1, "num_pairs": 2}
    segmentation = []
    for sigma in (0.5, 1.0):
        losses = train(bundle, scans, tmp_path / str(sigma), segmentation_sigma=sigma, **settings)
        assert np.isfinite(losses).all()
        segmentation.append(float(read_curve(tmp_path / str(sigma))[0]["segmentation"]))
    assert segmentation[0] == pytest.approx(4 * segmentation[1], rel=1e-3)


@pytest.mark.parametrize(
    ("name", "value"), [("bidirectional", False), ("smoothing", 0), ("exact", True), ("trace", "degree")]
)
def test_other_settings_train(bundle, scans, tmp_path, trained, name, value):
    needs(bundle, name)
    losses = train(bundle, scans, tmp_path, max_epochs=1, **{name: value})
    assert len(losses) == 4
    assert np.isfinite(losses).all()
    assert losses != trained.losses[:4]


@pytest.mark.slow
def test_two_processes_train_and_resume(bundle, scans, tmp_path):
    configs = [bundle / "configs" / "train.json", OVERLAYS / "smoke.json", OVERLAYS / "multi_gpu.json"]
    settings = {"dataset_dir": scans, "output_dir": tmp_path, "ckpt_dir": tmp_path, "bundle_root": bundle}
    settings |= {**TINY, "batch_size": 1, "num_pairs": 4, "num_patches": 4}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "monai.bundle", "run", "--config_file", str([str(path) for path in configs])]
    for name, value in settings.items():
        command += [f"--{name}", str(value)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": ""}
    for epochs, resume in ((1, False), (2, True)):
        result = subprocess.run(
            [*command, "--max_epochs", str(epochs), "--resume", str(resume)],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == 0, result.stderr[-4000:]
        checkpoint = torch.load(tmp_path / "last.pt", weights_only=True)
        # 4 pairs in 2 processes: 2 steps in an epoch.
        assert (checkpoint["epoch"], checkpoint["iteration"]) == (epochs, 2 * epochs)
    assert (tmp_path / "model.pt").exists()
    assert [row["epoch"] for row in read_curve(tmp_path)] == ["1", "2"]
    network_of(bundle, "train").load_state_dict(checkpoint["network"], strict=True)
