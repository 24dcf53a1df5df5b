"""Gaussian velocities against explicit matrices: smoothing, the prior's trace, the KL divergence, samples."""

import math

import pytest
import torch

from custom_components.methods.voxelmorph_probabilistic.deformation import GaussianVelocity
from custom_components.methods.voxelmorph_probabilistic.gaussian import (
    default_smoothing,
    kernel_energy,
    prior_trace,
    smooth,
    smoothed_variance,
)
from custom_components.methods.voxelmorph_probabilistic.objective import GaussianKL

SIZES = [(5, 4), (4, 3, 5)]
both = pytest.mark.parametrize("size", SIZES, ids=["2-D", "3-D"])
# 2 voxels reach over both ends of these grids.
smoothings = pytest.mark.parametrize("smoothing", [0, 0.8, 2.0])
LIKE = torch.zeros((), dtype=torch.float64)


def laplacian(size):
    """L = D - A of the grid graph, edge by edge."""
    index = torch.arange(math.prod(size)).view(size)
    matrix = torch.zeros(index.numel(), index.numel(), dtype=torch.float64)
    for axis, n in enumerate(size):
        pairs = zip(index.narrow(axis, 0, n - 1).flatten(), index.narrow(axis, 1, n - 1).flatten(), strict=True)
        for a, b in pairs:
            matrix[a, a] += 1
            matrix[b, b] += 1
            matrix[a, b] -= 1
            matrix[b, a] -= 1
    return matrix


def smoothing_matrix(size, smoothing):
    """C: its columns are smoothed unit vectors."""
    n = math.prod(size)
    return smooth(torch.eye(n, dtype=torch.float64).view(n, 1, *size), smoothing).flatten(1).T


