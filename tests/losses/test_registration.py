"""The registration objective is the sum of its named terms."""

import pytest
import torch
from losses.cases import both, random_field, stripes

from custom_components.losses.overlap import LabelDice, LabelLikelihood
from custom_components.losses.pair import pair_loss
from custom_components.losses.registration import RegistrationLoss
from custom_components.losses.regularization import GradientPenalty, MeanEnergy
from custom_components.losses.similarity import LNCC, MSE


def make_loss(**kwargs):
    return RegistrationLoss(MSE(), GradientPenalty(), 0.1, **kwargs)


@both
def test_registration_loss_is_the_sum_of_its_named_terms(size):
    d = len(size)
    label = torch.randint(0, 3, (2, 1, *size), dtype=torch.int16)
    batch = {"moving": torch.rand(2, 1, *size), "fixed": torch.rand(2, 1, *size)}
    batch |= {"label_moving": label, "label_fixed": label.flip(2)}
    ddf = 0.5 * torch.randn(2, d, *size)
    pred = {"ddf": ddf, "svf": ddf, "warped": batch["moving"]}
    loss = make_loss(overlap=LabelDice([1, 2]), folding_weight=1.0)
    total = loss(pred, batch)
    assert set(pred["terms"]) == {"similarity", "regularization", "folding", "segmentation"}
    assert float(total) == pytest.approx(sum(float(v) for v in pred["terms"].values()))
    assert not any(v.requires_grad for v in pred["terms"].values())


@both
def test_loss_without_similarity_reads_labels_and_fields_only(size):
    labels = {"label_moving": stripes(size), "label_fixed": stripes(size, seed=1)}
    ddf = random_field(size, amplitude=0.5)
    loss = RegistrationLoss(
        None, GradientPenalty(), 2.0, regularized="ddf", overlap=LabelDice("all"), segmentation_weight=0.5
    )
    pred = {"ddf": ddf}
    total = loss(pred, labels)
    overlap = LabelDice("all")(ddf, labels["label_moving"], labels["label_fixed"])
    torch.testing.assert_close(
        pred["terms"], {"regularization": 2 * GradientPenalty()(ddf), "segmentation": overlap / 2}
    )
    torch.testing.assert_close(total, 2 * GradientPenalty()(ddf) + overlap / 2)


def test_masks_of_the_batch_reach_the_similarity():
    moving, fixed = torch.zeros(1, 1, 12, 12), torch.zeros(1, 1, 12, 12)
    moving[..., :3, :] = 1
    mask = torch.ones(1, 1, 12, 12)
    mask[..., :3, :] = 0
    zero = torch.zeros(1, 2, 12, 12)
    pred = {"ddf": zero, "svf": zero, "warped": moving}
    assert make_loss().terms(pred, {"moving": moving, "fixed": fixed})["similarity"] > 0
    for key in ("mask_moving", "mask_fixed"):
        assert make_loss().terms(pred, {"moving": moving, "fixed": fixed, key: mask})["similarity"] == 0


def overlap_of(labels):
    """`LabelDice` with these as moving labels, of a field and fixed labels of 4 x 5 voxels."""
    return LabelDice("all")(torch.zeros(1, 2, 4, 5), labels, torch.zeros(1, 1, 4, 5).long())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LNCC(4), "odd window"),
        (lambda: LNCC()(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 5)), "equal shape"),
        (lambda: MSE()(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 3, 3)), "mask of size"),
        (lambda: GradientPenalty("l3"), "l1 or l2"),
        (lambda: LabelDice("1,2"), "expected labels 'all' or a list"),
        (lambda: LabelDice([]), "expected labels 'all' or a list"),
        (lambda: LabelDice([2, -1]), "expected labels 'all' or a list"),
        (lambda: overlap_of(torch.zeros(1, 1, 4, 5)), r"expected integer label maps .* got torch\.float32"),
        (lambda: overlap_of(torch.zeros(1, 2, 4, 5).long()), r"expected integer label maps .* \(1, 2, 4, 5\)"),
        (lambda: overlap_of(torch.zeros(1, 1, 4, 4).long()), r"\(1, 2, 4, 5\), got torch\.int64 \(1, 1, 4, 4\)"),
        (lambda: overlap_of(torch.zeros(1, 1, 4, 5, 6).long()), r"\(1, 1, 4, 5, 6\)"),
    ],
)
def test_losses_refuse_settings_and_labels_that_do_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_missing_labels_are_named():
    zero, image = torch.zeros(1, 2, 8, 8), torch.rand(1, 1, 8, 8)
    with pytest.raises(ValueError, match="'label_moving'"):
        make_loss(overlap=LabelDice([1])).terms(
            {"ddf": zero, "svf": zero, "warped": image}, {"moving": image, "fixed": image}
        )


@both
def test_similarity_and_label_likelihood_have_their_weights(size):
    batch = {"moving": torch.rand(2, 1, *size), "fixed": torch.rand(2, 1, *size)}
    batch |= {"label_moving": stripes(size), "label_fixed": stripes(size, seed=1)}
    ddf = random_field(size, amplitude=0.5).float()
    pred = {"ddf": ddf, "svf": ddf, "warped": batch["moving"]}
    loss = make_loss(similarity_weight=3.0, overlap=LabelLikelihood([1, 2], 0.2), segmentation_weight=0.5)
    terms = loss.terms(pred, batch)
    likelihood = LabelLikelihood([1, 2], 0.2)(ddf, batch["label_moving"], batch["label_fixed"])
    torch.testing.assert_close(terms["similarity"], 3 * MSE()(batch["moving"], batch["fixed"]))
    torch.testing.assert_close(terms["segmentation"], 0.5 * likelihood)


@both
@pytest.mark.parametrize("labels", [None, [1, 2]])
def test_pair_loss_is_the_objective_written_out(size, labels):
    batch = {"moving": torch.rand(2, 1, *size), "fixed": torch.rand(2, 1, *size)}
    batch |= {"label_moving": stripes(size), "label_fixed": stripes(size, seed=1)}
    ddf = random_field(size, amplitude=0.5).float()
    pred = {"ddf": ddf, "svf": ddf, "energy": torch.tensor([1.0, 3.0]), "warped": batch["moving"]}
    options = {"folding_weight": 2.0, "segmentation_weight": 0.5}
    overlap = None if labels is None else LabelDice(labels)
    for regularized, penalty in (("svf", GradientPenalty()), ("ddf", GradientPenalty()), ("energy", MeanEnergy())):
        expected = RegistrationLoss(LNCC(9), penalty, 0.3, regularized=regularized, overlap=overlap, **options)
        loss = pair_loss(0.3, regularized=regularized, labels=labels, **options)
        torch.testing.assert_close(loss(dict(pred), batch), expected(dict(pred), batch))


@both
def test_a_mask_leaves_the_pull_inside_as_it_is(size):
    """The gradient of the similarity at a voxel that counts does not depend on how many others count."""
    moving, fixed, mask = torch.rand(1, 1, *size), torch.rand(1, 1, *size), torch.ones(1, 1, *size)
    mask[:, :, : size[0] // 2] = 0
    zero, found = torch.zeros(1, len(size), *size), []
    for masks in ({}, {"mask_fixed": mask}, {"mask_moving": mask}):
        warped = moving.clone().requires_grad_()
        pred = {"ddf": zero, "svf": zero, "warped": warped}
        make_loss().terms(pred, {"moving": moving, "fixed": fixed, **masks})["similarity"].backward()
        found.append(warped.grad)
    for one in found[1:]:
        torch.testing.assert_close(one, found[0] * mask)
