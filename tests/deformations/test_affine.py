"""Affine maps as deformations."""

import torch
from deformations.cases import both

from custom_components.affine import affine_to_ddf, centred_to_voxel, invert_affine
from custom_components.deformations.affine import AffineMap


def near_identity(d, batch=2, seed=0, amount=0.1):
    noise = torch.randn(batch, d, d + 1, generator=torch.Generator().manual_seed(seed))
    return torch.eye(d, d + 1) + amount * noise


@both
def test_an_affine_map_and_its_inverse_undo_each_other(size):
    matrix = near_identity(len(size))
    pred = AffineMap()(matrix, size, inverse=True)
    assert torch.equal(pred["matrix"], matrix)
    torch.testing.assert_close(pred["ddf"], affine_to_ddf(centred_to_voxel(matrix, size), size))
    torch.testing.assert_close(AffineMap()(invert_affine(matrix), size)["ddf"], pred["inverse_ddf"])
