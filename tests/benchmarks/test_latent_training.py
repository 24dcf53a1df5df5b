"""A training of the latent space on a device: what it writes is what the bundle loads."""

from __future__ import annotations

import csv
import sys
import time

import numpy as np
import pytest
import torch

from benchmarks import latent_deformation, latent_training
from benchmarks.latent_training import LatentRegistration, axial_slices

IDS = [0, 2, 3, 24, 507]


@pytest.mark.parametrize(("dims", "clock"), [(3, "--seconds"), (2, "--until")])
def test_a_short_training_writes_weights_and_a_curve(dims, clock, tmp_path, monkeypatch):
    rows = [f"{number},{40 * (i + 1)},5" for i, number in enumerate(IDS)]
    (tmp_path / "labels.csv").write_text("\n".join(["id,t1_prior_mean,t1_prior_mean_spread", *rows]) + "\n")
    axes = np.stack(np.meshgrid(*[np.arange(32) - 15.5] * 3, indexing="ij"))
    radius = np.sqrt((axes**2).sum(0))
    people = []
    for i in range(4):
        edges = [7 - 0.4 * i, 11 - 0.4 * i, 13 - 0.4 * i, 15 - 0.4 * i]
        people.append((np.searchsorted(edges, radius) + 1) % 5)
    split = ["training"] * 2 + ["validation"] * 2
    np.savez(tmp_path / "maps.npz", maps=np.stack(people).astype(np.uint8), ids=IDS, split=split)
    end = "1" if clock == "--seconds" else str(time.time() + 1)
    words = [
        str(tmp_path / "maps.npz"),
        "--table",
        str(tmp_path / "labels.csv"),
        "--spatial_dims",
        str(dims),
        clock,
        end,
    ]
    words += ["--output", str(tmp_path / "out"), "--device", "cpu", "--precision", "float32", "--pairs", "1"]
    monkeypatch.setattr(sys, "argv", ["latent_training", *words, "--latent", "8"])
    latent_training.main()
    network = LatentRegistration(dims, "float32", latent_size=8).network
    network.load_state_dict(torch.load(tmp_path / "out" / "model.pt", weights_only=True))
    with open(tmp_path / "out" / "model.csv", newline="") as file:
        row = next(csv.DictReader(file))
    assert int(float(row["steps"])) >= 1
    assert all(np.isfinite(float(value)) for value in row.values())
    if dims == 3:  # and what `latent_deformation warped` measures
        files = [str(tmp_path / name) for name in ("maps.npz", "warped.csv")]
        words = ["--statistics", str(tmp_path / "labels.csv"), "--weights", f"new={tmp_path / 'out' / 'model.pt'}"]
        latent_deformation.main(["warped", *files, *words, "--pairs", "1"])
        with open(files[1], newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["method"] for row in rows] == ["new, one person", "new, two people"]
        assert all(0 <= float(row[key]) <= 1 for row in rows for key in ("dice_before", "dice"))


def test_axial_slices_stand_person_by_person():
    maps = torch.arange(2 * 16).view(2, 1, 1, 16).expand(2, 4, 6, 16)
    slices, runs = axial_slices(maps)
    assert runs == (1, 4)
    assert slices.shape == (8, 4, 6)
    assert slices[:, 0, 0].tolist() == [4, 6, 8, 10, 20, 22, 24, 26]
