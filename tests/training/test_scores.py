"""The score of a registration."""

import pytest
import torch

from custom_components.data.phantoms import phantom_pair
from custom_components.fields import warp
from custom_components.training.scores import registration_score


def test_score_is_the_dice_of_the_warped_labels(phantoms):
    targets = {key: phantoms[key] for key in ("moving", "fixed", "label_moving", "label_fixed")}
    scores = [
        float(registration_score({"label": targets, "pred": {"ddf": ddf, "warped": warp(phantoms["moving"], ddf)}}))
        for ddf in (torch.zeros_like(phantoms["ddf"]), phantoms["ddf"])
    ]
    assert scores[0] < scores[1]
    assert scores[1] > 0.8


def test_score_without_labels_is_the_correlation(phantoms):
    targets = {key: phantoms[key] for key in ("moving", "fixed")}
    score = registration_score({"label": targets, "pred": {"ddf": phantoms["ddf"], "warped": phantoms["fixed"]}})
    assert float(score) == pytest.approx(1, abs=1e-6)


def test_score_with_the_labels_of_one_side_is_the_correlation(phantoms):
    targets = {key: phantoms[key] for key in ("moving", "fixed", "label_moving")}
    score = registration_score({"label": targets, "pred": {"ddf": phantoms["ddf"], "warped": phantoms["fixed"]}})
    assert float(score) == pytest.approx(1, abs=1e-6)


def test_score_is_the_mean_over_the_batch():
    pair = phantom_pair((32, 32), seed=1, batch=2)
    single = [
        registration_score(
            {
                "label": {key: pair[key][i : i + 1] for key in ("label_moving", "label_fixed")},
                "pred": {"ddf": pair["ddf"][i : i + 1]},
            }
        )
        for i in range(2)
    ]
    assert registration_score({"label": pair, "pred": pair}) == pytest.approx(float(sum(single) / 2), abs=1e-6)
