"""Measures are those of the written field at the voxels of the fixed image, however that lies in the world."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from custom_components.evaluation import written
from custom_components.evaluation.written import written_field
from custom_components.fields import jacobian_determinant
from custom_components.space import Grid, model_grid
from custom_components.space.resampling import DisplacementField, dense_field, field_rows


def _rotation(degrees: float) -> np.ndarray:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def _affine(directions: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    affine = np.eye(len(spacing) + 1)
    affine[:-1, :-1] = directions @ np.diag(spacing)
    affine[:-1, -1] = [7.0, -11.0, 5.0][: len(spacing)]
    return affine


LIA = np.array([[-1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
FIXED = {
    "RAS": Grid(_affine(np.eye(3), (1, 1, 1)), (20, 22, 24)),
    "LIA anisotropic": Grid(_affine(LIA, (0.8, 1.3, 2.1)), (26, 20, 12)),
    "oblique": Grid(_affine(_rotation(20), (1, 1, 1.5)), (20, 22, 16)),
    "2-D": Grid(_affine(np.array([[0.0, 1], [-1, 0]]), (0.7, 1.2)), (30, 21)),
}


@pytest.fixture(params=FIXED)
def fixed(request: pytest.FixtureRequest) -> Grid:
    return FIXED[request.param]


def everywhere(grid: Grid) -> torch.Tensor:
    return torch.ones(1, *grid.size, dtype=torch.bool)


def linear_field(matrix: np.ndarray, grid: Grid) -> DisplacementField:
    """The map x -> matrix x of world points about the grid's centre, as a field on a grid."""
    d = len(grid.size)
    world = np.eye(d + 1)
    world[:d, :d] = matrix
    world[:d, d] = grid.center - matrix @ grid.center
    return dense_field([world], grid)


def test_rows_of_a_field_are_those_of_the_whole_field(fixed):
    model = model_grid(fixed.affine, fixed.size, 2.0, multiple=4)
    field = DisplacementField(torch.randn(len(model.size), *model.size, generator=torch.manual_seed(0)), model)
    expected = dense_field([field], fixed).ddf
    torch.testing.assert_close(field_rows(field, fixed, 3, 9), expected[:, 3:9], atol=1e-4, rtol=0)


def test_rows_of_a_field_on_a_turned_grid_and_beyond_it_are_those_of_the_whole_field(fixed):
    turned = FIXED["oblique"] if len(fixed.size) == 3 else Grid(fixed.affine @ np.diag([1.5, 1.5, 1]), (12, 9))
    field = DisplacementField(torch.randn(len(turned.size), *turned.size, generator=torch.manual_seed(0)), turned)
    expected = dense_field([field], fixed).ddf
    torch.testing.assert_close(field_rows(field, fixed, 0, fixed.size[0]), expected, atol=1e-4, rtol=0)


def test_a_linear_map_has_its_determinant_at_every_voxel_and_no_spread(fixed):
    d = len(fixed.size)
    matrix = np.eye(d) + 0.02 * np.arange(d * d).reshape(d, d)
    model = model_grid(fixed.affine, fixed.size, 2.0)
    found = written_field(linear_field(matrix, model), None, fixed, everywhere(fixed))
    np.testing.assert_allclose(found.determinant.numpy(), np.linalg.det(matrix), atol=1e-4)
    assert found.metrics["folding_percent"] == 0
    assert found.metrics["sd_log_jacobian"] == pytest.approx(0, abs=1e-3)


def test_displacements_are_in_millimetres_of_the_world(fixed):
    d, vector = len(fixed.size), np.array([3.0, -4.0, 12.0])[: len(fixed.size)]
    shift = np.eye(d + 1)
    shift[:d, d] = vector
    model = model_grid(fixed.affine, fixed.size, 2.0)
    found = written_field(dense_field([shift], model), None, fixed, everywhere(fixed)).metrics
    assert found["displacement_mean_mm"] == pytest.approx(np.linalg.norm(vector), rel=1e-5)
    assert found["displacement_max_mm"] == pytest.approx(np.linalg.norm(vector), rel=1e-5)


def test_the_inverse_misses_by_what_is_added_to_it(fixed):
    d = len(fixed.size)
    matrix = 1.05 * np.eye(d)
    shift = np.eye(d + 1)
    shift[:d, d] = [0.3, 0.4, 0.0][:d]
    model = model_grid(fixed.affine, fixed.size, 2.0)
    forward, back = linear_field(matrix, model), linear_field(np.linalg.inv(matrix), model)
    missed = DisplacementField(back.ddf + dense_field([shift], model).ddf, model)
    inside = everywhere(fixed) & False
    inside[(slice(None), *[slice(n // 4, -(n // 4)) for n in fixed.size])] = True
    exact = written_field(forward, back, fixed, inside).metrics
    found = written_field(forward, missed, fixed, inside).metrics
    assert exact["inverse_consistency_max_mm"] == pytest.approx(0, abs=1e-4)
    assert found["inverse_consistency_mm"] == pytest.approx(0.5, abs=1e-3)


def test_slabs_change_nothing(fixed, monkeypatch):
    model = model_grid(fixed.affine, fixed.size, 2.0)
    ddf = 0.3 * torch.randn(len(model.size), *model.size, generator=torch.manual_seed(0))
    field, inside = DisplacementField(ddf, model), torch.rand(1, *fixed.size, generator=torch.manual_seed(1)) > 0.3
    whole = written_field(field, field, fixed, inside)
    expected = jacobian_determinant(dense_field([field], fixed).ddf[None])[0]
    torch.testing.assert_close(whole.determinant, expected, atol=1e-3, rtol=0)
    monkeypatch.setattr(written, "_SLAB_VOXELS", 1)
    row_by_row = written_field(field, field, fixed, inside)
    torch.testing.assert_close(row_by_row.determinant, whole.determinant)
    assert row_by_row.metrics == pytest.approx(whole.metrics)
    folded = 100 * (whole.determinant[inside] <= 0).float().mean()
    assert whole.metrics["folding_percent"] == pytest.approx(float(folded))


def test_what_folds_on_fine_voxels_counts_where_no_node_of_the_model_grid_shows_it():
    fixed = Grid(np.diag([1.0, 1.0, 1.0]), (33, 9))
    model = Grid(np.diag([4.0, 4.0, 1.0]), (9, 3))
    ddf = torch.zeros(2, *model.size)
    ddf[0, 4] = -1.3  # of 4 mm: between nodes 3 and 4 the map runs back, which central differences of nodes miss
    assert jacobian_determinant(ddf[None]).min() > 0
    found = written_field(DisplacementField(ddf, model), None, fixed, everywhere(fixed))
    assert found.metrics["folding_percent"] == pytest.approx(100 * 3 / 33)
    assert found.determinant[0, 13:16].max() < 0


def test_nothing_is_measured_without_a_foreground(fixed):
    model = model_grid(fixed.affine, fixed.size, 2.0)
    field = DisplacementField(torch.zeros(len(model.size), *model.size), model)
    found = written_field(field, field, fixed, ~everywhere(fixed))
    assert all(math.isnan(value) for value in found.metrics.values())
    assert len(found.metrics) == 6
