"""The middle of a group of maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from custom_components.cohorts.maps import PersonsMap, log_of
from custom_components.cohorts.middle import half_rigid, mean_stretch, middle_of, mirrored
from custom_components.data.phantoms import random_velocity
from custom_components.fields import compose, integrate_velocity
from custom_components.space.grids import Grid
from custom_components.space.resampling import DisplacementField

GRID = Grid(np.diag([2.0, 1.5, 1.0]), (40, 48))


def maps(velocities) -> list[PersonsMap]:
    fields = [
        tuple(DisplacementField(integrate_velocity(sign * v[None])[0], GRID) for sign in (1, -1)) for v in velocities
    ]
    return [PersonsMap(np.eye(3), pair) for pair in fields]


def test_the_logarithm_of_a_map_is_its_velocity_up_to_the_third_order():
    generator = torch.Generator().manual_seed(0)
    velocity = random_velocity((96, 96), amplitude=6.0, spacings=(24.0,), generator=generator).double()
    errors = []
    for size in (1.0, 0.5):
        v = size * velocity
        found = log_of(integrate_velocity(v, 10), integrate_velocity(-v, 10))
        errors.append(float((found - v).square().mean().sqrt()))
    assert errors[0] < 0.05 * float(velocity.square().mean().sqrt())
    assert errors[0] / errors[1] > 6  # 8 for the third order


def test_after_the_middle_the_mean_deformation_is_nearly_zero():
    velocities = random_velocity((40, 48), amplitude=3.0, batch=4, generator=torch.Generator().manual_seed(1)) + 0.7
    found, measures = middle_of(iter(maps(velocities)), [1.0] * 4, GRID)
    there = found.dense[0].ddf[None]
    left = torch.stack([compose(one.dense[0].ddf[None], there) for one in maps(velocities)]).mean(0)
    before = integrate_velocity(velocities).mean(0)
    assert float(left.norm(dim=1).mean()) < 0.15 * float(before.norm(dim=0).mean())
    assert measures["moved_mm"] > 1


def test_weights_count_and_a_person_alone_is_the_middle():
    velocities = random_velocity((40, 48), amplitude=3.0, batch=2, generator=torch.Generator().manual_seed(2))
    found, _ = middle_of(iter(maps(velocities)), [1.0, 1e-9], GRID)
    back = compose(maps(velocities)[0].dense[0].ddf[None], found.dense[0].ddf[None])
    assert float(back[..., 5:-5, 5:-5].abs().max()) < 0.1


def test_the_middle_of_people_and_their_mirror_images_is_symmetric():
    velocities = random_velocity((40, 48), amplitude=3.0, batch=3, generator=torch.Generator().manual_seed(3))
    found, _ = middle_of(iter(maps(velocities)), [1.0] * 3, GRID, symmetric=True)
    there = found.dense[0].ddf[None]
    torch.testing.assert_close(mirrored(there), there, atol=1e-5, rtol=0)


def test_mirror_images_have_no_shear_of_the_mirrors_axis():
    shear = np.array([[1.2, 0.3, 5], [0.1, 0.9, 3], [0, 0, 1]])
    stretch = mean_stretch([shear], np.zeros(2), normal=np.array([1.0, 0]))
    assert abs(stretch[0, 1]) < 1e-12
    assert np.linalg.det(stretch) == pytest.approx(np.linalg.det(shear))


@pytest.mark.parametrize("d", [2, 3])
def test_half_of_a_rigid_map_twice_is_the_map(d):
    rng = np.random.default_rng(d)
    q, _ = np.linalg.qr(rng.normal(size=(d, d)))
    matrix = np.eye(d + 1)
    matrix[:d, :d], matrix[:d, d] = q * np.sign(np.linalg.det(q)) if d == 3 else [[0.8, -0.6], [0.6, 0.8]], 7.0
    half = half_rigid(matrix)
    np.testing.assert_allclose(half @ half, matrix, atol=1e-10)
    np.testing.assert_allclose(half_rigid(np.linalg.inv(matrix)), np.linalg.inv(half), atol=1e-10)
    np.testing.assert_array_equal(half_rigid(np.eye(d + 1)), np.eye(d + 1))
