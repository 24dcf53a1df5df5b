"""Landmarks of real people: as a term of the objective, and as a witness that no registration makes worse unsaid."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from monai.data import decollate_batch, list_data_collate
from support import published

from custom_components.data.batches import prepare_pair_batch
from custom_components.deformations.velocity import StationaryVelocity
from custom_components.fields import jacobian_determinant
from custom_components.inference.refiner import refiner
from custom_components.transforms.landmarks import landmark_metrics
from custom_components.transforms.load import LoadPaird
from custom_components.transforms.registered import RegisteredPair
from custom_components.transforms.report import PairReport

DEFORMATION = StationaryVelocity()


def optimized(item: dict, weight: float = 0.0) -> dict:
    """A loaded pair with the optimiser's field as its prediction."""
    batch = list_data_collate([item])
    image, _, _, options = prepare_pair_batch(batch)
    moving, fixed = image.chunk(2, 1)
    refine = refiner(DEFORMATION, 1.0, landmark_weight=weight, iterations=(40, 40, 20))
    ddf = DEFORMATION(refine(moving, fixed, **options), fixed.shape[2:])["ddf"]
    return decollate_batch({**batch, "pred": {"ddf": ddf, "warped": fixed}})[0]


@pytest.mark.slow
def test_landmarks_of_lungs_bring_others_closer_that_were_held_out(test_data: Path, tmp_path: Path) -> None:
    folder = test_data / "lung_masks_landmarks"
    with open(folder / "case_07_landmarks.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    item = {"moving": str(folder / "case_07_insp_mask.nii.gz"), "fixed": str(folder / "case_07_exp_mask.nii.gz")}
    used, held = dict(item), dict(item)
    for part, chosen in ((used, rows[::2]), (held, rows[1::2])):
        for role, breath in (("moving", "insp"), ("fixed", "exp")):
            path = tmp_path / f"{len(part)}_{role}_{part is used}.csv"
            points = "".join(",".join(row[f"{breath}_{axis}"] for axis in "ijk") + "\n" for row in chosen)
            path.write_text("i,j,k\n" + points)
            part[f"landmarks_{role}"] = str(path)
    load, errors = LoadPaird(10.0), {}
    used, held = load(used), load(held)
    for weight in (0.0, 0.01):
        data = optimized(used, weight)
        assert float(jacobian_determinant(data["pred"]["ddf"][None]).min()) > 0
        metrics = landmark_metrics(RegisteredPair.of({**held, "pred": data["pred"]}))
        errors[weight] = metrics["tre_mm_after"]
        assert errors[weight] < metrics["tre_mm_before"]
    assert errors[0.01] < 0.6 * errors[0.0]


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1, 2])
def test_landmarks_of_prostates_are_never_worse_unsaid(test_data: Path, tmp_path: Path, number: int) -> None:
    folder = test_data / "prostate_mrus"
    pairs = json.loads((folder / "datalist.json").read_text())["training"]
    pair = [pair for pair in pairs if pair["num_landmarks"]][number]
    item = {role: str(folder / pair[f"{role}_image"]) for role in ("moving", "fixed")}
    item |= {f"landmarks_{role}": str(folder / pair[f"{role}_landmarks"]) for role in ("moving", "fixed")}
    result = published(optimized(LoadPaird(1.2)(item)), tmp_path, PairReport(picture=False))
    said = any("landmarks lie farther apart" in text for text in result.metrics["warnings"])
    assert result.metrics["num_landmarks"] == pair["num_landmarks"]
    assert said == (result.metrics["tre_mm_after"] > result.metrics["tre_mm_before"] + 0.01)
    assert torch.isfinite(torch.tensor(result.metrics["tre_max_mm_after"]))
