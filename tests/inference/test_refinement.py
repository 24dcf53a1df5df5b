"""The choice of the similarity for a pair, MIND for images of different contrast, momenta found by optimisation."""

import logging

import pytest
import torch

from custom_components.data.phantoms import phantom_pair, random_velocity
from custom_components.deformations.kernels import HelmholtzKernel, gaussian_kernel
from custom_components.deformations.momentum import VectorMomentum
from custom_components.deformations.shooting import ShootingError
from custom_components.deformations.velocity import StationaryVelocity
from custom_components.fields import jacobian_determinant, warp
from custom_components.inference.contrast import LossByContrast, same_contrast
from custom_components.inference.descent import Diffused, smooth_force
from custom_components.inference.level import DirectEvaluation, Evaluation
from custom_components.inference.refinement import PairwiseOptimizer, ScheduledLoss
from custom_components.inference.refiner import refiner
from custom_components.losses.pair import pair_loss
from custom_components.losses.registration import RegistrationLoss
from custom_components.losses.regularization import GradientPenalty, MeanEnergy
from custom_components.losses.similarity import LNCC, MIND, MSE
from custom_components.methods.voxelmorph_probabilistic.deformation import GaussianVelocity

SIZES = [(48, 44), (32, 36, 28)]
both = pytest.mark.parametrize("size", SIZES, ids=["2d", "3d"])


def contrasts(size, fixed_means=(0.0, 0.6, 0.3, 0.9, 0.45), seed=1):
    """A phantom pair whose fixed image has its own mean for each label (moving: 0, .4, .9, .2, .7)."""
    pair = phantom_pair(size, seed=seed)
    pair = {key: value for key, value in pair.items() if isinstance(value, torch.Tensor)}
    pair["moving"] = torch.tensor([0.0, 0.4, 0.9, 0.2, 0.7])[pair["label_moving"].long()]
    pair["fixed"] = torch.tensor(fixed_means)[pair["label_fixed"].long()]
    return pair


def registration(similarity, weight=0.3):
    return RegistrationLoss(similarity, GradientPenalty(), weight)


@both
def test_one_contrast_is_told_from_two(size):
    assert same_contrast(*[contrasts(size, (0.0, 0.4, 0.9, 0.2, 0.7))[key] for key in ("moving", "fixed")])
    assert not same_contrast(*[contrasts(size)[key] for key in ("moving", "fixed")])


@both
def test_a_scaled_image_has_the_same_contrast_and_an_inverted_one_has_not(size):
    fixed = contrasts(size)["fixed"]
    assert same_contrast(0.6 * fixed + 0.1, fixed)
    assert not same_contrast((1 - fixed) * (fixed > 0), fixed)


def test_every_sample_of_a_batch_must_agree():
    fixed = contrasts(SIZES[0])["fixed"]
    assert not same_contrast(torch.cat([fixed, (1 - fixed) * (fixed > 0)]), torch.cat([fixed, fixed]))


def test_a_mask_restricts_the_comparison():
    fixed = contrasts(SIZES[0])["fixed"]
    half = torch.zeros_like(fixed)
    half[:, :, : fixed.shape[2] // 2] = 1
    moving = torch.where(half > 0, fixed, (1 - fixed) * (fixed > 0))
    assert same_contrast(moving, fixed, half)
    assert not same_contrast(moving, fixed, 1 - half)


def test_empty_images_count_as_different():
    assert not same_contrast(torch.zeros(1, 1, 20, 20), torch.zeros(1, 1, 20, 20))


@pytest.mark.parametrize(
    ("fixed_means", "name"), [((0.0, 0.4, 0.9, 0.2, 0.7), "LNCC"), ((0, 0.6, 0.3, 0.9, 0.4), "MIND")]
)
def test_the_choice_is_logged(fixed_means, name, caplog):
    pair = contrasts(SIZES[0], fixed_means)
    loss = LossByContrast(registration(LNCC()), registration(MIND()))
    optimizer = PairwiseOptimizer(StationaryVelocity(), loss, levels=[2], iterations=1)
    with caplog.at_level(logging.INFO):
        optimizer(pair["moving"], pair["fixed"])
    assert f"refining with {name}" in caplog.text


@both
def test_mind_registers_across_contrasts(size):
    pair = contrasts(size)
    deformation = StationaryVelocity()
    parameters = PairwiseOptimizer(deformation, registration(MIND()), levels=[2, 1], iterations=30)(
        pair["moving"], pair["fixed"]
    )
    warped = warp(pair["label_moving"], deformation(parameters, size)["ddf"], mode="nearest")
    before, after = ((labels == pair["label_fixed"]).float().mean() for labels in (pair["label_moving"], warped))
    assert 1 - after < 0.6 * (1 - before)


@both
def test_mind_is_zero_for_equal_images_and_blind_to_scale_and_sign(size):
    image = contrasts(size)["fixed"] + 0.05 * torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(0))
    mind = MIND(floor=1e-12)
    assert mind(image, image) == 0
    assert mind(0.5 * image + 0.2, image) < 1e-6
    assert mind(1 - image, image) < 1e-6
    assert mind(image.roll(3, 2), image) > 0.01


