"""Model grids."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from space.cases import OBLIQUE, world_points

from custom_components.space import Grid, canonical_grid, fixed_size_grid, model_grid


def test_model_grid_keeps_the_image_grid_by_default() -> None:
    affine = nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt("LIA"), (5, 6, 7))
    grid = model_grid(affine, (5, 6, 7))
    assert nib.aff2axcodes(grid.affine) == ("R", "A", "S")
    assert sorted(map(tuple, world_points(grid))) == sorted(map(tuple, world_points(Grid(affine, (5, 6, 7)))))


@pytest.mark.parametrize("spacing", [0.7, 1.9, (1.0, 3.0, 2.0)])
@pytest.mark.parametrize("multiple", [1, 16])
def test_model_grid_covers_the_image_with_the_spacing_asked_for(spacing: float, multiple: int) -> None:
    native = Grid(OBLIQUE[:, [2, 0, 1, 3]] * [-1, 1, -1, 1], (9, 12, 7))
    grid = model_grid(native.affine, native.size, spacing, multiple=multiple)
    np.testing.assert_allclose(grid.spacing, np.broadcast_to(spacing, 3))
    assert all(n % multiple == 0 for n in grid.size)
    index = np.c_[world_points(native), np.ones(9 * 12 * 7)] @ np.linalg.inv(grid.affine).T
    assert index[:, :3].min() > -0.01
    assert (index[:, :3] < np.array(grid.size) - 1 + 0.01).all()
    np.testing.assert_allclose(grid.center, native.center, atol=1e-9)
    np.testing.assert_allclose(  # the oblique directions stay
        grid.affine[:3, :3] / grid.spacing, (c := canonical_grid(native)).affine[:3, :3] / c.spacing, atol=1e-9
    )


def test_fixed_size_grid_is_centred() -> None:
    np.testing.assert_allclose(fixed_size_grid(2.0, (4, 5, 6), [1, 2, 3]).center, [1, 2, 3])
    with pytest.raises(ValueError, match="3 of them"):
        fixed_size_grid((1.0, 2.0), (4, 5, 6))
