"""A rendering: intensities of labels, effects in the order of their list, the numbers that a seed gives."""

import pytest
import torch
from synthesis.cases import QUIET, both, contrast_of, labels_of, minmax, seeded, table_lookup

from custom_components.synthesis.background import ZeroBackground
from custom_components.synthesis.bias import BiasField
from custom_components.synthesis.blur import RandomBlur
from custom_components.synthesis.contrast import RandomContrast
from custom_components.synthesis.crop import CropFieldOfView
from custom_components.synthesis.gamma import RandomGamma
from custom_components.synthesis.intensities import LabelIntensities
from custom_components.synthesis.noise import gaussian_blur, pass_over
from custom_components.synthesis.thick_slices import ThickSlices, thick_slices
from custom_components.synthesis.unit_range import UnitRange


@both
def test_without_randomness_an_image_is_a_table_of_means(size):
    contrast, labels = contrast_of(5, **QUIET), labels_of(size)
    draw = contrast.draw(2, size, seeded())
    assert torch.equal(contrast(labels, draw), minmax(table_lookup(draw["intensities"]["mean"], labels)))


@both
def test_noise_has_the_deviation_of_its_label(size):
    contrast, labels = contrast_of(5, **{**QUIET, "std": (5, 25), "background_std": (0, 25)}), labels_of(size)
    draw = contrast.draw(2, size, seeded())
    mean, std, noise = (draw["intensities"][key] for key in ("mean", "std", "noise"))
    values = table_lookup(mean, labels) + table_lookup(std, labels) * noise
    torch.testing.assert_close(contrast(labels, draw), minmax(values.clamp(0, 255)))
    assert noise.std() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    ("key", "label", "low", "high"),
    [
        ("mean", slice(1, None), 25, 225),
        ("mean", 0, 0, 225),
        ("std", slice(1, None), 5, 25),
        ("std", 0, 0, 25),
        ("sigma", slice(None), 0, 1),
    ],
)
def test_default_ranges_are_those_of_synthmorph(key, label, low, high):
    step = RandomBlur() if key == "sigma" else LabelIntensities(10)
    values = step.draw(500, (3, 4), seeded())[key][:, label]
    assert low <= values.min() < low + 0.03 * (high - low)
    assert high - 0.03 * (high - low) < values.max() <= high
    assert float(values.mean()) == pytest.approx((low + high) / 2, abs=0.05 * (high - low))


def test_default_effects_and_their_numbers_are_those_of_synthmorph():
    contrast = RandomContrast(LabelIntensities(3))
    wanted = [ZeroBackground, RandomBlur, BiasField, UnitRange, RandomGamma]
    assert [type(effect) for effect in contrast.effects] == wanted
    background, _, bias, _, gamma = contrast.draw(4000, (3, 4), seeded())["effects"]
    assert float(background["zero"].float().mean()) == pytest.approx(0.2, abs=0.02)
    assert float(gamma["exponent"].log().mean()) == pytest.approx(0, abs=0.02)
    assert float(gamma["exponent"].log().std()) == pytest.approx(0.25, abs=0.01)
    # A standard deviation from U(0, 0.3) has a mean square of 0.03.
    assert float(bias["log_field"][..., 0, 0].square().mean()) == pytest.approx(0.03, abs=0.004)


@both
def test_background_becomes_exactly_0_with_its_probability(size):
    labels = labels_of(size)
    contrast = contrast_of(5, zero_background=0.5, blur=(0, 0))
    draw = contrast.draw(2, size, seeded())
    draw["effects"][0]["zero"] = torch.tensor([True, False])
    image = contrast(labels, draw)
    assert not image[0][labels[0] == 0].any()
    assert image[0][labels[0] > 0].mean() > 0.1
    assert image[1][labels[1] == 0].std() > 0.01


