"""Time-dependent LDDMM by relaxation: reference numbers, the adjoint, what holds at the optimum, shooting's answer."""

import itertools

import pytest
import torch
from inference.cases import both
from inference.test_demons import blob

from custom_components.data.phantoms import phantom_pair
from custom_components.deformations.kernels import HelmholtzKernel
from custom_components.deformations.momentum import VectorMomentum
from custom_components.deformations.time_velocity import TimeVelocity, maps_to_end, maps_to_start
from custom_components.fields import compose, identity_grid, jacobian_determinant, spatial_gradient, warp
from custom_components.inference.level import Evaluation
from custom_components.inference.refinement import PairwiseOptimizer
from custom_components.inference.refiner import refiner
from custom_components.inference.relaxation import Relaxation, body_force
from custom_components.losses.pair import pair_loss
from custom_components.losses.similarity import MSE

KERNEL = HelmholtzKernel(alpha=4.0, gamma=1.0, power=2)
NOISE, SIZE = 0.02, (48, 48)


def cubic(field, ddf):
    """Periodic interpolation by cubic B-splines."""
    n, d = field.shape[2:], field.ndim - 2
    waves = torch.fft.rfftn(field, dim=list(range(2, field.ndim)))
    for axis in range(d):
        m = waves.shape[axis + 2]
        omega = 2 * torch.pi * torch.arange(m, dtype=field.dtype) / n[axis]
        waves = waves / (2 / 3 + torch.cos(omega) / 3).view(-1, *[1] * (d - 1 - axis))
    points = torch.fft.irfftn(waves, s=n, dim=list(range(2, field.ndim)))
    where = identity_grid(n, dtype=field.dtype) + ddf[0]
    base = where.floor()
    t = where - base
    weights = [
        ((1 - t) ** 3 / 6, (3 * t**3 - 6 * t**2 + 4) / 6, (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6, t**3 / 6)[k]
        for k in range(4)
    ]
    result = 0
    for places in itertools.product(range(4), repeat=d):
        index = tuple(((base[i].long() + k - 1) % n[i]) for i, k in enumerate(places))
        weight = torch.stack([weights[k][i] for i, k in enumerate(places)]).prod(0)
        result = result + weight * points[(slice(None), slice(None), *index)]
    return result


class Sums(torch.nn.Module):
    """|v|^2 over time + sum (W - f)^2 / noise, as a mean over the voxels."""

    def forward(self, pred, batch):
        difference = (pred["warped"] - batch["fixed"]).square().sum() / NOISE
        return difference / batch["fixed"][:, 0].numel() + pred["energy"].mean()


def gaussians():
    """The reference pair: blobs of the periodic square."""
    return {"moving": blob(SIZE, (23, 23), 6.0).double(), "fixed": blob(SIZE, (26, 22), 5.0).double()}


def level(batch, *, num_steps=10, look=cubic, loss=None):
    deformation = TimeVelocity(KERNEL, num_steps=num_steps, stride=1)
    if look is not None:
        deformation.look = look
    size = batch["fixed"].shape[2:]
    start = batch["fixed"].new_zeros(1, num_steps * len(size), *size)
    return Evaluation(deformation, loss or Sums(), batch, start)


@pytest.fixture(scope="module")
def relaxed():
    """Steps of a fixed length from zero, as the reference took them, and the losses before each."""
    evaluation = level(gaussians())
    step = Relaxation(step=0.04, growth=1.0, look=cubic)(evaluation, 0)
    return [float(step()) for _ in range(12)]


def test_reference_numbers_of_the_energy(relaxed):
    found = [relaxed[k] for k in (0, 1, 11)]
    expected = [1041.134, 1024.120, 922.527]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=0, atol=0.005)


@pytest.fixture(scope="module")
def optimum():
    evaluation = level(gaussians())
    step = Relaxation(look=cubic)(evaluation, 0)
    losses = [float(step()) for _ in range(45)]
    velocities = evaluation.deformation.velocities(evaluation.unknown.detach())
    return evaluation, losses, velocities


