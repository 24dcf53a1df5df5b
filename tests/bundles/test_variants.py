"""Variants of the training."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundle_cases import (
    OVERLAYS,
    RENDERED,
    REPOSITORY,
    TINY,
    label_maps,
    needs,
    network_of,
    read_curve,
    read_json,
    steps_of,
    train,
    with_ages,
    workflow,
)

from custom_components.data.phantoms import write_phantom_scans

pytestmark = pytest.mark.filterwarnings("ignore")


def test_labels_add_a_segmentation_term(bundle, scans, tmp_path):
    needs(bundle, "labels")
    train(bundle, scans, tmp_path, labels=[1, 2, 3], max_epochs=1, num_pairs=2)
    assert float(read_curve(tmp_path)[0]["segmentation"]) > 0


def test_one_scan_can_be_the_fixed_image_of_all(bundle, scans, tmp_path):
    needs(bundle, "fixed_scan")
    losses = train(
        bundle,
        scans,
        tmp_path,
        fixed_scan=str(scans / "images" / "phantom_04.nii.gz"),
        max_epochs=1,
        num_pairs=4,
        num_patches=4,
    )
    assert len(losses) == 2
    assert np.isfinite(losses).all()


def plane(bundle: Path, scans: Path, folder: Path) -> tuple[Path, dict[str, Any]]:
    """Data for `train_2d.json` and the settings that they need."""
    if not (bundle / "configs" / "train_2d.json").exists():
        pytest.skip("the bundle has no 2-D variant")
    if "slices" in read_json(bundle / "configs" / "train_2d.json"):  # cut from volumes
        return scans, {"slices#levels": {1: [10, 20], 2: [10, 20]}}
    return with_ages(Path(write_phantom_scans(folder / "slabs", 4, (32, 32))).parent), {"size": [32, 32]}


def test_two_dimensional_variant_trains(bundle, scans, tmp_path):
    data, settings = plane(bundle, scans, tmp_path)
    if "size" not in settings:
        assert np.isfinite(train(bundle, data, tmp_path, "train_2d.json", **settings)).all()
        assert float(read_curve(tmp_path)[1]["score"]) > 0
        return
    losses = train(bundle, data, tmp_path, "train_2d.json", **settings, learning_rate=0.002)
    half = len(losses) // 2
    assert half == (4 if steps_of(bundle) == 8 else 1)  # two scans make two ordered pairs
    assert np.mean(losses[half:]) < np.mean(losses[:half])


def test_it_trains_in_bfloat16_as_it_does_on_a_cpu_unless_told_otherwise(bundle, scans, tmp_path):
    data, settings = plane(bundle, scans, tmp_path)
    losses = train(bundle, data, tmp_path, "train_2d.json", **settings, max_epochs=1, precision="bfloat16")
    assert np.isfinite(losses).all()


def test_label_maps_alone_train(bundle, scans, tmp_path):
    if "SynthesizedBatch" in str(read_json(bundle / "configs" / "train.json")):
        pytest.skip("the bundle trains on label maps anyway")
    own = [path.name for path in (bundle / "configs").glob("train_labelmaps.json")]
    losses = train(bundle, label_maps(scans, tmp_path), tmp_path, RENDERED, *own, max_epochs=1)
    assert np.isfinite(losses).all()
    assert float(read_curve(tmp_path)[0]["score"]) > 0


@pytest.mark.parametrize(
    ("names", "settings", "terms"),
    [
        (["rendered", "train_affine"], {}, {"points", "anchors"}),
        (
            ["rendered", "train_affine", "train_affine_2d"],
            {"slices#levels": {1: [10, 20], 2: [10, 20]}, "num_slices": 4},
            set(),
        ),
        (
            ["rendered", "train_labelmaps", "train_joint"],
            {"affine_weights": "none", "momentum_weights": "none", "num_steps": 1},
            {"similarity", "affine", "symmetry"},
        ),
    ],
    ids=["affine", "affine 2-D", "joint"],
)
def test_stages_of_a_training_train(bundle, scans, tmp_path, names, settings, terms):
    if not (bundle / "configs" / f"{names[-1]}.json").exists():
        pytest.skip(f"the bundle has no {names[-1]}.json")
    overlays = [RENDERED if name == "rendered" else f"{name}.json" for name in names]
    losses = train(bundle, label_maps(scans, tmp_path), tmp_path, *overlays, max_epochs=1, **settings)
    assert np.isfinite(losses).all()
    row = read_curve(tmp_path)[0]
    assert float(row["score"]) > 0
    assert all(float(row[term]) > 0 for term in terms), row
    assert (tmp_path / "affine.pt").exists() == (names[-1] == "train_joint")


def test_a_network_is_taught_by_others(bundle, scans, tmp_path):
    if not (bundle / "configs" / "train_taught.json").exists():
        pytest.skip("the bundle has no train_taught.json")
    # The shipped teacher belongs to images of this spacing.
    losses = train(bundle, scans, tmp_path, "train_taught.json", max_epochs=1, spacing=2.0)
    assert np.isfinite(losses).all()
    assert float(read_curve(tmp_path)[0]["score"]) > 0


def test_the_published_affine_stage_follows_its_schedules(bundle, scans, tmp_path):
    if not (bundle / "configs" / "train_affine_published.json").exists():
        pytest.skip("the bundle has no train_affine_published.json")
    settings = {"max_epochs": 3, "num_pairs": 2, "symmetric_from_epoch": 1, "late_steps_from_epoch": 2, "late_steps": 2}
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
    ("name", "value"), [("bidirectional", False), ("smoothing", 0), ("exact_kl", True), ("kl_trace", "degree")]
)
def test_other_settings_train(bundle, scans, tmp_path, trained, name, value):
    needs(bundle, name)
    losses = train(bundle, scans, tmp_path, max_epochs=1, **{name: value})
    assert len(losses) == 4
    assert np.isfinite(losses).all()
    assert losses != trained.losses[:4]


def settings_of_two(scans: Path, folder: Path) -> dict[str, Any]:
    settings = {"dataset_dir": str(scans), "output_dir": str(folder), "ckpt_dir": str(folder)}
    return {**settings, **TINY, "batch_size": 1, "num_pairs": 4, "num_patches": 4}


def configs_of_two(bundle: Path) -> list[Path]:
    return [bundle / "configs" / "train.json", OVERLAYS / "smoke.json", OVERLAYS / "multi_gpu.json"]


def train_as_one_of_two(rank: int, store: str, bundle: Path, overrides: dict[str, Any]) -> None:
    """What torchrun starts twice."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "CUDA_VISIBLE_DEVICES": ""}
    torch.set_num_threads(1)
    start = "$dist.init_process_group(backend='gloo', init_method='file://" + store + f"', rank={rank}, world_size=2)"
    job = workflow(bundle, "train", configs_of_two(bundle), {**overrides, "initialize#0": start})
    job.initialize()
    job.run()
    job.finalize()
    os._exit(0)  # gloo's threads sometimes never end


