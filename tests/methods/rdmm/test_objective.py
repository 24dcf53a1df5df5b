"""The loss of a metric and its terms."""

import pytest
import torch
from methods.rdmm.cases import PAIR_KERNEL, metric, pair, pair_loss, region_loss

from custom_components.fields import warp
from custom_components.methods.rdmm.metric import StationaryMetricMomentum
from custom_components.methods.rdmm.objective import (
    InputRangePenalty,
    MetricLearningLoss,
    WeightTotalVariation,
    omt_weight,
    range_weight,
)


def test_the_loss_is_the_sum_of_its_terms_by_the_schedule():
    size = (24, 26)
    image = pair(size)
    batch = dict(zip(("moving", "fixed"), image.chunk(2, 1), strict=True))
    pred = metric()(0.1 * torch.randn(1, 5, 12, 13), size)
    pred["warped"] = warp(batch["moving"], pred["ddf"])
    loss = region_loss(omt_weight=2.0, range_weight=3.0)
    base = float(pair_loss()(dict(pred), batch))
    for epoch in (0, 15, 60):
        loss.epoch = epoch
        omt = 2 * omt_weight(epoch) * float(loss.omt(pred["weights"]))
        expected = base + omt + 3 * range_weight(epoch) * float(loss.base_range(pred["weights"]))
        assert float(loss(pred, batch)) == pytest.approx(expected, rel=1e-5)
        assert pred["terms"]["omt"] == pytest.approx(omt)
    loss.rate = None
    assert float(loss.terms(pred, batch)["omt"]) == pytest.approx(2 * float(loss.omt(pred["weights"])))


def test_the_loss_of_metric_learning_has_its_terms():
    size = (24, 26)
    image = pair(size)
    batch = dict(zip(("moving", "fixed"), image.chunk(2, 1), strict=True))
    pred = metric(StationaryMetricMomentum, mapping="linear")(torch.randn(1, 5, 12, 13), size)
    pred["warped"] = warp(batch["moving"], pred["ddf"])
    variation, cut = WeightTotalVariation(spacing=2.0), InputRangePenalty(PAIR_KERNEL.weights)
    loss = MetricLearningLoss(
        pair_loss(), variation=variation, input_range=cut, variation_weight=0.5, input_range_weight=0.2
    )
    loss(pred, batch)
    assert float(pred["terms"]["variation"]) == pytest.approx(
        0.5 * float(variation(pred["pre_weights"], batch["moving"], pred["grid_spacing"][0].tolist()))
    )
    assert float(pred["terms"]["input_range"]) == pytest.approx(0.2 * float(cut(pred["raw_weights"])))
    given = {key: value for key, value in pred.items() if key != "raw_weights"}
    assert "input_range" not in loss.terms(given, batch)
    assert "omt" not in pred["terms"]
