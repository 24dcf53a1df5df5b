"""Rendered heads: their classes, flips, windows and stripping; the loss; lesions."""

from __future__ import annotations

import pytest
import torch

from custom_components.methods.brain_extraction.intensities import normalize
from custom_components.methods.brain_extraction.objective import SegmentationLoss, segmentation_score
from custom_components.methods.brain_extraction.structures import STRUCTURES, class_table
from custom_components.methods.brain_extraction.synthesis import SynthesizeHead
from custom_components.synthesis.contrast import RandomContrast
from custom_components.synthesis.intensities import LabelIntensities
from custom_components.synthesis.lesions import RandomLesions
from custom_components.synthesis.places import look_up
from custom_components.synthesis.warp import RandomWarp

QUIET = LabelIntensities(std=(0, 0), background_std=(0, 0))


def head():
    """Skin around CSF around cortex around white matter, cubes in one another; the left half has a thalamus."""
    labels = torch.zeros(1, 1, 32, 32, 32, dtype=torch.int16)
    for label, n in ((507, 2), (24, 4), (3, 6), (2, 10)):
        labels[..., n:-n, n:-n, n:-n] = label
    labels[..., 10:14, 12:20, 12:20] = 10
    return labels


def synthesize(seed=0, **options):
    options = {"strip": 0.0, "window": (0.0, 1.0, 1.0), **options}
    synthesis = SynthesizeHead(RandomContrast(QUIET, []), RandomWarp(0.0), **options)
    draw = synthesis.draw(1, (32, 32, 32), torch.Generator().manual_seed(seed))
    return synthesis(head(), draw), draw


def test_every_structure_has_its_class():
    table = class_table(531)
    assert table[[0, 24, 507, 85]].tolist() == [0, 0, 0, 0]
    assert table[[2, 41, 3, 10, 49, 60]].tolist() == [1, 1, 2, 7, 7, 17]
    ids = [one for _, members in STRUCTURES for one in members]
    assert len(ids) == len(set(ids))
    assert len(STRUCTURES) == 18


def test_image_and_classes_are_at_half_the_resolution_and_agree():
    result, _ = synthesize()
    assert result["moving"].shape == result["label_moving"].shape == (1, 1, 16, 16, 16)
    for one in (0, 1, 2, 7):
        values = result["moving"][result["label_moving"] == one]
        assert one == 0 or values.std() == 0  # background has skin, CSF and air


def test_a_flip_mirrors_left_and_right():
    found = {bool(draw["flip"]): result["label_moving"] for result, draw in map(synthesize, range(8))}
    assert torch.equal(found[True], found[False].flip(2))


def test_partial_volume_lies_between_its_tissues():
    labels = head()
    synthesis = SynthesizeHead(RandomContrast(QUIET, []), RandomWarp(0.0, shift=1.0), strip=0.0, window=(0.0, 1.0, 1.0))
    draw = synthesis.draw(1, (32, 32, 32), torch.Generator().manual_seed(3))
    image = synthesis(labels, draw)["moving"]
    assert image.unique().numel() > 5


@pytest.mark.parametrize(("share", "kept"), [(0.3, True), (0.1, False)])
def test_stripping_takes_what_is_outside_the_brain_and_sometimes_its_csf(share, kept):
    synthesis = SynthesizeHead(RandomContrast(QUIET, []), RandomWarp(0.0), strip=0.4, window=(0.0, 1.0, 1.0))
    draw = synthesis.draw(1, (32, 32, 32), torch.Generator().manual_seed(0))
    draw["strip"][:] = share
    for label, mean in ((0, 20.0), (507, 200.0), (24, 100.0), (3, 60.0), (2, 90.0), (10, 30.0)):
        draw["contrast"]["intensities"]["mean"][:, label] = mean
    image = synthesis(head(), draw)["moving"][0, 0]
    assert image[1, 8, 8] == 0
    assert bool(image[2, 8, 8] > 0) == kept
    assert image[4, 8, 8] > 0


def test_a_window_shows_a_part_in_multiples_of_8_of_the_same_head():
    whole, _ = synthesize(4)
    part, draw = synthesize(4, window=(1.0, 0.5, 0.5))
    parts = tuple(slice(start, stop) for start, stop in draw["window"])
    assert part["moving"].shape[2:] == (8, 8, 8)
    assert torch.equal(part["label_moving"], whole["label_moving"][(..., *parts)])


def test_places_outside_a_map_are_background():
    places = torch.tensor([[-1.0, 0.0, 15.4], [0.0, 0.0, 16.0], [0.0, 0.0, 16.0]]).view(1, 3, 3, 1, 1)
    assert look_up(head(), places).flatten().tolist() == [0, 0, 10 if head()[0, 0, 15, 16, 16] == 10 else 2]


def test_normalising_forgets_scale_and_offset_and_ignores_the_background():
    image = torch.rand(20, 20, 20, generator=torch.Generator().manual_seed(0)) + 0.5
    image[:10] = 0
    scaled = normalize(3 * image + 7)
    torch.testing.assert_close(scaled[10:], normalize(image)[10:], atol=1e-5, rtol=0)
    assert 0 <= scaled.min() <= scaled.max() <= 1
    assert not normalize(torch.full((4, 4, 4), 3.0)).any()


def test_the_loss_is_least_for_the_truth_and_counts_only_what_is_there():
    classes = torch.randint(0, 3, (1, 1, 6, 6, 6), generator=torch.Generator().manual_seed(0))
    right = 50 * torch.nn.functional.one_hot(classes[:, 0], 18).movedim(-1, 1).float()
    loss, targets = SegmentationLoss(stride=1), {"label_moving": classes}
    assert abs(loss({"logits": right}, targets)) < 0.01
    assert loss({"logits": right.roll(1, 1)}, targets) > 10
    assert segmentation_score({"pred": {"logits": right}, "label": targets}) == 1
    pred = {"logits": torch.zeros(1, 18, 6, 6, 6, requires_grad=True)}
    SegmentationLoss(stride=3)(pred, targets).backward()
    assert {"cross_entropy", "dice"} == set(pred["terms"])
    seen = pred["logits"].grad.abs().sum((0, 1, 3, 4)) > 0
    assert seen.sum() == 2


def test_lesions_change_some_of_the_brain_and_nothing_else():
    labels = head()
    effect = RandomLesions(1.0, scale=4.0, threshold=(0.5, 0.5))
    draw = effect.draw(1, labels.shape[2:], torch.Generator().manual_seed(0))
    image = torch.full(labels.shape, 100.0)
    changed = effect(image, labels, draw) != 100
    brain = (labels >= 1) & (labels <= 499)
    assert not changed[~brain].any()
    assert 0.05 < changed[brain].float().mean() < 0.6
    never = RandomLesions(0.0)
    assert torch.equal(never(image, labels, never.draw(1, labels.shape[2:], torch.Generator())), image)
