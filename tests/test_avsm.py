"""Affine and momentum registration in several steps: inferer, losses, pre-alignment by a network."""

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from custom_components.data.synthetic import phantom_pair
from custom_components.deformations import AffineMap, VectorMomentum
from custom_components.fields import affine_to_ddf, centred_to_voxel, compose_affine, invert_affine, warp
from custom_components.inferers import MultiStepInferer, RegistrationInferer
from custom_components.losses.affine import AffineLoss, mean_square_distance
from custom_components.losses.multistep import MultiStepLoss, inconsistency
from custom_components.losses.registration import RegistrationLoss
from custom_components.losses.regularization import MeanEnergy
from custom_components.losses.similarity import MSE
from custom_components.smoothing import MultiGaussianKernel
from custom_components.transforms.physical import NetworkAligner, load_image

SIZES = [(33, 28), (20, 17, 18)]
both = pytest.mark.parametrize("size", SIZES, ids=["2d", "3d"])


def near_identity(d, batch=2, seed=0, amount=0.1):
    noise = torch.randn(batch, d, d + 1, generator=torch.Generator().manual_seed(seed))
    return torch.eye(d, d + 1) + amount * noise


# The affine map and its loss


@both
def test_an_affine_map_and_its_inverse_undo_each_other(size):
    matrix = near_identity(len(size))
    pred = AffineMap()(matrix, size, inverse=True)
    assert torch.equal(pred["matrix"], matrix)
    torch.testing.assert_close(pred["ddf"], affine_to_ddf(centred_to_voxel(matrix, size), size))
    torch.testing.assert_close(AffineMap()(invert_affine(matrix), size)["ddf"], pred["inverse_ddf"])


@both
def test_the_distance_of_two_maps_is_that_of_their_displacements(size):
    one, two = near_identity(len(size)), near_identity(len(size), seed=1)
    fields = [AffineMap()(matrix, size)["ddf"] for matrix in (one, two)]
    expected = (fields[0] - fields[1]).square().sum(1).flatten(1).mean(1) / ((max(size) - 1) / 2) ** 2
    torch.testing.assert_close(mean_square_distance(one, two, size), expected)


@both
def test_affine_loss_has_the_terms_that_are_asked_for(size):
    matrix, back = near_identity(len(size)), near_identity(len(size), seed=1)
    image = torch.rand(2, 1, *size)
    pred = {"matrix": matrix, "warped": image, "back": {"matrix": back, "warped": 0 * image}}
    batch = {"moving": image, "fixed": image, "matrix": matrix}
    total = AffineLoss(MSE(1.0), points=2.0, penalty=3.0, symmetry=4.0)(pred, batch)
    identity = torch.eye(len(size), len(size) + 1)
    expected = {
        "points": 0,
        "similarity": image.square().mean() / 2,
        "penalty": 3 * sum((m - identity).square().sum() for m in (matrix, back)) / 4,
        "symmetry": 4 * (compose_affine(matrix, back) - identity).square().sum() / 2,
    }
    assert pred["terms"].keys() == expected.keys()
    for name, value in expected.items():
        assert float(pred["terms"][name]) == pytest.approx(float(value), rel=1e-4, abs=1e-6), name
    assert float(total) == pytest.approx(float(sum(pred["terms"].values())), rel=1e-5)


def test_affine_loss_says_what_it_misses():
    with pytest.raises(ValueError, match="expected a similarity or a weight of the points"):
        AffineLoss()
    pred = {"matrix": near_identity(2), "warped": torch.rand(2, 1, 8, 8)}
    with pytest.raises(ValueError, match="register both ways"):
        AffineLoss(MSE(), symmetry=1.0)(pred, {"fixed": pred["warped"]})
    with pytest.raises(ValueError, match="batch\\['matrix'\\]"):
        AffineLoss(points=1.0)(pred, {"fixed": pred["warped"]})


# Several steps


class Force(nn.Module):
    """A momentum that makes the images more alike: their difference times the gradient of the moving one."""

    def __init__(self, scale=2.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))
        self.seen = []

    def forward(self, image):
        self.seen.append(image.detach().clone())
        moving, fixed = image.chunk(2, 1)
        slopes = torch.gradient(moving[:, 0], dim=list(range(1, image.ndim - 1)))
        momentum = self.scale * (moving - fixed) * torch.stack(slopes, 1)
        return momentum[(..., *[slice(None, None, 2)] * (image.ndim - 2))]


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
    inferer = MultiStepInferer(shots(), num_steps=2, symmetric=True)
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
    pred = MultiStepInferer(shots(), num_steps=2, symmetric=True)(image, network)
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
def test_maps_that_undo_each_other_are_consistent(size):
    matrix = near_identity(len(size), amount=0.02)
    one, two = (AffineMap()(m, size)["ddf"] for m in (matrix, invert_affine(matrix)))
    assert inconsistency(one, one) > 100 * inconsistency(one, two)


def test_wrong_settings_of_steps_are_named():
    with pytest.raises(ValueError, match="at least one step and no samples, got 0 and 0"):
        MultiStepInferer(shots(), num_steps=0)
    with pytest.raises(ValueError, match="let the inferer register both ways"):
        MultiStepLoss(RegistrationLoss(MSE(), MeanEnergy(), 1.0), symmetry=1.0)({"steps": []}, {})


# Pre-alignment in the world


@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "SPR"])
def test_an_aligner_turns_the_networks_answer_into_a_world_matrix(axcodes, tmp_path):
    """The network finds a shift of a tenth of the grid along the first axis, on images about their centres of mass."""
    data = np.zeros((20, 24, 18), np.float32)
    data[6:14, 8:16, 5:12] = 1
    to_file = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(axcodes)
    )
    volumes = []
    for name, origin in (("moving", 30.0), ("fixed", -10.0)):
        affine = np.diag([2.0, 2.0, 2.0, 1.0])
        affine[:3, 3] = origin
        image = nib.Nifti1Image(data, affine).as_reoriented(to_file)
        nib.save(image, tmp_path / f"{name}.nii.gz")
        volumes.append(load_image(tmp_path / f"{name}.nii.gz"))

    seen = []

    def network(image):
        seen.append(image)
        matrix = torch.eye(3, 4)[None].clone()
        matrix[0, 0, 3] = 0.2
        return matrix

    aligner = NetworkAligner(network, spacing=4.0, size=(21, 21, 21), scale=lambda image: image / image.max())
    matrix = aligner(volumes[1], volumes[0])
    torch.testing.assert_close(seen[0][:, 0], seen[0][:, 1])
    expected = np.eye(4)
    expected[:3, 3] = [40 + 0.2 * 10 * 4, 40, 40]
    np.testing.assert_allclose(matrix, expected, atol=1e-4)
    with pytest.raises(ValueError, match="the affine network is 2-D"):
        NetworkAligner(network, 4.0, (21, 21), lambda image: image)(volumes[1], volumes[0])
