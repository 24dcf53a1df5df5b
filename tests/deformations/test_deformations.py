"""Deformations, inferers and the pairwise optimiser."""

import pytest
import torch

from custom_components.data.phantoms import phantom_pair, random_velocity
from custom_components.deformations.velocity import Displacement, StationaryVelocity
from custom_components.evaluation.overlap import mean_dice
from custom_components.fields import compose, jacobian_determinant, warp
from custom_components.inference.refinement import PairwiseOptimizer, shrink
from custom_components.inference.registration import RegistrationInferer
from custom_components.losses.registration import RegistrationLoss
from custom_components.losses.regularization import GradientPenalty
from custom_components.losses.similarity import LNCC, MSE
from custom_components.methods.voxelmorph_probabilistic.deformation import GaussianVelocity
from custom_components.networks.voxelmorph_unet import VoxelMorphUNet

SIZES = [(33, 28), (25, 22, 20)]
both = pytest.mark.parametrize("size", SIZES, ids=["2-D", "3-D"])


def make_optimizer(deformation=None, **kwargs):
    loss = RegistrationLoss(
        LNCC(7), GradientPenalty(), 0.1, folding_weight=10.0, regularized=kwargs.pop("field", "svf")
    )
    return PairwiseOptimizer(deformation or StationaryVelocity(), loss, **kwargs)


@both
@pytest.mark.parametrize(
    "deformation", [StationaryVelocity(), Displacement(stride=2)], ids=["velocity", "displacement"]
)
def test_zero_parameters_are_the_identity(size, deformation):
    parameters = torch.zeros(2, len(size), *deformation.parameter_size(size))
    fields = deformation(parameters, size, inverse=True)
    assert fields["ddf"].shape == (2, len(size), *size)
    assert fields["ddf"].abs().max() == 0
    assert fields["inverse_ddf"].abs().max() == 0


def test_parameters_are_rounded_up_on_odd_sizes():
    assert StationaryVelocity(stride=2).parameter_size((33, 28)) == [17, 14]


@both
@pytest.mark.parametrize(
    "deformation", [StationaryVelocity(), Displacement(stride=2)], ids=["velocity", "displacement"]
)
def test_inverse_field_undoes_the_field(size, deformation):
    parameters = 0.5 * random_velocity(deformation.parameter_size(size), generator=torch.Generator().manual_seed(0))
    fields = deformation(parameters, size, inverse=True)
    assert fields["ddf"].abs().max() > 0.5
    assert compose(fields["ddf"], fields["inverse_ddf"]).abs().mean() < 0.05


@both
def test_inferer_warps_the_first_channel_onto_the_second(size):
    network = VoxelMorphUNet(len(size), half_resolution=True, flow_std=0.05)
    image = torch.rand(2, 2, *size)
    pred = RegistrationInferer(StationaryVelocity(), inverse=True)(image, network)
    assert set(pred) == {"svf", "ddf", "inverse_ddf", "warped", "seconds"}
    torch.testing.assert_close(pred["warped"], warp(image[:, :1], pred["ddf"]))
    assert pred["ddf"].shape == (2, len(size), *size)


def test_batch_equals_single_runs():
    network = VoxelMorphUNet(2, half_resolution=True, flow_std=0.05)
    inferer = RegistrationInferer(StationaryVelocity())
    image = torch.rand(3, 2, 32, 30)
    together = inferer(image, network)["ddf"]
    torch.testing.assert_close(together[1:2], inferer(image[1:2], network)["ddf"], atol=1e-5, rtol=1e-4)


def test_fields_stay_float32_when_the_network_does_not():
    network = VoxelMorphUNet(2, half_resolution=True, flow_std=0.05)
    image = torch.rand(1, 2, 32, 32)
    pred = RegistrationInferer(StationaryVelocity(), precision="bfloat16")(image, network)
    assert all(value.dtype == torch.float32 for value in pred.values())
    exact = RegistrationInferer(StationaryVelocity())(image, network)["ddf"]
    assert (pred["ddf"] - exact).abs().max() < 0.05 * exact.abs().max()


@both
@pytest.mark.parametrize("method", ["adam", "lbfgs"])
def test_optimisation_from_zero_aligns_a_phantom(size, method):
    pair = phantom_pair([2 * n for n in size], seed=1)
    moving, fixed = pair["moving"], pair["fixed"]
    optimizer = make_optimizer(levels=(2, 1), iterations=20, method=method)
    svf = optimizer(moving, fixed)
    ddf = StationaryVelocity()(svf, moving.shape[2:])["ddf"]
    before = mean_dice(pair["label_moving"], pair["label_fixed"]).mean()
    after = mean_dice(warp(pair["label_moving"], ddf, mode="nearest"), pair["label_fixed"]).mean()
    assert after > before + 0.3 * (1 - before)
    assert jacobian_determinant(ddf).min() > 0


