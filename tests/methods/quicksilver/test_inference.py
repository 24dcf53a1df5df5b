"""Momenta predicted for whole images, corrected and refined."""

import pytest
import torch
from methods.quicksilver.cases import (
    WHOLE,
    Local,
    make,
    momentum_inferer,
    random_image,
    smooth_pair,
    strides,
    vector_momentum,
    wholes,
)
from torch import nn

from custom_components.fields import warp
from custom_components.methods.quicksilver.inference import PatchInferer, Teacher


@strides
@wholes
def test_the_deformation_is_that_of_the_momentum(size, stride):
    image, network = smooth_pair(size, 2), Local(stride)
    pred = momentum_inferer(stride)(image, network)
    expected = vector_momentum(stride)(network(image), size)
    for name in ("momentum", "ddf", "velocity", "energy"):
        torch.testing.assert_close(pred[name], expected[name], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pred["warped"], warp(image[:, :1], pred["ddf"]))
    assert pred["ddf"].abs().max() > 0.3
    assert pred["seconds"].shape == (2,)
    assert "inverse_ddf" not in pred


def test_the_inverse_is_there_when_asked_for():
    image, network = smooth_pair((20, 26)), Local()
    pred = momentum_inferer(inverse=True)(image, network)
    expected = vector_momentum()(network(image), (20, 26), inverse=True)
    torch.testing.assert_close(pred["inverse_ddf"], expected["inverse_ddf"], rtol=1e-4, atol=1e-5)


@wholes
def test_a_correction_is_added_and_sees_the_fixed_image_in_moving_space(size):
    image, network, correction = smooth_pair(size), Local(), Local(scale=-2.0)
    predicted = network(image)
    inverse = vector_momentum()(predicted, size, inverse=True)["inverse_ddf"]
    moving, fixed = image.chunk(2, 1)
    corrected = predicted + correction(torch.cat([moving, warp(fixed, inverse)], 1))
    pred = momentum_inferer(correction=correction)(image, network)
    torch.testing.assert_close(pred["momentum"], corrected, rtol=1e-4, atol=1e-4)
    assert (corrected - predicted - correction(image)).abs().max() > 0.02
    trained = momentum_inferer(predictor=network)(image, correction)
    torch.testing.assert_close(trained["momentum"], pred["momentum"])
    torch.testing.assert_close(trained["ddf"], pred["ddf"])


def test_a_teachers_momenta_are_those_of_its_networks():
    image, network, correction = smooth_pair((20, 26), 2), Local(), Local(scale=-2.0)
    taught = Teacher(network, vector_momentum(), correction)(*image.chunk(2, 1))
    pred = momentum_inferer(correction=correction)(image, network)
    torch.testing.assert_close(taught, pred["momentum"])


@torch.no_grad()
def test_a_correction_of_other_weights_is_refused():
    image, network, correction = smooth_pair((14, 14)), make(stride=2), make(stride=2, seed=1)
    correction.corrects = network.digest()
    inferer = momentum_inferer(correction=correction)
    inferer(image, network)
    for other in (make(stride=2, seed=2), nn.DataParallel(make(stride=2, seed=2))):
        with pytest.raises(ValueError, match="belongs to other weights"):
            inferer(image, other)
    correction.corrects = ""
    with pytest.raises(ValueError, match="belongs to other weights"):
        inferer(image, network)


@wholes
def test_a_batch_gives_what_its_pairs_give(size):
    network, image = make(len(size), stride=2), smooth_pair(size, 2)
    image[0, :, : size[0] // 2] = 0  # background patches of one pair only
    inferer = momentum_inferer(batch_size=3)
    with torch.no_grad():
        together = inferer(image, network)
        for i in range(2):
            alone = inferer(image[i : i + 1], network)
            for name in ("momentum", "ddf", "warped"):
                torch.testing.assert_close(together[name][i], alone[name][0], rtol=1e-4, atol=1e-5)
    assert together["momentum"].abs().max() > 0.01


def test_the_network_may_run_in_low_precision():
    network, image = make(stride=2), smooth_pair((20, 26))
    with torch.no_grad():
        full, low = (momentum_inferer(precision=p)(image, network)["momentum"] for p in ("float32", "bfloat16"))
    assert low.dtype == torch.float32
    assert 0 < (full - low).abs().max() < 0.05 * full.abs().max()


def test_the_momentum_is_refined():
    image, calls = smooth_pair((20, 26)), []

    def refinement(moving, fixed, parameters, masks, *, constants, deformation, finer):
        calls.append((moving, fixed, parameters, masks))
        return 0.5 * parameters

    network, masks = Local(), {"mask_fixed": torch.ones(1, 1, 20, 26)}
    pred = momentum_inferer(refinement=refinement)(image, network, masks=masks)
    ((moving, fixed, parameters, given),) = calls
    assert torch.equal(torch.cat([moving, fixed], 1), image)
    assert given is masks
    torch.testing.assert_close(parameters, network(image))
    torch.testing.assert_close(pred["momentum"], 0.5 * network(image))


def test_patches_are_run_as_they_are():
    network, image = make(stride=2), random_image(WHOLE, 3)
    pred = PatchInferer()(image, network)
    assert pred.keys() == {"prediction"}
    torch.testing.assert_close(pred["prediction"], network(image))
