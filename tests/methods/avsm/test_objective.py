"""The loss of affine networks."""

import pytest
import torch
from methods.avsm.cases import both

from custom_components.affine import compose_affine
from custom_components.deformations.affine import AffineMap
from custom_components.losses.similarity import MSE
from custom_components.methods.avsm.objective import AffineLoss, lattice_points, mean_square_distance


def near_identity(d, batch=2, seed=0, amount=0.1):
    noise = torch.randn(batch, d, d + 1, generator=torch.Generator().manual_seed(seed))
    return torch.eye(d, d + 1) + amount * noise


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


@both
def test_anchors_are_met_where_the_keypoints_lie_on_the_moved_lattice(size):
    d = len(size)
    matrices = {f"matrix_{role}": near_identity(d, seed=i) for i, role in enumerate(("fixed", "moving"))}
    lattice = lattice_points(3**d, d, 0.4)
    keypoints = [
        torch.linalg.solve(m[:, :, :d], lattice.T - m[:, :, d:]).transpose(1, 2)
        for m in (matrices["matrix_fixed"], matrices["matrix_moving"])
    ]
    pred = {"matrix": near_identity(d), "keypoints": keypoints}
    image = torch.zeros(2, 1, *size)
    batch = {"moving": image, "fixed": image, "matrix": near_identity(d), **matrices}
    loss = AffineLoss(points=1.0, anchors=10.0)
    assert float(loss(pred, batch)) == pytest.approx(0, abs=1e-9)
    pred["keypoints"] = [points + 0.1 for points in keypoints]
    assert float(loss(pred, batch)) == pytest.approx(10 * d * 0.01, rel=1e-4)


def test_a_lattice_has_as_many_points_along_each_axis():
    points = lattice_points(27, 3, (0.4, 0.5, 0.6))
    assert points.shape == (27, 3)
    torch.testing.assert_close(points.amax(0), torch.tensor([0.4, 0.5, 0.6]))
    torch.testing.assert_close(points.sum(0), torch.zeros(3), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match=r"expected n\^3 keypoints .* got 32"):
        lattice_points(32, 3, 0.4)
