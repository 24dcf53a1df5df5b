"""Similarities, regularisers and the registration objective."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.losses import LocalNormalizedCrossCorrelationLoss

from custom_components.evaluation.metrics import sd_log_jacobian
from custom_components.fields import warp
from custom_components.inference.registration import RegistrationInferer
from custom_components.losses.overlap import LabelDice, LabelLikelihood
from custom_components.losses.registration import RegistrationLoss
from custom_components.losses.regularization import FoldingPenalty, GradientPenalty
from custom_components.losses.similarity import LNCC, MSE, MutualInformation, box_sum
from custom_components.methods.hypermorph.objective import (
    HyperLoss,
    LabelCriterion,
    RegularityCriterion,
    lncc_window,
    mi_bins,
)
from custom_components.methods.voxelmorph_probabilistic.deformation import GaussianVelocity
from custom_components.methods.voxelmorph_probabilistic.objective import GaussianKL
from custom_components.networks.voxelmorph_unet import VoxelMorphUNet

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


def stripes(size, num_labels=5, batch=2, seed=0):
    """Label maps int16 of blocks of about three voxels; every id below `num_labels` but 1, which none has."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, num_labels - 1, (batch, 1, *[-(-n // 3) for n in size]), generator=generator)
    for axis, n in enumerate(size, start=2):
        blocks = blocks.repeat_interleave(3, axis).narrow(axis, 0, n)
    return (blocks + (blocks > 0)).short()


def random_field(size, batch=2, amplitude=3.0, seed=0):
    """Vectors of several voxels in any direction: near the borders many leave the grid."""
    generator = torch.Generator().manual_seed(seed)
    return amplitude * torch.randn(batch, len(size), *size, dtype=torch.float64, generator=generator)


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


@both
def test_loss_without_similarity_reads_labels_and_fields_only(size):
    labels = {"label_moving": stripes(size), "label_fixed": stripes(size, seed=1)}
    ddf = random_field(size, amplitude=0.5)
    loss = RegistrationLoss(
        None, GradientPenalty(), 2.0, regularized="ddf", segmentation="all", segmentation_weight=0.5
    )
    pred = {"ddf": ddf}
    total = loss(pred, labels)
    overlap = LabelDice("all")(ddf, labels["label_moving"], labels["label_fixed"])
    torch.testing.assert_close(
        pred["terms"], {"regularization": 2 * GradientPenalty()(ddf), "segmentation": overlap / 2}
    )
    torch.testing.assert_close(total, 2 * GradientPenalty()(ddf) + overlap / 2)


@both
def test_bidirectional_overlap_is_the_mean_of_both_directions(size):
    moving, fixed = stripes(size), stripes(size, seed=1)
    pred = {"ddf": random_field(size), "inverse_ddf": random_field(size, seed=1)}
    loss = RegistrationLoss(
        None,
        GradientPenalty(),
        1.0,
        regularized="ddf",
        segmentation=[2, 3],
        segmentation_weight=1.0,
        bidirectional=True,
    )
    terms = loss.terms(pred, {"label_moving": moving, "label_fixed": fixed})
    there = LabelDice([2, 3])(pred["ddf"], moving, fixed)
    back = LabelDice([2, 3])(pred["inverse_ddf"], fixed, moving)
    assert terms.keys() == {"regularization", "segmentation"}
    assert there != back
    torch.testing.assert_close(terms["segmentation"], (there + back) / 2)


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


