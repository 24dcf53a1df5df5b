"""Simulated answers: the error that is said is the error that was made."""

from __future__ import annotations

import pytest
import torch

from custom_components.fields import warp
from custom_components.methods.error_estimation.residuals import RandomResiduals
from custom_components.methods.error_estimation.simulation import SimulatedErrors
from custom_components.synthesis.contrast import RandomContrast
from custom_components.synthesis.intensities import LabelIntensities
from custom_components.synthesis.unit_range import UnitRange
from custom_components.synthesis.warp import RandomWarp

PLAIN = RandomContrast(LabelIntensities(std=(0, 0), background_std=(0, 0)), [UnitRange()])
STILL = RandomWarp(0.0)


def maps(count=1):
    """A cube of label 3 with a ball of label 2 in it, and a block of skin, at twice the resolution."""
    labels = torch.zeros(count, 1, 48, 48, 48, dtype=torch.int16)
    labels[..., 8:40, 8:40, 8:40] = 3
    x = torch.stack(torch.meshgrid(*[torch.arange(48.0)] * 3, indexing="ij")) - 24
    labels[:, 0][:, x.norm(dim=0) < 10] = 2
    labels[..., 40:44, 20:28, 20:28] = 507
    return labels


def simulated(known=STILL, deviations=(1.0, 1.0), count=1, **options):
    residuals = RandomResiduals((12.0, 6.0), deviations)
    options = {"shares": (1.0, 0.0, 1.0), **options}
    make = SimulatedErrors(PLAIN, STILL, known, residuals, **options)
    labels = maps(count)
    return make, labels, make.draw(count, labels.shape[2:], torch.Generator().manual_seed(1))


def same_look(draw):
    draw["looks"][1] = draw["looks"][0]


def test_without_an_error_the_warped_image_is_the_fixed_one():
    make, labels, draw = simulated(RandomWarp(0.5, [8], shift=1.0))
    same_look(draw)
    erring = make(labels, draw)
    draw["mixture"] = torch.zeros(2, 1)
    found = make(labels, draw)
    assert found["error_mm"].max() == 0
    apart, apart_erring = (
        float((one["moving"][:, :1] - one["moving"][:, 1:2])[one["counts"]].abs().mean()) for one in (found, erring)
    )
    assert apart < 0.04  # what interpolation blurs
    assert apart_erring > 3 * apart


def test_a_known_shift_is_undone_in_the_right_direction():
    """Fixed shows at x what moving shows at x + 3: the field that is shown is +3 voxels, 6 mm, along the first axis."""
    make, labels, draw = simulated()
    same_look(draw)
    draw["known"]["matrix"][:, 0, 3] = 3.0
    draw["mixture"] = torch.zeros(2, 1)
    found = make(labels, draw)
    torch.testing.assert_close(found["moving"][:, 2].unique(), torch.tensor([0.6]))
    assert torch.allclose(found["moving"][0, 0, 6:18], found["moving"][0, 1, 6:18], atol=1e-4)


def test_the_error_is_the_length_of_the_residual_in_millimetres():
    make, labels, draw = simulated(spacing=3.0)
    found = make(labels, draw)
    residual = make.residuals(draw["residual"], (24, 24, 24))
    torch.testing.assert_close(found["error_mm"][:, 0], 3.0 * residual.norm(dim=1))
    torch.testing.assert_close(found["moving"][:, 2:], 3.0 * residual / 10)


def test_the_field_is_hidden_where_it_is_drawn_so():
    make, labels, draw = simulated(count=2)
    draw["shown"] = torch.tensor([True, False])
    found = make(labels, draw)["moving"][:, 2:]
    assert found[0].abs().max() > 0
    assert found[1].abs().max() == 0


def test_what_a_network_errs_is_the_error():
    asked = []

    def answer(moving, fixed):
        asked.append((moving, fixed))
        return torch.ones(1, 3, 24, 24, 24)

    make, labels, draw = simulated(RandomWarp(0.5, [8]), answers=[answer])
    assert draw["answer"] == 0
    draw["mixture"] = torch.tensor([[1.0], [0.0]])
    found = make(labels, draw)
    known = make.known.field(draw["known"], (24, 24, 24))
    torch.testing.assert_close(found["error_mm"][:, 0], 2.0 * (1 - known).norm(dim=1))
    ((moving, fixed),) = asked
    torch.testing.assert_close(found["moving"][:, :1], fixed)
    torch.testing.assert_close(found["moving"][:, 1:2], warp(moving, torch.ones(1, 3, 24, 24, 24)))


def test_only_what_both_images_show_counts():
    make, labels, draw = simulated(count=2)
    draw["strip"] = torch.tensor([0.0, 0.9])
    make.stripped = 0.5
    draw["flip"] = torch.tensor([False, False])
    draw["mixture"] = torch.zeros(2, 2)
    counts = make(labels, draw)["counts"][:, 0]
    assert counts[0].sum() == 16**3
    assert counts[1].sum() == 16**3 + 2 * 4 * 4
    draw["known"]["matrix"][:, 0, 3] = 10.0
    assert not make(labels, draw)["counts"][:, 0, 14:].any()


def test_networks_answer_in_their_share_of_the_steps():
    make, labels, _ = simulated(answers=[None, None], shares=(0.5, 0.0, 1.0))
    asked = [make.draw(1, labels.shape[2:], torch.Generator().manual_seed(k))["answer"] for k in range(200)]
    assert set(asked) == {-1, 0, 1}
    assert 70 < asked.count(-1) < 130


def test_a_share_above_one_is_refused():
    with pytest.raises(ValueError, match="a share"):
        SimulatedErrors(PLAIN, STILL, STILL, RandomResiduals(), shares=(2.0, 0.0, 0.0))
