"""The loss of a template: its terms and their weights."""

import pytest
import torch
from methods.conditional_atlas.cases import LABELS, SIZES, both, random

from custom_components.losses.overlap import label_indicators
from custom_components.losses.similarity import LNCC, MSE, SimilaritySum
from custom_components.methods.conditional_atlas.objective import TemplateLoss
from custom_components.training.loss_log import loss_terms


def loss_case(size, batch=2):
    d = len(size)
    scan, template = random(batch, 1, *size, seed=1), random(batch, 1, *size, seed=2)
    pred = {
        "template": template,
        "warped_template": random(batch, 1, *size, seed=3),
        "warped": random(batch, 1, *size, seed=4),
        "ddf": random(batch, d, *size, seed=5),
        "inverse_ddf": random(batch, d, *size, seed=6),
        "mean_displacement": random(1, d, *size, seed=7),
        "warped_template_labels": random(batch, 3, *size, seed=8).softmax(1),
    }
    ids = torch.tensor([*LABELS, 9])[torch.randint(4, (batch, 1, *size), generator=torch.Generator().manual_seed(9))]
    mask = (random(batch, 1, *size, seed=10) > 0.4).to(torch.int16)
    return pred, {"moving": scan, "mask_moving": mask, "label_moving": ids.to(torch.int16)}


WEIGHTS = {
    "forward_weight": 2.0,
    "backward_weight": 0.5,
    "mean_weight": 3.0,
    "size_weight": 0.1,
    "smoothness_weight": 0.7,
    "label_weight": 1.5,
}
TERMS = {
    "forward_weight": "similarity",
    "backward_weight": "backward",
    "mean_weight": "mean",
    "size_weight": "size",
    "smoothness_weight": "smoothness",
    "label_weight": "labels",
}


@both
def test_terms_of_the_loss_are_what_the_formula_says(size):
    pred, batch = loss_case(size)
    total = TemplateLoss(MSE(), labels=LABELS, **WEIGHTS)(pred, batch)
    mask, u = batch["mask_moving"].bool(), pred["inverse_ddf"]
    axes = range(2, u.ndim)
    likelihoods = [
        pred["warped_template_labels"][:, k][batch["label_moving"][:, 0] == label].log().sum()
        for k, label in enumerate(LABELS)
    ]
    expected = {
        "similarity": 2.0 * (pred["warped_template"] - batch["moving"])[mask].square().mean(),
        "backward": 0.5 * (pred["warped"] - pred["template"]).square().mean(),
        "mean": 3.0 * pred["mean_displacement"].square().mean(),
        "size": 0.1 * u.square().mean(),
        "smoothness": 0.7 * sum(u.diff(dim=axis).square().mean() for axis in axes) / len(size),
        "labels": -1.5 * sum(likelihoods) / mask.numel(),
    }
    assert pred["terms"].keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(pred["terms"][name], value, rtol=1e-5, atol=1e-6, msg=name)
    torch.testing.assert_close(total, sum(expected.values()))


@pytest.mark.parametrize("left_out", TERMS)
def test_a_weight_of_0_leaves_its_term_out(left_out):
    pred, batch = loss_case(SIZES[0])
    needed = {"mean_weight": "mean_displacement", "label_weight": "warped_template_labels", "backward_weight": "warped"}
    pred.pop(needed.get(left_out, ""), None)
    if left_out == "label_weight":
        del batch["label_moving"]
    weights = {**WEIGHTS, left_out: 0.0}
    total = TemplateLoss(MSE(), labels=LABELS, **weights)(pred, batch)
    assert pred["terms"].keys() == {name for weight, name in TERMS.items() if weight != left_out}
    torch.testing.assert_close(total, sum(pred["terms"].values()))


def test_without_labels_and_mean_weight_fields_and_images_suffice():
    pred, batch = loss_case(SIZES[0])
    del pred["mean_displacement"], pred["warped_template_labels"], batch["label_moving"], batch["mask_moving"]
    TemplateLoss(MSE(), mean_weight=0.0)(pred, batch)
    assert pred["terms"].keys() == {"similarity", "size", "smoothness"}


@both
def test_terms_of_the_loss_reach_the_logs(size):
    pred, batch = loss_case(size)
    pred["inverse_ddf"].requires_grad_()
    loss = TemplateLoss(MSE(), labels=LABELS, **WEIGHTS)(pred, batch)
    logged = loss_terms({"loss": loss, "pred": pred})
    assert logged.keys() == {"loss", *TERMS.values()}
    assert not any(value.requires_grad for name, value in logged.items() if name != "loss")


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_the_backward_term_pulls_the_template_to_the_warped_scans(weight):
    pred, batch = loss_case(SIZES[0])
    template = pred["template"].requires_grad_()
    loss = TemplateLoss(MSE(), backward_weight=weight, mean_weight=0.0)(pred, batch)
    if weight:
        (gradient,) = torch.autograd.grad(loss, template)
        torch.testing.assert_close(gradient, weight * 2 * (template - pred["warped"]) / template.numel())
    else:
        assert not loss.requires_grad


@both
def test_voxels_of_no_listed_label_count_for_nothing(size):
    pred, batch = loss_case(size)
    shares = pred["warped_template_labels"].requires_grad_()
    loss = TemplateLoss(MSE(), mean_weight=0.0, labels=LABELS, label_weight=1.0)(pred, batch)
    (gradient,) = torch.autograd.grad(loss, shares)
    unlisted = (batch["label_moving"] == 9).expand_as(shares)
    assert unlisted.any()
    assert gradient[unlisted].abs().max() == 0
    assert gradient[label_indicators(batch["label_moving"], LABELS)].abs().min() > 0


def test_labels_that_are_wanted_must_be_there():
    pred, batch = loss_case(SIZES[0])
    del batch["label_moving"]
    with pytest.raises(ValueError, match="needs a label map of every scan"):
        TemplateLoss(MSE(), labels=LABELS)(pred, batch)


@both
def test_a_sum_of_similarities_is_weighted(size):
    images = [random(2, 1, *size, seed=i) for i in range(2)]
    mask = (random(2, 1, *size, seed=3) > 0.4).float()
    lncc, mse = LNCC(window=5), MSE()
    found = SimilaritySum([lncc, mse], [2.0, 0.5])(*images, mask)
    torch.testing.assert_close(found, 2.0 * lncc(*images, mask) + 0.5 * mse(*images, mask))


@pytest.mark.parametrize("weights", [[], [1.0], [1.0, 2.0, 3.0]])
def test_each_similarity_of_a_sum_has_a_weight(weights):
    with pytest.raises(ValueError, match="expected a weight for each similarity"):
        SimilaritySum([MSE(), MSE()], weights)


@both
def test_indicators_mark_each_label_in_its_order(size):
    labels = loss_case(size)[1]["label_moving"]
    found = label_indicators(labels, [5, 0])
    assert torch.equal(found, torch.cat([labels == 5, labels == 0], 1))
