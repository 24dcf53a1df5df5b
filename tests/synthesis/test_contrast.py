"""Random contrasts, and contrasts by statistics of labels."""

import pytest
import torch
from synthesis.cases import QUIET, both, labels_of, seeded

from custom_components.synthesis.acquisition import crop_field_of_view, thick_slices
from custom_components.synthesis.contrast import RandomContrast, draw_means, read_statistics
from custom_components.synthesis.noise import gaussian_blur


def minmax(image: torch.Tensor) -> torch.Tensor:
    low, high = image.flatten(1).amin(1), image.flatten(1).amax(1)
    shape = (-1, *[1] * (image.ndim - 1))
    return (image - low.view(shape)) / (high - low).view(shape)


def table_lookup(table: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return torch.stack([row[sample.long()] for row, sample in zip(table, labels, strict=True)])


@both
def test_without_randomness_an_image_is_a_table_of_means(size):
    contrast, labels = RandomContrast(5, **QUIET), labels_of(size)
    draw = contrast.draw(2, size, seeded())
    assert torch.equal(contrast(labels, draw), minmax(table_lookup(draw["mean"], labels)))


@both
def test_noise_has_the_deviation_of_its_label(size):
    contrast, labels = RandomContrast(5, **{**QUIET, "std": (5, 25), "background_std": (0, 25)}), labels_of(size)
    draw = contrast.draw(2, size, seeded())
    values = table_lookup(draw["mean"], labels) + table_lookup(draw["std"], labels) * draw["noise"]
    torch.testing.assert_close(contrast(labels, draw), minmax(values.clamp(0, 255)))
    assert draw["noise"].std() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    ("key", "label", "low", "high"),
    [
        ("mean", slice(1, None), 25, 225),
        ("mean", 0, 0, 225),
        ("std", slice(1, None), 5, 25),
        ("std", 0, 0, 25),
        ("blur", slice(None), 0, 1),
    ],
)
def test_default_ranges_are_those_of_synthmorph(key, label, low, high):
    values = RandomContrast(10).draw(500, (3, 4), seeded())[key][:, label]
    assert low <= values.min() < low + 0.03 * (high - low)
    assert high - 0.03 * (high - low) < values.max() <= high
    assert float(values.mean()) == pytest.approx((low + high) / 2, abs=0.05 * (high - low))


def test_default_probability_gamma_and_extras_are_those_of_synthmorph():
    draw = RandomContrast(3).draw(4000, (3, 4), seeded())
    assert float(draw["zero_background"].float().mean()) == pytest.approx(0.2, abs=0.02)
    assert float(draw["exponent"].log().mean()) == pytest.approx(0, abs=0.02)
    assert float(draw["exponent"].log().std()) == pytest.approx(0.25, abs=0.01)
    # A standard deviation from U(0, 0.3) has a mean square of 0.03.
    assert float(draw["bias"][..., 0, 0].square().mean()) == pytest.approx(0.03, abs=0.004)
    assert (draw["stride"] == 1).all()
    assert not draw["crop"].any()


@both
def test_background_becomes_exactly_0_with_its_probability(size):
    labels = labels_of(size)
    contrast = RandomContrast(5, zero_background=0.5, blur=(0, 0))
    draw = contrast.draw(2, size, seeded())
    draw["zero_background"] = torch.tensor([True, False])
    image = contrast(labels, draw)
    assert not image[0][labels[0] == 0].any()
    assert image[0][labels[0] > 0].mean() > 0.1
    assert image[1][labels[1] == 0].std() > 0.01


@both
def test_bias_field_is_the_exponential_of_smooth_noise(size):
    contrast = RandomContrast(5, **{**QUIET, "bias": 0.3, "mean": (100, 100), "background_mean": (100, 100)})
    draw = contrast.draw(2, size, seeded())
    image = contrast(labels_of(size), draw)
    torch.testing.assert_close(image, minmax((100 * draw["bias"].exp()).clamp(0, 255)))
    # The axes are shorter than the scale of 40 voxels: one linear piece along each.
    assert draw["bias"].diff(n=2, dim=2).abs().max() < 1e-5
    assert draw["bias"].flatten(1).std(1).min() > 0.01


