"""Pairs made of label maps: draws replay and repeat with the seed, samples are independent."""

import copy
import io

import pytest
import torch
from synthesis.cases import AFFINE, QUIET, STILL, both, contrast_of, labels_of, seeded

from custom_components.affine import affine_to_ddf, centred_to_voxel
from custom_components.fields import warp
from custom_components.synthesis.contrast import RandomContrast
from custom_components.synthesis.crop import CropFieldOfView
from custom_components.synthesis.intensities import LabelIntensities
from custom_components.synthesis.pairs import SynthesizePair
from custom_components.synthesis.thick_slices import ThickSlices
from custom_components.synthesis.warp import RandomWarp


def loud() -> RandomContrast:
    """Everything that there is."""
    default = RandomContrast(LabelIntensities(5))
    background, blur, *rest = default.effects
    return RandomContrast(
        default.intensities, [background, blur, ThickSlices(1.0, (2, 5)), *rest, CropFieldOfView(1.0)]
    )


def make_pair(size, seed: int = 0, labels=None, **settings) -> dict:
    settings = {"warp": RandomWarp(**AFFINE), "contrast": loud(), **settings}
    synthesis = SynthesizePair(settings.pop("warp"), settings.pop("contrast"), **settings)
    moving, fixed = labels or (labels_of(size), labels_of(size, "fixed"))
    return synthesis(moving, fixed, synthesis.draw(len(moving), size, seeded(seed)))


def leaves(draw) -> list[torch.Tensor]:
    if isinstance(draw, torch.Tensor):
        return [draw]
    return [leaf for part in (draw.values() if isinstance(draw, dict) else draw) for leaf in leaves(part)]


def sample_of(draw, i: int):
    """The share of one sample in a draw."""
    if isinstance(draw, torch.Tensor):
        return draw[i : i + 1]
    if isinstance(draw, dict):
        return {key: sample_of(value, i) for key, value in draw.items()}
    return [sample_of(value, i) for value in draw]


@both
def test_equal_seeds_give_equal_pairs_and_others_do_not(size):
    first, again, other = make_pair(size), make_pair(size), make_pair(size, seed=1)
    names = {"moving", "fixed", "label_moving", "label_fixed", "matrix", "matrix_moving", "matrix_fixed"}
    assert first.keys() == names
    for key, value in first.items():
        assert torch.equal(value, again[key])
        assert not torch.equal(value, other[key])


@both
def test_the_matrix_of_a_pair_aligns_what_the_warps_took_apart(size):
    labels = labels_of(size)
    synthesis = SynthesizePair(RandomWarp(0.0, **AFFINE), loud())
    pair = synthesis(labels, labels, synthesis.draw(len(labels), size, seeded()))
    ddf = affine_to_ddf(centred_to_voxel(pair["matrix"], size), size)
    before, after = (
        (warp(pair["label_moving"], field, mode="nearest") == pair["label_fixed"]).float().mean()
        for field in (torch.zeros_like(ddf), ddf)
    )
    assert after > 0.5 + before / 2


@both
def test_stored_draw_replays_exactly(size):
    synthesis = SynthesizePair(RandomWarp(**AFFINE), loud(), strip=0.5)
    labels = (labels_of(size).clone(), labels_of(size, "fixed").clone())
    draw = synthesis.draw(2, size, seeded())
    before = copy.deepcopy(draw)
    file = io.BytesIO()
    torch.save(draw, file)
    first = synthesis(*labels, draw)
    assert all(torch.equal(a, b) for a, b in zip(leaves(draw), leaves(before), strict=True))
    assert torch.equal(labels[0], labels_of(size))
    assert torch.equal(labels[1], labels_of(size, "fixed"))
    file.seek(0)
    replayed = synthesis(*labels, torch.load(file, weights_only=True))
    assert all(torch.equal(replayed[key], value) for key, value in first.items())


@both
def test_successive_draws_of_a_generator_differ(size):
    contrast, generator = contrast_of(5), seeded()
    images = [contrast(labels_of(size), contrast.draw(2, size, generator)) for _ in range(2)]
    assert not torch.equal(*images)


@both
def test_samples_of_a_batch_differ(size):
    same = labels_of(size)[:1].expand(2, *[-1] * (len(size) + 1))
    result = make_pair(size, labels=(same, same))
    for value in result.values():
        assert not torch.equal(value[0], value[1])
    for name in ("", "label_"):
        assert not torch.equal(result[f"{name}moving"], result[f"{name}fixed"])


@both
def test_sample_does_not_depend_on_the_others_of_its_batch(size):
    synthesis = SynthesizePair(RandomWarp(**AFFINE), loud(), strip=0.5)
    moving, fixed = labels_of(size), labels_of(size, "fixed")
    draw = synthesis.draw(2, size, seeded())
    whole = synthesis(moving, fixed, draw)
    other = moving.clone()
    other[1] = (other[1] + 1) % 5
    changed = synthesis(other, fixed, draw)
    alone = synthesis(moving[:1], fixed[:1], sample_of(draw, 0))
    for key, value in whole.items():
        assert torch.equal(value[0], changed[key][0])
        torch.testing.assert_close(value[:1], alone[key], rtol=0, atol=1e-6)
    assert not torch.equal(whole["moving"][1], changed["moving"][1])