def test_backtracking_reaches_the_reference_optimum(optimum):
    evaluation, losses, velocities = optimum
    assert losses[-1] == pytest.approx(863.928, abs=0.02)
    assert all(after <= before for before, after in itertools.pairwise(losses))
    length = float(evaluation.deformation.energy(velocities, SIZE)) * 48 * 48
    assert length == pytest.approx(141.199, rel=0.002)
    ddf = maps_to_start(velocities, cubic)[-1]
    assert float(ddf.abs().max()) == pytest.approx(0.8506, abs=0.002)
    torch.testing.assert_close(ddf[0, :, 24, 24], torch.tensor([-0.31770, 0.22652]).double(), rtol=0, atol=0.002)
    determinant = jacobian_determinant(ddf)
    assert float(determinant.min()) == pytest.approx(0.9354, abs=0.002)
    assert float(determinant.max()) == pytest.approx(1.2734, abs=0.002)


def test_at_the_optimum_the_speed_is_constant(optimum):
    evaluation, _, velocities = optimum
    speeds = [float(evaluation.deformation.energy([v], SIZE)) ** 0.5 * 48 for v in velocities]
    assert speeds == pytest.approx([11.882] * 10, rel=0.003)


def test_at_the_optimum_the_momentum_is_conserved(optimum):
    """m_t = |D phi_{t,0}| (D phi_{t,0})^T m_0 o phi_{t,0}, with phi_{t,0} in the middle of each step."""
    evaluation, _, velocities = optimum
    momenta = evaluation.deformation.momenta(velocities, SIZE)
    maps = maps_to_start(velocities, cubic)
    begin = (momenta[0] * 3 - momenta[1]) / 2  # at time 0, half a step before the first
    errors = []
    for k in (3, 6):
        middle = (maps[k] + maps[k + 1]) / 2
        slope = spatial_gradient(middle) + torch.eye(2).double().view(1, 2, 2, 1, 1)
        expected = jacobian_determinant(middle) * (slope * cubic(begin, middle).unsqueeze(2)).sum(1)
        errors.append(float((momenta[k] - expected).norm() / expected.norm()))
    assert max(errors) < 0.02


def test_at_the_optimum_the_first_momentum_is_parallel_to_the_images_gradient(optimum):
    evaluation, _, velocities = optimum
    momenta = evaluation.deformation.momenta(velocities, SIZE)
    begin = (momenta[0] * 3 - momenta[1]) / 2
    slope = spatial_gradient(evaluation.batch["moving"])[:, 0]
    across = (begin[:, 0] * slope[:, 1] - begin[:, 1] * slope[:, 0]).norm()
    assert across < 0.02 * (begin.norm(dim=1) * slope.norm(dim=1)).norm()


def test_the_maps_undo_one_another(optimum):
    *_, velocities = optimum
    there, back = maps_to_end(velocities, cubic)[0], maps_to_start(velocities, cubic)[-1]
    assert (back + cubic(there, back)).abs().max() < 1e-3


def derivative(field_too):
    """The similarity along a random direction: by the adjoint, and by finite differences at a velocity."""
    torch.manual_seed(0)
    batch = gaussians()
    deformation = TimeVelocity(KERNEL, num_steps=8, stride=1)
    deformation.look = cubic
    smooth = [2 * KERNEL(torch.randn(1, 16, *SIZE, dtype=torch.float64)) for _ in range(2)]
    smooth[0] = 1.5 * smooth[0] / smooth[0].abs().max()

    window = field_too * blob(SIZE, (22, 25), 5.0).double()  # nothing at the border, which is not periodic here

    def loss(parameters):
        ddf = maps_to_start(deformation.velocities(parameters), cubic)[-1]
        value = (cubic(batch["moving"], ddf) - batch["fixed"]).square().sum()
        return value + (window * ddf.pow(3)).sum()

    velocities = deformation.velocities(smooth[0])
    to_start, to_end = maps_to_start(velocities, cubic), maps_to_end(velocities, cubic)
    image = 2 * (cubic(batch["moving"], to_start[-1]) - batch["fixed"])
    field = window * 3 * to_start[-1].square()
    forces = [
        body_force(batch["moving"], image, field, *both, look=cubic) for both in zip(to_start, to_end, strict=True)
    ]
    means = [-(before + after) / 2 for before, after in itertools.pairwise(forces)]
    adjoint = sum((m * w).sum() for m, w in zip(means, deformation.velocities(smooth[1]), strict=True)) / 8
    step = 1e-4
    differences = (loss(smooth[0] + step * smooth[1]) - loss(smooth[0] - step * smooth[1])) / (2 * step)
    return float(adjoint), float(differences)


