"""Shots whose speeds are read later: on a stand-in for a GPU."""

from __future__ import annotations

import logging

import pytest
import torch

from benchmarks.waits import Waits
from custom_components.deformations.kernels import MultiGaussianKernel
from custom_components.deformations.late import _LATER, LateReadings
from custom_components.deformations.momentum import VectorMomentum
from custom_components.deformations.shooting import ShootingError

SIZE = (20, 18)


def momentum(scale: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, 2, 4, 4, generator=generator)
    return scale * torch.nn.functional.interpolate(coarse, SIZE, mode="bilinear", align_corners=True)


def deformation() -> VectorMomentum:
    return VectorMomentum(MultiGaussianKernel([2.0]), num_steps=4, stride=1)


def shot(late, parameters):
    """Fields and the gradient of the parameters."""
    parameters = parameters.detach().requires_grad_()
    with late.on(True):
        fields = deformation()(parameters, SIZE)
    return fields["ddf"].detach(), torch.autograd.grad(fields["ddf"].square().sum(), parameters)[0]


def there(scale):
    return momentum(scale).to(Waits.device, non_blocking=True)


def test_the_map_and_its_gradient_are_those_of_a_shot_that_is_looked_at():
    expected = shot(LateReadings(), momentum(1.0))  # on the CPU
    late = LateReadings()
    with Waits() as waits:
        shot(late, there(1.0))  # copies what the kernel keeps there
        before = waits.total
        for _ in range(2 * _LATER):
            found = shot(late, there(1.0))
    torch.testing.assert_close(found, expected)
    assert waits.total == before
    assert late.steps == 0


def test_a_shot_that_is_too_fast_counts_for_nothing_and_those_that_are_read_after_it_take_its_steps(caplog):
    late, fast = LateReadings(), 12.0
    exact = deformation()(momentum(fast), SIZE)["ddf"]
    with Waits() as waits:
        before = shot(late, there(fast))
        for _ in range(_LATER):
            assert late.steps == 0
            shot(late, there(1.0))
        after = shot(late, there(fast))
    assert not before[0].any()
    assert not before[1].any()
    assert late.steps > 4
    assert "counted for nothing" in caplog.text
    torch.testing.assert_close(after[0], exact, rtol=0.05, atol=0.05)
    assert after[1].any()
    assert waits.total <= 1


@pytest.mark.parametrize(
    ("wrong", "message"), [(float("nan"), "not finite"), (1e4, r"too large for this grid: \d+ integration steps")]
)
def test_a_momentum_that_cannot_be_shot_is_refused_eight_shots_later(wrong, message):
    late = LateReadings()
    with Waits():
        _, gradient = shot(late, there(wrong))
        for _ in range(_LATER - 1):
            shot(late, there(1.0))
        with pytest.raises(ShootingError, match=message):
            shot(late, there(1.0))
    assert not gradient.any()


def test_on_the_cpu_and_outside_of_it_shots_are_looked_at_at_once(caplog):
    late = LateReadings()
    caplog.set_level(logging.WARNING)
    ddf, _ = shot(late, momentum(12.0))
    assert ddf.any()
    with Waits() as waits:
        deformation()(there(1.0), SIZE)
    assert sum(count for place, count in waits.places.items() if "shooting.py" in place) == 1
