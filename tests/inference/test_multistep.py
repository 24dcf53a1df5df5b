"""Registration in several steps, both ways."""

import pytest
import torch
from inference.cases import Force
from torch import nn

from custom_components.affine import centred_to_voxel, invert_affine
from custom_components.data.phantoms import phantom_pair
from custom_components.deformations.affine import AffineMap
from custom_components.deformations.kernels import MultiGaussianKernel
from custom_components.deformations.momentum import VectorMomentum
from custom_components.deformations.velocity import Displacement
from custom_components.fields import compose, warp
from custom_components.inference.both_ways import BothWaysInferer
from custom_components.inference.multistep import MultiStepInferer
from custom_components.inference.prediction import NetworkPredictor
from custom_components.inference.registration import RegistrationInferer
from custom_components.losses.multistep import MultiStepLoss, inconsistency
from custom_components.losses.registration import RegistrationLoss
from custom_components.losses.regularization import MeanEnergy
from custom_components.losses.similarity import MSE
from custom_components.methods.avsm.networks import AffineMomentumNetwork
from custom_components.methods.avsm.objective import AffineLoss
from custom_components.networks.affine_keypoints import AffineKeypointNetwork, MultiStepAffine
from custom_components.networks.zero import ZeroField

SIZES = [(33, 28), (20, 17, 18)]
both = pytest.mark.parametrize("size", SIZES, ids=["2d", "3d"])


def near_identity(d, batch=2, seed=0, amount=0.1):
    noise = torch.randn(batch, d, d + 1, generator=torch.Generator().manual_seed(seed))
    return torch.eye(d, d + 1) + amount * noise


def shots():
    return VectorMomentum(MultiGaussianKernel((1.5, 3.0)), num_steps=5, stationary=True)


def images(size):
    pair = phantom_pair(size, batch=2, seed=3)
    return torch.cat([pair["moving"], pair["fixed"]], 1)


@both
def test_one_step_is_plain_inference(size):
    image, network = images(size), Force()
    plain = RegistrationInferer(shots(), inverse=True)(image, network)
    found = MultiStepInferer(shots(), inverse=True)(image, network)
    for key in ("ddf", "inverse_ddf", "warped"):
        torch.testing.assert_close(found[key], plain[key])
    assert len(found["steps"]) == 1


@both
def test_each_step_sees_the_original_image_warped_once(size):
    image, network = images(size), Force()
    with torch.no_grad():
        pred = MultiStepInferer(shots(), num_steps=3, inverse=True)(image, network)
    moving, fixed = image.chunk(2, 1)
    assert torch.equal(network.seen[0], image)
    for seen, step in zip(network.seen[1:], pred["steps"], strict=False):
        torch.testing.assert_close(seen, torch.cat([warp(moving, step["ddf"]), fixed], 1))
    errors = [float((step["warped"] - fixed).square().mean()) for step in pred["steps"]]
    assert errors[2] < errors[1] < errors[0] < float((moving - fixed).square().mean())
    assert pred["ddf"] is pred["steps"][-1]["ddf"] or torch.equal(pred["ddf"], pred["steps"][-1]["ddf"])
    inside = (slice(None), slice(None), *[slice(3, -3)] * len(size))
    round_trip = pred["ddf"] + warp(pred["inverse_ddf"], pred["ddf"], padding="border")
    assert round_trip[inside].norm(dim=1).mean() < 0.1 * pred["ddf"][inside].norm(dim=1).mean()


@both
def test_both_ways_are_the_two_orders_of_a_pair(size):
    image, network = images(size), Force()
    moving, fixed = image.chunk(2, 1)
    inferer = BothWaysInferer(MultiStepInferer(shots(), num_steps=2))
    with torch.no_grad():
        pred = inferer(image, network)
        back = inferer(torch.cat([fixed, moving], 1), network)
    torch.testing.assert_close(pred["back"]["ddf"], back["ddf"])
    torch.testing.assert_close(pred["ddf"], back["back"]["ddf"])
    assert len(pred["seconds"]) == 2


