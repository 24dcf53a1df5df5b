"""A scan registered to the template of its attributes: fields, labels, refinement, samples."""

import numpy as np
import pytest
import torch
from methods.conditional_atlas.cases import (
    LABELS,
    SIZES,
    SOME,
    both,
    differs,
    make_network,
    make_template,
    moved,
    phantom_sizes,
    random,
    smooth,
    template_inferer,
)

from custom_components.data.phantoms import phantom_pair
from custom_components.deformations.velocity import Displacement, StationaryVelocity
from custom_components.evaluation.metrics import normalized_cross_correlation
from custom_components.fields import compose, integrate_velocity, warp
from custom_components.inference.refinement import PairwiseOptimizer
from custom_components.losses.registration import RegistrationLoss
from custom_components.losses.regularization import GradientPenalty
from custom_components.losses.similarity import MSE
from custom_components.methods.conditional_atlas.network import AtlasNetwork, MeanStream
from custom_components.methods.conditional_atlas.objective import TemplateLoss
from custom_components.methods.voxelmorph_probabilistic.deformation import GaussianVelocity
from custom_components.methods.voxelmorph_probabilistic.inference import SamplesInferer
from custom_components.networks.voxelmorph_unet import VoxelMorphUNet


@both
@torch.no_grad()
def test_the_scan_is_moving_and_the_template_fixed(size):
    network, scans = moved(size, smooth(size), spread=0.3), random(3, 1, *size)
    pred = template_inferer()(scans, network, attributes=SOME)
    fields = {"ddf", "inverse_ddf", "svf", "warped", "warped_template", "template", "fixed", "seconds"}
    assert pred.keys() == fields
    assert torch.equal(pred["fixed"], pred["template"])
    assert pred["ddf"].shape == pred["inverse_ddf"].shape == (3, len(size), *size)
    torch.testing.assert_close(pred["template"], network.template(SOME))
    torch.testing.assert_close(pred["warped"], warp(scans, pred["ddf"]))
    torch.testing.assert_close(pred["warped_template"], warp(pred["template"], pred["inverse_ddf"]))
    torch.testing.assert_close(pred["inverse_ddf"][:1], integrate_velocity(network.registration.velocity))


@both
@torch.no_grad()
def test_the_two_fields_invert_each_other(size):
    pred = template_inferer()(random(2, 1, *size), moved(size, smooth(size), {}))
    inside = (..., *[slice(4, -4)] * len(size)) if len(size) == 2 else (..., *[slice(3, -3)] * 3)
    for pair in (("ddf", "inverse_ddf"), ("inverse_ddf", "ddf")):
        error = compose(*[pred[key] for key in pair])[inside]
        assert error.square().sum(1).sqrt().mean() < 0.05
    assert pred["ddf"][inside].square().sum(1).sqrt().mean() > 0.3


@both
@torch.no_grad()
def test_a_velocity_moves_the_template_onto_the_scan(size):
    velocity = torch.zeros(1, len(size), *size)
    velocity[:, 1] = 2.0
    network = moved(size, velocity, {})
    template = network.template()
    scan = torch.cat([template[:, :, :, 2:], torch.zeros_like(template[:, :, :, :2])], 3)
    pred = template_inferer()(scan, network)
    torch.testing.assert_close(pred["warped_template"], scan, rtol=0, atol=1e-4)
    torch.testing.assert_close(pred["warped"][:, :, :, 2:], template[:, :, :, 2:], rtol=0, atol=1e-4)
    assert differs(template, scan)


@both
def test_the_mean_displacement_is_the_streams(size):
    network = make_network(size, flow_std=0.2)
    stream, again = MeanStream(size, cap=4), MeanStream(size, cap=4)
    inferer = template_inferer(mean_stream=stream)
    for seed in range(3):
        pred = inferer(random(2, 1, *size, seed=seed), network, attributes=SOME[:2])
        assert torch.equal(pred["mean_displacement"], again(pred["ddf"]))
    assert stream.count == 6
    assert pred["mean_displacement"].requires_grad
    assert "mean_displacement" not in template_inferer()(random(2, 1, *size), network)


@both
def test_gradients_reach_template_and_registration(size):
    network = make_network(size, flow_std=0.2, labels=LABELS, spread=0.3)
    scans, labels = random(2, 1, *size), torch.full((2, 1, *size), 2)
    pred = template_inferer(mean_stream=MeanStream(size))(scans, network, attributes=SOME[:2])
    TemplateLoss(MSE(), labels=LABELS)(pred, {"moving": scans, "label_moving": labels}).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@both
def test_labels_are_warped_with_the_template(size):
    network = moved(size, smooth(size), labels=LABELS, spread=0.3)
    inferer, scans = template_inferer(), random(3, 1, *size)
    with torch.no_grad():
        pred = inferer(scans, network, attributes=SOME)
        shares = network.template.render(SOME)[1].softmax(1)
    torch.testing.assert_close(pred["template_labels"], shares)
    warped = warp(shares, pred["inverse_ddf"], padding="border")
    torch.testing.assert_close(pred["warped_template_labels"], warped)
    torch.testing.assert_close(warped.sum(1), torch.ones(3, *size))
    assert torch.equal(pred["warped_template_label"], torch.tensor(LABELS)[warped.argmax(1, keepdim=True)])
    assert "warped_template_label" not in inferer(scans, network, attributes=SOME)