def check_two(bundle: Path, folder: Path, epochs: int) -> None:
    """After so many epochs of 4 pairs in 2 processes, of 2 steps each."""
    checkpoint = torch.load(folder / "last.pt", weights_only=True)
    assert (checkpoint["epoch"], checkpoint["iteration"]) == (epochs, 2 * epochs)
    assert [int(row["epoch"]) for row in read_curve(folder)] == list(range(1, epochs + 1))
    network_of(bundle, "train").load_state_dict(checkpoint["network"], strict=True)
    assert (folder / "model.pt").exists()


def test_two_processes_train_and_resume(bundle, scans, tmp_path):
    """Forked: to import MONAI takes longer than to train."""
    for epochs, resume in ((1, False), (2, True)):
        overrides = {**settings_of_two(scans, tmp_path), "max_epochs": epochs, "resume": resume}
        args = (str(tmp_path / f"store{epochs}"), bundle, overrides)
        torch.multiprocessing.start_processes(train_as_one_of_two, args, nprocs=2, start_method="fork")
        check_two(bundle, tmp_path, epochs)


def test_torchrun_trains_in_two_processes_as_the_page_says(scans, tmp_path):
    bundle = REPOSITORY / "bundles" / "voxelmorph"
    configs = str([str(path) for path in configs_of_two(bundle)])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "monai.bundle", "run", "--config_file", configs]
    settings = {**settings_of_two(scans, tmp_path), "bundle_root": bundle, "max_epochs": 1}
    for name, value in settings.items():
        command += [f"--{name}", str(value)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]
    check_two(bundle, tmp_path, epochs=1)
