"""Losses of label maps."""

import pytest
import torch
from losses.cases import SIZES, both, random_field, stripes, textured

from custom_components.fields import warp
from custom_components.losses.overlap import LabelDice, LabelLikelihood


def dice_of_one_hot_maps(ddf, moving, fixed, labels):
    """What `LabelDice` claims to be: Dice of one-hot maps, warped linearly, over labels present in either."""
    moving, fixed = (torch.cat([(m == k).double() for k in labels], 1) for m in (moving, fixed))
    warped = warp(moving, ddf, padding="border")
    overlap, total = (warped * fixed).flatten(2).sum(2), (warped + fixed).flatten(2).sum(2)
    return (1 - 2 * overlap / total.clamp(min=1e-9))[total > 0].mean()


def value_and_gradient(function, ddf):
    ddf = ddf.clone().requires_grad_()
    value = function(ddf)
    return value.detach(), torch.autograd.grad(value, ddf)[0]


@pytest.mark.parametrize("labels", [[0, 2, 3, 4], [3, 2], [4, 1, 17]])
@pytest.mark.parametrize("size", [*SIZES, (40, 1), (9, 1, 10), (1, 8, 9)], ids=str)
@pytest.mark.parametrize("amplitude", [0.3, 4.0])
def test_label_dice_is_that_of_warped_one_hot_maps(size, labels, amplitude):
    moving, fixed, ddf = stripes(size), stripes(size, seed=1), random_field(size, amplitude=amplitude)
    value, gradient = value_and_gradient(lambda u: LabelDice(labels)(u, moving, fixed), ddf)
    expected = value_and_gradient(lambda u: dice_of_one_hot_maps(u, moving, fixed, labels), ddf)
    torch.testing.assert_close(value, expected[0], rtol=0, atol=1e-10)
    torch.testing.assert_close(gradient, expected[1], rtol=0, atol=1e-10)
    assert gradient.abs().max() > 1e-4


@both
def test_label_dice_gradcheck(size):
    size = tuple(n - 7 for n in size)
    moving, fixed = stripes(size), stripes(size, seed=1)
    ddf = random_field(size, amplitude=1.0).requires_grad_()
    assert torch.autograd.gradcheck(lambda u: LabelDice("all")(u, moving, fixed), (ddf,))


@both
@pytest.mark.parametrize("labels", ["all", [2, 4], [0]])
def test_label_dice_of_equal_maps_is_0_and_of_disjoint_ones_1(size, labels):
    labels_map = stripes(size)
    zero = torch.zeros(2, len(size), *size, dtype=torch.float64)
    assert float(LabelDice(labels)(zero, labels_map, labels_map)) == pytest.approx(0, abs=1e-12)
    assert float(LabelDice([2, 6])(zero, labels_map, 8 - labels_map)) == pytest.approx(1)


def test_label_dice_counts_present_labels_only():
    label = torch.zeros(1, 1, 8, 8, dtype=torch.int16)
    label[..., :4, :] = 1
    zero = torch.zeros(1, 2, 8, 8)
    assert float(LabelDice([1, 7, 9])(zero, label, label.roll(2, 2))) == pytest.approx(0.5)
    assert LabelDice([7, 9])(zero, label, label) == 0
    # Of one map only, a label counts: its Dice is 0.
    assert float(LabelDice([1, 7])(zero, label, label * 7)) == pytest.approx(1)


def test_label_dice_leaves_labels_out_sample_by_sample():
    label = torch.zeros(2, 1, 8, 8, dtype=torch.int16)
    label[0, :, :4], label[1, :, :4] = 1, 2
    other = label.clone()
    other[1] = label[1].roll(2, 1)  # Dice 0.5 in the second sample, 1 in the first
    assert float(LabelDice([1, 2])(torch.zeros(2, 2, 8, 8), label, other)) == pytest.approx(0.25)


@both
def test_all_labels_are_the_ids_from_0_to_the_largest(size):
    moving, fixed, ddf = stripes(size), stripes(size, seed=1), random_field(size)
    every = LabelDice("all")(ddf, moving, fixed)
    assert every == LabelDice([0, 2, 3, 4])(ddf, moving, fixed)
    assert every == LabelDice(range(5))(ddf, moving, fixed)
    assert every != LabelDice([2, 3, 4])(ddf, moving, fixed)


@both
def test_ids_that_are_not_listed_do_not_matter(size):
    moving, fixed, ddf = stripes(size), stripes(size, seed=1), random_field(size)
    loss = LabelDice([2, 3])
    renamed = [m.int().masked_fill(m == 0, 1).masked_fill(m == 4, 70000) for m in (moving, fixed)]
    for u in (ddf, torch.zeros_like(ddf)):
        assert loss(u, moving, fixed) == loss(u, *renamed)


@both
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("labels", ["all", [0, 2, 4]])
def test_label_dice_takes_any_integer_type(size, dtype, labels):
    moving, fixed, ddf = stripes(size), stripes(size, seed=1), random_field(size)
    assert LabelDice(labels)(ddf, moving.to(dtype), fixed.to(dtype)) == LabelDice(labels)(ddf, moving, fixed)