@both
def test_the_loss_is_summed_over_the_steps_and_averaged_over_the_ways(size):
    image, network = images(size), Force()
    moving, fixed = image.chunk(2, 1)
    pred = BothWaysInferer(MultiStepInferer(shots(), num_steps=2))(image, network)
    single = RegistrationLoss(MSE(1.0), MeanEnergy(), 0.1, regularized="energy")
    batch = {"moving": moving, "fixed": fixed, "label_moving": moving, "label_fixed": fixed}
    total = MultiStepLoss(single, symmetry=500.0)(pred, batch)
    there = sum(single(step, {"moving": moving, "fixed": fixed}) for step in pred["steps"])
    back = sum(single(step, {"moving": fixed, "fixed": moving}) for step in pred["back"]["steps"])
    symmetry = 500 * inconsistency(pred["ddf"], pred["back"]["ddf"])
    torch.testing.assert_close(total, (there + back) / 2 + symmetry)
    assert pred["terms"].keys() == {"similarity", "regularization", "symmetry"}
    total.backward()
    assert network.scale.grad.abs() > 0


@both
@pytest.mark.parametrize("shrink", [1, 3])
def test_the_affine_map_comes_first_and_is_trained_with_the_steps(size, shrink):
    torch.manual_seed(0)
    d, image = len(size), images(size)
    affine = MultiStepAffine(AffineKeypointNetwork(d, (4, 8), 1, 3**d))
    network = AffineMomentumNetwork(affine, Force(), shrink)
    affine = RegistrationInferer(AffineMap(), NetworkPredictor(part="affine"), inverse=True)
    inferer = BothWaysInferer(MultiStepInferer(shots(), num_steps=1, inverse=True, affine=affine))
    pred = inferer(image, network)
    moving, fixed = image.chunk(2, 1)
    first = AffineMap()(network(image, part="affine"), size)["ddf"]
    torch.testing.assert_close(pred["affine"]["warped"], warp(moving, first), atol=1e-5, rtol=0)
    seen = torch.cat([pred["affine"]["warped"], fixed], 1)
    torch.testing.assert_close(network.momentum.seen[-1][: len(image)], seen)
    step = shots()(network.momentum(seen), size)["ddf"]
    torch.testing.assert_close(pred["ddf"], compose(first, step), atol=1e-4, rtol=0)
    assert pred["back"]["affine"].keys() == {"matrix", "warped"}
    loss = MultiStepLoss(
        RegistrationLoss(MSE(1.0), MeanEnergy(), 0.1, regularized="energy"), 1.0, AffineLoss(points=1.0, symmetry=1.0)
    )
    batch = {"moving": moving, "fixed": fixed, "matrix": near_identity(d)}
    loss(pred, batch).backward()
    assert pred["terms"].keys() == {"similarity", "regularization", "symmetry", "affine"}
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())


def test_a_shrunken_grid_gives_the_matrix_of_the_full_one():
    """A network that answers in coordinates of the grid it sees: the map must be the same in voxels of the full one."""

    class Known(nn.Module):
        def forward(self, image):
            small = near_identity(2, batch=len(image))
            return small

    size, shrink = (31, 26), 4
    network = AffineMomentumNetwork(Known(), Force(), shrink)
    found = centred_to_voxel(network(torch.rand(1, 2, *size), part="affine"), size)[0]
    small = centred_to_voxel(near_identity(2, batch=1), (8, 7))[0]
    point = torch.tensor([2.0, 5.0])
    expected = shrink * (small @ torch.cat([point, torch.ones(1)])) + (shrink - 1) / 2
    full = shrink * point + (shrink - 1) / 2
    torch.testing.assert_close(found @ torch.cat([full, torch.ones(1)]), expected, atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="part 'affine' or 'momentum', got 'x'"):
        network(torch.rand(1, 2, *size), part="x")


