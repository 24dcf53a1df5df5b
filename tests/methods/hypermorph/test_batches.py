"""Hyper-parameters are drawn or listed for each batch."""

import pytest
import torch

from custom_components.data.batches import SynthesizedBatch, prepare_pair_batch
from custom_components.data.phantoms import phantom_pair
from custom_components.methods.hypermorph.batches import HyperBatch, HyperSampler
from custom_components.synthesis.contrast import RandomContrast
from custom_components.synthesis.intensities import LabelIntensities
from custom_components.synthesis.pairs import SynthesizePair
from custom_components.synthesis.slices import TakeSlices
from custom_components.synthesis.warp import RandomWarp

SIZES = [(33, 38), (21, 24, 19)]
both = pytest.mark.parametrize("size", SIZES, ids=["2d", "3d"])
TARGETS = {"moving", "fixed", "label_moving", "label_fixed"}


def labels_of(size) -> dict[str, torch.Tensor]:
    pair = phantom_pair(size, seed=2, batch=2)
    return {key: pair[key] for key in ("label_moving", "label_fixed")}


def make_batch(**settings) -> SynthesizedBatch:
    return SynthesizedBatch(SynthesizePair(RandomWarp(), RandomContrast(LabelIntensities(5)), strip=0.5), **settings)


def masked_pairs(size) -> dict[str, torch.Tensor]:
    masks = torch.stack([torch.zeros(1, *size), torch.ones(1, *size)]).short()
    return phantom_pair(size, seed=2, batch=2) | {"mask_fixed": masks}


@both
def test_drawn_hyper_parameters_reach_loss_and_inferer_alike(size):
    batch = masked_pairs(size)
    torch.manual_seed(0)
    image, targets, args, options = HyperBatch(HyperSampler(3))(batch, "cpu", True)
    plain = prepare_pair_batch(batch)
    assert targets.keys() == plain[1].keys() | {"hyper"}
    assert options.keys() == {"masks", "hyper"}
    assert args == ()
    assert targets["hyper"].shape == (2, 3)
    assert torch.equal(targets["hyper"], options["hyper"])
    assert torch.equal(image, plain[0])
    assert all(torch.equal(targets[key], value) for key, value in plain[1].items())
    assert torch.equal(options["masks"]["mask_fixed"], batch["mask_fixed"])
    again = HyperBatch(HyperSampler(3))(batch)
    assert not torch.equal(again[1]["hyper"], targets["hyper"])