@both
@torch.no_grad()
def test_one_template_serves_all_scans(size):
    network = make_network(size, {}, labels=LABELS, flow_std=0.2)
    pred = template_inferer()(random(3, 1, *size), network)
    assert pred["template"].shape == (3, 1, *size)
    assert pred["template_labels"].shape == (3, 3, *size)
    assert differs(pred["ddf"][0], pred["ddf"][1])


@torch.no_grad()
def test_fields_and_template_are_single_precision_whatever_the_networks():
    network, scans = make_network(SIZES[0], spread=0.3, flow_std=0.2), random(2, 1, *SIZES[0])
    exact, rough = (
        template_inferer(precision=precision)(scans, network, attributes=SOME[:2])
        for precision in ("float32", "bfloat16")
    )
    for key in ("ddf", "inverse_ddf", "warped", "warped_template", "template"):
        assert rough[key].dtype == torch.float32
        assert not differs(exact[key], rough[key])
    assert not torch.equal(exact["ddf"], rough["ddf"])


@phantom_sizes
def test_refinement_starts_from_the_networks_velocity_and_makes_scan_and_template_more_alike(size):
    pair = phantom_pair(size, seed=2, amplitude=3.0)
    network = moved(size, smooth(size, 0.3), {})
    loss = RegistrationLoss(MSE(), GradientPenalty(), 0.01)
    deformation = StationaryVelocity()
    ncc = {}
    for iterations in (0, 12):
        optimizer = PairwiseOptimizer(deformation, loss, levels=[2, 1], iterations=iterations)
        with torch.no_grad():
            pred = template_inferer(deformation, refinement=optimizer)(pair["fixed"], network)
        alike = {"warped": pred["template"], "warped_template": pair["fixed"]}
        ncc[iterations] = {k: float(normalized_cross_correlation(pred[k], v.detach())) for k, v in alike.items()}
        if not iterations:
            torch.testing.assert_close(pred["inverse_ddf"], integrate_velocity(network.registration.velocity.detach()))
    assert ncc[12]["warped"] > ncc[0]["warped"] + 0.02
    assert ncc[12]["warped_template"] > ncc[0]["warped_template"] + 0.02


@torch.no_grad()
def test_the_scans_mask_restricts_the_refinement():
    """A bright spot that is no part of the scan draws the template towards it, unless it is masked."""
    size = SIZES[0]
    network = moved(size, torch.zeros(1, 2, *size), {})
    scan = network.template().clone()
    scan[:, :, 1:7, 8:20] = 1
    mask = torch.ones(1, 1, *size, dtype=torch.int16)
    mask[:, :, :9] = 0
    deformation = StationaryVelocity()
    optimizer = PairwiseOptimizer(
        deformation, RegistrationLoss(MSE(), GradientPenalty(), 0.01), levels=[1], iterations=10
    )
    inferer = template_inferer(deformation, refinement=optimizer)
    free, masked = (inferer(scan, network, masks=masks)["ddf"].norm() for masks in (None, {"mask_moving": mask}))
    assert masked < 0.5 * free


@torch.no_grad()
def test_without_gradients_the_prediction_is_no_part_of_the_weights():
    network = make_network(SIZES[0], {})
    pred = template_inferer()(random(1, 1, *SIZES[0]), network)
    assert not any(value.requires_grad for value in pred.values())
    assert pred["template"].data_ptr() != network.template.image.data_ptr()


@torch.no_grad()
def test_samples_have_the_variance_that_the_network_predicts():
    template = make_template(SIZES[0], {})
    network = AtlasNetwork(template, VoxelMorphUNet(2, log_variance=-4.0))
    deformation = GaussianVelocity(smoothing=0)
    inferer = SamplesInferer(template_inferer(deformation), deformation, samples=2)
    pred = inferer(random(1, 1, *SIZES[0]), network)
    assert float(pred["velocity_sd"].mean()) == pytest.approx(np.exp(-2), rel=0.01)


def test_a_template_needs_a_velocity():
    with pytest.raises(ValueError, match="needs a deformation by a velocity, got Displacement"):
        template_inferer(Displacement())


def test_a_template_needs_inverse_fields():
    with pytest.raises(ValueError, match="needs inverse fields"):
        template_inferer(inverse=False)


@pytest.mark.parametrize("shape", [(1, 1, 24, 27), (1, 2, 24, 28)])
def test_a_scan_of_another_size_is_refused(shape):
    with pytest.raises(ValueError, match=r"expected scans \(1, 24, 28\) as the template, got"):
        template_inferer()(torch.rand(shape), make_network(SIZES[0]))
