"""The terms that guide a registration: what they are worth, and on which grid."""

from __future__ import annotations

import pytest
import torch

from custom_components.fields import warp
from custom_components.losses.guidance import Guided, LabelGuide, soft_maps


def same(indicator: torch.Tensor) -> torch.Tensor:
    return indicator


def maps(d: int, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """A box of label 7 in a box of label 2, and the same one voxel further along the first axis."""
    found = torch.zeros(batch, 1, *[18, 17, 16][:d], dtype=torch.int16)
    found[(..., *[slice(4, 12)] * d)] = 2
    found[(..., *[slice(6, 9)] * d)] = 7
    return found, found.roll(1, 2)


@pytest.mark.parametrize("d", [2, 3])
def test_it_is_zero_under_the_shift_that_brings_the_labels_together(d):
    fixed, moving = maps(d)
    batch = soft_maps({"guide_moving": moving, "guide_fixed": fixed}, same)
    assert batch["guide_moving"].shape == (2, 2, *fixed.shape[2:])
    right = torch.zeros(2, d, *fixed.shape[2:])
    right[:, 0] = 1
    assert float(LabelGuide()(right, batch)) == pytest.approx(0, abs=1e-6)
    assert 0.05 < float(LabelGuide()(0 * right, batch)) < 0.2
    assert float(LabelGuide()(right / 2, batch)) < 0.5 * float(LabelGuide()(0 * right, batch))


@pytest.mark.parametrize("shift", [0.25, 0.5])
def test_it_is_best_where_the_maps_are_equal_and_not_at_whole_voxels(shift):
    fixed, _ = maps(2)
    smooth = soft_maps({"guide_moving": fixed, "guide_fixed": fixed}, same)
    moved = torch.zeros(2, 2, *fixed.shape[2:])
    moved[:, 0] = -shift
    batch = {"guide_moving": warp(smooth["guide_moving"], moved), "guide_fixed": smooth["guide_fixed"]}
    values = [float(LabelGuide()(moved * -k / shift, batch)) for k in (0.0, shift, 1.0)]
    assert values[1] == min(values)


def test_labels_that_one_map_lacks_do_not_count():
    fixed, moving = maps(2)
    fixed = torch.where(fixed == 7, 9, fixed)
    assert soft_maps({"guide_moving": moving, "guide_fixed": fixed}, same)["guide_fixed"].shape[1] == 1


def test_maps_without_labels_guide_nothing():
    empty = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    ddf = torch.zeros(1, 2, 8, 8, requires_grad=True)
    value = LabelGuide()(ddf, soft_maps({"guide_moving": empty, "guide_fixed": empty}, same))
    value.backward()
    assert float(value.detach()) == 0
    assert not ddf.grad.any()


def test_more_labels_than_memory_holds_are_refused():
    many = torch.arange(100).reshape(1, 1, 10, 10)
    with pytest.raises(ValueError, match="at most 64 labels, got 99"):
        soft_maps({"guide_moving": many, "guide_fixed": many}, same)


def test_a_guided_loss_tells_its_terms_beside_those_of_the_images():
    fixed, moving = maps(2)
    batch = soft_maps({"guide_moving": moving, "guide_fixed": fixed}, same)
    ddf = torch.zeros(2, 2, *fixed.shape[2:])
    alone = LabelGuide()(ddf, batch)

    def loss(pred, batch):
        pred["terms"] = {"similarity": torch.tensor(0.5)}
        return torch.tensor(0.5)

    pred = {"ddf": ddf, "terms": {}}
    total = Guided(loss, {"labels": LabelGuide()}, {"labels": 3.0})(pred, batch)
    assert float(total) == pytest.approx(0.5 + 3 * float(alone))
    assert set(pred["terms"]) == {"similarity", "labels"}
