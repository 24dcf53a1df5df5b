"""Refinement that does not follow what only one image shows."""

import pytest
import torch

from custom_components.data.phantoms import phantom_pair
from custom_components.deformations.velocity import Displacement, StationaryVelocity
from custom_components.evaluation.overlap import mean_dice
from custom_components.fields import warp
from custom_components.inference.refiner import refiner
from custom_components.inference.robust import bridged, grown, rarity

SIZES = [(128, 120), (72, 76, 68)]
both = pytest.mark.parametrize("size", SIZES, ids=["2d", "3d"])


def registered(pair, start=None, masks=None, **options):
    optimizer = refiner(StationaryVelocity(), levels=[4, 2, 1], iterations=12, **options)
    found = optimizer(pair["moving"], pair["fixed"], start, masks)
    return StationaryVelocity()(found, pair["fixed"].shape[2:])["ddf"]


def overlap(pair, ddf):
    return float(mean_dice(warp(pair["label_moving"], ddf, mode="nearest"), pair["label_fixed"]).mean())


def with_lesion(pair, role):
    """The pair with a dark ball in the white matter of one image, and where it lies (B, 1, *S)."""
    size = pair["fixed"].shape[2:]
    where = torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in size], indexing="ij"))
    center = torch.tensor(size).float() * torch.tensor([0.5, 0.3, 0.5][: len(size)])
    lesion = ((where - center.view(-1, *[1] * len(size))).norm(dim=0) < 0.11 * min(size))[None, None]
    return {**pair, role: torch.where(lesion, 0.08, pair[role])}, lesion


def beside(lesion, reach=5):
    """A ring of some voxels around it."""
    pool = torch.nn.functional.max_pool2d if lesion.ndim == 4 else torch.nn.functional.max_pool3d
    return (pool(lesion.float(), 2 * reach + 1, 1, reach) > 0) & ~lesion


@pytest.fixture(scope="module")
def scene():
    pair = phantom_pair(SIZES[1], seed=3)
    return pair, registered(pair)


@pytest.mark.slow
@pytest.mark.parametrize("role", ["fixed", "moving"])
def test_a_lesion_in_one_image_moves_what_lies_beside_it_half_as_far(scene, role):
    pair, clean = scene
    painted, lesion = with_lesion(pair, role)
    ring = beside(lesion)[0, 0]
    moved = {robust: (registered(painted, robust=robust) - clean)[0].norm(dim=0)[ring] for robust in (False, True)}
    for share in (0.5, 0.95):
        assert moved[True].quantile(share) < 0.5 * moved[False].quantile(share)


@pytest.mark.slow
def test_without_a_lesion_the_overlap_stays(scene):
    """On average over people; of the first one .00305 are lost."""
    scenes = [scene, *((pair, registered(pair)) for pair in (phantom_pair(SIZES[1], seed=seed) for seed in (4, 5)))]
    lost = [overlap(pair, clean) - overlap(pair, registered(pair, robust=True)) for pair, clean in scenes]
    assert sum(lost) / len(lost) < 0.003
    assert max(lost) < 0.004


@pytest.mark.parametrize("role", ["fixed", "moving"])
def test_a_lesion_is_not_trusted_and_most_else_is(role):
    painted, lesion = with_lesion(phantom_pair(SIZES[0], seed=3), role)
    trust = refiner(StationaryVelocity(), robust=True).trust(painted["moving"], painted["fixed"])
    assert trust.shape == painted["fixed"].shape
    assert trust[lesion].mean() < 0.1
    assert trust[~lesion].mean() > 0.85


def test_an_image_is_trusted_to_show_what_it_shows():
    image = phantom_pair(SIZES[0], seed=3)["fixed"]
    assert refiner(StationaryVelocity(), robust=True).trust(image, image).min() == 1


def test_a_users_mask_counts_too_and_nothing_is_done_without_iterations():
    pair, mask = phantom_pair((48, 44), seed=1), torch.zeros(1, 1, 48, 44)
    assert registered(pair, masks={"mask_fixed": mask}, robust=True).abs().max() == 0
    start = torch.ones(1, 2, 24, 22)
    optimizer = refiner(StationaryVelocity(), levels=[1], iterations=0, robust=True)
    assert optimizer(pair["moving"], pair["fixed"], start) is start


def test_samples_of_a_batch_are_judged_on_their_own():
    pair = phantom_pair(SIZES[0], seed=3)
    painted, _ = with_lesion(pair, "fixed")
    trust = refiner(StationaryVelocity(), robust=True, similarity="lncc").trust
    both_trusts = trust(*[torch.cat([one[role] for one in (pair, painted)]) for role in ("moving", "fixed")])
    for i, one in enumerate((pair, painted)):
        torch.testing.assert_close(both_trusts[i : i + 1], trust(one["moving"], one["fixed"]), atol=0.02, rtol=0)


@pytest.mark.parametrize("regularized", ["svf", "ddf"])
def test_the_grid_of_the_start_may_be_coarser(regularized):
    pair = phantom_pair((64, 60), seed=1)
    start = torch.zeros(1, 2, 16, 15)
    kind = StationaryVelocity if regularized == "svf" else Displacement
    optimizer = refiner(kind(), regularized=regularized, levels=[2, 1], iterations=3, finest=3, robust=True)
    found = optimizer(pair["moving"], pair["fixed"], start, finer=2)
    assert list(found.shape[2:]) == kind().parameter_size((64, 60))


def test_pairs_of_intensities_are_rare_where_one_image_is_painted_over():
    image = (torch.arange(60.0) / 60).view(1, 1, 60, 1).expand(1, 1, 60, 60)
    painted = image.clone()
    painted[..., 25:35, 25:35] = 0.95
    found = rarity(1 - image, painted, torch.ones_like(image))
    assert found[..., 28:32, 28:32].min() > 3 * found[..., :15].max()


@both
def test_a_place_grows_from_its_seed_as_far_as_it_is_allowed(size):
    allowed = torch.zeros(1, 1, *size, dtype=torch.bool)
    allowed[:, :, 3:9], allowed[:, :, 12:20] = True, True
    seeds = torch.zeros_like(allowed)
    seeds[(0, 0, 5, *[4] * (len(size) - 1))] = True
    found = grown(seeds, allowed)
    assert torch.equal(found[:, :, :10], allowed[:, :, :10])
    assert not found[:, :, 10:].any()


@both
def test_a_field_is_bridged_from_around_and_kept_elsewhere(size):
    field = torch.full((1, len(size) + 1, *[n // 2 for n in size]), 2.0)
    place = (slice(None), slice(None), *[slice(8, 12)] * len(size))
    field[place] = -7.0
    trust = torch.ones(1, 1, *field.shape[2:])
    trust[place] = 0
    found = bridged(field, trust)
    torch.testing.assert_close(found[:, :-1], torch.full_like(found[:, :-1], 2.0))
    assert torch.equal(found[:, -1:], field[:, -1:])