@both
def test_bias_field_is_the_exponential_of_smooth_noise(size):
    flat, effect = torch.full((2, 1, *size), 100.0), BiasField(0.3)
    field = effect.draw(2, size, seeded())["log_field"]
    torch.testing.assert_close(effect(flat, labels_of(size), {"log_field": field}), 100 * field.exp())
    # The axes are shorter than the scale of 40 voxels: one linear piece along each.
    assert field.diff(n=2, dim=2).abs().max() < 1e-5
    assert field.flatten(1).std(1).min() > 0.01


@both
def test_images_are_clipped_to_0_to_255_and_scaled_to_0_to_1(size):
    image = 600 * torch.rand(2, 1, *size, generator=seeded()) - 200
    image[1] /= 10
    torch.testing.assert_close(UnitRange()(image, labels_of(size), {}), minmax(image.clamp(0, 255)))


@both
def test_gamma_is_a_power_after_the_scaling(size):
    contrast, labels = contrast_of(5, **{**QUIET, "gamma": 0.5}), labels_of(size)
    draw = contrast.draw(2, size, seeded())
    exponent = draw["effects"][-1]["exponent"].view(-1, *[1] * (labels.ndim - 1))
    table = draw["intensities"]["mean"]
    torch.testing.assert_close(contrast(labels, draw), minmax(table_lookup(table, labels)) ** exponent)
    assert (exponent != 1).all()


@both
def test_effects_act_one_after_another_in_the_order_of_the_list(size):
    labels, quiet = labels_of(size), LabelIntensities(5, std=(0, 0), background_std=(0, 0))
    contrast = RandomContrast(quiet, [RandomBlur((0.5, 1)), ThickSlices(1.0), UnitRange()])
    draw = contrast.draw(2, size, seeded())
    blur, thick, _ = draw["effects"]
    assert ((thick["stride"] > 1).sum(1) == 1).all()
    blurred = gaussian_blur(table_lookup(draw["intensities"]["mean"], labels), blur["sigma"], radius=3)
    torch.testing.assert_close(contrast(labels, draw), minmax(thick_slices(blurred, thick["stride"])))


@both
def test_thick_slices_and_crops_come_with_their_probability(size):
    small = [4] * len(size)
    thick = ThickSlices(0.3, (2, 8)).draw(300, small, seeded())["stride"]
    assert ((thick > 1).sum(1) <= 1).all()
    assert float((thick > 1).any(1).float().mean()) == pytest.approx(0.3, abs=0.08)
    assert (thick > 1).any(0).all()
    assert set(thick.unique().tolist()) <= set(range(1, 9))
    share = CropFieldOfView(0.4, 0.2).draw(300, small, seeded())["share"]
    assert float(share.flatten(1).any(1).float().mean()) == pytest.approx(0.4, abs=0.08)
    assert 0 <= share.min() <= share.max() <= 0.2


@both
def test_cropped_image_is_0_outside_its_field_of_view(size):
    labels, crop = labels_of(size), CropFieldOfView(1.0, 0.3)
    default = RandomContrast(LabelIntensities(5))
    contrast = RandomContrast(default.intensities, [*default.effects, crop])
    draw = contrast.draw(2, size, seeded())
    image = contrast(labels, draw)
    seen = crop(torch.ones_like(image), labels, draw["effects"][-1]) > 0
    assert not image[~seen].any()
    assert image[seen].mean() > 0.1
    assert 0.05 < seen.float().mean() < 1


@both
def test_seed_renders_what_it_did_when_slices_and_crop_were_always_drawn(size):
    """Four numbers an image between the tables and the noise, two an axis at the end."""
    draw = RandomContrast(LabelIntensities(5)).draw(2, size, generator := seeded())
    again = seeded()
    torch.rand(2, 5, generator=again), torch.rand(2, generator=again)
    torch.rand(2, 5, generator=again), torch.rand(2, generator=again)
    torch.rand(2, 4, generator=again)
    assert torch.equal(draw["intensities"]["noise"], torch.randn(2, 1, *size, generator=again))
    RandomContrast().effects[0].draw(2, size, again)
    for effect in RandomContrast().effects[1:]:
        effect.draw(2, size, again)
    pass_over(again, (2, len(size), 2))
    assert torch.equal(torch.rand(3, generator=again), torch.rand(3, generator=generator))
