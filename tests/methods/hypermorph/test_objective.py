"""Objectives weighed by hyper-parameters, and what tuning minimises."""

import pytest
import torch
from losses.cases import stripes

from custom_components.evaluation.metrics import sd_log_jacobian
from custom_components.fields import warp
from custom_components.losses.overlap import LabelDice
from custom_components.losses.registration import RegistrationLoss
from custom_components.losses.regularization import GradientPenalty
from custom_components.losses.similarity import LNCC, MSE, MutualInformation
from custom_components.methods.hypermorph.objective import (
    HyperLoss,
    LabelCriterion,
    RegularityCriterion,
    lncc_window,
    mi_bins,
)

SIZES = [(13, 16), (11, 12, 10)]
both = pytest.mark.parametrize("size", SIZES, ids=["2-D", "3-D"])


def textured(size, batch=2, channels=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, channels, *size, dtype=torch.float64, generator=generator)


def random_field(size, batch=2, amplitude=3.0, seed=0):
    """Vectors of several voxels in any direction: near the borders many leave the grid."""
    generator = torch.Generator().manual_seed(seed)
    return amplitude * torch.randn(batch, len(size), *size, dtype=torch.float64, generator=generator)


def value_and_gradient(function, ddf):
    ddf = ddf.clone().requires_grad_()
    value = function(ddf)
    return value.detach(), torch.autograd.grad(value, ddf)[0]


def make_loss(**kwargs):
    return RegistrationLoss(MSE(), GradientPenalty(), 0.1, **kwargs)


def hyper_case(size, hyper):
    """Fields and a batch of three pairs with labels, masks and hyper-parameters; all differ from pair to pair."""
    one_each = [3] + [1] * (len(size) + 1)
    batch = {"moving": textured(size, 3).float(), "fixed": textured(size, 3, seed=1).float()}
    batch |= {"label_moving": stripes(size, batch=3), "label_fixed": stripes(size, batch=3, seed=1)}
    batch["mask_fixed"] = (textured(size, 3, seed=2) > torch.tensor([0.1, 0.4, 0.7]).view(one_each)).short()
    batch["hyper"] = torch.tensor(hyper)
    ddf = random_field(size, 3, amplitude=0.5).float() * torch.tensor([0.2, 1.0, 2.0]).view(one_each)
    ddf.requires_grad_()
    pred = {"ddf": ddf, "svf": ddf[..., 1:], "inverse_ddf": -ddf, "warped": warp(batch["moving"], ddf)}
    return {**pred, "seconds": torch.zeros(3)}, batch


def single_terms(loss, pred, batch):
    """The terms that `RegistrationLoss` gives for each pair alone."""

    def one(things, i):
        return {key: value[i : i + 1] for key, value in things.items() if key != "terms"}

    return [loss.terms(one(pred, i), one(batch, i)) for i in range(len(batch["hyper"]))]


@both
def test_hyper_loss_weighs_each_pair_by_its_lambda(size):
    pred, batch = hyper_case(size, [[0.0], [0.3], [1.0]])
    loss = make_loss(similarity_weight=2.0)
    total = HyperLoss(loss)(pred, batch)
    terms = single_terms(loss, pred, batch)
    similarities = [(1 - value) * one["similarity"] for value, one in zip((0.0, 0.3, 1.0), terms, strict=True)]
    penalties = [value * one["regularization"] for value, one in zip((0.0, 0.3, 1.0), terms, strict=True)]
    torch.testing.assert_close(total, (sum(similarities) + sum(penalties)) / 3)
    expected = {"similarity": sum(similarities) / 3, "regularization": sum(penalties) / 3}
    torch.testing.assert_close(pred["terms"], {key: value.detach() for key, value in expected.items()})
    assert not any(value.requires_grad for value in pred["terms"].values())


@both
def test_gamma_shares_the_data_term_between_images_and_labels(size):
    values = [[0.4, 0.3], [0.9, 0.0], [0.1, 1.0]]
    pred, batch = hyper_case(size, values)
    loss = make_loss(overlap=LabelDice([2, 3]), segmentation_weight=0.5, folding_weight=2.0)
    total = HyperLoss(loss, ["lambda", "gamma"])(pred, batch)
    expected = 0.0
    for (weight, share), one in zip(values, single_terms(loss, pred, batch), strict=True):
        expected += (1 - weight) * (1 - share) * one["similarity"] + weight * one["regularization"] + one["folding"]
        expected += (1 - weight) * share * one["segmentation"]
    torch.testing.assert_close(total, expected / 3)
    assert pred["terms"].keys() == {"similarity", "regularization", "folding", "segmentation"}
    # The order of the names is that of the columns.
    swapped = {**batch, "hyper": batch["hyper"].flip(1)}
    torch.testing.assert_close(HyperLoss(loss, ["gamma", "lambda"])(pred, swapped), total)