def test_optimisation_starts_from_given_parameters():
    pair = phantom_pair((48, 48), seed=2)
    moving, fixed = pair["moving"], pair["fixed"]
    first = make_optimizer(levels=(2, 1), iterations=15)(moving, fixed)
    assert torch.equal(make_optimizer(levels=(1,), iterations=0)(moving, fixed, first), first)
    loss = RegistrationLoss(LNCC(7), GradientPenalty(), 0.1)

    def value(svf):
        pred = StationaryVelocity()(svf, moving.shape[2:])
        return float(loss({**pred, "warped": warp(moving, pred["ddf"])}, {"moving": moving, "fixed": fixed}))

    refined = make_optimizer(levels=(1,), iterations=10, learning_rate=0.05)(moving, fixed, first)
    assert value(refined) < value(first) < value(torch.zeros_like(first))


def test_displacements_can_be_optimised_too():
    pair = phantom_pair((48, 48), seed=2)
    optimizer = make_optimizer(Displacement(stride=2), levels=(2, 1), iterations=15, field="ddf")
    ddf = Displacement(stride=2)(optimizer(pair["moving"], pair["fixed"]), (48, 48))["ddf"]
    warped = warp(pair["moving"], ddf)
    assert MSE()(warped, pair["fixed"]) < 0.5 * MSE()(pair["moving"], pair["fixed"])


def test_masked_regions_do_not_pull():
    pair = phantom_pair((48, 48), seed=3)
    disturbed = pair["moving"].clone()
    disturbed[..., :10, :10] = torch.rand(10, 10)
    mask = torch.ones_like(disturbed)
    mask[..., :14, :14] = 0
    optimizer = make_optimizer(levels=(2, 1), iterations=15)
    clean = optimizer(pair["moving"], pair["fixed"], masks={"mask_moving": mask, "mask_fixed": mask})
    masked = optimizer(disturbed, pair["fixed"], masks={"mask_moving": mask, "mask_fixed": mask})
    assert (masked - clean).abs().mean() < 0.25 * clean.abs().mean()


def test_refinement_belongs_to_the_inferer():
    pair = phantom_pair((48, 48), seed=4)
    network = VoxelMorphUNet(2, half_resolution=True)
    refinement = make_optimizer(levels=(2, 1), iterations=15)
    image = torch.cat([pair["moving"], pair["fixed"]], 1)
    with torch.no_grad():
        pred = RegistrationInferer(StationaryVelocity(), refinement=refinement)(image, network)
    assert MSE()(pred["warped"], pair["fixed"]) < 0.5 * MSE()(pair["moving"], pair["fixed"])


def test_shrinking_keeps_corners_and_means():
    image = torch.rand(1, 1, 33, 40)
    small = shrink(image, 4)
    assert small.shape == (1, 1, 9, 10)
    assert small.mean() == pytest.approx(image.mean().item(), abs=0.02)
    ramp = torch.arange(33.0).view(1, 1, 33, 1).expand(1, 1, 33, 40)
    torch.testing.assert_close(shrink(ramp, 2)[0, 0, 1:-1, 0], 2 * torch.arange(1.0, 16.0))