@both
def test_maps_that_undo_each_other_are_consistent(size):
    matrix = near_identity(len(size), amount=0.02)
    one, two = (AffineMap()(m, size)["ddf"] for m in (matrix, invert_affine(matrix)))
    assert inconsistency(one, one) > 100 * inconsistency(one, two)


class Recording:
    """A refinement that keeps what it is called with, and shifts by a voxel."""

    def __init__(self):
        self.calls = []

    def __call__(self, moving, fixed, parameters=None, masks=None, *, constants=None, deformation=None, finer=1):
        self.calls.append({"moving": moving, "parameters": parameters, "masks": masks})
        return torch.full((len(fixed), fixed.ndim - 2, *deformation.parameter_size(fixed.shape[2:])), 0.5)


def halves(size):
    """Masks: the first half of the moving image along the first axis, all of the fixed image."""
    moving = torch.zeros(2, 1, *size, dtype=torch.int16)
    moving[:, :, : size[0] // 2] = 1
    return {"mask_moving": moving, "mask_fixed": torch.ones_like(moving)}


@both
def test_an_optimised_step_comes_after_several_and_sees_the_moving_mask_warped_along(size):
    refinement, masks = Recording(), halves(size)
    inferer = MultiStepInferer(Displacement(), num_steps=2, refinement=refinement)
    pred = inferer(images(size), lambda image: torch.ones(2, len(size), *size), masks=masks)
    (call,) = refinement.calls
    before = pred["steps"][1]
    assert len(pred["steps"]) == 3
    assert call["parameters"] is None
    assert torch.equal(call["moving"], before["warped"])
    assert call["masks"]["mask_fixed"] is masks["mask_fixed"]
    assert torch.equal(call["masks"]["mask_moving"], warp(masks["mask_moving"], before["ddf"], mode="nearest"))
    here, there = ((..., *[part] * len(size)) for part in (slice(-2), slice(2, None)))
    assert torch.equal(call["masks"]["mask_moving"][here], masks["mask_moving"][there])


@both
@pytest.mark.parametrize("num_steps", [1, 2, 10])
def test_without_a_network_one_step_is_optimised_with_both_masks(size, num_steps):
    refinement, masks, image = Recording(), halves(size), images(size)
    inferer = MultiStepInferer(shots(), num_steps=num_steps, refinement=refinement)
    pred = inferer(image, ZeroField(len(size)), masks=masks)
    (call,) = refinement.calls
    assert len(pred["steps"]) == 1
    assert call["masks"] is masks
    assert torch.equal(call["moving"], image[:, :1])
    assert not call["parameters"].any()


def test_both_ways_share_the_masks():
    """What is the moving mask on the way there is the fixed one on the way back; none: everywhere."""
    size, refinement = SIZES[0], Recording()
    masks = {"mask_moving": halves(size)["mask_moving"]}
    inferer = BothWaysInferer(RegistrationInferer(shots(), refinement=refinement))
    inferer(images(size), Force(), masks=masks)
    seen, moving = refinement.calls[0]["masks"], masks["mask_moving"]
    assert torch.equal(seen["mask_moving"], torch.cat([moving, torch.ones_like(moving)]))
    assert torch.equal(seen["mask_fixed"], torch.cat([torch.ones_like(moving), moving]))


def test_one_way_alone_has_no_way_back():
    image, network = images(SIZES[0]), Force()
    pred = BothWaysInferer(RegistrationInferer(shots()), both=False)(image, network)
    assert pred.keys() == RegistrationInferer(shots())(image, network).keys()


def test_steps_refuse_settings_that_do_not_fit():
    with pytest.raises(ValueError, match="at least one step, got 0"):
        MultiStepInferer(shots(), num_steps=0)
    with pytest.raises(ValueError, match="let the inferer register both ways"):
        MultiStepLoss(RegistrationLoss(MSE(), MeanEnergy(), 1.0), symmetry=1.0)({"steps": []}, {})