@both
def test_hyper_parameters_that_are_not_named_weigh_nothing(size):
    pred, batch = hyper_case(size, [[0.1], [0.6], [0.8]])
    loss = make_loss(overlap=LabelDice([2, 3]), segmentation_weight=0.5)
    terms = single_terms(loss, pred, batch)

    def mean(weigh):
        return sum(weigh(h, 1 - h, one) for h, one in zip((0.1, 0.6, 0.8), terms, strict=True)) / 3

    def with_lambda(h, rest, one):
        return rest * (one["similarity"] + one["segmentation"]) + h * one["regularization"]

    def with_gamma(h, rest, one):
        return rest * one["similarity"] + h * one["segmentation"] + one["regularization"]

    torch.testing.assert_close(HyperLoss(loss)(pred, batch), mean(with_lambda))
    torch.testing.assert_close(HyperLoss(loss, ["gamma"])(pred, batch), mean(with_gamma))
    neither = HyperLoss(loss, ["setting"], {"setting": lambda loss, value: None})
    torch.testing.assert_close(neither(pred, batch), mean(lambda h, rest, one: sum(one.values())))


@both
def test_lambda_1_does_not_see_the_images_and_lambda_0_no_roughness(size):
    pred, batch = hyper_case(size, [[1.0]] * 3)
    pred["warped"] = pred["warped"].detach().requires_grad_()
    HyperLoss(make_loss())(pred, batch).backward()
    assert pred["terms"]["similarity"] == 0
    assert pred["terms"]["regularization"] > 0
    assert not pred["warped"].grad.any()
    assert pred["ddf"].grad.any()

    pred, batch = hyper_case(size, [[0.0]] * 3)
    pred["svf"] = pred["svf"].detach().requires_grad_()
    HyperLoss(make_loss())(pred, batch).backward()
    assert pred["terms"]["regularization"] == 0
    assert pred["terms"]["similarity"] > 0
    assert not pred["svf"].grad.any()
    assert pred["ddf"].grad.any()


@both
@pytest.mark.parametrize(
    ("setting", "similarities"),
    [
        (lncc_window, [LNCC(3), LNCC(9), LNCC(15)]),
        (mi_bins, [MutualInformation(8), MutualInformation(23), MutualInformation(64)]),
    ],
    ids=["window", "bins"],
)
def test_settings_change_the_loss_pair_by_pair(size, setting, similarities):
    pred, batch = hyper_case(size, [[0.2, 0.0], [0.2, 0.5], [0.2, 1.0]])
    loss = HyperLoss(make_loss(), ["lambda", "setting"], {"setting": setting})
    loss(pred, batch)
    images = [image.detach().split(1) for image in (pred["warped"], batch["fixed"], batch["mask_fixed"])]
    # A mask leaves the pull inside of it as strong as it is without one.
    parts = [
        mask.float().mean() * similarity(warped, fixed, mask)
        for similarity, warped, fixed, mask in zip(similarities, *images, strict=True)
    ]
    torch.testing.assert_close(pred["terms"]["similarity"], 0.8 * sum(parts) / 3)
    assert len({round(float(part), 4) for part in parts}) == 3


def test_gradient_of_lambda_is_regularisation_minus_similarity():
    pred, batch = hyper_case(SIZES[0], [[0.0], [0.3], [1.0]])
    batch["hyper"].requires_grad_()
    loss = make_loss()
    HyperLoss(loss)(pred, batch).backward()
    slopes = [one["regularization"] - one["similarity"] for one in single_terms(loss, pred, batch)]
    torch.testing.assert_close(batch["hyper"].grad, torch.stack(slopes).view(3, 1).detach() / 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: HyperLoss(make_loss(), ["lambda", "sharpness"]), "'sharpness' is neither lambda nor gamma"),
        (lambda: HyperLoss(make_loss())(*hyper_case((9, 8), [[0.5, 0.5]] * 3)), r"\(3, 1\), got shape \(3, 2\)"),
        (lambda: HyperLoss(make_loss())(*hyper_case((9, 8), [0.5] * 3)), r"\(3, 1\), got shape \(3,\)"),
    ],
)
def test_wrong_hyper_parameters_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@both
@pytest.mark.parametrize("labels", ["all", [2, 3]], ids=str)
def test_label_criterion_is_label_dice(size, labels):
    pred, batch = hyper_case(size, [[0.5]] * 3)

    def dice(ddf):
        return LabelDice(labels)(ddf, batch["label_moving"], batch["label_fixed"])

    found = value_and_gradient(lambda ddf: LabelCriterion(labels)({"ddf": ddf}, batch), pred["ddf"].detach())
    torch.testing.assert_close(found, value_and_gradient(dice, pred["ddf"].detach()))
    assert found[1].any()


