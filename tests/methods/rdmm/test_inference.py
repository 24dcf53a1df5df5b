"""Metrics that are given, learned or taken from a network."""

import pytest
import torch
from methods.rdmm.cases import PAIR_KERNEL, both, metric, optimizer, pair, trained_looking

from custom_components.deformations.velocity import StationaryVelocity
from custom_components.fields import resize_map
from custom_components.inference.registration import RegistrationInferer
from custom_components.losses.similarity import MSE
from custom_components.methods.rdmm.data import MomentumStore, prepare_labelled_batch
from custom_components.methods.rdmm.inference import MetricPredictor, RegionPredictor
from custom_components.methods.rdmm.metric import StationaryMetricMomentum
from custom_components.methods.rdmm.networks import MetricNetwork
from custom_components.methods.rdmm.weights import label_weights
from custom_components.networks.zero import ZeroField


@pytest.mark.slow
@both
def test_the_metric_is_that_of_the_moving_images_regions(size):
    image = pair(size)
    labels = (image[:, :1] > image[:, :1].mean()).long()
    regions, elsewhere = {"1": [0.5, 0.5, 0.0]}, [0.0, 0.0, 1.0]
    deformation = metric()
    predict = RegionPredictor(regions, elsewhere, sigma=1.0)
    inferer = RegistrationInferer(deformation, predict, refinement=optimizer(deformation), inverse=True)
    pred = inferer(image, ZeroField(len(size)), labels=labels)
    weights = label_weights(labels, {1: regions["1"]}, elsewhere, sigma=1.0)
    expected = optimizer(deformation.given(weights))(*image.chunk(2, 1))
    assert torch.allclose(pred["ddf"], deformation.given(weights)(expected, size)["ddf"], atol=1e-6)
    assert pred["energy"] > 0
    assert "raw_weights" not in pred
    inside = resize_map(labels.float(), pred["sigma"].shape[2:]) > 0.9
    assert float(pred["sigma"][inside].mean()) < float(pred["sigma"][~inside].mean())


def test_a_pre_defined_metric_needs_labels():
    inferer = RegistrationInferer(metric(), RegionPredictor({1: [1, 0, 0]}, [0, 0, 1]))
    batch = {"image": pair((16, 16)), "moving": torch.zeros(1, 1, 16, 16), "fixed": torch.zeros(1, 1, 16, 16)}
    image, _, _, options = prepare_labelled_batch(batch)
    with pytest.raises(ValueError, match="label_moving"):
        inferer(image, ZeroField(2), **options)
    labels = torch.ones(1, 1, 16, 16, dtype=torch.int16)
    assert torch.equal(prepare_labelled_batch({**batch, "label_moving": labels})[3]["labels"], labels)


@pytest.mark.parametrize("predict", [RegionPredictor({}, [0, 0, 1]), MetricPredictor(None)], ids=["regions", "network"])
def test_a_deformation_without_weights_is_refused(predict):
    inferer = RegistrationInferer(StationaryVelocity(), predict)
    with pytest.raises(ValueError, match="whose metric has weights, got StationaryVelocity"):
        inferer(pair((16, 16)), MetricNetwork(2, 3), labels=torch.ones(1, 1, 16, 16))


def inferer(store=None, visits=3):
    deformation = metric(StationaryMetricMomentum, mapping="linear")
    revisit = optimizer(deformation, visits, levels=(1,)) if store is not None else None
    return RegistrationInferer(deformation, MetricPredictor(optimizer(deformation), store=store, revisit=revisit))


@both
def test_momenta_are_optimised_in_the_networks_metric(size):
    image = pair(size)
    network = trained_looking(MetricNetwork(len(size), 3)).eval()
    with torch.no_grad():
        pred = inferer()(image, network)
    x = network(torch.cat([resize_map(image[:, :1], pred["momentum"].shape[2:]), pred["momentum"]], 1))
    torch.testing.assert_close(pred["raw_weights"], x.detach(), rtol=1e-4, atol=1e-5)
    moving, fixed = image.chunk(2, 1)
    assert float(MSE()(pred["warped"], fixed)) < 0.8 * float(MSE()(moving, fixed))


def test_without_a_network_the_weights_are_the_kernels_own():
    size = (24, 26)
    image = pair(size)
    network = MetricNetwork(2, 3)
    network.stage = 0
    with torch.no_grad():
        base, none = inferer()(image, network), inferer()(image, ZeroField(2))
    torch.testing.assert_close(none["ddf"], base["ddf"], rtol=1e-3, atol=1e-3)
    shares = none["weights"].mean((0, 2, 3))
    torch.testing.assert_close(shares, torch.tensor(PAIR_KERNEL.weights))


def test_the_network_is_frozen_while_momenta_are_optimised_and_then_has_a_gradient(tmp_path):
    size = (24, 26)
    image = pair(size)
    network = MetricNetwork(2, 3)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    register = inferer(MomentumStore(tmp_path))
    pred = register(image, network, pairs=["a"])
    assert network.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())
    # The call that has the gradient is the only one in training mode: one batch, counted once.
    counts = [value - before[name] for name, value in network.state_dict().items() if "num_batches" in name]
    assert [int(count) for count in counts] == [1, 1]
    pred["energy"].sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_a_second_visit_goes_on_from_the_first(tmp_path):
    size = (24, 26)
    image = pair(size, batch=2)
    network, store = MetricNetwork(2, 3).eval(), MomentumStore(tmp_path)
    register = inferer(store)
    losses = []
    for _ in range(3):
        with torch.no_grad():
            pred = register(image, network, pairs=["a", "b"])
        losses.append(float(MSE()(pred["warped"], image[:, 1:])) + 0.001 * float(pred["energy"].mean()))
        torch.testing.assert_close(store.load(["a", "b"]), pred["momentum"])
    assert losses == sorted(losses, reverse=True)
    assert losses[2] < losses[0]


@both
def test_predicted_weights_are_those_of_the_parameters(size):
    half = [-(-n // 2) for n in size]
    momentum, x = 0.3 * torch.randn(2, len(size), *half), torch.randn(2, 3, *half)
    deformation = metric(StationaryMetricMomentum, mapping="linear")
    predicted = deformation.predicted_by(lambda parameters: x)
    assert predicted.parameter_channels(len(size)) == len(size)
    one, two = predicted(momentum, size), deformation(torch.cat([momentum, x], 1), size)
    for key in ("ddf", "weights", "sigma", "raw_weights"):
        assert torch.equal(one[key], two[key])
    assert deformation.predictor is None
