"""Rendering of label maps: intensities, seeds, statistics, and label map and image moving together."""

import pytest
import torch

from custom_components.data.synthetic import phantom_pair
from custom_components.transforms.synthesis import (
    RenderT1d,
    draw_means,
    gaussian_blur,
    random_affine,
    read_statistics,
    smooth_noise,
)

SIZES = [(40, 36), (28, 32, 24)]
both = pytest.mark.parametrize("size", SIZES, ids=["2d", "3d"])
# Nothing random but the means: an image that is exactly a table look-up.
PLAIN = {"noise": (0, 0), "blur": (0, 0), "bias": 0.0, "contrast": 0.0}
STILL = {"rotation_degrees": 0.0, "scaling": 0.0, "shift": 0.0, "zoom": 0.0, "flip": 0.0}


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "labels.csv"
    rows = ["id,name,t1_prior_mean,t1_prior_mean_spread", "0,air,0,0", "1,cortex,110,8", "2,white,170,8"]
    path.write_text("\n".join([*rows, "3,ventricle,60,8", "4,nucleus,140,8", "500,skull,200,8"]) + "\n")
    return path


def labels_of(size) -> dict:
    pair = phantom_pair(size, seed=2)
    return {key: pair[key][0] for key in ("label_moving", "label_fixed")}


def render(size, table, seed: int = 0, **settings) -> dict:
    transform = RenderT1d(("label_moving", "label_fixed"), table, **settings)
    transform.set_random_state(seed)
    return transform(labels_of(size))


@both
def test_images_are_float_in_0_to_1(size, table):
    result = render(size, table)
    for key in ("moving", "fixed"):
        assert result[key].shape == (1, *size)
        assert result[key].dtype == torch.float32
        assert result[key].min() >= 0
        assert result[key].max() <= 1
        assert result[key].std() > 0.1


@both
def test_one_seed_gives_one_result(size, table):
    first, again, other = render(size, table), render(size, table), render(size, table, seed=1)
    for key, value in first.items():
        assert torch.equal(value, again[key])
        assert not torch.equal(value, other[key])


@both
def test_successive_calls_differ(size, table):
    transform = RenderT1d(("label_moving",), table)
    transform.set_random_state(0)
    assert not torch.equal(transform(labels_of(size))["moving"], transform(labels_of(size))["moving"])


def test_input_is_not_changed(table):
    data = labels_of(SIZES[0])
    before = {key: value.clone() for key, value in data.items()}
    RenderT1d(tuple(data), table, strip=1.0)(data)
    assert data.keys() == before.keys()
    assert all(torch.equal(data[key], before[key]) for key in data)


@both
def test_labels_stay_integers_of_the_input(size, table):
    result = render(size, table)
    for key, before in labels_of(size).items():
        assert result[key].dtype == before.dtype
        assert set(result[key].unique().tolist()) <= set(before.unique().tolist()) | {0}


@both
def test_label_map_and_image_move_together(size, table):
    result = render(size, table, strip=0.0, **PLAIN)
    for side in ("moving", "fixed"):
        assert not torch.equal(result[f"label_{side}"], labels_of(size)[f"label_{side}"])
        for label in result[f"label_{side}"].unique():
            values = result[side][result[f"label_{side}"] == label]
            assert values.max() - values.min() < 1e-6
        assert len(result[side].unique()) == 5


@both
def test_pair_without_random_moves_stays(size, table):
    result = render(size, table, strip=0.0, **STILL)
    assert all(torch.equal(result[key], value) for key, value in labels_of(size).items())


@both
def test_both_maps_are_flipped_alike(size, table):
    result = render(size, table, strip=0.0, **{**STILL, "flip": 1.0})
    assert all(torch.equal(result[key], value.flip(1)) for key, value in labels_of(size).items())


@both
def test_zoom_enlarges_both_maps_alike(size, table):
    """The zoom is drawn evenly on a log scale; in a large range, most draws change the volume of the brain clearly."""
    ratios = []
    for seed in range(6):
        result = render(size, table, seed=seed, strip=0.0, **{**STILL, "zoom": 0.3})
        ratios.append([float((result[k] > 0).sum() / (v > 0).sum()) for k, v in labels_of(size).items()])
    ratios = torch.tensor(ratios)
    assert ((ratios[:, 0] - ratios[:, 1]).abs() < 0.1).all()
    assert ((ratios - 1).abs().amax(1) > 0.1).any()


@both
def test_stripping_sets_the_outside_to_exactly_0(size, table):
    data = labels_of(size)
    outside = {key: value == 0 for key, value in data.items()}
    with_skull = {key: value.masked_fill(outside[key], 500) for key, value in data.items()}
    transform = RenderT1d(tuple(data), table, strip=1.0, **STILL)
    result = transform(with_skull)
    for side in ("moving", "fixed"):
        assert (result[f"label_{side}"][outside[f"label_{side}"]] == 0).all()
        assert (result[side][outside[f"label_{side}"]] == 0).all()
        assert result[side][~outside[f"label_{side}"]].mean() > 0.1


