"""Images at the coarser levels of an optimisation: what a mask leaves out stays out."""

import pytest
import torch

from custom_components.inference.pyramid import at_level, without_rim

SIZES = [(24, 20), (18, 16, 20)]
both = pytest.mark.parametrize("size", SIZES, ids=["2d", "3d"])


def painted(size):
    """An image, the same with a block painted over, and a mask of the rest."""
    image = torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(image)
    mask[(..., *[slice(5, 12)] * len(size))] = 0
    return image, torch.where(mask > 0, image, 9.0), mask


@both
@pytest.mark.parametrize("factor", [1, 2, 3, 4])
def test_what_a_mask_leaves_out_changes_no_voxel_that_counts(size, factor):
    image, lesion, mask = painted(size)
    for role, other in (("moving", "fixed"), ("fixed", "moving")):
        clean, dirty = (at_level({role: one, other: image, f"mask_{role}": mask}, factor) for one in (image, lesion))
        counts = clean[f"mask_{role}"] > 0
        assert counts.float().mean() > 0.4
        torch.testing.assert_close(clean[role][counts], dirty[role][counts])


@both
def test_without_a_mask_images_are_shrunk_as_they_are(size):
    image, lesion, mask = painted(size)
    plain = at_level({"moving": image, "fixed": lesion}, 2)
    everywhere = at_level({"moving": image, "fixed": lesion, "mask_fixed": torch.ones_like(mask)}, 2)
    torch.testing.assert_close(plain["fixed"], everywhere["fixed"])


@both
def test_a_rim_is_one_voxel_and_weights_keep_their_values(size):
    mask = torch.full((1, 1, *size), 0.5)
    mask[(..., *[8] * len(size))] = 0
    thin = without_rim(mask)
    assert int((thin == 0).sum()) == 3 ** len(size)
    assert set(thin.unique().tolist()) == {0.0, 0.5}
