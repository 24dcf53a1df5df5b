"""Claims: draws replay and repeat with the seed, samples are independent, images show their label maps, warps do not
fold, and every part of the generator does by itself what its name says."""

import copy
import functools
import io
import math

import pytest
import torch

from custom_components.affine import affine_to_ddf, centred_to_voxel
from custom_components.data.phantoms import phantom_pair
from custom_components.fields import identity_grid, jacobian_determinant, warp
from custom_components.methods.synthmorph.shapes import DrawShapesd, RandomShapes
from custom_components.synthesis.acquisition import crop_field_of_view, thick_slices
from custom_components.synthesis.contrast import RandomContrast, draw_means, read_statistics
from custom_components.synthesis.noise import gaussian_blur, smooth_noise
from custom_components.synthesis.pairs import SynthesizePair
from custom_components.synthesis.slices import TakeSlices
from custom_components.synthesis.warp import RandomWarp, random_affine
from custom_components.transforms.checks import CheckLabelsd

SIZES = [(33, 38), (21, 24, 19)]
both = pytest.mark.parametrize("size", SIZES, ids=["2d", "3d"])
# Nothing random but the means: an image that is exactly a table look-up.
QUIET = {"std": (0, 0), "background_std": (0, 0), "zero_background": 0.0, "blur": (0, 0), "bias": 0.0, "gamma": 0.0}
# Everything that can be switched on.
LOUD = {"thick_slices": 1.0, "thickness": (2, 5), "crop": 1.0}
AFFINE = {"rotation_degrees": 10.0, "scaling": 0.1, "shear": 0.05, "shift": 2.0}
STILL = RandomWarp(0.0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@functools.cache
def labels_of(size, side: str = "moving") -> torch.Tensor:
    """Two phantoms' label maps, int16, ids 0 to 4, all present; not to be changed in place."""
    return phantom_pair(size, seed=2, batch=2)[f"label_{side}"]


def make_pair(size, seed: int = 0, labels=None, **settings) -> dict:
    settings = {"warp": RandomWarp(**AFFINE), "contrast": RandomContrast(5, **LOUD), **settings}
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


def minmax(image: torch.Tensor) -> torch.Tensor:
    low, high = image.flatten(1).amin(1), image.flatten(1).amax(1)
    shape = (-1, *[1] * (image.ndim - 1))
    return (image - low.view(shape)) / (high - low).view(shape)


def table_lookup(table: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return torch.stack([row[sample.long()] for row, sample in zip(table, labels, strict=True)])


# Seeds, draws, batches


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
    synthesis = SynthesizePair(RandomWarp(0.0, **AFFINE), RandomContrast(5, **LOUD))
    pair = synthesis(labels, labels, synthesis.draw(len(labels), size, seeded()))
    ddf = affine_to_ddf(centred_to_voxel(pair["matrix"], size), size)
    before, after = (
        (warp(pair["label_moving"], field, mode="nearest") == pair["label_fixed"]).float().mean()
        for field in (torch.zeros_like(ddf), ddf)
    )
    assert after > 0.5 + before / 2


@both
def test_stored_draw_replays_exactly(size):
    synthesis = SynthesizePair(RandomWarp(**AFFINE), RandomContrast(5, **LOUD), strip=0.5)
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
    contrast, generator = RandomContrast(5), seeded()
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
    synthesis = SynthesizePair(RandomWarp(**AFFINE), RandomContrast(5, **LOUD), strip=0.5)
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
    contrast = RandomContrast(5, **QUIET)
    assert not contrast(torch.full((2, 1, *size), 3), contrast.draw(2, size, seeded())).any()


# RandomContrast


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


# Statistics


@pytest.fixture
def table(tmp_path):
    """Left and right white matter have equal statistics; id 6 and 7 are not in the file."""
    path = tmp_path / "labels.csv"
    rows = ["id,name,t1_prior_mean,t1_prior_mean_spread", "0,air,7,2", "1,cortex,100,8", "2,left white,160,20"]
    rows += ["3,right white,160,20", "4,ventricle,40,0", "5,pallidum,250,30", "8,skull,30,5", "500,scalp,144,9"]
    path.write_text("\n".join(rows) + "\n")
    return path


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


# RandomWarp


@both
def test_label_map_and_image_move_together(size):
    """With a background of 0, as what comes from outside is, an image of the moved map is the moved image."""
    labels, mover = labels_of(size), RandomWarp(1.0, (8, 16), **AFFINE)
    contrast = RandomContrast(5, **{**QUIET, "background_mean": (0, 0)})
    motion, colours = mover.draw(2, size, seeded()), contrast.draw(2, size, seeded())
    moved = mover(labels, motion)
    assert not torch.equal(moved, labels)
    expected = warp(contrast(labels, colours), mover.field(motion, size), mode="nearest")
    assert torch.equal(contrast(moved, colours), expected)


@both
@pytest.mark.parametrize(
    ("settings", "folded"),
    [({}, 0), (AFFINE, 0), ({"std": 1.0, "scales": (16, 32)}, 0), ({"std": 3.0, "scales": (8, 16, 32)}, 2e-3)],
    ids=["brains", "affine", "slices", "shapes"],
)
def test_warps_hardly_fold(size, settings, folded):
    mover = RandomWarp(**settings)
    field = mover.field(mover.draw(6, size, seeded()), size)
    assert field.shape == (6, len(size), *size)
    assert field.abs().max() > 0.3
    assert (jacobian_determinant(field) <= 0).float().mean() <= folded


@both
def test_warp_without_ranges_is_identity(size):
    draw = STILL.draw(2, size, seeded())
    assert draw["velocity"].shape == (2, len(size), *[math.ceil(n / 2) for n in size])
    assert not STILL.field(draw, size).any()
    assert torch.equal(STILL(labels_of(size), draw), labels_of(size))


@both
def test_deviation_of_the_velocity_lies_between_0_and_std(size):
    """A standard deviation from U(0, std) has a mean square of std^2 / 3, for each scale."""
    velocity = RandomWarp(3.0, (8, 16)).draw(300, size, seeded())["velocity"]
    corners = velocity.flatten(2)[:, :, 0]
    assert float(corners.square().mean()) == pytest.approx(2 * 3.0, rel=0.2)


def test_scales_of_the_velocity_are_voxels_of_the_full_grid():
    """65 voxels and a scale of 16: four linear pieces, on the grid of 33 voxels bent at 8, 16 and 24."""
    velocity = RandomWarp(1.0, (16,)).draw(1, (65, 65), seeded())["velocity"]
    bends = velocity.diff(n=2, dim=2).abs().amax((0, 1, 3)) > 1e-4
    assert (bends.nonzero().flatten() + 1).tolist() == [8, 16, 24]


@both
def test_map_is_the_affine_one_after_the_warp(size):
    """x -> A(x + u), with u a constant velocity's displacement on the full grid."""
    d, half = len(size), [math.ceil(n / 2) for n in size]
    matrix = random_affine(2, size, seeded(), **AFFINE)
    velocity = torch.tensor([0.5, -1.0, 0.25][:d]).view(1, d, *[1] * d).expand(2, d, *half)
    scale = torch.tensor([(n - 1) / (h - 1) for n, h in zip(size, half, strict=True)])
    x = identity_grid(size).flatten(1)
    moved = x + (velocity[0].flatten(1)[:, 0] * scale).unsqueeze(1)
    expected = matrix[:, :d, :d] @ moved + matrix[:, :d, d:]
    field = RandomWarp().field({"velocity": velocity, "matrix": matrix}, size)
    torch.testing.assert_close(field.flatten(2) + x, expected, rtol=0, atol=1e-4)


@both
def test_outside_of_the_map_comes_as_0(size):
    labels = labels_of(size) + 1
    draw = STILL.draw(2, size, seeded())
    draw["matrix"][:, 0, -1] = 2
    moved = STILL(labels, draw)
    assert torch.equal(moved[:, :, :-2], labels[:, :, 2:])
    assert not moved[:, :, -2:].any()


@both
def test_affine_of_zero_ranges_is_identity(size):
    assert torch.equal(random_affine(2, size, seeded()), torch.eye(len(size) + 1).repeat(2, 1, 1))


@both
def test_rotation_keeps_lengths_and_the_centre(size):
    d = len(size)
    matrix = random_affine(50, size, seeded(), rotation_degrees=20)
    linear = matrix[:, :d, :d]
    torch.testing.assert_close(linear @ linear.mT, torch.eye(d).repeat(50, 1, 1))
    torch.testing.assert_close(torch.linalg.det(linear), torch.ones(50))
    centre = torch.tensor([*[(n - 1) / 2 for n in size], 1.0])
    torch.testing.assert_close(matrix @ centre, centre.expand(50, -1))
    if d == 2:
        degrees = torch.rad2deg(torch.atan2(linear[:, 1, 0], linear[:, 0, 0]))
        assert -20 <= degrees.min() < -15
        assert 15 < degrees.max() <= 20


@both
def test_scaling_shear_and_shift_stay_in_their_ranges(size):
    d = len(size)
    scaled = random_affine(50, size, seeded(), scaling=0.2)[:, :d, :d]
    factors = scaled.diagonal(dim1=1, dim2=2)
    assert 0.8 <= factors.min() < 0.85
    assert 1.15 < factors.max() <= 1.2
    assert torch.equal(scaled, torch.diag_embed(factors))
    sheared = random_affine(50, size, seeded(), shear=0.1)[:, :d, :d]
    torch.testing.assert_close(torch.linalg.det(sheared), torch.ones(50))
    assert 0.05 < (sheared - torch.eye(d)).abs().max() <= 0.1
    shifted = random_affine(50, size, seeded(), shift=3)
    assert torch.equal(shifted[:, :d, :d], torch.eye(d).repeat(50, 1, 1))
    assert 2.5 < shifted[:, :d, d].abs().max() <= 3
    determinants = torch.linalg.det(random_affine(50, size, seeded(), rotation_degrees=9, scaling=0.2, shear=0.1))
    assert 0.8**d <= determinants.min() < determinants.max() <= 1.2**d


# SynthesizePair


@both
def test_flip_is_shared_by_the_pair(size):
    moving, fixed = labels_of(size), labels_of(size, "fixed")
    synthesis = SynthesizePair(STILL, RandomContrast(5), flip=0.5)
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
    colours = RandomContrast(502, **{**QUIET, "background_mean": (10, 10)})
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
        result = make_pair(size, seed, labels=with_scalp(size), contrast=RandomContrast(502), strip=0.5)
        stripped = [(result[f"label_{side}"] < 500).flatten(1).all(1).tolist() for side in ("moving", "fixed")]
        assert stripped[0] == stripped[1]
        seen.add(tuple(stripped[0]))
    assert len(seen) > 2


@both
def test_first_extracerebral_label_is_a_setting(size):
    assert make_pair(size, strip=1.0, first_extracerebral=3)["label_fixed"].max() == 2


@both
def test_fixed_images_may_have_a_contrast_of_their_own(size):
    bright = RandomContrast(5, **{**QUIET, "background_mean": (255, 255)})
    dark = RandomContrast(5, **{**QUIET, "background_mean": (0, 0)})
    result = make_pair(size, warp=STILL, contrast=dark, fixed_contrast=bright)
    assert not result["moving"][result["label_moving"] == 0].any()
    assert (result["fixed"][result["label_fixed"] == 0] == 1).all()


@both
def test_pair_of_the_same_contrast_shares_means_and_noise_only(size):
    contrast = RandomContrast(5)
    for share, wanted in ((0.0, {False}), (0.5, {False, True}), (1.0, {True})):
        synthesis, generator = SynthesizePair(STILL, contrast, same_contrast=share), seeded()
        seen = set()
        for _ in range(6):
            moving, fixed = synthesis.draw(2, size, generator)["contrast"]
            same = (moving["mean"] == fixed["mean"]).all(1)
            assert torch.equal(same, (moving["std"] == fixed["std"]).all(1))
            assert not torch.equal(moving["noise"], fixed["noise"])
            assert (moving["exponent"] != fixed["exponent"]).all()
            seen |= set(same.tolist())
        assert seen == wanted


# Random shapes


def make_shapes(size, num_labels: int = 6) -> RandomShapes:
    return RandomShapes(size, num_labels, scales=(16, 32), warp_scales=(8, 16), warp_std=4)


@both
def test_shapes_are_large_regions_of_all_labels(size):
    labels = make_shapes(size).draw(seeded())
    assert labels.shape == (1, *size)
    assert labels.dtype == torch.uint8
    seen = torch.cat([make_shapes(size).draw(seeded(seed)).unique() for seed in range(4)]).unique()
    assert seen.tolist() == list(range(6))
    for axis in range(1, len(size) + 1):
        assert (labels.diff(dim=axis) != 0).float().mean() < 0.2  # of unconnected labels, 5 of 6 neighbours differ


@both
def test_shapes_repeat_with_the_seed(size):
    shapes = make_shapes(size)
    assert torch.equal(shapes.draw(seeded(3)), shapes.draw(seeded(3)))
    assert not torch.equal(shapes.draw(seeded(3)), shapes.draw(seeded(4)))


@both
def test_warping_each_label_changes_the_shapes(size):
    straight = RandomShapes(size, 6, scales=(16, 32), warp_scales=(8, 16), warp_std=0)
    assert not torch.equal(straight.draw(seeded()), make_shapes(size).draw(seeded()))


def test_every_label_has_the_same_chance():
    counts = torch.stack(
        [make_shapes((16, 16), 4).draw(seeded(seed)).flatten().bincount(minlength=4) for seed in range(150)]
    )
    assert counts.double().mean(0).div(256).sub(0.25).abs().max() < 0.08


def test_one_label_gives_an_empty_map():
    assert not make_shapes((9, 7), 1).draw(seeded()).any()


@both
def test_drawn_shapes_depend_on_the_seed_of_the_item_only(size):
    draw = DrawShapesd("label", make_shapes(size))
    first = draw({"label": "", "seed": 7, "subject": "a"})
    torch.rand(3)
    assert torch.equal(first["label"], draw({"seed": 7})["label"])
    assert not torch.equal(first["label"], draw({"seed": 8})["label"])
    assert (first["seed"], first["subject"]) == (7, "a")


# CheckLabelsd


def test_known_labels_pass_unchanged(table):
    data = {"label": labels_of(SIZES[0])[0], "name": "x"}
    for known in (table, str(table), range(5), KNOWN):
        assert CheckLabelsd("label", known)(data) == data


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 6, 2], r"/a/b\.nii: label ids \[6\] are not in .*labels\.csv"),
        ([0, -1, 2], r"/a/b\.nii: label ids \[-1\] are not in"),
        ([0, 531, 2], r"/a/b\.nii: label ids \[531\] are not in"),
        ([0.0, 1.5, 2.0], r"/a/b\.nii: label ids \[1\.5\] are not in"),
        ([0.0, float("nan"), 2.0], r"/a/b\.nii: label ids \[nan\] are not in"),
        ([0, 0, 0], r"/a/b\.nii: the label map holds only one label, \[0\]"),
        ([500, 500, 500], r"/a/b\.nii: the label map holds only one label, \[500\]"),
    ],
)
def test_wrong_label_maps_are_named_with_their_file(table, labels, message):
    with pytest.raises(ValueError, match=message):
        CheckLabelsd("label", table)({"label": torch.tensor([labels]), "label_path": "/a/b.nii"})


