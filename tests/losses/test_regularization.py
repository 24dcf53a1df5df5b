"""Penalties of fields."""

import pytest
import torch
from losses.cases import both

from custom_components.losses.regularization import FoldingPenalty, GradientPenalty


@both
def test_gradient_penalty_of_a_linear_field(size):
    # u_0 = 0.5 x_0: one of D * D derivatives is 0.5.
    d = len(size)
    field = torch.zeros(2, d, *size)
    field[:, 0] = 0.5 * torch.arange(size[0]).view(-1, *[1] * (d - 1))
    assert GradientPenalty("l2")(field) == pytest.approx(0.25 / d**2)
    assert GradientPenalty("l1", multiplier=2)(field) == pytest.approx(2 * 0.5 / d**2)


def test_folding_penalty_presses_on_folds_only():
    field = torch.zeros(1, 2, 16, 16)
    assert FoldingPenalty(0.2)(field) == 0
    field[:, 0] = -1.5 * torch.arange(16.0).view(-1, 1)  # det J = -0.5
    assert FoldingPenalty(0.2)(field) == pytest.approx(0.49)
