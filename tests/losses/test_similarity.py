"""Similarities of images."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from losses.cases import both, textured
from monai.losses import LocalNormalizedCrossCorrelationLoss

from custom_components.losses.similarity import LNCC, MIND, MSE, MutualInformation, box_sum, multi_kernel_lncc


@pytest.mark.parametrize(
    ("size", "windows", "weights"),
    [
        ((160, 192, 192), [9, 19, 39], [0.1, 0.3, 0.6]),
        ((80, 192, 192), [19, 39], [0.3, 0.7]),
        ((40, 50), [19], [1.0]),
        ((3, 5), [3], [1.0]),
    ],
)
def test_windows_of_several_sizes_follow_the_shortest_side(size, windows, weights):
    similarity = multi_kernel_lncc(size)
    assert [part.window for part in similarity.similarities] == windows
    assert similarity.weights == weights
    image = torch.rand(1, 1, *[min(n, 20) for n in size])
    assert float(multi_kernel_lncc(image.shape[2:])(image, image)) == pytest.approx(0, abs=2e-2)


SIMILARITIES = [LNCC(5), MSE(0.5), MutualInformation(num_bins=16, seed=0)]
each = pytest.mark.parametrize("similarity", SIMILARITIES, ids=["LNCC", "MSE", "MI"])


@both
@given(window=st.integers(1, 6).map(lambda k: 2 * k + 1))
@settings(max_examples=6, deadline=None)
def test_box_sum_is_the_sum_over_the_window(size, window):
    image = textured(size, channels=2)
    d = len(size)
    conv = torch.nn.functional.conv2d if d == 2 else torch.nn.functional.conv3d
    kernel = torch.ones(1, 1, *[window] * d, dtype=torch.float64)
    expected = conv(image.flatten(0, 1)[:, None], kernel, padding=window // 2).view_as(image)
    torch.testing.assert_close(box_sum(image, window), expected)


@each
@both
def test_best_for_equal_images(similarity, size):
    image = textured(size)
    other = textured(size, seed=1)
    assert similarity(image, image) < similarity(other, image)


@pytest.mark.slow
@each
@both
def test_gradcheck(similarity, size):
    size = tuple(n - 3 for n in size)
    a, b = textured(size).requires_grad_(), textured(size, seed=1)
    if not isinstance(similarity, MutualInformation):
        b.requires_grad_()
        assert torch.autograd.gradcheck(lambda x, y: similarity(x, y), (a, b))
        mask = (textured(size, seed=2) > 0.4).double()
        assert torch.autograd.gradcheck(lambda x, y: similarity(x, y, mask), (a, b))
    else:
        similarity(a.float(), b.float()).backward()
        assert torch.isfinite(a.grad).all()
        assert a.grad.abs().sum() > 0


@each
def test_masked_voxels_do_not_count(similarity):
    a, b = textured((20, 20)), textured((20, 20), seed=1)
    mask = torch.zeros(2, 1, 20, 20, dtype=torch.float64)
    mask[..., 5:15, 5:15] = 1
    disturbed = torch.where(mask > 0, a, 1 - a)
    torch.testing.assert_close(similarity(a, b, mask), similarity(disturbed, b, mask))


@both
@given(gain=st.floats(0.2, 3), shift=st.floats(-1, 1))
@settings(max_examples=10, deadline=None)
def test_lncc_is_blind_to_linear_changes_of_intensity(size, gain, shift):
    image = textured(size)
    assert LNCC(5)(gain * image + shift, image) < 0.01
    assert LNCC(5)(-gain * image + shift, image) < 0.01


@both
def test_lncc_of_flat_images_is_uncorrelated(size):
    flat = torch.full((1, 1, *size), 0.5)
    assert LNCC(9)(flat, flat) == pytest.approx(1, abs=1e-3)
    noise = flat + 1e-4 * torch.randn(flat.shape)
    assert LNCC(9)(noise, flat + 1e-4 * torch.randn(flat.shape)) > 0.99


def test_lncc_agrees_with_monai_inside_a_textured_image():
    """A change of `b` in one voxel changes the windows around it, none of which reaches the border."""
    a, b = torch.rand(1, 1, 24, 24, 24), torch.rand(1, 1, 24, 24, 24)
    b = 0.5 * a + 0.5 * b
    changed = b.clone()
    changed[..., 12, 12, 12] += 1
    ours = [1 - LNCC(9, floor=0)(a, other) for other in (b, changed)]
    theirs = [-LocalNormalizedCrossCorrelationLoss(kernel_size=9)(a, other) for other in (b, changed)]
    assert float(ours[1] - ours[0]) == pytest.approx(float(theirs[1] - theirs[0]), rel=1e-3)


def test_similarities_stay_float32_under_autocast():
    a, b = torch.rand(1, 1, 16, 16), torch.rand(1, 1, 16, 16)
    expected = LNCC()(a, b)
    with torch.autocast("cpu", torch.bfloat16):
        assert LNCC()(a, b).dtype == torch.float32
        torch.testing.assert_close(LNCC()(a, b), expected)
    assert torch.isfinite(LNCC()(a.half(), b.half()))


def test_mse_is_the_mean_over_sigma_squared():
    a, b = torch.zeros(1, 1, 4, 4), torch.full((1, 1, 4, 4), 0.1)
    assert MSE(0.1)(a, b) == pytest.approx(1)


@both
def test_mind_does_not_see_what_lies_outside_of_a_mask(size):
    torch.manual_seed(0)
    a, b, mask = torch.rand(1, 1, *size), torch.rand(1, 1, *size), torch.zeros(1, 1, *size)
    mask[:, :, : size[0] - 6] = 1
    disturbed = torch.where(mask > 0, a, torch.rand_like(a))
    assert MIND()(disturbed, b, mask) == MIND()(a, b, mask) > 0