def test_label_map_without_a_file_is_named_by_its_key():
    with pytest.raises(ValueError, match=r"^label: label ids \[9\] are not in the configured labels"):
        CheckLabelsd("label", [0, 1])({"label": torch.tensor([[0, 9]])})


# TakeSlices


def coordinates(size) -> torch.Tensor:
    """Two maps in which a voxel's value tells where it is."""
    return torch.arange(2 * math.prod(size)).view(2, 1, *size)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_are_those_of_the_levels_drawn(axis):
    size = (7, 9, 8)
    moving, fixed = coordinates(size), -coordinates(size)
    cut = TakeSlices(3, {axis: (1, 5)}, jitter=2)
    draw = cut.draw(seeded(axis))
    slices = cut(moving, fixed, draw)
    for maps, levels, result in zip((moving, fixed), draw["levels"], slices, strict=True):
        assert result.shape == (6, 1, *[n for i, n in enumerate(size) if i != axis])
        expected = [maps[b].select(axis + 1, level) for b in range(2) for level in levels.tolist()]
        assert torch.equal(result, torch.stack(expected))


def test_levels_stay_in_their_range_and_near_each_other():
    cut = TakeSlices(400, {1: (3, 12)}, jitter=2)
    moving, fixed = cut.draw(seeded())["levels"]
    for levels in (moving, fixed):
        assert levels.unique().tolist() == list(range(3, 13))
    assert (fixed - moving).unique().tolist() == [-2, -1, 0, 1, 2]