@both
def test_regularity_criterion_adds_what_exceeds_the_limit(size):
    pred, batch = hyper_case(size, [[0.5]] * 3)
    pred["ddf"] = 0.02 * random_field(size, 3)
    similarity = MSE()(pred["warped"], batch["fixed"], batch["mask_fixed"])
    spread = sd_log_jacobian(pred["ddf"], batch["mask_fixed"]).mean().float()
    assert spread > 0
    values = [RegularityCriterion(MSE(), float(spread) * share, weight=7.0)(pred, batch) for share in (2, 1, 0.5, 0.2)]
    torch.testing.assert_close(values[0], similarity)
    torch.testing.assert_close(values[1], similarity)
    torch.testing.assert_close(values[2], similarity + 7 * 0.5 * spread)
    torch.testing.assert_close(values[3], similarity + 7 * 0.8 * spread)


@both
def test_regularity_criterion_has_a_gradient_where_nothing_moves(size):
    _, batch = hyper_case(size, [[0.5]] * 3)
    for field in (torch.zeros(3, len(size), *size), torch.ones(3, len(size), *size)):
        pred = {"ddf": field.requires_grad_(), "warped": batch["fixed"]}
        RegularityCriterion(MSE(), limit=0.1)(pred, batch).backward()
        assert field.grad.isfinite().all()


def test_regularity_criterion_does_not_reward_folds():
    x = torch.arange(32.0)
    ddf = torch.zeros(1, 2, 32, 32)
    ddf[0, 0] = (2.0 * torch.exp(-((x - 16) ** 2) / 8)).view(-1, 1) * (x - 16).view(-1, 1)
    batch = {"fixed": torch.rand(1, 1, 32, 32), "mask_fixed": torch.ones(1, 1, 32, 32)}
    values = []
    for sign in (0.3, -0.3, -1.0):  # the last one folds
        values.append(float(RegularityCriterion(MSE(), 0.0)({"ddf": sign * ddf, "warped": batch["fixed"]}, batch)))
    assert values[0] < values[1] < values[2]


@both
def test_one_mask_serves_all_samples(size):
    pred, batch = hyper_case(size, [[0.2], [0.5], [0.9]])
    loss = HyperLoss(make_loss())
    mask = batch["mask_fixed"][:1]
    shared = loss(dict(pred), {**batch, "mask_fixed": mask})
    each = loss(dict(pred), {**batch, "mask_fixed": mask.expand(3, *mask.shape[1:])})
    torch.testing.assert_close(shared, each)


@both
def test_regularity_criterion_grows_with_roughness_and_leads_downhill(size):
    _, batch = hyper_case(size, [[0.5]] * 3)
    criterion = RegularityCriterion(MSE(), limit=0.05, weight=10.0)
    image = torch.zeros_like(batch["fixed"])

    def rough(scale):
        return criterion({"ddf": scale * random_field(size, 3), "warped": image}, batch)

    assert rough(0.003) == MSE()(image, batch["fixed"], batch["mask_fixed"])
    assert rough(0.003) < rough(0.02) < rough(0.03) < rough(0.04)
    scale = torch.tensor(0.03, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(rough(scale), scale)
    assert float(slope) == pytest.approx(float(rough(0.0305) - rough(0.0295)) / 0.001, rel=0.01)


@both
def test_regularity_criterion_within_its_limit_is_the_similarity_to_the_field_too(size):
    _, batch = hyper_case(size, [[0.5]] * 3)
    criterion, similarity = RegularityCriterion(MSE(), limit=10.0), MSE()
    field = (0.02 * random_field(size, 3)).float()

    def warped(ddf):
        return {"ddf": ddf, "warped": warp(batch["moving"], ddf)}

    found = value_and_gradient(lambda u: criterion(warped(u), batch), field)
    expected = value_and_gradient(lambda u: similarity(warped(u)["warped"], batch["fixed"], batch["mask_fixed"]), field)
    torch.testing.assert_close(found, expected)
    assert found[1].any()


@both
def test_gamma_weighs_nothing_where_the_loss_has_no_labels(size):
    pred, batch = hyper_case(size, [[0.3, 1.0]] * 3)
    found = HyperLoss(make_loss(), ["lambda", "gamma"])(dict(pred), batch)
    expected = HyperLoss(make_loss())(dict(pred), {**batch, "hyper": batch["hyper"][:, :1]})
    torch.testing.assert_close(found, expected)
