"""Similarities, regularisers and the registration objective."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.losses import LocalNormalizedCrossCorrelationLoss

from custom_components.losses.registration import RegistrationLoss
from custom_components.losses.regularization import FoldingPenalty, GradientPenalty
from custom_components.losses.similarity import LNCC, MSE, MutualInformation, SoftDice, box_sum, one_hot

SIZES = [(13, 16), (11, 12, 10)]
both = pytest.mark.parametrize("size", SIZES, ids=["2-D", "3-D"])
SIMILARITIES = [LNCC(5), MSE(0.5), MutualInformation(num_bins=16, seed=0)]
each = pytest.mark.parametrize("similarity", SIMILARITIES, ids=["LNCC", "MSE", "MI"])


def textured(size, batch=2, channels=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, channels, *size, dtype=torch.float64, generator=generator)


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
    a, b = torch.rand(1, 1, 24, 24, 24), torch.rand(1, 1, 24, 24, 24)
    b = 0.5 * a + 0.5 * b
    ours = 1 - LNCC(9, floor=0)(a[..., 4:-4, 4:-4, 4:-4], b[..., 4:-4, 4:-4, 4:-4])
    theirs = -LocalNormalizedCrossCorrelationLoss(kernel_size=9, reduction="none")(a, b)[..., 8:-8, 8:-8, 8:-8].mean()
    assert float(ours) == pytest.approx(float(theirs), abs=0.02)


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


def test_dice_counts_present_labels_only():
    label = torch.zeros(1, 1, 8, 8, dtype=torch.int16)
    label[..., :4, :] = 1
    same = one_hot(label, [1, 7])
    assert SoftDice()(same, same) == 0
    half = one_hot(label.roll(2, 2), [1, 7])
    assert SoftDice()(same, half) == pytest.approx(0.5)
    assert SoftDice()(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4)) == 0


@both
def test_gradient_penalty_of_a_linear_field(size):
    # u_0 = 0.5 x_0: one of D * D derivatives is 0.5.
    d = len(size)
    field = torch.zeros(2, d, *size)
    field[:, 0] = 0.5 * torch.arange(size[0]).view(-1, *[1] * (d - 1))
    assert GradientPenalty("l2")(field) == pytest.approx(0.25 / d**2)
    assert GradientPenalty("l1", multiplier=2)(field) == pytest.approx(2 * 0.5 / d**2)


def test_folding_penalty_presses_on_folds_only():
    field = torch.zeros(1, 2, 16, 16)
    assert FoldingPenalty(0.2)(field) == 0
    field[:, 0] = -1.5 * torch.arange(16.0).view(-1, 1)  # det J = -0.5
    assert FoldingPenalty(0.2)(field) == pytest.approx(0.49)


def make_loss(**kwargs):
    return RegistrationLoss(MSE(), GradientPenalty(), 0.1, **kwargs)


@both
def test_registration_loss_is_the_sum_of_its_named_terms(size):
    d = len(size)
    label = torch.randint(0, 3, (2, 1, *size), dtype=torch.int16)
    batch = {"moving": torch.rand(2, 1, *size), "fixed": torch.rand(2, 1, *size)}
    batch |= {"label_moving": label, "label_fixed": label.flip(2)}
    ddf = 0.5 * torch.randn(2, d, *size)
    pred = {"ddf": ddf, "svf": ddf, "inverse_ddf": -ddf, "warped": batch["moving"]}
    loss = make_loss(segmentation=[1, 2], bidirectional=True, folding_weight=1.0)
    total = loss(pred, batch)
    assert set(pred["terms"]) == {"similarity", "regularization", "folding", "segmentation"}
    assert float(total) == pytest.approx(sum(float(v) for v in pred["terms"].values()))
    assert not any(v.requires_grad for v in pred["terms"].values())


def test_bidirectional_similarity_is_symmetric():
    moving, fixed = torch.rand(1, 1, 12, 12), torch.rand(1, 1, 12, 12)
    zero = torch.zeros(1, 2, 12, 12)
    loss = make_loss(bidirectional=True)
    forward = loss.terms(
        {"ddf": zero, "svf": zero, "inverse_ddf": zero, "warped": moving}, {"moving": moving, "fixed": fixed}
    )
    torch.testing.assert_close(forward["similarity"], MSE()(moving, fixed))


def test_masks_of_the_batch_reach_the_similarity():
    moving, fixed = torch.zeros(1, 1, 12, 12), torch.zeros(1, 1, 12, 12)
    moving[..., :3, :] = 1
    mask = torch.ones(1, 1, 12, 12)
    mask[..., :3, :] = 0
    zero = torch.zeros(1, 2, 12, 12)
    pred = {"ddf": zero, "svf": zero, "warped": moving}
    assert make_loss().terms(pred, {"moving": moving, "fixed": fixed})["similarity"] > 0
    for key in ("mask_moving", "mask_fixed"):
        assert make_loss().terms(pred, {"moving": moving, "fixed": fixed, key: mask})["similarity"] == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LNCC(4), "odd window"),
        (lambda: LNCC()(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 5)), "equal shape"),
        (lambda: MSE()(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 3, 3)), "mask of size"),
        (lambda: GradientPenalty("l3"), "l1 or l2"),
        (lambda: make_loss(bidirectional=True).terms({}, {}), "inverse_ddf"),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_missing_labels_are_named():
    zero, image = torch.zeros(1, 2, 8, 8), torch.rand(1, 1, 8, 8)
    with pytest.raises(ValueError, match="'label_moving'"):
        make_loss(segmentation=[1]).terms(
            {"ddf": zero, "svf": zero, "warped": image}, {"moving": image, "fixed": image}
        )