def overlap_of(labels):
    """`LabelDice` with these as moving labels, of a field and fixed labels of 4 x 5 voxels."""
    return LabelDice("all")(torch.zeros(1, 2, 4, 5), labels, torch.zeros(1, 1, 4, 5).long())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LNCC(4), "odd window"),
        (lambda: LNCC()(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 5)), "equal shape"),
        (lambda: MSE()(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 3, 3)), "mask of size"),
        (lambda: GradientPenalty("l3"), "l1 or l2"),
        (lambda: make_loss(bidirectional=True).terms({}, {}), "inverse_ddf"),
        (lambda: LabelDice("1,2"), "expected labels 'all' or a list"),
        (lambda: LabelDice([]), "expected labels 'all' or a list"),
        (lambda: LabelDice([2, -1]), "expected labels 'all' or a list"),
        (lambda: overlap_of(torch.zeros(1, 1, 4, 5)), r"expected integer label maps .* got torch\.float32"),
        (lambda: overlap_of(torch.zeros(1, 2, 4, 5).long()), r"expected integer label maps .* \(1, 2, 4, 5\)"),
        (lambda: overlap_of(torch.zeros(1, 1, 4, 4).long()), r"\(1, 2, 4, 5\), got torch\.int64 \(1, 1, 4, 4\)"),
        (lambda: overlap_of(torch.zeros(1, 1, 4, 5, 6).long()), r"\(1, 1, 4, 5, 6\)"),
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


@both
def test_similarity_and_label_likelihood_have_their_weights(size):
    batch = {"moving": torch.rand(2, 1, *size), "fixed": torch.rand(2, 1, *size)}
    batch |= {"label_moving": stripes(size), "label_fixed": stripes(size, seed=1)}
    ddf = random_field(size, amplitude=0.5).float()
    pred = {"ddf": ddf, "svf": ddf, "warped": batch["moving"]}
    loss = make_loss(similarity_weight=3.0, segmentation=[1, 2], segmentation_weight=0.5, segmentation_sigma=0.2)
    terms = loss.terms(pred, batch)
    likelihood = LabelLikelihood([1, 2], 0.2)(ddf, batch["label_moving"], batch["label_fixed"])
    torch.testing.assert_close(terms["similarity"], 3 * MSE()(batch["moving"], batch["fixed"]))
    torch.testing.assert_close(terms["segmentation"], 0.5 * likelihood)


@both
@pytest.mark.parametrize("exact", [False, True])
def test_the_bidirectional_probabilistic_objective_reaches_every_weight(size, exact):
    torch.manual_seed(0)
    d = len(size)
    network = VoxelMorphUNet(
        d, encoder_channels=(4, 4), decoder_channels=(4, 4, 4), half_resolution=True, log_variance=-10.0
    )
    batch = {"moving": torch.rand(2, 1, *size), "fixed": torch.rand(2, 1, *size)}
    kl = GaussianKL(10.0, exact=exact)
    loss = RegistrationLoss(MSE(0.05), kl, 1.0, regularized="posterior", bidirectional=True)
    inferer = RegistrationInferer(GaussianVelocity(prior_precision=10.0).draw, inverse=True)
    pred = inferer(torch.cat([batch["moving"], batch["fixed"]], 1), network)
    loss(pred, batch).backward()
    torch.testing.assert_close(pred["terms"]["regularization"], kl(pred["posterior"].detach()))
    there = MSE(0.05)(pred["warped"], batch["fixed"])
    back = MSE(0.05)(warp(batch["fixed"], pred["inverse_ddf"]), batch["moving"])
    torch.testing.assert_close(pred["terms"]["similarity"], ((there + back) / 2).detach())
    for name, parameter in network.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def hyper_case(size, hyper):
    """Fields and a batch of three pairs with labels, masks and hyper-parameters; all differ from pair to pair."""
    one_each = [3] + [1] * (len(size) + 1)
    batch = {"moving": textured(size, 3).float(), "fixed": textured(size, 3, seed=1).float()}
    batch |= {"label_moving": stripes(size, batch=3), "label_fixed": stripes(size, batch=3, seed=1)}
    batch["mask_fixed"] = (textured(size, 3, seed=2) > torch.tensor([0.1, 0.4, 0.7]).view(one_each)).short()
    batch["hyper"] = torch.tensor(hyper)
    ddf = random_field(size, 3, amplitude=0.5).float() * torch.tensor([0.2, 1.0, 2.0]).view(one_each)
    ddf.requires_grad_()
    pred = {"ddf": ddf, "svf": ddf[..., 1:], "inverse_ddf": -ddf, "warped": warp(batch["moving"], ddf)}
    return {**pred, "seconds": torch.zeros(3)}, batch