def test_transposed_slices_have_their_axes_swapped():
    maps = torch.arange(2 * 5 * 6 * 7).view(2, 1, 5, 6, 7)
    upright, swapped = TakeSlices(3, {2: (1, 5)}), TakeSlices(3, {2: (1, 5)}, transpose=1.0)
    draw = upright.draw(seeded())
    turned_draw = {**draw, "swap": torch.tensor(True)}
    for plain, turned in zip(upright(maps, maps, draw), swapped(maps, maps, turned_draw), strict=True):
        assert turned.shape == (6, 1, 6, 5)
        assert torch.equal(turned, plain.mT)
    assert bool(swapped.draw(seeded())["swap"])
    assert not bool(draw["swap"])


def test_without_jitter_both_slices_are_of_one_level():
    moving, fixed = TakeSlices(20, {0: (0, 9)}).draw(seeded())["levels"]
    assert torch.equal(moving, fixed)


def test_axis_of_a_batch_is_drawn_of_those_named():
    cut, generator = TakeSlices(4, {"0": (0, 1), "2": (5, 7)}), seeded()  # keys as JSON writes them
    draws = [cut.draw(generator) for _ in range(20)]
    assert {int(draw["axis"]) for draw in draws} == {0, 2}
    for draw in draws:
        low, high = (0, 1) if draw["axis"] == 0 else (5, 7)
        assert low <= draw["levels"].min() <= draw["levels"].max() <= high


