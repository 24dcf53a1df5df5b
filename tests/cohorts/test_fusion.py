"""One label map of several: where all agree it is theirs, elsewhere the fusions weigh as they say."""

from __future__ import annotations

import pytest
import torch

from custom_components.cohorts.fusion import FUSIONS, fuse, joint_weights, local_weights

SIZES = [(20, 18), (14, 12, 10)]
EVERY = [pytest.param(one, marks=pytest.mark.slow) if one == "staple" else one for one in FUSIONS]  # ITK loads slowly


@pytest.fixture(params=EVERY)
def fusion(request):
    if request.param == "staple":
        pytest.importorskip("itk")
    return request.param


def scene(size, seed=0):
    """A target with two regions, of labels 1 and 2, and texture."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.ones(size, dtype=torch.int64)
    truth[size[0] // 2 :] = 2
    return truth, truth + 0.3 * torch.randn(size, generator=generator), generator


def moved(tensor, by):
    return torch.roll(tensor, by, 0)


@pytest.mark.parametrize("size", SIZES)
def test_where_all_agree_the_answer_is_theirs(size, fusion):
    truth, target, _ = scene(size)
    assert torch.equal(fuse(torch.stack([truth] * 3), torch.stack([target] * 3), target, fusion), truth)


@pytest.mark.parametrize("size", SIZES)
def test_one_atlas_alone_is_the_answer(size, fusion):
    truth, target, _ = scene(size)
    assert torch.equal(fuse(moved(truth, 2)[None], target[None], target, fusion), moved(truth, 2))


@pytest.mark.parametrize("size", SIZES)
def test_two_good_atlases_outvote_a_bad_one(size, fusion):
    truth, target, _ = scene(size)
    labels, images = ([moved(one, 3), one, one] for one in (truth, target))
    assert torch.equal(fuse(torch.stack(labels), torch.stack(images), target, fusion), truth)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fusion", ["best", "local", "joint"])
def test_a_good_atlas_is_heard_against_two_bad_ones_where_only_votes_are_counted_it_is_not(size, fusion):
    truth, target, _ = scene(size)
    labels, images = (torch.stack([moved(one, 3), moved(one, 3), one]) for one in (truth, target))
    assert (fuse(labels, images, target, fusion) == truth).float().mean() > 0.98
    assert torch.equal(fuse(labels, images, target, "majority"), labels[0])


@pytest.mark.parametrize("size", SIZES)
def test_atlases_that_err_alike_share_their_weight_in_joint_fusion_alone(size):
    _, target, generator = scene(size)
    one, other = (target + 0.5 * torch.randn(size, generator=generator) for _ in range(2))
    images, where = torch.stack([one, one, other]), torch.ones(size, dtype=torch.bool)
    joint, local = (weigh(images, target, where).mean(1) for weigh in (joint_weights, local_weights))
    torch.testing.assert_close(joint.sum(), torch.tensor(1.0))
    assert joint[2] > 0.4
    assert abs(float(local[2]) - 1 / 3) < 0.05
    torch.testing.assert_close(joint[0], joint[1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("fusion", ["best", "local", "joint"])
def test_brightness_and_contrast_of_the_whole_image_do_not_matter(fusion):
    truth, target, _ = scene((20, 18))
    labels, images = (torch.stack([moved(one, 3), one, moved(one, -2)]) for one in (truth, target))
    assert torch.equal(fuse(labels, 50 * images + 7, target, fusion), fuse(labels, images, 3 * target - 1, fusion))


def test_another_word_is_refused():
    truth, target, _ = scene((20, 18))
    with pytest.raises(ValueError, match="expected --fusion best, majority, local, joint, staple, got 'mean'"):
        fuse(truth[None], target[None], target, "mean")
