"""Patches cover an image, and their answers are averaged."""

import pytest
import torch
from methods.quicksilver.cases import random_image, strided, strides

from custom_components.methods.quicksilver.patches import cut, pad_to_patches, patch_starts, predict_in_patches


@pytest.mark.parametrize("patch", [3, 5, 15])
@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize("size", [(17, 22), (15, 31), (19, 16, 15)], ids=str)
def test_patches_cover_every_voxel_and_end_with_the_grid(size, step, patch):
    count = torch.zeros(1, *size)
    starts = list(patch_starts(size, patch, step))
    assert len(starts) == len(set(starts))
    for start in starts:
        part = cut(count, start, patch)
        assert part.shape == (1, *[patch] * len(size))
        part += 1
    assert count.min() >= 1
    assert starts[0] == (0,) * len(size)
    assert starts[-1] == tuple(n - patch for n in size)


def test_neighbouring_patches_are_a_step_apart():
    assert list(patch_starts((43,), 15, 14)) == [(0,), (14,), (28,)]
    assert list(patch_starts((44,), 15, 14)) == [(0,), (14,), (28,), (29,)]
    assert list(patch_starts((12,), 3, 5)) == [(0,), (5,), (9,)]  # a step beyond the patch leaves gaps
    assert list(patch_starts((15, 15), 15, 14)) == [(0, 0)]


@pytest.mark.parametrize(
    ("size", "patch", "stride", "padded"),
    [
        ((20, 31), 15, 1, (20, 31)),
        ((9, 31), 15, 1, (15, 31)),
        ((9, 31), 15, 2, (30, 32)),
        ((33, 31), 7, 3, (33, 33)),
        ((30, 32), 15, 2, (30, 32)),
        ((5, 20, 7), 3, 2, (6, 20, 8)),
    ],
    ids=str,
)
def test_images_are_padded_to_whole_blocks_and_a_patch(size, patch, stride, padded):
    image = 1 + random_image(size, 2)
    result = pad_to_patches(image, patch, stride)
    assert result.shape[2:] == padded
    inside = (slice(None), slice(None), *[slice(n) for n in size])
    assert torch.equal(result[inside], image)
    assert (result != 0).sum() == image.numel()


@strides
@pytest.mark.parametrize("step", [14, 5, 3])
@pytest.mark.parametrize("size", [(33, 29), (48, 45), (7, 40), (31, 17, 20)], ids=str)
def test_patches_of_an_image_make_the_image(size, step, stride):
    image = random_image(size, 2)
    result = predict_in_patches(image, lambda x: strided(x, stride), 2, step=step, stride=stride, background=-1.0)
    assert result.shape == (2, 2, *[-(-n // stride) for n in size])
    torch.testing.assert_close(result, strided(image, stride), rtol=0, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 1000])
def test_the_number_of_patches_at_a_time_does_not_matter(batch_size):
    image, sizes = random_image((25, 33), 2), []

    def network(patches):
        sizes.append(len(patches))
        return patches.flatten(1).mean(1).view(-1, 1, 1, 1).expand(-1, 2, 15, 15)

    result = predict_in_patches(image, network, 2, step=6, batch_size=batch_size)
    torch.testing.assert_close(result, predict_in_patches(image, network, 2, step=6))
    assert sizes[0] == min(batch_size, 2 * 3 * 4)
    assert result.std() > 1e-4


@strides
def test_answers_are_averaged_where_patches_overlap(stride):
    """Patch k of the one axis along which there are two answers k."""
    numbers = iter(range(2))
    image = random_image((15 * stride, 20 * stride))

    def network(patches):
        return torch.stack([torch.full((1, 15, 15), float(next(numbers))) for _ in patches])

    row = predict_in_patches(image, network, 1, stride=stride)[0, 0, 7]
    assert row.tolist() == [0.0] * 5 + [0.5] * 10 + [1.0] * 5


@strides
@pytest.mark.parametrize("lit", ["moving", "fixed"])
def test_patches_where_both_images_are_dark_are_left_out(lit, stride):
    image = torch.full((2, 2, 30 * stride, 30 * stride), 0.25)
    image[1, int(lit == "fixed"), 3, -1] = 0.5
    seen = []

    def network(patches):
        seen.append(patches)
        return torch.ones(len(patches), 2, 15, 15)

    result = predict_in_patches(image, network, 2, step=15, stride=stride, background=0.25)
    assert torch.cat(seen).shape == (1, 2, 15 * stride, 15 * stride)
    assert torch.equal(torch.cat(seen)[0], image[1, :, : 15 * stride, 15 * stride :])
    expected = torch.zeros(2, 2, 30, 30)
    expected[1, :, :15, 15:] = 1
    assert torch.equal(result, expected)


def test_the_network_is_not_asked_about_dark_images():
    result = predict_in_patches(torch.zeros(2, 2, 33, 20), lambda patches: pytest.fail("asked"), 2)
    assert torch.equal(result, torch.zeros(2, 2, 33, 20))