def single_terms(loss, pred, batch):
    """The terms that `RegistrationLoss` gives for each pair alone."""

    def one(things, i):
        return {key: value[i : i + 1] for key, value in things.items() if key != "terms"}

    return [loss.terms(one(pred, i), one(batch, i)) for i in range(len(batch["hyper"]))]


@both
def test_hyper_loss_weighs_each_pair_by_its_lambda(size):
    pred, batch = hyper_case(size, [[0.0], [0.3], [1.0]])
    loss = make_loss(similarity_weight=2.0, bidirectional=True)
    total = HyperLoss(loss)(pred, batch)
    terms = single_terms(loss, pred, batch)
    similarities = [(1 - value) * one["similarity"] for value, one in zip((0.0, 0.3, 1.0), terms, strict=True)]
    penalties = [value * one["regularization"] for value, one in zip((0.0, 0.3, 1.0), terms, strict=True)]
    torch.testing.assert_close(total, (sum(similarities) + sum(penalties)) / 3)
    expected = {"similarity": sum(similarities) / 3, "regularization": sum(penalties) / 3}
    torch.testing.assert_close(pred["terms"], {key: value.detach() for key, value in expected.items()})
    assert not any(value.requires_grad for value in pred["terms"].values())


@both
def test_gamma_shares_the_data_term_between_images_and_labels(size):
    values = [[0.4, 0.3], [0.9, 0.0], [0.1, 1.0]]
    pred, batch = hyper_case(size, values)
    batch |= {"distance_moving": textured(size, 3).float(), "distance_fixed": textured(size, 3, seed=1).float()}

    def surface(ddf, moving, fixed):
        return (warp(moving, ddf) - fixed).abs().mean()

    loss = make_loss(segmentation=[2, 3], segmentation_weight=0.5, folding_weight=2.0)
    loss.surface = surface
    total = HyperLoss(loss, ["lambda", "gamma"])(pred, batch)
    expected = 0.0
    for (weight, share), one in zip(values, single_terms(loss, pred, batch), strict=True):
        expected += (1 - weight) * (1 - share) * one["similarity"] + weight * one["regularization"] + one["folding"]
        expected += (1 - weight) * share * (one["segmentation"] + one["surface"])
    torch.testing.assert_close(total, expected / 3)
    assert pred["terms"].keys() == {"similarity", "regularization", "folding", "segmentation", "surface"}
    # The order of the names is that of the columns.
    swapped = {**batch, "hyper": batch["hyper"].flip(1)}
    torch.testing.assert_close(HyperLoss(loss, ["gamma", "lambda"])(pred, swapped), total)


@both
def test_hyper_parameters_that_are_not_named_weigh_nothing(size):
    pred, batch = hyper_case(size, [[0.1], [0.6], [0.8]])
    loss = make_loss(segmentation=[2, 3], segmentation_weight=0.5)
    terms = single_terms(loss, pred, batch)

    def mean(weigh):
        return sum(weigh(h, 1 - h, one) for h, one in zip((0.1, 0.6, 0.8), terms, strict=True)) / 3

    def with_lambda(h, rest, one):
        return rest * (one["similarity"] + one["segmentation"]) + h * one["regularization"]

    def with_gamma(h, rest, one):
        return rest * one["similarity"] + h * one["segmentation"] + one["regularization"]

    torch.testing.assert_close(HyperLoss(loss)(pred, batch), mean(with_lambda))
    torch.testing.assert_close(HyperLoss(loss, ["gamma"])(pred, batch), mean(with_gamma))
    neither = HyperLoss(loss, ["setting"], {"setting": lambda loss, value: None})
    torch.testing.assert_close(neither(pred, batch), mean(lambda h, rest, one: sum(one.values())))