@both
def test_mind_describes_a_voxel_by_all_pairs_of_neighbours_on_different_axes(size):
    descriptor = MIND().descriptor(torch.rand(2, 1, *size))
    assert descriptor.shape == (2, {2: 4, 3: 12}[len(size)], *size)
    assert descriptor.amax() == 1
    assert descriptor.amin() > 0


def test_gradient_of_mind():
    generator = torch.Generator().manual_seed(0)
    warped, fixed = (torch.rand(1, 1, 7, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    assert torch.autograd.gradcheck(MIND(dilation=1), (warped.requires_grad_(), fixed))


@pytest.mark.parametrize("size", [(33, 28), (20, 17, 18)], ids=["2d", "3d"])
@pytest.mark.parametrize("deformation", [StationaryVelocity(), GaussianVelocity()], ids=["velocity", "gaussian"])
def test_the_mean_is_refined_and_the_log_variance_kept(size, deformation):
    pair, loss, d = contrasts(size, (0.0, 0.4, 0.9, 0.2, 0.7)), registration(LNCC(5)), len(size)
    start = 0.1 * torch.randn(1, 2 * d, *deformation.parameter_size(size), generator=torch.Generator().manual_seed(0))
    result = PairwiseOptimizer(deformation, loss, levels=[2, 1], iterations=5)(pair["moving"], pair["fixed"], start)
    assert result.shape == start.shape
    assert torch.equal(result[:, d:], start[:, d:])

    def value(parameters):
        pred = deformation(parameters[:, :d], size)
        return float(loss({**pred, "warped": warp(pair["moving"], pred["ddf"])}, pair))

    assert value(result) < value(start)


def test_a_log_variance_on_another_grid_is_refused():
    pair = contrasts((20, 18))
    optimizer = PairwiseOptimizer(StationaryVelocity(), registration(LNCC(5)), levels=[1], iterations=1)
    with pytest.raises(ValueError, match=r"size \(10, 9\) with further channels, got shape \(1, 4, 20, 18\)"):
        optimizer(pair["moving"], pair["fixed"], torch.zeros(1, 4, 20, 18))
    # Without further channels the start may have any grid.
    assert optimizer(pair["moving"], pair["fixed"], torch.zeros(1, 2, 20, 18)).shape == (1, 2, 10, 9)


class Levels(VectorMomentum):
    """Notes sizes and spacings of the levels' grids."""

    def on_grid(self, full, size):
        coarse = super().on_grid(full, size)
        self.levels = [*getattr(self, "levels", []), (tuple(size), tuple(coarse.spacing))]
        return coarse


def shot_pair(size=(41, 35), spacing=(1.0, 1.2), stationary=False):
    """A textured image, the same deformed by a smooth momentum, the deformation and its displacement."""
    deformation = Levels(HelmholtzKernel(9.0, 1.0, power=2), spacing, 5, stationary=stationary)
    generator = torch.Generator().manual_seed(2)
    texture = gaussian_kernel(1.5)(torch.randn(1, 1, *size, generator=generator))
    moving = 0.5 + 0.15 * texture / texture.std()
    small = deformation.parameter_size(size)
    momentum = random_velocity(small, amplitude=4.0, spacings=(6.0,), generator=generator)
    ddf = deformation(momentum, size)["ddf"]
    return moving, warp(moving, ddf), deformation, ddf


def optimized(optimizer, moving, fixed):
    """The displacement an optimiser found, and the loss before and after."""
    size, deformation = fixed.shape[2:], optimizer.deformation
    result, losses = optimizer(moving, fixed), []
    for parameters in (torch.zeros_like(result), result):
        pred = deformation(parameters, size)
        pred["warped"] = warp(moving, pred["ddf"])
        losses.append(float(optimizer.loss(pred, {"moving": moving, "fixed": fixed})))
    return pred["ddf"], *losses


@pytest.mark.slow
@pytest.mark.parametrize("stationary", [False, True], ids=["geodesic", "stationary"])
@pytest.mark.parametrize(("similarity", "weight"), [(LNCC(7), 1e-3), (MSE(), 1e-5)], ids=["LNCC", "MSE"])
def test_a_shot_deformation_is_found_again(similarity, weight, stationary):
    moving, fixed, deformation, true = shot_pair(stationary=stationary)
    assert true.norm(dim=1).max() > 2
    loss = RegistrationLoss(similarity, MeanEnergy(), weight, regularized="energy")
    optimizer = PairwiseOptimizer(deformation, loss, levels=[2, 1], iterations=15, method="lbfgs")
    ddf, before, after = optimized(optimizer, moving, fixed)
    assert after < 0.1 * before
    assert similarity(warp(moving, ddf), fixed) < 0.1 * similarity(moving, fixed)
    inside = (slice(None), slice(None), slice(5, -5), slice(5, -5))
    assert (ddf - true)[inside].norm(dim=1).mean() < 0.15 * true[inside].norm(dim=1).mean()
    assert jacobian_determinant(ddf).min() > 0


@pytest.mark.parametrize("method", ["adam", "lbfgs"])
def test_levels_keep_the_kernel_in_its_own_unit(method):
    moving, fixed, deformation, _ = shot_pair()
    loss = RegistrationLoss(MSE(), MeanEnergy(), 1e-5, regularized="energy")
    optimizer = PairwiseOptimizer(deformation, loss, levels=[2, 1], iterations=[5, 0], method=method)
    _, before, coarse = optimized(optimizer, moving, fixed)
    assert coarse < 0.8 * before
    (size, spacing), (full, full_spacing) = deformation.levels
    assert (size, full, full_spacing) == ((21, 18), (41, 35), (1.0, 1.2))
    assert spacing == pytest.approx((2.0, 2.4))
    assert deformation.spacing == (1.0, 1.2)
    optimizer.iterations = [5, 5]
    assert optimized(optimizer, moving, fixed)[2] < coarse


class NowAndThen(VectorMomentum):
    """Cannot be shot at some of the evaluations."""

    def __init__(self, *args, fails, **options):
        super().__init__(*args, **options)
        self.fails, self.calls = fails, 0

    def __call__(self, *args, **options):
        self.calls += 1
        if self.calls in self.fails:
            raise ShootingError("too far")
        return super().__call__(*args, **options)


def test_a_trial_that_cannot_be_shot_is_tried_nearer():
    moving, fixed, plain, _ = shot_pair()
    loss = RegistrationLoss(MSE(), MeanEnergy(), 1e-5, regularized="energy")
    options = {"kernel": plain.kernel, "spacing": plain.spacing, "num_steps": plain.num_steps, "stride": plain.stride}
    after = []
    for fails in ((), (5, 6, 11)):
        deformation = NowAndThen(fails=fails, **options)
        optimizer = PairwiseOptimizer(deformation, loss, levels=[1], iterations=10, method="lbfgs")
        after.append(optimized(optimizer, moving, fixed)[2])
    assert after[1] < 1.5 * after[0]
    with pytest.raises(ShootingError, match="too far"):
        PairwiseOptimizer(NowAndThen(fails=(1,), **options), loss, levels=[1], iterations=5, method="lbfgs")(
            moving, fixed
        )
    with pytest.raises(ShootingError, match="too far"):
        PairwiseOptimizer(NowAndThen(fails=(3,), **options), loss, levels=[1], iterations=5, method="adam")(
            moving, fixed
        )


class Watching(ScheduledLoss):
    """Notes the iterations it is told, and says that it changes in all of them or in none."""

    def __init__(self, changes=False):
        self.changes, self.iterations = changes, []

    def on_iteration(self, iteration):
        self.iterations.append(iteration)
        return self.changes

    def __call__(self, pred, batch):
        return (pred["warped"] - batch["fixed"]).square().mean()


@pytest.mark.parametrize("method", ["adam", "lbfgs"])
def test_a_scheduled_loss_is_told_each_iteration_over_all_levels(method):
    pair, loss = contrasts((24, 20), (0.0, 0.4, 0.9, 0.2, 0.7)), Watching()
    PairwiseOptimizer(StationaryVelocity(), loss, levels=[2, 1], iterations=[3, 2], method=method)(
        pair["moving"], pair["fixed"]
    )
    assert loss.iterations == [0, 1, 2, 3, 4]


def test_a_refinement_of_given_parameters_is_beyond_any_schedule():
    pair, loss = contrasts((24, 20), (0.0, 0.4, 0.9, 0.2, 0.7)), Watching()
    start = torch.zeros(1, 2, 12, 10)
    PairwiseOptimizer(StationaryVelocity(), loss, levels=[1], iterations=3)(pair["moving"], pair["fixed"], start)
    assert min(loss.iterations) > 10**6


@pytest.mark.parametrize(("changes", "expected"), [(False, 11), (True, 20)])
def test_a_level_ends_by_the_values_of_one_objective_alone(changes, expected):
    pair, loss = contrasts((24, 20), (0.0, 0.4, 0.9, 0.2, 0.7)), Watching(changes)
    search = PairwiseOptimizer(StationaryVelocity(), loss, levels=[1], iterations=20)
    search.tolerance = 2.0
    search(pair["moving"], pair["fixed"])
    assert len(loss.iterations) == expected


class TestFinerLevels:
    """Levels below 1 are finer than the grid on which the start was found."""

    def test_the_start_may_come_from_a_coarser_grid(self):
        pair = phantom_pair((64, 72), seed=1)
        optimizer = refiner(StationaryVelocity(), levels=[1, 0.5], iterations=[8, 4], similarity="lncc")
        found = optimizer(pair["moving"], pair["fixed"], torch.zeros(1, 2, 16, 18), finer=2)
        assert found.shape[2:] == (32, 36)
        before, after = (
            float(LNCC(5)(warp(pair["moving"], ddf), pair["fixed"]))
            for ddf in (torch.zeros(1, 2, 64, 72), StationaryVelocity()(found, (64, 72))["ddf"])
        )
        assert after < before - 0.05

    def test_they_are_left_out_where_the_images_are_no_finer(self):
        pair = phantom_pair((48, 48), seed=1)
        start = torch.zeros(1, 2, 24, 24)
        found = [
            refiner(StationaryVelocity(), levels=levels, iterations=iterations)(pair["moving"], pair["fixed"], start)
            for levels, iterations in (([1, 0.5], [5, 5]), ([1], [5]))
        ]
        assert torch.equal(*found)

    @pytest.mark.parametrize("levels", [[1.5], [0.3], [0]])
    def test_other_fractions_are_refused(self, levels):
        with pytest.raises(ValueError, match=r"levels as 2, 1 or 0\.5"):
            refiner(StationaryVelocity(), levels=levels, iterations=1)

    @pytest.mark.parametrize("size", [(64, 60), (32, 36, 30)])
    def test_the_direct_gradient_points_where_the_velocitys_own_does(self, size):
        pair = phantom_pair(size, seed=1)
        loss = Diffused(pair_loss(0.0, similarity=LNCC(5)), 1.0)
        deformation, batch = StationaryVelocity(), {key: pair[key] for key in ("moving", "fixed")}
        velocity = random_velocity(deformation.parameter_size(size), amplitude=1.0)
        forces = []
        for kind in (Evaluation, DirectEvaluation):
            evaluation = kind(deformation, loss, batch, velocity)
            evaluation()
            forces.append(smooth_force(evaluation.unknown.grad, [2.0] * len(size), 1.2).flatten())
        assert float(torch.cosine_similarity(*forces, dim=0)) > 0.9
        assert float(forces[1].norm() / forces[0].norm()) == pytest.approx(1, abs=0.15)

    def test_a_direct_gradient_has_the_landmarks_part(self):
        size = (40, 40)
        image = phantom_pair(size, seed=1)["fixed"]
        batch = {"moving": image, "fixed": image}
        loss = lambda pred, batch: pred["ddf"][:, 0].mean()  # noqa: E731
        evaluation = DirectEvaluation(StationaryVelocity(), loss, batch, torch.zeros(1, 2, 20, 20))
        evaluation()
        assert float(evaluation.unknown.grad[:, 0].min()) > 0
        assert float(evaluation.unknown.grad[:, 1].abs().max()) == 0
