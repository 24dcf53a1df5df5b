"""The network and its objective: what goes in and out, and that it learns where errors are."""

from __future__ import annotations

import pytest
import torch

from custom_components.methods.error_estimation.network import ErrorUNet, LocalMatch
from custom_components.methods.error_estimation.objective import error_loss, error_score


@pytest.mark.parametrize("size", [(17, 24), (10, 21, 16)])
def test_errors_are_never_negative_and_as_large_as_the_images(size):
    found = ErrorUNet(len(size))(torch.rand(2, 2 + len(size), *size))
    assert found.shape == (2, 1, *size)
    assert (found >= 0).all()


def test_the_weights_fit_into_a_megabyte():
    assert sum(weights.numel() for weights in ErrorUNet().parameters()) * 2 < 1e6


def test_the_loss_is_the_square_over_the_estimate_where_something_counts():
    error = torch.tensor([0.0, 1.0, 99.0, 5.0]).view(1, 1, 4)
    counts = torch.tensor([True, True, True, False]).view(1, 1, 4)
    targets = {"error_mm": error, "counts": counts}
    exact = {"error_mm": error.clamp(max=15)}
    assert float(error_loss(exact, targets)) == 0
    off = {"error_mm": torch.tensor([3.0, 1.0, 15.0, 0.0]).view(1, 1, 4)}
    assert float(error_loss(off, targets)) == pytest.approx(9 / 4 / 3)
    assert float(error_score({"pred": exact, "label": targets})) == 1
    assert off["terms"]["squares"] == pytest.approx(9 / 4 / 3)


def test_the_best_estimate_of_errors_that_look_alike_is_their_mean():
    errors = {"error_mm": torch.tensor([0.0, 6.0]).view(1, 1, 2), "counts": torch.ones(1, 1, 2, dtype=torch.bool)}
    same = torch.full((1, 1, 1), 3.0, requires_grad=True)
    error_loss({"error_mm": same.expand(1, 1, 2)}, errors).backward()
    assert float(same.grad) == pytest.approx(0, abs=1e-6)


def test_of_nothing_that_counts_the_loss_is_0():
    nothing = torch.zeros(1, 1, 4)
    assert float(error_loss({"error_mm": nothing + 1}, {"error_mm": nothing, "counts": nothing > 0})) == 0


def test_it_learns_where_two_images_differ():
    """Stripes whose right half is shifted: 60 steps on one answer tell the halves apart."""
    torch.manual_seed(0)
    x = torch.arange(32.0).view(1, 1, 32, 1).expand(1, 1, 32, 32)
    fixed, moved = torch.sin(x / 2), torch.sin((x + 2) / 2)
    error = torch.zeros(1, 1, 32, 32)
    error[..., 16:] = 4.0
    image = torch.cat([fixed, torch.where(error > 0, moved, fixed), torch.zeros(1, 2, 32, 32)], 1)
    targets = {"error_mm": error, "counts": torch.ones_like(error, dtype=torch.bool)}
    network = ErrorUNet(2)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    losses = []
    for _ in range(60):
        loss = error_loss(pred := {"error_mm": network(image)}, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]
    assert float(pred["error_mm"][..., 20:].mean()) > 2 + float(pred["error_mm"][..., :12].mean())


def test_a_match_is_best_where_the_images_fit():
    """The warped image is the fixed one moved by 2 pixels: moved back it correlates fully, and so does its negative."""
    torch.manual_seed(0)
    fixed = torch.nn.functional.interpolate(torch.rand(1, 1, 16, 16), (32, 32), mode="bicubic")
    match = LocalMatch((1, 2))
    for sign in (1, -1):
        found = match(torch.cat([fixed, sign * fixed.roll(2, 2), torch.zeros(1, 2, 32, 32)], 1))
        means = found[..., 3:-3, 3:-3].mean((0, 2, 3))
        assert found.shape == (1, 9, 16, 16)
        assert int(means.argmax()) == 6  # still; 1 back, forth along axis 0, axis 1; 2 back, forth along axis 0, ...
        assert means.max() > 0.95
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
