"""Errors that are known: their size, by closed forms, and those of networks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from custom_components.deformations.velocity import Displacement
from custom_components.methods.error_estimation.residuals import NetworkAnswer, RandomResiduals

SIZE = (40, 40, 40)


def fields(count=6, **options):
    make = RandomResiduals(**options)
    generator = torch.Generator().manual_seed(0)
    return make(make.draw(count, SIZE, generator), SIZE)


@pytest.mark.parametrize("std", [0.3, 2.0])
def test_a_field_has_the_deviation_that_was_asked_for(std):
    """One fine scale, without an envelope's shadow: of Gaussian control points the mean length is 1.5958 deviations."""
    make = RandomResiduals((5.0,), (std, std), largest_share=1.0, envelope=20.0)
    draw = make.draw(8, SIZE, torch.Generator().manual_seed(0))
    draw["envelope"] = torch.ones_like(draw["envelope"])
    field = make(draw, SIZE)
    assert float(field.std()) == pytest.approx(std, rel=0.05)
    assert float(field.square().sum(1).sqrt().mean()) == pytest.approx(1.5958 * std, rel=0.05)


def test_no_scale_is_stronger_than_a_share_of_its_spacing():
    field = fields(spacings=(10.0,), deviations=(50.0, 50.0), largest_share=0.1)
    assert 0 < float(field.std()) < 1.2


def test_small_and_large_errors_are_drawn_alike():
    sizes = fields(64, spacings=(48.0, 24.0, 12.0, 6.0), deviations=(0.1, 4.0)).flatten(1).std(1)
    assert sizes.min() < 0.15
    assert sizes.max() > 0.8
    assert 0.1 < float(sizes.median()) < 0.6


def test_some_places_err_more_than_others():
    length = fields(8).square().sum(1).sqrt().flatten(1)
    assert (length.quantile(0.9, 1) > 3 * length.quantile(0.1, 1)).all()


def test_equal_draws_give_equal_fields():
    assert torch.equal(fields(), fields())


@pytest.mark.parametrize("options", [{"spacings": ()}, {"spacings": (0.0,)}, {"deviations": (0.0, 1.0)}])
def test_impossible_numbers_are_refused(options):
    with pytest.raises(ValueError, match="expected"):
        RandomResiduals(**options)


class Constant(nn.Module):
    """A network that moves everything by two voxels along the first axis."""

    def __init__(self):
        super().__init__()
        self.size = nn.Parameter(torch.tensor(2.0))

    def forward(self, image):
        first = self.size * torch.ones_like(image[:, :1])
        return torch.cat([first, torch.zeros_like(image[:, :1]), torch.zeros_like(image[:, :1])], 1)


def test_a_network_answers_with_its_displacement_and_learns_nothing(tmp_path):
    torch.save({"size": torch.tensor(3.0)}, tmp_path / "weights.pt")
    network = Constant()
    answer = NetworkAnswer(network, tmp_path / "weights.pt", Displacement())
    found = answer(torch.rand(1, 1, 8, 8, 8), torch.rand(1, 1, 8, 8, 8))
    assert found[:, 0].unique().tolist() == [3.0]
    assert not found.requires_grad
    assert not network.size.requires_grad


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pt"):
        NetworkAnswer(Constant(), tmp_path / "nowhere.pt")(torch.rand(1, 1, 8, 8, 8), torch.rand(1, 1, 8, 8, 8))
