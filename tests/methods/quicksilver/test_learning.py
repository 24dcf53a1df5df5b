"""A short training predicts deformations, and a correction improves them."""

import itertools

import pytest
import torch
from methods.quicksilver.cases import KERNEL, smooth_pair

from custom_components.data.phantoms import random_velocity
from custom_components.deformations.kernels import HelmholtzKernel
from custom_components.deformations.momentum import VectorMomentum
from custom_components.fields import warp
from custom_components.inference.registration import RegistrationInferer
from custom_components.methods.quicksilver.inference import PatchInferer, PatchPredictor
from custom_components.methods.quicksilver.network import QuicksilverNetwork
from custom_components.methods.quicksilver.objective import MomentumLoss
from custom_components.methods.quicksilver.patches import cut, patch_starts


def trained(predict, deformation, image, momentum, features=8, iterations=150):
    """A network trained on all patches of the pairs; a correction if there is a predictor."""
    torch.manual_seed(0)
    network, loss = QuicksilverNetwork(2, features, 2), MomentumLoss()
    with torch.no_grad():
        seen, there = predict.before(image, deformation)
    missing = momentum - there
    places = list(itertools.product(range(len(image)), patch_starts(momentum.shape[2:], 15, 1)))
    optimizer = torch.optim.Adam(network.parameters(), 0.003)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.003, iterations)
    for _ in range(iterations):
        drawn = [places[i] for i in torch.randint(len(places), (12,)).tolist()]
        patches = torch.stack([cut(seen[b], start, 15, 2) for b, start in drawn])
        targets = torch.stack([cut(missing[b], start, 15) for b, start in drawn])
        value = loss(PatchInferer()(patches, network), {"momentum": targets})
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        scheduler.step()
    return network.eval()


@pytest.mark.slow
def test_a_trained_network_predicts_deformations_and_a_correction_improves_them():
    size, deformation = (40, 40), VectorMomentum(HelmholtzKernel(4.0, 1.0), 1.0, num_steps=4, stride=2)
    generator = torch.Generator().manual_seed(1)
    momentum = random_velocity((20, 20), amplitude=1.5, spacings=(6.0,), batch=2, generator=generator)
    true = deformation(momentum, size)["ddf"]
    moving = smooth_pair(size, 2)[:, :1]
    image = torch.cat([moving, warp(moving, true, padding="border")], 1)

    @torch.no_grad()
    def error(network, **options):
        ddf = RegistrationInferer(deformation, PatchPredictor(step=5, **options))(image, network)["ddf"]
        return float((ddf - true).norm(dim=1).mean())

    network = trained(PatchPredictor(), deformation, image, momentum)
    correction = trained(PatchPredictor(step=5, predictor=network), deformation, image, momentum)
    correction.corrects = network.digest()
    before, predicted = float(true.norm(dim=1).mean()), error(network)
    assert before > 1
    assert predicted < 0.5 * before
    assert error(network, correction=correction) < 0.6 * predicted


def test_a_kernel_with_padding_is_refused_before_any_training():
    with pytest.raises(ValueError, match="without padding"):
        MomentumLoss("l1", HelmholtzKernel(9.0, 1.0, padding="zeros"))


def test_the_stride_scales_each_axis_of_the_spacing():
    difference = torch.randn(1, 2, 8, 9, generator=torch.Generator().manual_seed(0))
    pair = {"prediction": difference}, {"momentum": torch.zeros_like(difference)}
    scaled = MomentumLoss("l2", KERNEL, (1.0, 1.5), stride=2)(*pair)
    assert scaled == MomentumLoss("l2", KERNEL, (2.0, 3.0))(*pair)
    assert scaled != MomentumLoss("l2", KERNEL, 2.0)(*pair)


def test_a_velocity_gives_back_its_momentum_on_anisotropic_grids():
    kernel = HelmholtzKernel(2.0, 1.0, 0.7, power=2)
    momentum = 0.3 * torch.randn(1, 2, 12, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    options = {"kernel": kernel, "spacing": (1.0, 1.7), "stride": 1, "num_steps": 2}
    first = VectorMomentum(**options)(momentum, (12, 11))
    second = VectorMomentum(**options, quantity="velocity")(first["velocity"], (12, 11))
    torch.testing.assert_close(second["ddf"], first["ddf"])
