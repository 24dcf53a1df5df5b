"""The deformation whose parameters are a momentum and the weights of its metric."""

import pytest
import torch
from methods.rdmm.cases import (
    ANISOTROPIC,
    BASE,
    VOXELS,
    WIDE,
    bump,
    images,
    kinds,
    parameters_for,
    random_case,
    scene,
    shot_of,
)
from torch.autograd import gradcheck

from custom_components import fields
from custom_components.deformations.kernels import MultiGaussianKernel
from custom_components.deformations.momentum import VectorMomentum
from custom_components.methods.rdmm.metric import (
    MetricSettings,
    RegionFlow,
    RegionSpecificMomentum,
    StationaryMetricMomentum,
)
from custom_components.methods.rdmm.weights import (
    border_mask,
    label_weights,
    smooth_weights,
    softmax_weights,
    weighted_linear_softmax,
)


@images
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("mapping", ["softmax", "linear"])
@kinds
def test_at_zero_the_metric_is_the_ordinary_one(size, spacing, stride, mapping, kind):
    d = len(size)
    deformation = kind(WIDE, spacing, stride=stride, metric=MetricSettings(1.5, mapping))
    parameters = parameters_for(deformation, size, 2)
    parameters[:, d:] = 0
    one = deformation(parameters, size, inverse=True)
    ordinary = VectorMomentum(WIDE, spacing, stride=stride, stationary=kind is StationaryMetricMomentum)
    other = ordinary(parameters[:, :d], size, inverse=True)
    assert set(other) | {"weights", "pre_weights", "raw_weights", "sigma", "grid_spacing"} == set(one)
    for name, value in other.items():
        torch.testing.assert_close(one[name], value, rtol=1e-5, atol=1e-5)
    small = deformation.parameter_size(size)
    base = torch.tensor(BASE, dtype=torch.float64).view(1, 3, *[1] * d).expand(2, 3, *small)
    torch.testing.assert_close(one["weights"], base ** (1 / kind.power))
    sigma = (torch.tensor(BASE) * torch.tensor(WIDE.sigmas).square()).sum().sqrt().double()
    torch.testing.assert_close(one["sigma"], sigma.expand(2, 1, *small), check_stride=False)


@images
@kinds
def test_parameters_carry_momentum_and_weights(size, spacing, kind):
    deformation = kind(WIDE, spacing, metric=MetricSettings(1.5))
    d, parameters = len(size), parameters_for(deformation, size, 2, 2.0)
    pred = deformation(parameters, size, inverse=True)
    small, power = deformation.parameter_size(size), kind.power
    assert pred["ddf"].shape == pred["inverse_ddf"].shape == (2, d, *size)
    assert pred["weights"].shape == pred["pre_weights"].shape == pred["raw_weights"].shape == (2, 3, *small)
    assert pred["sigma"].shape == (2, 1, *small)
    torch.testing.assert_close(pred["pre_weights"].pow(power).sum(1), torch.ones(2, *small).double())
    grid = deformation.parameter_spacing(parameters, size)
    smoothed = smooth_weights(pred["pre_weights"], 1.5, grid)
    torch.testing.assert_close(pred["weights"], smoothed)
    assert pred["weights"].std((0, 2)).max() > 0.02
    squares = torch.tensor(WIDE.sigmas).double().square().view(1, 3, *[1] * d)
    torch.testing.assert_close(pred["sigma"], (smoothed.pow(power) * squares).sum(1, keepdim=True).sqrt())
    unit = torch.tensor(grid).view(1, -1, *[1] * d)
    energy = (pred["momentum"] * unit * pred["velocity"] * unit).sum(1).flatten(1).mean(1)
    torch.testing.assert_close(pred["energy"], energy)
    assert pred["ddf"].norm(dim=1).max() > 0.6
    assert fields.compose(pred["ddf"], pred["inverse_ddf"]).norm(dim=1).mean() < 0.06
    assert fields.jacobian_determinant(pred["ddf"]).min() > 0
    assert "inverse_ddf" not in deformation(parameters, size)


@images
@kinds
def test_given_pre_weights_do_what_those_of_the_parameters_do(size, spacing, kind):
    deformation = kind(WIDE, spacing, metric=MetricSettings(1.5))
    parameters = parameters_for(deformation, size, 2)
    pred = deformation(parameters, size)
    given = deformation.given(7 * pred["pre_weights"])
    assert given.parameter_channels(len(size)) == len(size)
    assert deformation.given_weights is None
    again = given(parameters[:, : len(size)], size)
    for name in ("ddf", "pre_weights", "energy"):
        torch.testing.assert_close(again[name], pred[name])
    assert "raw_weights" not in again
    shared = deformation.given(pred["pre_weights"][:1])(parameters[:, : len(size)], size)
    torch.testing.assert_close(shared["ddf"][:1], pred["ddf"][:1])
    assert shared["ddf"].shape == pred["ddf"].shape