@both
def test_lambda_1_does_not_see_the_images_and_lambda_0_no_roughness(size):
    pred, batch = hyper_case(size, [[1.0]] * 3)
    pred["warped"] = pred["warped"].detach().requires_grad_()
    HyperLoss(make_loss())(pred, batch).backward()
    assert pred["terms"]["similarity"] == 0
    assert pred["terms"]["regularization"] > 0
    assert not pred["warped"].grad.any()
    assert pred["ddf"].grad.any()

    pred, batch = hyper_case(size, [[0.0]] * 3)
    pred["svf"] = pred["svf"].detach().requires_grad_()
    HyperLoss(make_loss())(pred, batch).backward()
    assert pred["terms"]["regularization"] == 0
    assert pred["terms"]["similarity"] > 0
    assert not pred["svf"].grad.any()
    assert pred["ddf"].grad.any()


@both
@pytest.mark.parametrize(
    ("setting", "similarities"),
    [
        (lncc_window, [LNCC(3), LNCC(9), LNCC(15)]),
        (mi_bins, [MutualInformation(8), MutualInformation(23), MutualInformation(64)]),
    ],
    ids=["window", "bins"],
)
def test_settings_change_the_loss_pair_by_pair(size, setting, similarities):
    pred, batch = hyper_case(size, [[0.2, 0.0], [0.2, 0.5], [0.2, 1.0]])
    loss = HyperLoss(make_loss(), ["lambda", "setting"], {"setting": setting})
    loss(pred, batch)
    parts = [
        similarity(pred["warped"][i : i + 1].detach(), batch["fixed"][i : i + 1], batch["mask_fixed"][i : i + 1])
        for i, similarity in enumerate(similarities)
    ]
    torch.testing.assert_close(pred["terms"]["similarity"], 0.8 * sum(parts) / 3)
    assert len({round(float(part), 4) for part in parts}) == 3


def test_gradient_of_lambda_is_regularisation_minus_similarity():
    pred, batch = hyper_case(SIZES[0], [[0.0], [0.3], [1.0]])
    batch["hyper"].requires_grad_()
    loss = make_loss()
    HyperLoss(loss)(pred, batch).backward()
    slopes = [one["regularization"] - one["similarity"] for one in single_terms(loss, pred, batch)]
    torch.testing.assert_close(batch["hyper"].grad, torch.stack(slopes).view(3, 1).detach() / 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: HyperLoss(make_loss(), ["lambda", "sharpness"]), "'sharpness' is neither lambda nor gamma"),
        (lambda: HyperLoss(make_loss())(*hyper_case((9, 8), [[0.5, 0.5]] * 3)), r"\(3, 1\), got shape \(3, 2\)"),
        (lambda: HyperLoss(make_loss())(*hyper_case((9, 8), [0.5] * 3)), r"\(3, 1\), got shape \(3,\)"),
    ],
)
def test_wrong_hyper_parameters_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@both
@pytest.mark.parametrize("labels", ["all", [2, 3]], ids=str)
def test_label_criterion_is_label_dice(size, labels):
    pred, batch = hyper_case(size, [[0.5]] * 3)

    def dice(ddf):
        return LabelDice(labels)(ddf, batch["label_moving"], batch["label_fixed"])

    found = value_and_gradient(lambda ddf: LabelCriterion(labels)({"ddf": ddf}, batch), pred["ddf"].detach())
    torch.testing.assert_close(found, value_and_gradient(dice, pred["ddf"].detach()))
    assert found[1].any()


@both
def test_regularity_criterion_adds_what_exceeds_the_limit(size):
    pred, batch = hyper_case(size, [[0.5]] * 3)
    pred["ddf"] = 0.02 * random_field(size, 3)
    similarity = MSE()(pred["warped"], batch["fixed"], batch["mask_fixed"])
    spread = sd_log_jacobian(pred["ddf"], batch["mask_fixed"]).mean().float()
    assert spread > 0
    values = [RegularityCriterion(MSE(), float(spread) * share, weight=7.0)(pred, batch) for share in (2, 1, 0.5, 0.2)]
    torch.testing.assert_close(values[0], similarity)
    torch.testing.assert_close(values[1], similarity)
    torch.testing.assert_close(values[2], similarity + 7 * 0.5 * spread)
    torch.testing.assert_close(values[3], similarity + 7 * 0.8 * spread)


