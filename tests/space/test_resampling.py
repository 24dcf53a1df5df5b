"""Resampling in the world, in one step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from space.cases import OBLIQUE, world_points

from custom_components.fields import identity_grid
from custom_components.space import Grid, fixed_size_grid, resample, voxel_map


def test_resampling_a_linear_ramp_in_the_world_is_exact() -> None:
    source, grid = Grid(OBLIQUE, (20, 22, 18)), fixed_size_grid(1.3, (7, 6, 5), Grid(OBLIQUE, (20, 22, 18)).center)
    ramp = torch.from_numpy(world_points(source) @ [1.0, 2, 3]).reshape(1, *source.size)
    shift = np.eye(4)
    shift[:3, 3] = [1, -2, 0.5]
    result = resample(ramp, source.affine, grid, world_matrix=shift)
    np.testing.assert_allclose(result.flatten(), (world_points(grid) + shift[:3, 3]) @ [1, 2, 3], atol=1e-4)


def test_slabs_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    image, ddf = torch.rand(2, 12, 11, 10), torch.rand(3, 8, 8, 8)
    field_grid, grid = fixed_size_grid(2.0, (8, 8, 8)), fixed_size_grid(1.0, (13, 9, 8))
    affine = fixed_size_grid(1.1, (12, 11, 10)).affine
    whole = resample(image, affine, grid, ddf=ddf, ddf_grid=field_grid)
    monkeypatch.setattr("custom_components.space.resampling._SLAB_VOXELS", 200)
    assert torch.equal(whole, resample(image, affine, grid, ddf=ddf, ddf_grid=field_grid))


def test_field_on_a_coarser_grid_moves_by_its_millimetres() -> None:
    coarse, grid = fixed_size_grid(2.0, (9, 9, 9)), fixed_size_grid(1.0, (11, 11, 11))
    image = torch.rand(1, 11, 11, 11)
    ddf = torch.zeros(3, 9, 9, 9)
    ddf[1] = 1.0  # one coarse voxel along A: 2 mm, two fine voxels
    warped = resample(image, grid.affine, grid, ddf=ddf, ddf_grid=coarse)
    torch.testing.assert_close(warped[:, :, :9], image[:, :, 2:], atol=1e-5, rtol=0)


def test_antialias_keeps_the_mean_and_removes_a_checkerboard() -> None:
    board = identity_grid((32, 32, 32)).sum(0, keepdim=True) % 2
    grid = fixed_size_grid(4.0, (6, 6, 6))
    affine = fixed_size_grid(1.0, (32, 32, 32)).affine
    assert (resample(board, affine, grid, antialias=True) - 0.5).abs().max() < 0.01


def test_voxel_map_goes_through_the_world() -> None:
    a, b, w = OBLIQUE, np.diag([2.0, 2, 2, 1]), np.diag([1.0, 1, -1, 1])
    np.testing.assert_allclose(b @ voxel_map(a, b, w), w @ a, atol=1e-12)