def random_posterior(size, batch=1, seed=0):
    """Mean, then log variance around -1, (B, 2 D, *S)."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(batch, 2 * len(size), *size, dtype=torch.float64, generator=generator)
    values[:, len(size) :] = 0.5 * values[:, len(size) :] - 1
    return values


def best_posterior(size, kappa, prior_precision=10.0):
    """Mean 0 and log variance -log(lambda kappa), (1, 2 D, *S)."""
    log_variance = -torch.log(prior_precision * kappa).expand(1, len(size), *size)
    return torch.cat([torch.zeros_like(log_variance), log_variance], 1)


@pytest.mark.parametrize("size", [*SIZES, (1, 5), (4, 1, 3)], ids=str)
@smoothings
def test_trace_of_the_prior_is_that_of_explicit_matrices(size, smoothing):
    c = smoothing_matrix(size, smoothing)
    trace = prior_trace(size, smoothing, like=LIKE)
    assert trace.shape == (1, 1, *size)
    torch.testing.assert_close(trace.flatten(), (c.T @ laplacian(size) @ c).diagonal(), rtol=0, atol=1e-10)


@both
def test_trace_without_smoothing_is_the_degree(size):
    degree, d = prior_trace(size, 0, like=LIKE)[0, 0], len(size)
    assert degree[(0,) * d] == degree[(-1,) * d] == d
    assert degree[(1,) * d] == 2 * d
    assert torch.equal(
        prior_trace((*size[:-1], 1), 0, like=LIKE)[0, 0, ..., 0], prior_trace(size[:-1], 0, like=LIKE)[0, 0]
    )


# Computed elsewhere from an explicit Laplacian, for a kernel of unit sum.
@pytest.mark.parametrize(
    ("smoothing", "interior", "corner"), [(1.0, 0.0298, 0.0091), (1.56, 0.003464, None), (2.12, 0.000765, None)]
)
def test_trace_has_the_known_values_in_3d(smoothing, interior, corner):
    trace = prior_trace((21, 21, 21), smoothing, like=LIKE)[0, 0] * kernel_energy(smoothing, 3)
    assert float(trace[10, 10, 10]) == pytest.approx(interior, rel=2e-3)
    if corner is not None:
        assert float(trace[0, 0, 0]) == pytest.approx(corner, rel=5e-3)


@pytest.mark.parametrize(("prior_precision", "expected"), [(10, 1.56), (20, 1.97), (25, 2.12)])
def test_default_smoothing_follows_from_the_precision(prior_precision, expected):
    smoothing = default_smoothing(prior_precision, 3)
    assert smoothing == pytest.approx(expected, abs=0.005)
    # The peak of a Gaussian of unit sum is 1 / (2 D lambda), in 2-D as in 3-D.
    for d in (2, 3):
        peak = (2 * math.pi * default_smoothing(prior_precision, d) ** 2) ** (-d / 2)
        assert peak == pytest.approx(1 / (2 * d * prior_precision))


def test_kernel_energy_is_that_of_a_gaussian_density():
    assert kernel_energy(0, 3) == 1
    for d in (2, 3):
        assert kernel_energy(1.5, d) == pytest.approx((2 * math.sqrt(math.pi) * 1.5) ** -d, rel=1e-3)


@pytest.mark.parametrize("size", [(13, 15), (13, 11, 15)], ids=["2-D", "3-D"])
def test_a_smoothed_impulse_is_a_gaussian_of_unit_energy(size):
    center = [n // 2 for n in size]
    impulse = torch.zeros(1, 1, *size, dtype=torch.float64)
    impulse[(0, 0, *center)] = 1
    result = smooth(impulse, 1.2)[0, 0]
    grid = torch.stack(torch.meshgrid(*[torch.arange(n) - c for n, c in zip(size, center, strict=True)], indexing="ij"))
    expected = torch.exp(-grid.double().square().sum(0) / (2 * 1.2**2)) * (grid.abs() <= 5).all(0)
    torch.testing.assert_close(result, expected / expected.square().sum().sqrt())


@both
def test_no_smoothing_returns_the_tensor_itself(size):
    noise = torch.randn(2, 3, *size)
    assert smooth(noise, 0) is noise
    assert smoothed_variance(noise, 0) is noise


@both
@smoothings
def test_smoothing_acts_on_each_channel_as_a_symmetric_matrix(size, smoothing):
    c, noise = smoothing_matrix(size, smoothing), random_posterior(size, batch=2)
    torch.testing.assert_close(c, c.T)
    torch.testing.assert_close(smooth(noise, smoothing).flatten(2), noise.flatten(2) @ c.T)


@both
@smoothings
def test_variance_of_smoothed_noise_is_the_diagonal_of_its_covariance(size, smoothing):
    c, variance = smoothing_matrix(size, smoothing), random_posterior(size, batch=2).exp()
    for result, given in zip(smoothed_variance(variance, smoothing).flatten(0, 1), variance.flatten(0, 1), strict=True):
        torch.testing.assert_close(result.flatten(), (c @ given.flatten().diag() @ c.T).diagonal())


def test_white_noise_keeps_its_variance_away_from_the_border_and_loses_some_at_it():
    noise = torch.randn(300, 1, 24, 25, generator=torch.Generator().manual_seed(0))
    variance = smoothed_variance(torch.ones(1, 1, 24, 25), 1.5)[0, 0]
    torch.testing.assert_close(variance[6:-6, 6:-6], torch.ones(12, 13))
    assert variance[0, 0] < variance[0, 12] < 0.7
    assert float(smooth(noise, 1.5)[..., 6:-6, 6:-6].square().mean()) == pytest.approx(1, abs=0.05)


def divergence(posterior, smoothing, prior_precision):
    """KL(N(mean, C diag(exp l) C^T) || N(0, (lambda L)^-1)) by matrices, summed over the components.

    Constants are left in: the prior is flat along constant fields, its determinant is the product of the others.
    """
    size = posterior.shape[2:]
    c, precision = smoothing_matrix(size, smoothing), prior_precision * laplacian(size)
    log_pdet = torch.linalg.eigvalsh(precision)[1:].log().sum()
    total = 0.0
    for mean, log_variance in zip(*posterior[0].flatten(1).chunk(2), strict=True):
        covariance = c @ log_variance.exp().diag() @ c.T
        total += torch.trace(precision @ covariance) + mean @ precision @ mean
        total += -torch.logdet(covariance) - len(mean) - log_pdet
    return 0.5 * total


def divergence_constants(size, smoothing, prior_precision):
    """What `GaussianKL` leaves out of `divergence`: k, log pdet(lambda L) and 2 log |det C|, for each component."""
    log_pdet = torch.linalg.eigvalsh(prior_precision * laplacian(size))[1:].log().sum()
    log_det_c = torch.linalg.slogdet(smoothing_matrix(size, smoothing)).logabsdet
    return -0.5 * len(size) * (math.prod(size) + log_pdet + 2 * log_det_c)


@both
@pytest.mark.parametrize("smoothing", [0, 0.8])
@pytest.mark.parametrize("prior_precision", [1.0, 10.0])
def test_exact_divergence_is_that_of_explicit_matrices(size, smoothing, prior_precision):
    posterior = random_posterior(size).requires_grad_()
    loss = GaussianKL(prior_precision, smoothing=smoothing, exact=True)(posterior) * math.prod(size)
    expected = divergence(posterior, smoothing, prior_precision)
    constants = divergence_constants(size, smoothing, prior_precision)
    torch.testing.assert_close(loss + constants, expected, rtol=1e-9, atol=1e-9)
    gradients = [torch.autograd.grad(value, posterior)[0] for value in (loss, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-7)


@both
def test_divergence_is_the_mean_over_the_batch(size):
    posterior = random_posterior(size, batch=3)
    for exact in (False, True):
        loss = GaussianKL(exact=exact)
        torch.testing.assert_close(loss(posterior), torch.stack([loss(p[None]) for p in posterior]).mean())


@both
@pytest.mark.parametrize("smoothing", [0, 0.8])
def test_reference_divergence_is_its_formula(size, smoothing):
    d, posterior = len(size), random_posterior(size)
    mean, log_variance = posterior.chunk(2, 1)
    noise = (10 * prior_trace(size, smoothing, like=LIKE) * log_variance.exp() - log_variance).mean()
    slopes = sum((mean.narrow(a, 1, n - 1) - mean.narrow(a, 0, n - 1)).square().mean() for a, n in enumerate(size, 2))
    expected = 0.5 * d * (noise + 10 / (2 * d) * slopes)
    torch.testing.assert_close(GaussianKL(10, smoothing=smoothing)(posterior), expected)


@both
def test_reference_weighs_the_smoothness_of_the_mean_by_1_over_2_d(size):
    d = len(size)
    flat = torch.zeros(1, 2 * d, *size, dtype=torch.float64)
    for axis, n in enumerate(size):
        # A mean that varies along this axis alone.
        posterior = flat.clone()
        posterior[:, :d] = torch.randn(d, n, dtype=torch.float64).view(d, *[n if a == axis else 1 for a in range(d)])
        reference, exact = (
            GaussianKL(exact=exact)(posterior) - GaussianKL(exact=exact)(flat) for exact in (False, True)
        )
        # The reference divides by the number of differences, n - 1, the divergence by that of voxels.
        torch.testing.assert_close(reference, exact / (2 * d) * n / (n - 1))


@pytest.mark.parametrize(("prior_precision", "floor"), [(10, 7.64), (15, 8.25), (25, 9.02)])
def test_divergence_has_the_published_floor(prior_precision, floor):
    assert 1.5 * (1 + math.log(6 * prior_precision)) == pytest.approx(floor, abs=0.005)
    size = (48, 48, 48)
    best = best_posterior(size, prior_trace(size, 0, like=torch.zeros(())), prior_precision)
    value = float(GaussianKL(prior_precision, smoothing=0)(best))
    assert floor - 0.05 < value < floor


@both
@pytest.mark.parametrize("smoothing", [0, 0.8, None])
@pytest.mark.parametrize("exact", [False, True])
def test_divergence_is_least_at_a_constant_mean_and_the_priors_variance(size, smoothing, exact):
    loss = GaussianKL(10, smoothing=smoothing, exact=exact)
    kappa = prior_trace(size, default_smoothing(10, len(size)) if smoothing is None else smoothing, like=LIKE)
    best = best_posterior(size, kappa)
    best[:, : len(size)] = 1.5
    floor = 0.5 * len(size) * (1 + torch.log(10 * kappa).mean())
    torch.testing.assert_close(loss(best), floor)
    gradient = torch.autograd.grad(loss(best.requires_grad_()), best)[0]
    assert gradient.abs().max() < 1e-12
    for seed in range(5):
        change = random_posterior(size, seed=seed)
        for step in (-1, -0.01, 0.01, 1):
            assert loss(best + step * change) > floor


@both
def test_divergence_at_the_networks_start_is_half_of_d_times_10(size):
    start = torch.zeros(1, 2 * len(size), *size)
    start[:, len(size) :] = -10
    assert float(GaussianKL(smoothing=0)(start)) == pytest.approx(0.5 * len(size) * 10, abs=0.01)


def draws(size, posterior, smoothing, num):
    """`num` samples of the velocity, flattened over components and voxels, (num, D N)."""
    deformation = GaussianVelocity(0, 1, smoothing=smoothing)
    parameters = posterior.expand(num, *posterior.shape[1:])
    return deformation.draw(parameters, size, generator=torch.Generator().manual_seed(0))["svf"].flatten(1)


@both
@smoothings
def test_samples_have_the_covariance_of_the_posterior(size, smoothing):
    num, posterior = 4000, random_posterior(size)
    mean, log_variance = posterior.flatten(2)[0].chunk(2)
    c = smoothing_matrix(size, smoothing)
    # The components are independent.
    covariance = torch.block_diag(*[c @ component.exp().diag() @ c.T for component in log_variance])
    variance = covariance.diagonal()
    velocity = draws(size, posterior, smoothing, num) - mean.flatten()
    # A sample covariance has the variance (C_ii C_jj + C_ij^2) / num; six standard deviations for 32,400 of them.
    tolerance = 6 * ((variance.outer(variance) + covariance.square()) / num).sqrt()
    assert ((velocity.T @ velocity / num - covariance).abs() < tolerance).all()
    assert (velocity.mean(0).abs() < 6 * (variance / num).sqrt()).all()
    velocity_sd = GaussianVelocity(smoothing=smoothing).velocity_sd(posterior)
    assert velocity_sd.shape == (1, len(size), *size)
    torch.testing.assert_close(velocity_sd.flatten(), variance.sqrt())


@pytest.mark.parametrize(("trace", "expected"), [("posterior", 0.41), ("degree", 0.01)])
def test_the_trace_of_a_diagonal_posterior_makes_smoothed_noise_vanish(trace, expected):
    size, smoothing = (27, 27, 27), default_smoothing(10, 3)
    if trace == "posterior":
        kappa = prior_trace(size, smoothing, like=LIKE)
    else:
        kappa = prior_trace(size, 0, like=LIKE) / kernel_energy(smoothing, 3)
    best = best_posterior(size, kappa).requires_grad_()
    assert torch.autograd.grad(GaussianKL(10, trace=trace)(best), best)[0].abs().max() < 1e-12
    velocity_sd = GaussianVelocity(prior_precision=10).velocity_sd(best.detach())
    assert float(velocity_sd[0, 0, 13, 13, 13]) == pytest.approx(expected, abs=0.005)
    velocity = draws(size, best.detach().float(), None, 4).view(4, 3, *size)[..., 7:-7, 7:-7, 7:-7]
    # The 26,000 values hold about 150 independent ones: their SD is known to 6 %.
    assert float(velocity.std()) == pytest.approx(expected, rel=0.2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: GaussianKL(0), "prior precision above 0"),
        (lambda: GaussianKL(trace="naive"), "posterior or degree"),
        (lambda: GaussianKL()(torch.zeros(1, 2, 4, 5)), r"4 channels, got shape \(1, 2, 4, 5\)"),
        (lambda: GaussianVelocity().velocity_sd(torch.zeros(1, 3, 4, 5, 6)), r"6 channels, got .* \(1, 3, 4, 5, 6\)"),
    ],
)
def test_gaussians_refuse_settings_and_channels_that_do_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_samples_keep_float32_under_autocast():
    parameters = torch.randn(1, 6, 5, 6, 7)
    torch.manual_seed(0)
    wanted = GaussianVelocity().draw(parameters, (10, 12, 14))["ddf"]
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(0)
        assert torch.equal(GaussianVelocity().draw(parameters, (10, 12, 14))["ddf"], wanted)


@pytest.mark.parametrize("arguments", [{"smoothing": -0.1}, {"prior_precision": 0}])
def test_impossible_distributions_are_refused(arguments):
    with pytest.raises(ValueError, match="expected a"):
        GaussianVelocity(**arguments)
    with pytest.raises(ValueError, match="expected a"):
        GaussianKL(**arguments)