# smooth_noise


@both
def test_smooth_noise_has_its_size_and_is_linear_between_few_values(size):
    noise = smooth_noise(size, 12, torch.ones(3), seeded(), channels=2)
    assert noise.shape == (3, 2, *size)
    assert noise.std() > 0.3
    for axis, n in enumerate(size):
        pieces = round(n / 12)
        step = (n - 1) / pieces
        assert noise.diff(dim=axis + 2).abs().max() < 8 / step
        bends = noise.diff(n=2, dim=axis + 2).abs().amax([i for i in range(noise.ndim) if i != axis + 2]) > 1e-4
        assert bends.sum() <= 2 * (pieces - 1)


@both
def test_smooth_noise_has_the_deviation_of_each_sample(size):
    """Corners of the grid are values as drawn."""
    unit = smooth_noise(size, 12, torch.ones(400), seeded())
    assert float(unit.flatten(1)[:, 0].std()) == pytest.approx(1, abs=0.1)
    std = torch.linspace(0, 5, 400)
    noise = smooth_noise(size, 12, std, seeded())
    torch.testing.assert_close(noise, unit * std.view(-1, *[1] * (len(size) + 1)))
    assert not noise[0].any()


@both
def test_smooth_noise_of_a_number_is_a_batch_of_one(size):
    noise = smooth_noise(size, 12, 2.0, seeded())
    assert noise.shape == (1, 1, *size)
    assert torch.equal(noise, smooth_noise(size, 12, torch.tensor([2.0]), seeded()))