@both
def test_gamma_is_a_power_after_the_scaling(size):
    contrast, labels = RandomContrast(5, **{**QUIET, "gamma": 0.5}), labels_of(size)
    draw = contrast.draw(2, size, seeded())
    exponent = draw["exponent"].view(-1, *[1] * (labels.ndim - 1))
    torch.testing.assert_close(contrast(labels, draw), minmax(table_lookup(draw["mean"], labels)) ** exponent)
    assert (exponent != 1).all()


@both
def test_blur_and_thick_slices_act_before_the_scaling(size):
    labels = labels_of(size)
    contrast = RandomContrast(5, **{**QUIET, "blur": (0.5, 1), "thick_slices": 1.0})
    draw = contrast.draw(2, size, seeded())
    assert ((draw["stride"] > 1).sum(1) == 1).all()
    blurred = gaussian_blur(table_lookup(draw["mean"], labels), draw["blur"], radius=3)
    torch.testing.assert_close(contrast(labels, draw), minmax(thick_slices(blurred, draw["stride"])))


@both
def test_thick_slices_and_crops_come_with_their_probability(size):
    contrast = RandomContrast(2, thick_slices=0.3, thickness=(2, 8), crop=0.4, crop_share=0.2)
    draw = contrast.draw(300, [4] * len(size), seeded())
    thick = draw["stride"] > 1
    assert (thick.sum(1) <= 1).all()
    assert float(thick.any(1).float().mean()) == pytest.approx(0.3, abs=0.08)
    assert thick.any(0).all()
    assert set(draw["stride"].unique().tolist()) <= set(range(1, 9))
    cropped = draw["crop"].flatten(1).any(1)
    assert float(cropped.float().mean()) == pytest.approx(0.4, abs=0.08)
    assert 0 <= draw["crop"].min() <= draw["crop"].max() <= 0.2


@both
def test_cropped_image_is_0_outside_its_field_of_view(size):
    labels = labels_of(size)
    contrast = RandomContrast(5, crop=1.0, crop_share=0.3)
    draw = contrast.draw(2, size, seeded())
    image = contrast(labels, draw)
    seen = crop_field_of_view(torch.ones_like(image), draw["crop"]) > 0
    assert not image[~seen].any()
    assert image[seen].mean() > 0.1
    assert 0.05 < seen.float().mean() < 1


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
        RandomContrast(statistics=table, contrast="flair")


@pytest.mark.parametrize("contrast", ["t1", "t2", "inverted"])
def test_labels_of_equal_statistics_get_equal_means(table, contrast):
    means, spreads = read_statistics(table, contrast=contrast)
    drawn = draw_means(means, spreads, 400, seeded())
    assert drawn.shape == (400, 531)
    assert torch.equal(drawn[:, 2], drawn[:, 3])
    assert not torch.equal(drawn[:, 1], drawn[:, 2])
    assert (drawn[:, 4] == means[4]).all()  # a spread of 0
    assert drawn[:, KNOWN].isfinite().all()
    assert 0 <= drawn[:, KNOWN].min() <= drawn[:, KNOWN].max() <= 255
    assert float(drawn[:, 2].mean()) == pytest.approx(float(means[2]), abs=4)
    assert float(drawn[:, 1].std()) == pytest.approx(8, abs=1)


def test_of_several_contrasts_each_image_has_one(table):
    contrast = RandomContrast(600, statistics=table, contrast=["t1", "inverted"])
    means = contrast.draw(40, (8, 8), seeded())["mean"][:, 8]  # 30 +- 5, inverted 225 +- 5
    dark, bright = means < 60, means > 195
    assert bool((dark | bright).all())
    assert 8 <= int(dark.sum()) <= 32


def test_share_of_the_statistics_leaves_the_other_images_random(table):
    contrast = RandomContrast(600, statistics=table, statistics_share=0.5)
    means = contrast.draw(200, (8, 8), seeded())["mean"][:, 4]  # 40 exactly, or from 25 to 225
    assert 70 <= int((means == 40).sum()) <= 130
    assert float(means[means != 40].std()) > 40


@both
def test_table_of_statistics_replaces_the_ranges_of_the_means(size, table):
    contrast = RandomContrast(531, **QUIET, statistics=table, background_mean=(200, 225))
    draw = contrast.draw(2, size, seeded())
    assert (draw["mean"][:, 0] < 30).all()
    labels = labels_of(size)
    image = contrast(labels, draw)
    assert torch.equal(image, minmax(table_lookup(draw["mean"], labels)))
    assert torch.equal(image[labels == 2].unique(), image[labels == 3].unique())