@pytest.mark.parametrize("field_too", [0.0, 0.3], ids=["image", "image and field"])
def test_the_adjoint_is_the_derivative(field_too):
    adjoint, differences = derivative(field_too)
    assert adjoint == pytest.approx(differences, rel=0.02)


@both
def test_a_blob_two_voxels_on_in_the_moving_image_is_found_there(size):
    middle = [n // 2 for n in size]
    fixed, moving = blob(size, middle), blob(size, [middle[0] + 2, *middle[1:]])
    loss = pair_loss(1e-5, regularized="energy", similarity=MSE())
    deformation = TimeVelocity(HelmholtzKernel(alpha=9.0, gamma=1.0, power=2), num_steps=5)
    optimizer = PairwiseOptimizer(deformation, loss, levels=[2, 1], iterations=60, method=Relaxation())
    fields = deformation(optimizer(moving, fixed), size, inverse=True)
    here = fields["ddf"][(0, slice(None), *middle)]
    assert float(here[0]) == pytest.approx(2, abs=0.4)
    assert here[1:].abs().max() < 0.2
    assert compose(fields["ddf"], fields["inverse_ddf"]).norm(dim=1).mean() < 0.02


@both
def test_constant_velocities_carry_as_far_whatever_the_steps(size):
    d = len(size)
    shift = torch.tensor([1.5, -0.5, 0.25][:d]).view(1, d, *[1] * d)
    for steps in (1, 4):
        deformation = TimeVelocity(KERNEL, num_steps=steps, stride=1)
        fields = deformation(shift.repeat(1, steps, *[1] * d).expand(1, d * steps, *size), size, inverse=True)
        torch.testing.assert_close(fields["ddf"], -shift.expand(1, d, *size))
        torch.testing.assert_close(fields["inverse_ddf"], shift.expand(1, d, *size))
        # The gain of K is 1: of a constant <L'L v, v> = |v|^2.
        torch.testing.assert_close(fields["energy"], shift.square().sum().reshape(1))


def test_relaxation_finds_what_shooting_finds():
    """Equal energy and equal map, within what the two discretisations differ by."""
    batch = {key: value.float() for key, value in gaussians().items()}
    loss = pair_loss(NOISE, regularized="energy", similarity=MSE())
    shooting = VectorMomentum(KERNEL, num_steps=10, stride=1)
    relaxing = TimeVelocity(KERNEL, num_steps=10, stride=1)
    values, ddfs = [], []
    for deformation, method, iterations in ((shooting, "lbfgs", 60), (relaxing, Relaxation(), 80)):
        optimizer = PairwiseOptimizer(deformation, loss, levels=[1], iterations=iterations, method=method)
        optimizer.tolerance = 1e-6
        parameters = optimizer(batch["moving"], batch["fixed"])
        values.append(Evaluation(deformation, loss, batch, parameters).value())
        ddfs.append(deformation(parameters, SIZE)["ddf"])
    assert values[1] == pytest.approx(values[0], rel=0.01)
    assert (ddfs[1] - ddfs[0]).norm(dim=1).max() < 0.05 * ddfs[0].norm(dim=1).max()


def test_it_is_an_option_of_the_refiner():
    pair = phantom_pair((48, 40), seed=1)
    deformation = TimeVelocity(HelmholtzKernel(9.0, 1.0, power=2), num_steps=4)
    optimizer = refiner(deformation, regularized="energy", similarity="lncc", relaxation=True, iterations=8)
    parameters = optimizer(pair["moving"], pair["fixed"])
    ddf = deformation(parameters, (48, 40))["ddf"]
    before, after = (float((warp(pair["moving"], u) - pair["fixed"]).square().mean()) for u in (0 * ddf, ddf))
    assert after < 0.8 * before
    assert jacobian_determinant(ddf).min() > 0


def test_what_relaxation_cannot_search_is_refused():
    pair = phantom_pair((24, 20), seed=1)
    with pytest.raises(ValueError, match="TimeVelocity"):
        PairwiseOptimizer(VectorMomentum(KERNEL), pair_loss(1.0, regularized="energy"), method=Relaxation())(
            pair["moving"], pair["fixed"]
        )
    with pytest.raises(ValueError, match="weight above 0"):
        PairwiseOptimizer(TimeVelocity(KERNEL), pair_loss(0.0, regularized="energy"), method=Relaxation())(
            pair["moving"], pair["fixed"]
        )