# gaussian_blur


@both
@pytest.mark.parametrize("sigma", [0.3, 1.0, 1.9])
def test_blur_keeps_sums_and_constants(size, sigma):
    image = torch.zeros(2, 1, *size, dtype=torch.float64)
    inner = (slice(None), slice(None), *[slice(7, -7)] * len(size))
    image[inner] = torch.rand(image[inner].shape, dtype=torch.float64, generator=seeded())
    torch.testing.assert_close(gaussian_blur(image, sigma).sum(), image.sum())
    flat = torch.full((2, 1, *size), 0.7)
    torch.testing.assert_close(gaussian_blur(flat, sigma), flat)


@both
def test_blur_of_sigma_0_is_identity(size):
    image = torch.rand(2, 1, *size, generator=seeded())
    assert torch.equal(gaussian_blur(image, 0.0), image)
    assert torch.equal(gaussian_blur(image, torch.zeros(2, len(size)), radius=3), image)


@both
def test_blur_of_a_point_has_the_deviations_asked_for(size):
    sigma = torch.tensor([[1.0, 2.0, 1.5], [1.5, 0.8, 0.7]], dtype=torch.float64)[:, : len(size)]
    image = torch.zeros(2, 1, *[25] * len(size), dtype=torch.float64)
    image[(slice(None), 0, *[12] * len(size))] = 1
    blurred = gaussian_blur(image, sigma, radius=8)
    for axis in range(len(size)):
        profile = blurred.sum([i for i in range(1, blurred.ndim) if i != axis + 2])
        deviation = (profile * (torch.arange(25) - 12) ** 2).sum(1).sqrt()
        torch.testing.assert_close(deviation, sigma[:, axis], rtol=0.01, atol=0)


