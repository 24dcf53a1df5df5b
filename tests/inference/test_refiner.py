"""The refinement that bundles offer is the objective of their pages, for every deformation."""

import pytest
import torch

from custom_components.deformations.velocity import Displacement, StationaryVelocity
from custom_components.inference.refiner import refiner
from custom_components.losses.gradients import NGF
from custom_components.losses.regularization import GradientPenalty, MeanEnergy
from custom_components.losses.similarity import LNCC, MIND, MutualInformation


@pytest.mark.parametrize(
    ("regularized", "penalty", "method"),
    [("svf", GradientPenalty, "adam"), ("ddf", GradientPenalty, "adam"), ("energy", MeanEnergy, "lbfgs")],
)
def test_the_regularised_field_says_penalty_and_method(regularized, penalty, method):
    found = refiner(StationaryVelocity(), 0.1, regularized=regularized, levels=[2, 1], iterations=3, similarity="lncc")
    assert isinstance(found.loss.similarity, LNCC)
    assert isinstance(found.loss.regularization, penalty)
    assert (found.loss.weight, found.loss.regularized, found.loss.folding_weight) == (0.1, regularized, 30.0)
    assert (found.method, found.levels, found.iterations) == (method, [2, 1], [3, 3])


def test_images_of_other_contrast_are_compared_by_their_edges_with_ten_times_the_weight():
    found = refiner(Displacement(), 0.1, regularized="ddf")
    assert isinstance(found.loss.same.similarity, LNCC)
    assert isinstance(found.loss.across.similarity, NGF)
    assert (found.loss.same.weight, found.loss.across.weight) == (0.1, 1.0)


@pytest.mark.parametrize(("name", "kind"), [("lncc", LNCC), ("mind", MIND), ("mi", MutualInformation), ("ngf", NGF)])
def test_a_similarity_is_taken_by_name_whatever_the_contrast(name, kind):
    found = refiner(StationaryVelocity(), 0.1, similarity=name).loss
    assert isinstance(found.similarity, kind)
    assert found.weight == 0.1 if name == "lncc" else found.weight >= 1.0


def test_an_unknown_similarity_is_refused():
    with pytest.raises(ValueError, match="expected similarity auto, lncc, mind, mi, ngf, got 'ncc'"):
        refiner(StationaryVelocity(), 0.1, similarity="ncc")


def test_refinement_raises_the_correlation():
    torch.manual_seed(0)
    fixed = torch.nn.functional.avg_pool2d(torch.rand(1, 1, 40, 40), 9, 1, 4)
    fixed = (fixed - fixed.min()) / (fixed.max() - fixed.min())
    moving = fixed.roll(1, 2)
    found = refiner(StationaryVelocity(), 0.1, levels=[1], iterations=10)(moving, fixed)
    assert found.shape == (1, 2, *StationaryVelocity().parameter_size((40, 40)))
    assert float(found[:, 0].mean()) > 0.1
