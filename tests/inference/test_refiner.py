"""The refinement that bundles offer is the objective of their pages, for every deformation."""

import pytest
import torch

from custom_components.deformations.velocity import Displacement, StationaryVelocity
from custom_components.inference.descent import Diffused
from custom_components.inference.refiner import refiner
from custom_components.losses.gradients import NGF
from custom_components.losses.regularization import MeanEnergy
from custom_components.losses.similarity import LNCC, MIND, MutualInformation


@pytest.mark.parametrize("regularized", ["svf", "ddf"])
def test_a_velocity_or_displacement_diffuses(regularized):
    found = refiner(StationaryVelocity(), regularized=regularized, levels=[2, 1], iterations=3, similarity="lncc")
    assert isinstance(found.loss, Diffused)
    assert isinstance(found.loss.similarity, LNCC)
    assert (found.loss.similarity.window, found.loss.variance, found.loss.loss.weight) == (5, 1.0, 0.0)
    assert (found.levels, found.iterations) == ([2, 1], [3, 3])


def test_a_momentum_has_an_energy():
    found = refiner(StationaryVelocity(), regularized="energy", smoothness=2.0, similarity="lncc")
    assert isinstance(found.loss.regularization, MeanEnergy)
    assert (found.loss.weight, found.loss.regularized, found.loss.folding_weight) == (0.006, "energy", 30.0)
    assert found.method == "lbfgs"


@pytest.mark.parametrize(("given", "expected"), [({}, 1.0), ({"smoothness": 3.0}, 3.0), ({"weight": 0.5}, 0.5)])
def test_smoothness_is_a_factor_of_the_weight(given, expected):
    assert refiner(StationaryVelocity(), similarity="lncc", **given).loss.variance == expected


@pytest.mark.parametrize("name", ["weight", "smoothness"])
def test_a_negative_regularisation_is_refused(name):
    with pytest.raises(ValueError, match=name):
        refiner(StationaryVelocity(), **{name: -1.0})


def test_images_of_other_contrast_are_compared_by_their_edges_and_make_smoother_fields():
    found = refiner(Displacement(), regularized="ddf")
    assert isinstance(found.loss.same.similarity, LNCC)
    assert isinstance(found.loss.across.similarity, NGF)
    assert found.loss.across.variance > found.loss.same.variance


@pytest.mark.parametrize(("name", "kind"), [("lncc", LNCC), ("mind", MIND), ("mi", MutualInformation), ("ngf", NGF)])
def test_a_similarity_is_taken_by_name_whatever_the_contrast(name, kind):
    found = refiner(StationaryVelocity(), similarity=name).loss
    assert isinstance(found.similarity, kind)
    assert (found.variance == 1.0) == (name == "lncc")


@pytest.mark.parametrize("regularized", ["svf", "energy"])
def test_any_module_that_compares_images_is_a_similarity(regularized):
    given = MIND(dilation=1)
    optimizer = refiner(StationaryVelocity(), similarity=given, regularized=regularized, robust=regularized == "svf")
    for one in (optimizer, *([optimizer.trust.loose, optimizer.trust.stiff] if regularized == "svf" else [])):
        assert getattr(one, "optimizer", one).loss.similarity is given


def test_an_unknown_similarity_is_refused():
    with pytest.raises(ValueError, match="expected similarity auto, lncc, mind, mi, nmi, ngf or a module, got 'ncc'"):
        refiner(StationaryVelocity(), similarity="ncc")


def test_refinement_raises_the_correlation():
    torch.manual_seed(0)
    fixed = torch.nn.functional.avg_pool2d(torch.rand(1, 1, 40, 40), 9, 1, 4)
    fixed = (fixed - fixed.min()) / (fixed.max() - fixed.min())
    moving = fixed.roll(1, 2)
    found = refiner(StationaryVelocity(), levels=[1], iterations=10)(moving, fixed)
    assert found.shape == (1, 2, *StationaryVelocity().parameter_size((40, 40)))
    assert float(found[:, 0].mean()) > 0.1


@pytest.mark.parametrize("iterations", [5, [5, 4], "auto", 0])
def test_the_finest_level_comes_last_and_only_if_there_are_others(iterations):
    optimizer = refiner(StationaryVelocity(), levels=[2, 1], iterations=iterations, finest=3)
    assert optimizer.levels == ([2, 1] if iterations == 0 else [2, 1, 0.5])
    if isinstance(iterations, list):
        assert optimizer.iterations == [5, 4, 3]