@both
def test_each_sample_and_axis_is_blurred_as_if_alone(size):
    d = len(size)
    image = torch.rand(2, 3, *size, generator=seeded())
    sigma = torch.tensor([[0.0, 1.2, 0.4], [2.0, 0.6, 1.0]])[:, :d]
    for i, together in enumerate(gaussian_blur(image, sigma, radius=5)):
        alone = image[i : i + 1]
        for axis in range(d):
            alone = gaussian_blur(alone, sigma[i : i + 1] * (torch.arange(d) == axis), radius=5)
        torch.testing.assert_close(together, alone[0])
    same = gaussian_blur(image, torch.full((2, d), 1.3), radius=4)
    torch.testing.assert_close(gaussian_blur(image, 1.3), same)


@both
def test_blur_continues_border_values(size):
    image = torch.zeros(1, 1, *size)
    image[:, :, 0] = 1
    blurred = gaussian_blur(image, 1.0)
    assert not blurred[:, :, 4:].any()
    assert (blurred[:, :, 0] > 0.5).all()


def test_blur_by_a_tensor_needs_a_radius():
    with pytest.raises(ValueError, match="expected a radius"):
        gaussian_blur(torch.zeros(1, 1, 4, 4), torch.ones(1, 2))


# thick_slices and crop_field_of_view


def textured(size) -> torch.Tensor:
    return torch.rand(2, 1, *size, generator=seeded())


@both
def test_slices_of_one_voxel_change_nothing(size):
    torch.testing.assert_close(thick_slices(textured(size), torch.ones(2, len(size))), textured(size))


@both
@pytest.mark.parametrize("stride", [2, 3, 5, 8, 60])
def test_thick_slices_of_a_constant_are_the_constant(size, stride):
    flat = torch.full((2, 1, *size), 0.7)
    torch.testing.assert_close(thick_slices(flat, torch.full((2, len(size)), float(stride))), flat)


@both
@pytest.mark.parametrize("stride", [3, 5])
def test_middle_of_a_slab_takes_the_mean_of_the_slab(size, stride):
    """21, 24, 33 and 38 voxels: with a rest that fills no slab, and without."""
    image = textured(size)
    for axis, n in enumerate(size):
        strides = torch.ones(2, len(size))
        strides[:, axis] = stride
        result = thick_slices(image, strides)
        whole = n // stride
        slabs = image.narrow(axis + 2, 0, whole * stride).unflatten(axis + 2, (whole, stride)).mean(axis + 3)
        middles = torch.arange(whole) * stride + stride // 2
        torch.testing.assert_close(result.index_select(axis + 2, middles), slabs)
        between = [(a + b) / 2 for a, b in zip(slabs.unbind(axis + 2)[:-1], slabs.unbind(axis + 2)[1:], strict=True)]
        halfway = middles[:-1] + stride // 2
        halves = result.index_select(axis + 2, torch.cat([halfway, halfway + 1])).unflatten(axis + 2, (2, -1))
        torch.testing.assert_close(halves.mean(axis + 2), torch.stack(between, axis + 2))


@both
def test_thick_slices_of_a_sample_have_its_own_strides(size):
    image = textured(size)
    strides = torch.tensor([[1.0, 4.0, 1.0], [7.0, 1.0, 2.0]])[:, : len(size)]
    result = thick_slices(image, strides)
    for i in range(2):
        torch.testing.assert_close(result[i : i + 1], thick_slices(image[i : i + 1], strides[i : i + 1]))
    assert image.amin() <= result.amin() <= result.amax() <= image.amax()


@both
def test_slab_of_the_whole_axis_is_its_mean(size):
    strides = torch.ones(2, len(size))
    strides[:, 0] = size[0] + 3
    expected = textured(size).mean(2, keepdim=True).expand(-1, -1, size[0], *[-1] * (len(size) - 1))
    torch.testing.assert_close(thick_slices(textured(size), strides), expected)


@both
def test_cropping_sets_the_ends_of_the_axes_to_0(size):
    image = 1 + textured(size)
    share = torch.zeros(2, len(size), 2)
    assert torch.equal(crop_field_of_view(image, share), image)
    first, last = 4, 3
    share[1, 0] = torch.tensor([first, last]) / size[0]
    cropped = crop_field_of_view(image, share)
    assert torch.equal(cropped[0], image[0])
    assert torch.equal(cropped[1, :, first:-last], image[1, :, first:-last])
    assert not cropped[1, :, :first].any()
    assert not cropped[1, :, -last:].any()
