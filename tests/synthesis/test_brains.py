"""The renderers that bundles share."""

import pytest
import torch
from synthesis.cases import SIZES, both, contrast_of, labels_of, seeded

from custom_components.synthesis.brains import BrainContrast, T1Brains


@both
def test_t1_brains_render_the_table_and_keep_the_shapes(size, table):
    """Without the offsets of the alignment, and with its probabilities at 0 or 1, what is random is the image alone."""
    labels = labels_of(size), labels_of(size, "fixed")
    synthesis = T1Brains(table, rotation_degrees=0.0, scaling=0.0, shift=0.0, zero_background=1.0)
    draw = synthesis.draw(2, size, seeded())
    draw["flip"][:] = False
    result = synthesis(*labels, draw)
    for side, expected in zip(("moving", "fixed"), labels, strict=True):
        assert torch.equal(result[f"label_{side}"], expected)
        assert result[side][expected == 0].median() < 1e-5
        assert result[side][expected == 2].mean() > result[side][expected == 4].mean() + 0.1


@both
def test_t1_brains_are_flipped_from_left_to_right_only(size, table):
    flips = T1Brains(table).draw(40, size, seeded())["flip"]
    assert flips[:, 0].float().mean() == pytest.approx(0.5, abs=0.2)
    assert not flips[:, 1:].any()


def test_brain_contrast_is_a_random_contrast_with_the_table(table):
    first = BrainContrast(table, "inverted", zero_background=1.0, bias=0.1, gamma=0.0)
    same = contrast_of(
        531, 1.0, bias=0.1, gamma=0.0, std=(2.5, 10), background_std=(0, 3), statistics=table, contrast="inverted"
    )
    size = SIZES[0]
    images = [one(labels_of(size), one.draw(2, size, seeded())) for one in (first, same)]
    assert torch.equal(*images)
