"""Maps are composed and inverted as in the papers."""

import pytest
import torch
from inference.cases import both

from custom_components.data.phantoms import random_velocity
from custom_components.deformations.velocity import StationaryVelocity
from custom_components.fields import compose, warp
from custom_components.inference.maps import Map


def smooth_map(size, seed=0):
    velocity = random_velocity(size, amplitude=1.5, generator=torch.Generator().manual_seed(seed))
    return Map.of(StationaryVelocity()(velocity, size, inverse=True))


@both
def test_the_inner_map_is_applied_first(size):
    outer, inner = smooth_map(size), smooth_map(size, 1)
    assert torch.equal((outer @ inner).ddf, compose(outer.ddf, inner.ddf))


@both
def test_a_composition_warps_as_its_maps_one_after_the_other(size):
    """image o (outer o inner) = (image o outer) o inner, up to interpolation."""
    outer, inner, image = smooth_map(size), smooth_map(size, 1), smooth_map(size, 2).ddf[:, :1]
    inside = (..., *[slice(4, -4)] * len(size))
    difference = (outer @ inner).warp(image) - inner.warp(outer.warp(image))
    assert difference[inside].abs().mean() < 0.02 * image[inside].abs().mean()


@both
def test_the_inverse_of_a_composition_undoes_it(size):
    both_maps = smooth_map(size) @ smooth_map(size, 1)
    inside = (..., *[slice(4, -4)] * len(size))
    for identity in (both_maps @ both_maps.inverse(), both_maps.inverse() @ both_maps):
        assert identity.ddf[inside].abs().mean() < 0.05
    assert both_maps.ddf[inside].abs().mean() > 0.3


def test_the_inverse_of_the_inverse_is_the_map():
    there = smooth_map((16, 18))
    again = there.inverse().inverse()
    assert again.ddf is there.ddf
    assert again.inverse_ddf is there.inverse_ddf


def test_an_inverse_is_known_where_both_inverses_are():
    known, unknown = smooth_map((16, 18)), Map(smooth_map((16, 18), 1).ddf)
    for composed in (known @ unknown, unknown @ known):
        assert composed.inverse_ddf is None
        assert composed.fields().keys() == {"ddf"}
    assert (known @ known).fields().keys() == {"ddf", "inverse_ddf"}
    with pytest.raises(ValueError, match="inverse of this map is not known"):
        unknown.inverse()


def test_masks_are_warped_to_their_nearest_voxel():
    mask = torch.zeros(1, 1, 16, 18, dtype=torch.int16)
    mask[..., 5:9, 6:12] = 1
    shift = smooth_map((16, 18))
    warped = shift.warp(mask, mode="nearest")
    assert warped.dtype == mask.dtype
    assert torch.equal(warped, warp(mask, shift.ddf, mode="nearest"))