@both
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 1e-2), (torch.bfloat16, 5e-2)])
def test_label_dice_takes_fields_of_any_precision(size, dtype, tolerance):
    moving, fixed, ddf = stripes(size), stripes(size, seed=1), random_field(size, amplitude=0.5)
    expected = value_and_gradient(lambda u: LabelDice("all")(u, moving, fixed), ddf)[0]
    value, gradient = value_and_gradient(lambda u: LabelDice("all")(u, moving, fixed), ddf.to(dtype))
    assert value.dtype == torch.float32
    assert gradient.dtype == dtype
    assert float(value) == pytest.approx(float(expected), abs=tolerance)


def test_gradient_of_label_dice_leads_a_shifted_square_home():
    fixed = torch.zeros(1, 1, 16, 16, dtype=torch.int16)
    fixed[..., 5:11, 5:11] = 3
    shift = torch.tensor([0.3, -0.2]).requires_grad_()
    optimizer = torch.optim.Adam([shift], lr=0.1)
    for _ in range(60):
        loss = LabelDice([3])(shift.view(1, 2, 1, 1).expand(1, 2, 16, 16), fixed.roll((2, -1), (2, 3)), fixed)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05
    torch.testing.assert_close(shift.detach(), torch.tensor([2.0, -1.0]), rtol=0, atol=0.1)


def test_pooled_dice_weighs_labels_by_their_size():
    fixed = torch.zeros(1, 1, 10, 12, dtype=torch.int16)
    fixed[..., :8, :] = 1
    fixed[..., 8, :3] = 2
    moving = fixed.clone()
    moving[moving == 2] = 0
    zero = torch.zeros(1, 2, 10, 12)
    # Label 1 fits exactly (96 voxels in both maps), the 3 voxels of label 2 are missed.
    assert float(LabelDice([1, 2])(zero, moving, fixed)) == pytest.approx(0.5)
    assert float(LabelDice([1, 2], pooled=True)(zero, moving, fixed)) == pytest.approx(1 - 2 * 96 / (2 * 96 + 3))


def one_hot(labels, ids):
    return torch.cat([(labels == k).double() for k in ids], 1)


@both
@pytest.mark.parametrize(("labels", "ids"), [("all", range(5)), ([3, 2, 17], [3, 2, 17])], ids=["all", "listed"])
def test_label_likelihood_is_the_squared_difference_of_one_hot_maps(size, labels, ids):
    moving, fixed, ddf = stripes(size), stripes(size, seed=1), random_field(size)
    soft_moving, soft_fixed = one_hot(moving, ids), one_hot(fixed, ids)
    expected = 0.0
    for k in range(len(ids)):
        warped = warp(soft_moving[:, k : k + 1], ddf, padding="border")
        expected += (warped - soft_fixed[:, k : k + 1]).square().mean() / 0.5**2
    loss = LabelLikelihood(labels, sigma=0.5)
    torch.testing.assert_close(loss(ddf, moving, fixed), expected)
    torch.testing.assert_close(loss(ddf, soft_moving, soft_fixed), expected)


@both
def test_label_likelihood_of_equal_maps_is_0_and_of_a_mislabelled_voxel_2(size):
    labels, zero = stripes(size), torch.zeros(2, len(size), *size, dtype=torch.float64)
    assert float(LabelLikelihood("all")(zero, labels, labels)) == pytest.approx(0, abs=1e-12)
    # Both maps of a voxel with the wrong label are off by 1.
    wrong = labels.clone()
    wrong[0, 0].view(-1)[0] = (labels[0, 0].view(-1)[0] + 1) % 5
    assert float(LabelLikelihood("all")(zero, labels, wrong)) == pytest.approx(2 / labels.numel())
    soft = textured(size, channels=3)
    assert float(LabelLikelihood([1])(zero, soft, soft)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("size", [(5, 4), (4, 3, 5)], ids=["2-D", "3-D"])
def test_label_likelihood_gradcheck(size):
    moving, fixed = stripes(size), stripes(size, seed=1)
    # Linear interpolation has kinks at whole voxels: keep away.
    ddf = (0.1 + 0.8 * textured(size, channels=len(size))).requires_grad_()
    assert torch.autograd.gradcheck(lambda u: LabelLikelihood("all")(u, moving, fixed), (ddf,))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LabelLikelihood("1,2"), "expected labels 'all' or a list"),
        (lambda: LabelLikelihood([]), "expected labels 'all' or a list"),
        (
            lambda: LabelLikelihood("all")(*[torch.zeros(1, 2, 4, 5)] * 2, torch.zeros(1, 2, 4, 5).long()),
            "expected two integer maps",
        ),
        (
            lambda: LabelLikelihood("all")(*[torch.zeros(1, 2, 4, 5)] * 2, torch.zeros(1, 3, 4, 5)),
            "expected two integer maps",
        ),
    ],
)
def test_wrong_maps_for_the_label_likelihood_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