@both
@pytest.mark.parametrize(
    ("values", "expected"),
    [([0.1, 0.5, 1], [[0.1], [0.5], [1.0]]), ([[0.1, 0.9], (0, 1.0)], [[0.1, 0.9], [0.0, 1.0]])],
    ids=["one", "two"],
)
def test_listed_hyper_parameters_repeat_every_pair_for_each_value(size, values, expected):
    batch, num = masked_pairs(size), len(expected)
    image, targets, _, options = HyperBatch(values, num_hyper=len(expected[0]))(batch)
    assert torch.equal(targets["hyper"], torch.tensor(expected * 2))
    assert torch.equal(options["hyper"], targets["hyper"])
    for i in range(2 * num):
        assert torch.equal(image[i], batch["image"][i // num])
        assert torch.equal(options["masks"]["mask_fixed"][i], batch["mask_fixed"][i // num])
        for key in (*TARGETS, "mask_fixed"):
            assert torch.equal(targets[key][i], batch[key][i // num])
    assert targets["label_moving"].dtype == torch.int16
    assert {len(thing) for thing in (image, *targets.values())} == {2 * num}


@pytest.mark.parametrize("hyper", [HyperSampler(), [0.2, 0.7]], ids=["drawn", "listed"])
def test_hyper_parameters_join_images_made_of_label_maps(hyper):
    size = (21, 24, 19)
    made = {"slices": TakeSlices(3, {2: (6, 12)}), "seed": 1}
    image, targets, args, options = HyperBatch(hyper, make_batch(**made))(labels_of(size))
    num = 1 if callable(hyper) else 2
    expected = make_batch(**made)(labels_of(size))[0]
    assert torch.equal(image, expected.repeat_interleave(num, 0))
    assert torch.equal(image, torch.cat([targets["moving"], targets["fixed"]], 1))
    assert targets["hyper"].shape == (len(expected) * num, 1)
    assert options.keys() == {"hyper"}
    assert args == ()


@pytest.mark.parametrize("hyper", [HyperSampler(), [0.2, 0.7]], ids=["drawn", "listed"])
def test_hyper_parameters_go_to_the_device(hyper):
    _, targets, _, options = HyperBatch(hyper)(phantom_pair(SIZES[0]), "meta")
    assert targets["hyper"].device.type == options["hyper"].device.type == "meta"


@pytest.mark.parametrize("share", [0.0, 0.2, 0.6, 1.0])
def test_end_points_have_their_share_and_the_rest_fills_the_range(share):
    torch.manual_seed(0)
    values = HyperSampler(2, endpoint_share=share)(20_000)
    assert values.shape == (20_000, 2)
    assert values.dtype == torch.float32
    assert values.min() >= 0
    assert values.max() <= 1
    for end in (0, 1):
        torch.testing.assert_close((values == end).float().mean(0), torch.full((2,), share / 2), rtol=0, atol=0.012)
    inside = values[(values > 0) & (values < 1)]
    for quantile in (0.1, 0.5, 0.9) if share < 1 else ():
        assert float(inside.quantile(quantile)) == pytest.approx(quantile, abs=0.02)


def test_hyper_parameters_are_drawn_independently():
    torch.manual_seed(0)
    values = HyperSampler(2)(20_000)
    assert abs(float(torch.corrcoef(values.T)[0, 1])) < 0.03
    assert float(((values == 0) | (values == 1)).all(1).float().mean()) == pytest.approx(0.04, abs=0.01)


@pytest.mark.parametrize(
    ("prior", "means"),
    [((1.0, 3.0), [0.25, 0.25]), (((1.0, 3.0), (6.0, 2.0)), [0.25, 0.75])],
    ids=["one for all", "one for each"],
)
def test_values_between_the_end_points_follow_their_beta_prior(prior, means):
    torch.manual_seed(0)
    values = HyperSampler(2, prior, endpoint_share=0.0)(20_000)
    torch.testing.assert_close(values.mean(0), torch.tensor(means), rtol=0, atol=0.01)
    pairs = torch.tensor(prior).expand(2, 2)
    expected = torch.distributions.Beta(pairs[:, 0], pairs[:, 1]).variance
    torch.testing.assert_close(values.var(0), expected, rtol=0.1, atol=0)


def test_draws_repeat_with_torchs_seed():
    sampler, runs = HyperSampler(2, (2.0, 2.0)), []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        runs.append([sampler(7), sampler(7)])
    assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    assert not torch.equal(*runs[0])
    assert not torch.equal(runs[0][0], runs[2][0])


@pytest.mark.parametrize(
    "kwargs",
    [
        {"prior": (0.0, 1.0)},
        {"prior": (1.0, -2.0)},
        {"prior": (float("nan"), 1.0)},
        {"num_hyper": 2, "prior": ((1.0, 1.0), (2.0, 0.0))},
        {"endpoint_share": -0.1},
        {"endpoint_share": 1.1},
    ],
    ids=str,
)
def test_wrong_priors_and_shares_are_named(kwargs):
    with pytest.raises(ValueError, match=r"a, b above 0 of a Beta distribution and a share in \[0, 1\], got"):
        HyperSampler(**kwargs)


@pytest.mark.parametrize("values", [[], [0.5, 1.5], [[0.2, -0.1]]])
def test_listed_hyper_parameters_lie_between_0_and_1(values):
    with pytest.raises(ValueError, match=r"expected values in \[0, 1\]"):
        HyperBatch(values)


@pytest.mark.parametrize("prior", [(1.0, 2.0, 3.0), [(1, 1)] * 3, (0.0, 1.0)])
def test_a_prior_has_a_pair_for_each_hyper_parameter(prior):
    with pytest.raises(ValueError, match="expected"):
        HyperSampler(2, prior)


def test_a_number_in_the_list_stands_for_all_hyper_parameters():
    targets = HyperBatch([0.1, [0.2, 0.7]], num_hyper=2)(masked_pairs((8, 9)))[1]
    assert torch.equal(targets["hyper"][:2], torch.tensor([[0.1, 0.1], [0.2, 0.7]]))