def test_given_pre_weights_of_another_size_are_resized():
    size = (33, 28)
    h = label_weights((fields.identity_grid(size)[:1] > 15).long()[None], {1: (1, 0, 0)}, (0, 0, 1), sigma=2.0)
    deformation = RegionSpecificMomentum(WIDE, metric=MetricSettings(1.0)).given(h)
    pred = deformation(torch.zeros(1, 2, 17, 14), size)
    assert pred["pre_weights"].shape == (1, 3, 17, 14)
    torch.testing.assert_close(pred["pre_weights"].square().sum(1), torch.ones(1, 17, 14))
    torch.testing.assert_close(pred["sigma"][0, 0, [0, -1], 3], torch.tensor([4.0, 1.5]), rtol=0.01, atol=0)
    assert not pred["ddf"].any()


def test_the_mask_of_a_deformation_stops_the_border():
    size = (33, 28)
    free = RegionSpecificMomentum(WIDE, metric=MetricSettings(1.5))
    masked = RegionSpecificMomentum(WIDE, metric=MetricSettings(1.5, margin=4.0, margin_sigma=1.0))
    parameters = parameters_for(free, size)
    borders = [p["velocity"][:, :, 0].abs().max() for p in (masked(parameters, size), free(parameters, size))]
    assert borders[0] < 0.02 * borders[1]


