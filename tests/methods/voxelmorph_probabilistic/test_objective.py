"""The probabilistic objective compares in both directions and reaches every weight."""

import pytest
import torch
from losses.cases import random_field, stripes

from custom_components.fields import warp
from custom_components.inference.registration import RegistrationInferer
from custom_components.losses.overlap import LabelDice, LabelLikelihood
from custom_components.losses.registration import RegistrationLoss
from custom_components.losses.regularization import GradientPenalty
from custom_components.losses.similarity import MSE
from custom_components.methods.voxelmorph_probabilistic.deformation import GaussianVelocity
from custom_components.methods.voxelmorph_probabilistic.objective import GaussianKL, ProbabilisticLoss, label_term
from custom_components.networks.voxelmorph_unet import VoxelMorphUNet

SIZES = [(13, 16), (11, 12, 10)]
both = pytest.mark.parametrize("size", SIZES, ids=["2-D", "3-D"])


@both
@pytest.mark.parametrize("exact", [False, True])
def test_the_bidirectional_probabilistic_objective_reaches_every_weight(size, exact):
    torch.manual_seed(0)
    d = len(size)
    network = VoxelMorphUNet(
        d, encoder_channels=(4, 4), decoder_channels=(4, 4, 4), half_resolution=True, log_variance=-10.0
    )
    batch = {"moving": torch.rand(2, 1, *size), "fixed": torch.rand(2, 1, *size)}
    kl = GaussianKL(10.0, exact=exact)
    loss = ProbabilisticLoss(RegistrationLoss(MSE(0.05), kl, 1.0, regularized="posterior"))
    inferer = RegistrationInferer(GaussianVelocity(prior_precision=10.0), inverse=True, draw=True)
    pred = inferer(torch.cat([batch["moving"], batch["fixed"]], 1), network)
    loss(pred, batch).backward()
    torch.testing.assert_close(pred["terms"]["regularization"], kl(pred["posterior"].detach()))
    there = MSE(0.05)(pred["warped"], batch["fixed"])
    back = MSE(0.05)(warp(batch["fixed"], pred["inverse_ddf"]), batch["moving"])
    torch.testing.assert_close(pred["terms"]["similarity"], ((there + back) / 2).detach())
    for name, parameter in network.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@both
def test_overlap_is_the_mean_of_both_directions(size):
    moving, fixed = stripes(size), stripes(size, seed=1)
    pred = {"ddf": random_field(size), "inverse_ddf": random_field(size, seed=1)}
    labels = RegistrationLoss(
        None, GradientPenalty(), 1.0, regularized="ddf", overlap=LabelDice([2, 3]), segmentation_weight=1.0
    )
    ProbabilisticLoss(labels)(pred, {"label_moving": moving, "label_fixed": fixed})
    there = LabelDice([2, 3])(pred["ddf"], moving, fixed)
    back = LabelDice([2, 3])(pred["inverse_ddf"], fixed, moving)
    assert pred["terms"].keys() == {"regularization", "segmentation"}
    assert there != back
    torch.testing.assert_close(pred["terms"]["segmentation"], (there + back) / 2)


@both
def test_regularization_and_folding_count_once(size):
    images = {"moving": torch.rand(1, 1, *size), "fixed": torch.rand(1, 1, *size)}
    ddf = random_field(size, 1).float()
    pred = {"ddf": ddf, "inverse_ddf": -ddf, "svf": ddf, "warped": warp(images["moving"], ddf)}
    loss = RegistrationLoss(MSE(), GradientPenalty(), 0.1, folding_weight=2.0)
    terms = loss.terms(pred, images)
    ProbabilisticLoss(loss)(pred, images)
    for name in ("regularization", "folding"):
        torch.testing.assert_close(pred["terms"][name], terms[name])


def test_similarity_without_motion_is_symmetric():
    moving, fixed = torch.rand(1, 1, 12, 12), torch.rand(1, 1, 12, 12)
    zero = torch.zeros(1, 2, 12, 12)
    pred = {"ddf": zero, "svf": zero, "inverse_ddf": zero, "warped": moving}
    loss = ProbabilisticLoss(RegistrationLoss(MSE(), GradientPenalty(), 0.1))
    loss(pred, {"moving": moving, "fixed": fixed})
    torch.testing.assert_close(pred["terms"]["similarity"], MSE()(moving, fixed))


def test_missing_inverse_field_is_named():
    zero, image = torch.zeros(1, 2, 8, 8), torch.rand(1, 1, 8, 8)
    loss = ProbabilisticLoss(RegistrationLoss(MSE(), GradientPenalty(), 0.1))
    with pytest.raises(ValueError, match="inverse_ddf"):
        loss({"ddf": zero, "svf": zero, "warped": image}, {"moving": image, "fixed": image})


@pytest.mark.parametrize(
    ("labels", "sigma", "kind"), [(None, 0.5, type(None)), ([1], None, LabelDice), ([1], 0.5, LabelLikelihood)]
)
def test_labels_have_dice_or_a_likelihood(labels, sigma, kind):
    assert type(label_term(labels, sigma)) is kind
