"""An affine map is a rotation, a scaling, a shear and a translation, of whichever sign and handedness."""

import itertools

import numpy as np
import pytest

from custom_components.space.affine_parts import AffineParts

dimensions = pytest.mark.parametrize("d", [2, 3])


def turned(degrees, axis=None):
    """A rotation in the plane, or about an axis of space."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    if axis is None:
        return np.array([[c, -s], [s, c]])
    others = [i for i in range(3) if i != axis]
    result = np.eye(3)
    result[np.ix_(others, others)] = [[c, -s], [s, c]]
    return result


@dimensions
@pytest.mark.parametrize("seed", range(20))
def test_the_product_of_the_parts_is_the_matrix(d, seed):
    matrix = np.eye(d + 1)
    matrix[:d] = np.random.default_rng(seed).normal(size=(d, d + 1))
    parts = AffineParts.of(matrix)
    assert np.abs(parts.matrix - matrix).max() < 1e-10
    np.testing.assert_allclose(parts.rotation @ parts.rotation.T, np.eye(d), atol=1e-12)
    assert np.linalg.det(parts.rotation) == pytest.approx(1)
    assert not np.tril(parts.shear, -1).any()
    assert np.diag(parts.shear).tolist() == [1] * d
    assert (parts.scaling[1:] > 0).all()
    assert (parts.scaling[0] > 0) == (np.linalg.det(matrix) > 0)


@dimensions
def test_each_part_is_found_as_it_was_given(d):
    rotation = turned(25) if d == 2 else turned(25, 0) @ turned(-40, 2)
    scaling, shear = np.array([1.2, 0.8, 1.5])[:d], np.eye(d)
    shear[0, 1], shear[0, -1] = 0.3, -0.2
    given = AffineParts(rotation, scaling, shear, np.array([5.0, -7.0, 9.0])[:d])
    found = AffineParts.of(given.matrix)
    for name in ("rotation", "scaling", "shear", "translation"):
        np.testing.assert_allclose(getattr(found, name), getattr(given, name), atol=1e-12)


@dimensions
def test_every_flip_and_exchange_of_axes_is_a_map_of_unit_scales(d):
    for order in itertools.permutations(range(d)):
        for signs in itertools.product((1, -1), repeat=d):
            matrix = np.eye(d + 1)
            matrix[:d, :d] = np.eye(d)[list(order)] * signs
            parts = AffineParts.of(matrix)
            assert np.abs(parts.matrix - matrix).max() < 1e-12
            np.testing.assert_allclose(np.abs(parts.scaling), 1, atol=1e-12)
            np.testing.assert_allclose(parts.shear, np.eye(d), atol=1e-12)


@pytest.mark.parametrize("degrees", [-170, -30, 0, 1e-4, 90, 180])
def test_the_angle_in_the_plane_has_a_sign(degrees):
    matrix = np.eye(3)
    matrix[:2, :2] = turned(degrees)
    assert AffineParts.of(matrix).angle == pytest.approx(degrees, abs=1e-9)


@pytest.mark.parametrize("degrees", [0, 1e-4, 30, 90, 179, 180])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_angle_in_space_has_none(degrees, axis):
    matrix = np.eye(4)
    matrix[:3, :3] = turned(degrees, axis)
    assert AffineParts.of(matrix).angle == pytest.approx(degrees, abs=1e-9)


@pytest.mark.parametrize("matrix", [np.zeros((4, 4)), np.eye(5), np.diag([1, np.nan, 1]), np.eye(3)[:2]], ids=str)
def test_what_has_no_parts_is_refused(matrix):
    with pytest.raises(ValueError, match="affine map"):
        AffineParts.of(matrix)