def test_the_mask_of_a_deformation_is_as_wide_on_other_grids():
    size, spacing = (64, 48), (1.0, 1.5)
    free = StationaryMetricMomentum(WIDE, spacing, metric=MetricSettings(1.5))
    masked = StationaryMetricMomentum(WIDE, spacing, metric=MetricSettings(1.5, margin=12.0))
    for factor in (1, 2, 4):
        coarse = tuple(n // factor for n in size)
        pair = [deformation.on_grid(size, coarse) for deformation in (masked, free)]
        parameters = parameters_for(pair[0], coarse)
        parameters[:, :2] = 1
        shares = [float(d(parameters, coarse)["velocity"].abs()[:, :, 0].mean()) for d in pair]
        assert shares[0] < 0.2 * shares[1], factor


def test_another_grid_keeps_the_deformation():
    size, small = (97, 81), (65, 61)
    kernel = MultiGaussianKernel((8.0, 14.0, 20.0), BASE, padding="zeros")
    deformation = RegionSpecificMomentum(kernel, (1.0, 1.2), metric=MetricSettings(6.0))
    momentum, _ = scene(deformation.parameter_size(size), (1 / 48, 1 / 40), 15.0)
    x = torch.stack([bump(momentum.shape[2:], (1 / 48, 1 / 40), (c, 0.5), 0.2) for c in (0.3, 0.5, 0.7)])[None]
    parameters = torch.cat([momentum, x], 1)
    pred = deformation(parameters, size)
    coarse = deformation.on_grid(size, small)
    assert deformation.spacing == (1.0, 1.2)
    resized = deformation.resize(parameters, coarse.parameter_size(small))
    assert resized.shape == (1, 5, *coarse.parameter_size(small))
    torch.testing.assert_close(deformation.resize(momentum, (33, 31)), fields.resize_field(momentum, (33, 31)))
    other = coarse(resized, small)
    assert pred["ddf"].abs().max() > 3
    error = fields.resize_field(other["ddf"], size) - pred["ddf"]
    assert error.abs().max() < 0.05 * pred["ddf"].abs().max()
    torch.testing.assert_close(other["energy"], pred["energy"], rtol=0.03, atol=0)


@images
def test_unknowns_are_parameters_and_back(size, spacing):
    deformation = RegionSpecificMomentum(WIDE, spacing, metric=MetricSettings(1.5, weight_scale=4.0))
    d, parameters = len(size), parameters_for(deformation, size)
    unknown = deformation.to_unknown(parameters, size)
    torch.testing.assert_close(deformation.from_unknown(unknown, size), parameters)
    torch.testing.assert_close(unknown[:, d:], parameters[:, d:] / 4)
    expected = VectorMomentum(WIDE, spacing).to_unknown(parameters[:, :d], size)
    torch.testing.assert_close(unknown[:, :d], expected)
    given = deformation.given(softmax_weights(parameters[:, d:], BASE, squared=True))
    torch.testing.assert_close(given.to_unknown(parameters[:, :d], size), expected)


@images
def test_a_root_is_another_name_of_the_momentum(size, spacing):
    root = RegionSpecificMomentum(WIDE, spacing, metric=MetricSettings(1.5), quantity="root")
    plain = RegionSpecificMomentum(WIDE, spacing, metric=MetricSettings(1.5))
    d, parameters = len(size), parameters_for(plain, size)
    assert root.to_unknown(parameters, size) is root.from_unknown(parameters, size) is parameters
    roots = torch.cat([plain.to_unknown(parameters, size)[:, :d], parameters[:, d:]], 1)
    one, other = root(roots, size), plain(parameters, size)
    for name, value in other.items():
        torch.testing.assert_close(one[name], value)


@pytest.mark.parametrize("size", [(9, 8), (6, 7, 5)], ids=["2-D", "3-D"])
@kinds
def test_deformations_are_differentiable(size, kind):
    deformation = kind(WIDE, ANISOTROPIC[: len(size)], 2, metric=MetricSettings(1.0, margin=1, margin_sigma=0.5))
    parameters = parameters_for(deformation, size).requires_grad_()
    names = ("ddf", "inverse_ddf", "velocity", "energy", "weights", "sigma")

    def parts(p):
        pred = deformation(p, size, inverse=True)
        return tuple(pred[name] for name in names)

    assert gradcheck(parts, (parameters,), fast_mode=True)


@kinds
def test_autocast_and_low_precision_change_nothing(kind):
    size = (17, 14)
    deformation = kind(WIDE, metric=MetricSettings(1.0))
    parameters = parameters_for(deformation, size, dtype=torch.bfloat16)
    plain = deformation(parameters.float(), size, inverse=True)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = deformation(parameters, size, inverse=True)
    for name, value in plain.items():
        assert mixed[name].dtype == torch.float32, name
        assert torch.equal(mixed[name], value), name


@pytest.mark.parametrize("size", [(9, 8), (6, 7, 5)], ids=["2-D", "3-D"])
@pytest.mark.parametrize("form", ["square", "sqrt"])
@pytest.mark.parametrize("masked", [False, True])
def test_the_metric_is_symmetric_and_positive(size, form, masked):
    spacing = ANISOTROPIC[: len(size)]
    a, _ = random_case(size)
    b, weights = a.flip(2).roll(1, 1), random_case(size)[1].square()
    mask = border_mask(size, 1, 0.6, spacing, like=a) if masked else None

    def velocity(m):
        if form == "square":
            return RegionFlow(VOXELS, weights, weight_sigma=0, spacing=spacing, mask=mask).respond(m, weights)[0]
        settings = MetricSettings(0.5, margin=float(masked), margin_sigma=0.6)
        deformation = StationaryMetricMomentum(VOXELS, spacing, 1, stride=1, metric=settings).given(weights)
        unit = torch.tensor(spacing).view(1, -1, *[1] * len(size))
        return deformation(0.1 * m / unit, size)["velocity"] * unit

    torch.testing.assert_close((a * velocity(b)).sum(), (velocity(a) * b).sum())
    assert (a * velocity(a)).sum() > 0


def voxels(**options):
    return RegionSpecificMomentum(VOXELS, metric=MetricSettings(1.0), **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, h: shot_of(m[:, :1], h, VOXELS, weight_sigma=1.0), r"got \(1, 1, 8, 9\)"),
        (lambda m, h: shot_of(m, h[:, :2], VOXELS, weight_sigma=1.0), r"expected pre-weights of shape \(1 or 1, 3"),
        (lambda m, h: shot_of(m, h[..., 1:], VOXELS, weight_sigma=1.0), r"8, 9\), got \(1, 3, 8, 8\)"),
        (lambda m, h: shot_of(m, h, VOXELS, weight_sigma=1.0, num_steps=0), "num_steps of at least 1"),
        (lambda m, h: shot_of(m, h, VOXELS, weight_sigma=-1.0), "positive standard deviations"),
        (lambda m, h: shot_of(m, h, VOXELS, weight_sigma=1.0, spacing=0.0), "expected a positive spacing"),
        (lambda m, h: VOXELS.each(h[:, :2]), r"expected values of shape \(B, 3, C, \*S\)"),
        (lambda m, h: border_mask((8, 9), 4, 1.0), r"leaves an interior of \(8, 9\) voxels, got 4"),
        (lambda m, h: softmax_weights(h, (0.5, 0.5)), "expected 3 positive base weights"),
        (lambda m, h: softmax_weights(h, (0.5, 0.5, 0.0)), "expected 3 positive base weights"),
        (lambda m, h: weighted_linear_softmax(h, BASE, minimum=0.25), "below the base"),
        (lambda m, h: weighted_linear_softmax(h, BASE, minimum=0.5), "below the base"),
        (lambda m, h: weighted_linear_softmax(h, BASE, minimum=-0.1), "at least 0"),
        (lambda m, h: label_weights(h[:, :1].long(), {2: (1.0,)}, (1.0, 2.0)), "expected 2 weights .* for label 2"),
        (lambda m, h: label_weights(h[:, :1].long(), {}, (0.0, 0.0)), "for the rest, got"),
        (lambda m, h: MetricSettings(1.0, mapping="relu"), "mapping softmax or linear"),
        (lambda m, h: voxels(quantity="velocity"), "momentum or root"),
        (lambda m, h: MetricSettings(-1.0), "deviations of at least 0"),
        (lambda m, h: MetricSettings(1.0, weight_scale=0.0), "weight scale above 0"),
        (lambda m, h: voxels()(m, (16, 18)), "of 5 channels, the first 2 a momentum, in 2-D"),
        (
            lambda m, h: voxels().given(h)(torch.cat([m, h], 1), (16, 18)),
            "expected parameters of 2 channels, the first 2 a momentum, in 2-D",
        ),
    ],
)
def test_the_metric_refuses_settings_and_parameters_that_do_not_fit(call, message):
    momentum, h = random_case((8, 9))
    with pytest.raises(ValueError, match=message):
        call(momentum, h)
