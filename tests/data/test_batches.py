"""Claims: a batch reaches the engine as (image, targets, (), {}), and synthesis on the way repeats with its seed.

Hyper-parameters reach network and loss alike.
"""

import pytest
import torch
from monai.data import DataLoader, MetaTensor

from custom_components.data.batches import SynthesizedBatch, prepare_pair_batch
from custom_components.data.pairs import ScanPairDataset
from custom_components.data.phantoms import phantom_pair
from custom_components.methods.hypermorph.batches import HyperBatch, HyperSampler
from custom_components.methods.quicksilver.dataset import ContrastBatch
from custom_components.synthesis.contrast import RandomContrast
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
    return SynthesizedBatch(SynthesizePair(RandomWarp(), RandomContrast(5), strip=0.5), **settings)


# prepare_pair_batch


@both
def test_pair_batch_is_image_targets_and_nothing_else(size):
    batch = phantom_pair(size, batch=2)
    image, targets, args, kwargs = prepare_pair_batch({**batch, "id": ["a", "b"], "moving_path": ["x", "y"]})
    assert torch.equal(image, batch["image"])
    assert targets.keys() == TARGETS
    assert all(torch.equal(value, batch[key]) for key, value in targets.items())
    assert targets["label_moving"].dtype == torch.int16
    assert (args, kwargs) == ((), {})


def test_masks_of_a_batch_reach_targets_and_inferer():
    batch = phantom_pair(SIZES[0]) | {"mask_fixed": torch.ones(1, 1, *SIZES[0], dtype=torch.int16)}
    _, targets, _, kwargs = prepare_pair_batch(batch)
    assert targets.keys() == TARGETS | {"mask_fixed"}
    assert kwargs == {"masks": {"mask_fixed": targets["mask_fixed"]}}


def test_batch_goes_to_the_device_as_plain_tensors():
    batch = {key: MetaTensor(value) for key, value in phantom_pair(SIZES[0]).items()}
    image, targets, _, _ = prepare_pair_batch(batch, "meta", non_blocking=True)
    assert image.device.type == "meta"
    for tensor in (image, *targets.values()):
        assert type(tensor) is torch.Tensor
        assert tensor.device.type == "meta"


def test_batch_without_labels_has_the_images_alone():
    batch = {key: value for key, value in phantom_pair(SIZES[0]).items() if "label" not in key}
    assert prepare_pair_batch({**batch, "label_moving": ["", ""]})[1].keys() == {"moving", "fixed"}


# SynthesizedBatch


@both
def test_images_are_made_of_the_label_maps(size):
    image, targets, args, kwargs = make_batch()(labels_of(size), "cpu", True)
    assert image.shape == (2, 2, *size)
    assert image.dtype == torch.float32
    assert targets.keys() == {*TARGETS, "matrix", "matrix_moving", "matrix_fixed"}  # affine maps of the warps
    assert torch.equal(image, torch.cat([targets["moving"], targets["fixed"]], 1))
    assert all(targets[key].shape == (2, 1, *size) for key in TARGETS)
    assert all(targets[key].dtype == torch.int16 for key in ("label_moving", "label_fixed"))
    assert (args, kwargs) == ((), {})


@both
def test_seed_makes_every_call_the_same_and_leaves_torchs_generator_alone(size):
    prepare, labels = make_batch(seed=3), labels_of(size)
    state = torch.get_rng_state()
    first, again = prepare(labels), prepare(labels)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first[0], again[0])
    assert all(torch.equal(first[1][key], again[1][key]) for key in TARGETS)
    assert not torch.equal(first[0], make_batch(seed=4)(labels)[0])


@both
def test_without_a_seed_calls_differ_and_repeat_with_torchs_seed(size):
    prepare, labels = make_batch(), labels_of(size)
    runs = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        runs.append([prepare(labels)[0] for _ in range(2)])
    assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    assert not torch.equal(*runs[0])
    assert not torch.equal(runs[0][0], runs[2][0])


@both
def test_label_maps_of_the_batch_are_not_changed(size):
    labels = labels_of(size)
    make_batch(seed=0)(labels)
    assert all(torch.equal(value, labels_of(size)[key]) for key, value in labels.items())


def test_slices_make_a_batch_of_2d_pairs():
    size = (21, 24, 19)
    prepare = make_batch(slices=TakeSlices(3, {2: (6, 12)}, jitter=1), seed=0)
    image, targets, _, _ = prepare(labels_of(size))
    assert image.shape == (6, 2, 21, 24)
    assert all(targets[key].shape == (6, 1, 21, 24) for key in TARGETS)
    assert image.flatten(2).std(2).min() > 0.05
    assert torch.equal(image, prepare(labels_of(size))[0])


def test_synthesis_records_no_gradient():
    class Learned(SynthesizePair):
        def __call__(self, *args):
            result = super().__call__(*args)
            return {**result, "moving": result["moving"] * torch.ones(1, requires_grad=True)}

    prepare = SynthesizedBatch(Learned(RandomWarp(), RandomContrast(5)))
    assert not prepare(labels_of(SIZES[0]))[0].requires_grad
    assert torch.is_grad_enabled()


def test_label_maps_with_metadata_give_plain_tensors():
    labels = {key: MetaTensor(value) for key, value in labels_of(SIZES[0]).items()}
    image, targets, _, _ = make_batch()(labels)
    assert all(type(tensor) is torch.Tensor for tensor in (image, *targets.values()))


def test_data_set_of_label_maps_feeds_a_training():
    maps = phantom_pair(SIZES[0], batch=4)["label_moving"]
    dataset = ScanPairDataset([{"label": label, "subject": i} for i, label in enumerate(maps)])
    for batch in DataLoader(dataset, batch_size=2):
        assert make_batch()(batch)[0].shape == (2, 2, *SIZES[0])


# ContrastBatch


def test_the_network_may_see_other_images_than_the_result_is_judged_by() -> None:
    batch = {key: torch.rand(2, 1, 4, 5) for key in ("moving", "fixed", "contrast_fixed")}
    batch["image"] = torch.cat([batch["moving"], batch["fixed"]], 1)
    image, targets, *rest = ContrastBatch(["moving", "contrast_fixed"])(batch)
    assert torch.equal(image, torch.cat([batch["moving"], batch["contrast_fixed"]], 1))
    same, plain, *others = prepare_pair_batch(batch)
    assert rest == others
    assert all(torch.equal(targets[key], plain[key]) for key in targets | plain)
    assert torch.equal(ContrastBatch()(batch)[0], same)


# HyperBatch


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


# HyperSampler


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
