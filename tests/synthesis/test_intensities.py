"""Means by a table of statistics."""

import pytest
import torch
from synthesis.cases import QUIET, both, contrast_of, labels_of, minmax, seeded, table_lookup

from custom_components.synthesis.intensities import LabelIntensities, Means, read_statistics

KNOWN = [0, 1, 2, 3, 4, 5, 8, 500]


def test_statistics_are_read_by_id(table):
    means, spreads = read_statistics(table)
    assert means.shape == spreads.shape == (531,)
    assert means[KNOWN].tolist() == [7, 100, 160, 160, 40, 250, 30, 144]
    assert spreads[KNOWN].tolist() == [2, 8, 20, 20, 0, 30, 5, 9]
    assert means[[6, 7, 530]].isnan().all()
    assert read_statistics(table, 4)[0].tolist() == [7, 100, 160, 160]


def test_t2_has_bright_fluid_and_grey_above_white(table):
    means = read_statistics(table, contrast="t2")[0]
    assert means[4] > means[1] > means[2] == means[3]
    assert means[[0, 500]].tolist() == [7, 144]
    assert float(means[1]) == pytest.approx(285 - 1.3 * 100)


def test_inverted_turns_everything_but_the_background(table):
    assert read_statistics(table, contrast="inverted")[0][KNOWN].tolist() == [7, 155, 95, 95, 215, 5, 225, 111]


def test_unknown_contrast_is_refused(table):
    with pytest.raises(ValueError, match="expected contrast t1, t2 or inverted, got 'flair'"):
        LabelIntensities(statistics=table, contrast="flair")


@pytest.mark.parametrize("contrast", ["t1", "t2", "inverted"])
def test_labels_of_equal_statistics_get_equal_means(table, contrast):
    means, spreads = read_statistics(table, contrast=contrast)
    drawn = Means(means, spreads).draw(400, seeded())
    assert drawn.shape == (400, 531)
    assert torch.equal(drawn[:, 2], drawn[:, 3])
    assert not torch.equal(drawn[:, 1], drawn[:, 2])
    assert (drawn[:, 4] == means[4]).all()  # a spread of 0
    assert drawn[:, KNOWN].isfinite().all()
    assert 0 <= drawn[:, KNOWN].min() <= drawn[:, KNOWN].max() <= 255
    assert float(drawn[:, 2].mean()) == pytest.approx(float(means[2]), abs=4)
    assert float(drawn[:, 1].std()) == pytest.approx(8, abs=1)


def test_of_several_contrasts_each_image_has_one(table):
    contrast = LabelIntensities(600, statistics=table, contrast=["t1", "inverted"])
    means = contrast.draw(40, (8, 8), seeded())["mean"][:, 8]  # 30 +- 5, inverted 225 +- 5
    dark, bright = means < 60, means > 195
    assert bool((dark | bright).all())
    assert 8 <= int(dark.sum()) <= 32


def test_share_of_the_statistics_leaves_the_other_images_random(table):
    contrast = LabelIntensities(600, statistics=table, statistics_share=0.5)
    means = contrast.draw(200, (8, 8), seeded())["mean"][:, 4]  # 40 exactly, or from 25 to 225
    assert 70 <= int((means == 40).sum()) <= 130
    assert float(means[means != 40].std()) > 40


@both
def test_table_of_statistics_replaces_the_ranges_of_the_means(size, table):
    contrast = contrast_of(531, **QUIET, statistics=table)
    draw = contrast.draw(2, size, seeded())
    means = draw["intensities"]["mean"]
    assert (means[:, 0] < 30).all()
    labels = labels_of(size)
    image = contrast(labels, draw)
    assert torch.equal(image, minmax(table_lookup(means, labels)))
    assert torch.equal(image[labels == 2].unique(), image[labels == 3].unique())
