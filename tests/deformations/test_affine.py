"""Affine maps as deformations."""

import torch
from deformations.cases import both

from custom_components.affine import affine_to_ddf, centred_to_voxel, invert_affine
from custom_components.deformations.affine import AffineMap, AffineParameters
from custom_components.fields import compose


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


@both
def test_optimised_parameters_mean_the_same_map_on_every_grid(size):
    """The same points of the image move by the same share of it, and the inverse map brings them back."""
    d = len(size)
    affine = AffineParameters()
    parameters = 0.1 * torch.randn(2, d * (d + 1), *[1] * d, generator=torch.Generator().manual_seed(0))
    fine = [2 * n - 1 for n in size]
    coarse_ddf, fine_ddf = (affine(parameters, s)["ddf"] for s in (size, fine))
    every_other = fine_ddf[(slice(None), slice(None), *[slice(None, None, 2)] * d)]
    torch.testing.assert_close(every_other, 2 * coarse_ddf, atol=1e-4, rtol=1e-4)
    fields = affine(parameters, size, inverse=True)
    inner = (slice(None), slice(None), *[slice(2, -2)] * d)
    assert compose(fields["ddf"], fields["inverse_ddf"])[inner].abs().median() < 1e-4  # what leaves the image misses


def test_optimised_parameters_are_searched_in_voxels_of_the_border():
    affine, size = AffineParameters(), (9, 7)
    unknown = torch.zeros(1, 6, 1, 1)
    unknown[0, 0], unknown[0, 5] = 1.0, 2.0  # stretched along the first axis, shifted along the second
    ddf = affine(affine.from_unknown(unknown, size), size)["ddf"][0]
    torch.testing.assert_close(ddf[0, [0, -1]], torch.tensor([[-1.0], [1.0]]).expand(2, size[1]))
    torch.testing.assert_close(ddf[1], torch.full(size, 2.0))
    torch.testing.assert_close(affine.to_unknown(affine.from_unknown(unknown, size), size), unknown)