def test_without_stripping_the_skull_stays(table):
    label = torch.full((1, 12, 12), 500, dtype=torch.int16)
    result = RenderT1d("label_moving", table, strip=0.0)({"label_moving": label})
    assert (result["label_moving"] == 500).any()


def test_unknown_label_is_named(table):
    data = labels_of(SIZES[0])
    data["label_fixed"][0, 20, 20] = 77
    with pytest.raises(ValueError, match=r"\[77\] are not in .*labels\.csv"):
        RenderT1d(tuple(data), table, strip=0.0, **STILL)(data)


@pytest.mark.parametrize("label", [-1, 501])
def test_label_beyond_the_table_is_named(table, label):
    data = {"label_moving": torch.full((1, 8, 8), label, dtype=torch.int16)}
    with pytest.raises(ValueError, match=rf"\[{label}\]"):
        RenderT1d("label_moving", table, strip=0.0, **STILL)(data)


def test_table_is_read_on_the_scale_of_0_to_1(table):
    means, spreads = read_statistics(table)
    assert len(means) == len(spreads) == 501
    assert float(means[2]) == pytest.approx(170 / 255)
    assert float(spreads[2]) == pytest.approx(8 / 255)
    assert means[5].isnan()


def test_labels_of_equal_statistics_get_equal_means():
    """Left and right have rows of their own in the table, with the same numbers."""
    means, spreads = torch.tensor([0.0, 0.4, torch.nan, 0.4, 0.6]), torch.tensor([0.0, 0.1, torch.nan, 0.1, 0.1])
    drawn = draw_means(means, spreads, torch.Generator().manual_seed(0))
    assert drawn[1] == drawn[3]
    assert drawn[0] == 0
    assert drawn[2].isnan()
    assert drawn[1] != means[1]
    assert drawn[4] != drawn[1]


@both
def test_smooth_noise_has_the_size_and_is_smooth(size):
    noise = smooth_noise(size, 16, 1.0, torch.Generator().manual_seed(0))
    assert noise.shape == (1, *size)
    assert noise.std() > 0.1
    assert noise.diff(dim=1).abs().max() < 0.5


@both
def test_smooth_noise_without_deviation_is_zero(size):
    assert not smooth_noise(size, 16, 0.0, torch.Generator().manual_seed(0)).any()


@both
@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.5])
def test_blur_keeps_the_sum(size, sigma):
    image = torch.zeros(1, 1, *size, dtype=torch.float64)
    image[(0, 0, *[slice(9, -9)] * len(size))] = torch.rand([n - 18 for n in size], dtype=torch.float64)
    assert float(gaussian_blur(image, sigma).sum() / image.sum()) == pytest.approx(1, abs=1e-6)


@both
def test_blur_of_sigma_0_is_identity(size):
    image = torch.rand(1, 1, *size)
    assert torch.equal(gaussian_blur(image, 0.0), image)


@both
def test_blur_keeps_a_constant_up_to_the_border(size):
    torch.testing.assert_close(gaussian_blur(torch.full((1, 1, *size), 0.7), 1.5), torch.full((1, 1, *size), 0.7))


def test_blur_of_a_point_has_the_variance_of_sigma():
    image = torch.zeros(1, 1, 41, 41)
    image[0, 0, 20, 20] = 1
    profile = gaussian_blur(image, 2.0)[0, 0].sum(1)
    assert float((profile * (torch.arange(41) - 20) ** 2).sum()) == pytest.approx(4, rel=0.05)


@both
def test_affine_of_zero_ranges_is_identity(size):
    matrix = random_affine(size, torch.Generator().manual_seed(0), rotation_degrees=0, scaling=0, shift=0)
    assert torch.equal(matrix, torch.eye(len(size) + 1))


@both
def test_affine_without_shift_keeps_the_centre(size):
    matrix = random_affine(size, torch.Generator().manual_seed(0), rotation_degrees=10, scaling=0.1, shift=0)
    centre = torch.tensor([*[(n - 1) / 2 for n in size], 1.0])
    torch.testing.assert_close(matrix @ centre, centre)


@both
def test_rotation_keeps_lengths(size):
    matrix = random_affine(size, torch.Generator().manual_seed(0), rotation_degrees=10, scaling=0, shift=3)
    linear = matrix[:-1, :-1]
    torch.testing.assert_close(linear @ linear.T, torch.eye(len(size)))
    assert not torch.equal(linear, torch.eye(len(size)))
