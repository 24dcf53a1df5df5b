"""The terms that guide a registration: what they are worth, and on which grid."""

from __future__ import annotations

import pytest
import torch

from custom_components.losses.guidance import Guided, LabelGuide, nearest_at


def maps(d: int, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """A box of label 7 in a box of label 2, and the same one voxel further along the first axis."""
    found = torch.zeros(batch, 1, *[18, 17, 16][:d], dtype=torch.int16)
    found[(..., *[slice(4, 12)] * d)] = 2
    found[(..., *[slice(6, 9)] * d)] = 7
    return found, found.roll(1, 2)


@pytest.mark.parametrize("d", [2, 3])
def test_it_is_zero_under_the_shift_that_brings_the_labels_together(d):
    fixed, moving = maps(d)
    batch = {"guide_moving": moving, "guide_fixed": fixed}
    right = torch.zeros(2, d, *fixed.shape[2:])
    right[:, 0] = 1
    assert float(LabelGuide()(right, batch)) == pytest.approx(0, abs=1e-6)
    # Of label 7, three voxels wide, two thirds overlap; of label 2 without it 7/8 and a bit: the mean says so.
    apart = [2 * float(((fixed == k) & (moving == k)).sum()) / float((fixed == k).sum() * 2) for k in (2, 7)]
    assert float(LabelGuide()(0 * right, batch)) == pytest.approx(1 - sum(apart) / 2, abs=1e-6)


def test_maps_without_labels_guide_nothing():
    empty = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    ddf = torch.zeros(1, 2, 8, 8, requires_grad=True)
    value = LabelGuide()(ddf, {"guide_moving": empty, "guide_fixed": empty})
    value.backward()
    assert float(value) == 0
    assert not ddf.grad.any()


@pytest.mark.parametrize("size", [(9, 7), (9, 7, 13)])
def test_on_another_grid_corners_and_ids_stay(size):
    labels = torch.randint(0, 3000, (2, 1, *size), dtype=torch.int32)
    coarse = nearest_at(labels, torch.Size([-(-n // 2) for n in size]))
    assert torch.equal(coarse, labels[(..., *[slice(None, None, 2)] * len(size))])
    assert torch.equal(nearest_at(labels, labels.shape[2:]), labels)


def test_a_guided_loss_tells_its_terms_beside_those_of_the_images():
    fixed, moving = maps(2)
    batch = {"guide_moving": moving, "guide_fixed": fixed}
    ddf = torch.zeros(2, 2, *fixed.shape[2:])
    alone = LabelGuide()(ddf, batch)

    def loss(pred, batch):
        pred["terms"] = {"similarity": torch.tensor(0.5)}
        return torch.tensor(0.5)

    pred = {"ddf": ddf, "terms": {}}
    total = Guided(loss, {"labels": LabelGuide()}, {"labels": 3.0})(pred, batch)
    assert float(total) == pytest.approx(0.5 + 3 * float(alone))
    assert set(pred["terms"]) == {"similarity", "labels"}