def test_a_loss_that_is_not_finite_stops_the_run():
    image = torch.full((1, 1, 16, 16), float("nan"))
    with pytest.raises(RuntimeError, match="became nan in iteration 1"):
        make_optimizer(levels=(1,), iterations=5)(image, image)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_optimizer(levels=(2, 1), iterations=(5,)), "iterations for 2 levels"),
        (lambda: make_optimizer(method="newton"), "adam or lbfgs"),
        (lambda: RegistrationInferer(StationaryVelocity(), precision="int8"), "precision"),
        (lambda: RegistrationInferer(StationaryVelocity())(torch.rand(1, 3, 16, 16), None), "equal channels"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def gaussian_parameters(size, log_variance=-3.0, batch=2):
    """A smooth mean of half a voxel at half resolution, and a constant log variance."""
    grid = StationaryVelocity().parameter_size(size)
    mean = random_velocity(grid, amplitude=0.5, batch=batch, generator=torch.Generator().manual_seed(0))
    return torch.cat([mean, torch.full_like(mean, log_variance)], 1)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@both
def test_a_gaussian_velocity_is_called_as_its_mean(size):
    parameters, deformation = gaussian_parameters(size), GaussianVelocity()
    expected = StationaryVelocity()(parameters[:, : len(size)], size, inverse=True)
    for fields in (deformation(parameters, size, inverse=True) for _ in range(2)):
        assert set(fields) == {"svf", "ddf", "inverse_ddf", "posterior"}
        assert fields["posterior"] is parameters
        assert all(torch.equal(fields[key], value) for key, value in expected.items())
    assert deformation.parameter_size(size) == StationaryVelocity().parameter_size(size)


@both
def test_equal_seeds_draw_equal_velocities_and_others_others(size):
    parameters, deformation = gaussian_parameters(size), GaussianVelocity()
    first, again, other = (deformation.draw(parameters, size, generator=seeded(seed))["svf"] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert (first - other).abs().mean() > 0.1
    assert (first[0] - first[1] - (parameters[0] - parameters[1])[: len(size)]).abs().mean() > 0.1


@both
def test_inverse_of_a_drawn_field_is_that_of_the_same_sample(size):
    parameters, deformation = gaussian_parameters(size), GaussianVelocity(smoothing=2.0)
    fields = deformation.draw(parameters, size, inverse=True, generator=seeded(0))
    expected = StationaryVelocity()(fields["svf"], size, inverse=True)
    assert torch.equal(fields["inverse_ddf"], expected["inverse_ddf"])
    assert fields["ddf"].abs().max() > 0.5
    assert compose(fields["ddf"], fields["inverse_ddf"]).abs().mean() < 0.05
    assert "inverse_ddf" not in deformation.draw(parameters, size)


@both
@pytest.mark.parametrize("smoothing", [None, 0, 1.5])
def test_a_certain_velocity_is_drawn_as_its_mean(size, smoothing):
    parameters = gaussian_parameters(size, log_variance=-60.0)
    fields = GaussianVelocity(smoothing=smoothing).draw(parameters, size)
    torch.testing.assert_close(fields["svf"], parameters[:, : len(size)], rtol=0, atol=1e-6)
    assert fields["posterior"] is parameters


@both
def test_a_velocity_without_uncertainty_is_integrated_but_not_drawn(size):
    mean, deformation = gaussian_parameters(size)[:, : len(size)], GaussianVelocity()
    assert torch.equal(deformation(mean, size)["ddf"], StationaryVelocity()(mean, size)["ddf"])
    assert "posterior" not in deformation(mean, size)
    for call in (lambda: deformation.draw(mean, size), lambda: deformation.velocity_sd(mean)):
        with pytest.raises(ValueError, match=f"mean and log variance, {2 * len(size)} channels"):
            call()


def test_gradients_reach_mean_and_log_variance_through_a_sample():
    parameters = gaussian_parameters((16, 14)).requires_grad_()
    GaussianVelocity().draw(parameters, (16, 14), generator=seeded(0))["ddf"].square().sum().backward()
    assert parameters.grad.isfinite().all()
    assert all(part.abs().min() > 0 for part in parameters.grad.chunk(2, 1))


def sampled(parameters, deformation, size, **kwargs):
    """What the inferer makes of a network that gives these parameters."""
    return RegistrationInferer(deformation, **kwargs)(torch.zeros(len(parameters), 2, *size), lambda _: parameters)


@both
def test_inferer_adds_samples_and_their_spread(size):
    parameters, deformation = gaussian_parameters(size), GaussianVelocity()
    state = torch.get_rng_state()
    pred = sampled(parameters, deformation, size, samples=3, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert set(pred) == {"svf", "ddf", "posterior", "warped", "seconds", "ddf_samples", "velocity_sd"}
    assert torch.equal(pred["ddf"], deformation(parameters, size)["ddf"])
    assert torch.equal(pred["velocity_sd"], deformation.velocity_sd(parameters))
    assert pred["ddf_samples"].shape == (2, 3, len(size), *size)
    generator = seeded(5)
    for ddf in pred["ddf_samples"].unbind(1):
        assert torch.equal(ddf, deformation.draw(parameters, size, generator=generator)["ddf"])
    assert torch.equal(pred["ddf_samples"], sampled(parameters, deformation, size, samples=3, seed=5)["ddf_samples"])
    assert not torch.equal(pred["ddf_samples"], sampled(parameters, deformation, size, samples=3)["ddf_samples"])
    assert "ddf_samples" not in sampled(parameters, deformation, size)


def test_inferer_in_training_draws_from_the_global_generator():
    size = (16, 14)
    parameters, draw = gaussian_parameters(size), GaussianVelocity().draw
    fields = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        fields.append(sampled(parameters, draw, size, inverse=True)["ddf"])
    assert torch.equal(fields[0], fields[1])
    assert not torch.equal(fields[0], fields[2])


@pytest.mark.parametrize("deformation", [StationaryVelocity(), Displacement(), GaussianVelocity().draw])
def test_samples_of_a_deformation_without_uncertainty_are_refused(deformation):
    with pytest.raises(ValueError, match="expected samples of a deformation that has uncertainty"):
        RegistrationInferer(deformation, samples=2)
    with pytest.raises(ValueError, match="-1 samples"):
        RegistrationInferer(GaussianVelocity(), samples=-1)
