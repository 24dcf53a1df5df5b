"""The training of the error estimation on one device, in small."""

from __future__ import annotations

import csv

import numpy as np
import torch

from benchmarks import error_estimation_training
from custom_components.methods.error_estimation.network import ErrorUNet


def test_a_short_training_writes_weights_and_a_curve(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    maps = np.zeros((3, 32, 32, 32), np.uint8)
    maps[:, 6:26, 6:26, 6:26] = rng.integers(1, 4, (3, 5, 5, 5)).repeat(4, 1).repeat(4, 2).repeat(4, 3)
    split = np.array(["training", "training", "validation"])
    np.savez(tmp_path / "maps.npz", maps=maps, ids=np.array([0, 2, 3, 24]), split=split)
    rows = "".join(f"{label},{mean},5\n" for label, mean in ((0, 5), (2, 170), (3, 110), (24, 40)))
    (tmp_path / "labels.csv").write_text("id,t1_prior_mean,t1_prior_mean_spread\n" + rows)
    words = [str(tmp_path / "maps.npz"), "--table", str(tmp_path / "labels.csv"), "--output", str(tmp_path / "out")]
    words += ["--seconds", "3", "--device", "cpu", "--batch", "2"]
    monkeypatch.setattr("sys.argv", ["x", *words])
    monkeypatch.setattr(error_estimation_training, "_HELD_OUT", 2)
    error_estimation_training.main()
    ErrorUNet().load_state_dict(torch.load(tmp_path / "out" / "error_estimation.pt", weights_only=True))
    with open(tmp_path / "out" / "error_estimation.csv", newline="") as file:
        found = list(csv.DictReader(file))
    assert float(found[-1]["steps"]) > 0
    assert float(found[-1]["held_out_loss"]) > 0