@both
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_labels_keep_their_type_and_ids_and_images_are_float32_in_0_to_1(size, dtype):
    labels = labels_of(size).to(dtype), labels_of(size, "fixed").to(dtype)
    result = make_pair(size, labels=labels)
    for side in ("moving", "fixed"):
        assert result[f"label_{side}"].dtype == dtype
        assert set(result[f"label_{side}"].unique().tolist()) <= set(range(5))
        image = result[side]
        assert image.shape == labels[0].shape
        assert image.dtype == torch.float32
        assert image.min() >= 0
        assert image.max() <= 1
        assert image.flatten(1).std(1).min() > 0.05


def test_map_of_one_label_gives_a_finite_image():
    size = (9, 11)
    contrast = contrast_of(5, **QUIET)
    assert not contrast(torch.full((2, 1, *size), 3), contrast.draw(2, size, seeded())).any()


@both
def test_flip_is_shared_by_the_pair(size):
    moving, fixed = labels_of(size), labels_of(size, "fixed")
    synthesis = SynthesizePair(STILL, contrast_of(5), flip=0.5)
    generator = seeded()
    flips = set()
    for _ in range(6):
        draw = synthesis.draw(2, size, generator)
        result = synthesis(moving, fixed, draw)
        for i in range(2):
            axes = [axis + 1 for axis in range(len(size)) if draw["flip"][i, axis]]
            assert torch.equal(result["label_moving"][i], moving[i].flip(axes))
            assert torch.equal(result["label_fixed"][i], fixed[i].flip(axes))
            flips.add(tuple(axes))
    assert len(flips) > 2


@both
def test_each_axis_may_have_its_own_probability_of_a_flip(size):
    result = make_pair(size, warp=STILL, flip=[1.0, *[0.0] * (len(size) - 1)])
    assert torch.equal(result["label_moving"], labels_of(size).flip(2))
    assert torch.equal(result["label_fixed"], labels_of(size, "fixed").flip(2))


def with_scalp(size) -> tuple[torch.Tensor, ...]:
    """Two voxels of 500 and 501 around everything, 300 for the cortex."""
    maps = []
    for side in ("moving", "fixed"):
        labels = labels_of(size, side).masked_fill(labels_of(size, side) == 1, 300)
        labels[:, :, :2], labels[:, :, -2:] = 500, 501
        maps.append(labels)
    return tuple(maps)


@both
def test_stripping_takes_the_outer_labels_from_maps_and_images(size):
    colours = contrast_of(502, **{**QUIET, "zero_background": 1.0})
    maps = with_scalp(size)
    result = make_pair(size, warp=STILL, contrast=colours, labels=maps, flip=0.0, strip=1.0)
    for side, labels in zip(("moving", "fixed"), maps, strict=True):
        assert torch.equal(result[f"label_{side}"], labels.masked_fill(labels >= 500, 0))
        assert not result[side][labels >= 500].any()
        assert result[side][labels == 300].any()
    kept = make_pair(size, warp=STILL, contrast=colours, labels=maps, flip=0.0, strip=0.0)
    assert torch.equal(kept["label_moving"], maps[0])
    assert kept["moving"][maps[0] == 500].all()


@both
def test_stripping_is_shared_by_the_pair_and_drawn_for_each_sample(size):
    seen = set()
    for seed in range(8):
        result = make_pair(size, seed, labels=with_scalp(size), contrast=contrast_of(502), strip=0.5)
        stripped = [(result[f"label_{side}"] < 500).flatten(1).all(1).tolist() for side in ("moving", "fixed")]
        assert stripped[0] == stripped[1]
        seen.add(tuple(stripped[0]))
    assert len(seen) > 2


@both
def test_first_extracerebral_label_is_a_setting(size):
    assert make_pair(size, strip=1.0, first_extracerebral=3)["label_fixed"].max() == 2


@both
def test_fixed_images_may_have_a_contrast_of_their_own(size):
    grey, dark = contrast_of(5, **QUIET), contrast_of(5, **{**QUIET, "zero_background": 1.0})
    result = make_pair(size, warp=STILL, contrast=dark, fixed_contrast=grey)
    assert not result["moving"][result["label_moving"] == 0].any()
    assert result["fixed"][result["label_fixed"] == 0].any()


@both
def test_pair_of_the_same_contrast_shares_means_and_noise_only(size):
    contrast = contrast_of(5)
    for share, wanted in ((0.0, {False}), (0.5, {False, True}), (1.0, {True})):
        synthesis, generator = SynthesizePair(STILL, contrast, same_contrast=share), seeded()
        seen = set()
        for _ in range(6):
            moving, fixed = synthesis.draw(2, size, generator)["contrast"]
            tables = moving["intensities"], fixed["intensities"]
            same = (tables[0]["mean"] == tables[1]["mean"]).all(1)
            assert torch.equal(same, (tables[0]["std"] == tables[1]["std"]).all(1))
            assert not torch.equal(tables[0]["noise"], tables[1]["noise"])
            assert (moving["effects"][-1]["exponent"] != fixed["effects"][-1]["exponent"]).all()
            seen |= set(same.tolist())
        assert seen == wanted