@both
def test_regularity_criterion_has_a_gradient_where_nothing_moves(size):
    _, batch = hyper_case(size, [[0.5]] * 3)
    for field in (torch.zeros(3, len(size), *size), torch.ones(3, len(size), *size)):
        pred = {"ddf": field.requires_grad_(), "warped": batch["fixed"]}
        RegularityCriterion(MSE(), limit=0.1)(pred, batch).backward()
        assert field.grad.isfinite().all()


def test_regularity_criterion_does_not_reward_folds():
    x = torch.arange(32.0)
    ddf = torch.zeros(1, 2, 32, 32)
    ddf[0, 0] = (2.0 * torch.exp(-((x - 16) ** 2) / 8)).view(-1, 1) * (x - 16).view(-1, 1)
    batch = {"fixed": torch.rand(1, 1, 32, 32), "mask_fixed": torch.ones(1, 1, 32, 32)}
    values = []
    for sign in (0.3, -0.3, -1.0):  # the last one folds
        values.append(float(RegularityCriterion(MSE(), 0.0)({"ddf": sign * ddf, "warped": batch["fixed"]}, batch)))
    assert values[0] < values[1] < values[2]


@both
def test_one_mask_serves_all_samples(size):
    pred, batch = hyper_case(size, [[0.2], [0.5], [0.9]])
    loss = HyperLoss(make_loss())
    mask = batch["mask_fixed"][:1]
    shared = loss(dict(pred), {**batch, "mask_fixed": mask})
    each = loss(dict(pred), {**batch, "mask_fixed": mask.expand(3, *mask.shape[1:])})
    torch.testing.assert_close(shared, each)


@both
def test_regularity_criterion_grows_with_roughness_and_leads_downhill(size):
    _, batch = hyper_case(size, [[0.5]] * 3)
    criterion = RegularityCriterion(MSE(), limit=0.05, weight=10.0)
    image = torch.zeros_like(batch["fixed"])

    def rough(scale):
        return criterion({"ddf": scale * random_field(size, 3), "warped": image}, batch)

    assert rough(0.003) == MSE()(image, batch["fixed"], batch["mask_fixed"])
    assert rough(0.003) < rough(0.02) < rough(0.03) < rough(0.04)
    scale = torch.tensor(0.03, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(rough(scale), scale)
    assert float(slope) == pytest.approx(float(rough(0.0305) - rough(0.0295)) / 0.001, rel=0.01)


@both
def test_regularity_criterion_within_its_limit_is_the_similarity_to_the_field_too(size):
    _, batch = hyper_case(size, [[0.5]] * 3)
    criterion, similarity = RegularityCriterion(MSE(), limit=10.0), MSE()
    field = (0.02 * random_field(size, 3)).float()

    def warped(ddf):
        return {"ddf": ddf, "warped": warp(batch["moving"], ddf)}

    found = value_and_gradient(lambda u: criterion(warped(u), batch), field)
    expected = value_and_gradient(lambda u: similarity(warped(u)["warped"], batch["fixed"], batch["mask_fixed"]), field)
    torch.testing.assert_close(found, expected)
    assert found[1].any()


@both
def test_gamma_weighs_nothing_where_the_loss_has_no_labels(size):
    pred, batch = hyper_case(size, [[0.3, 1.0]] * 3)
    found = HyperLoss(make_loss(), ["lambda", "gamma"])(dict(pred), batch)
    expected = HyperLoss(make_loss())(dict(pred), {**batch, "hyper": batch["hyper"][:, :1]})
    torch.testing.assert_close(found, expected)
