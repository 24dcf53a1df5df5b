"""Label maps that guide a refinement: they move what the images say nothing about."""

from __future__ import annotations

import pytest
import torch

from custom_components.deformations.velocity import StationaryVelocity
from custom_components.evaluation.overlap import label_overlap
from custom_components.fields import jacobian_determinant, warp
from custom_components.inference.both_ways import BothWaysInferer
from custom_components.inference.pyramid import at_level
from custom_components.inference.refiner import refiner
from custom_components.inference.registration import RegistrationInferer
from custom_components.networks.zero import ZeroField


def boxes(d: int) -> dict[str, torch.Tensor]:
    """Two pairs of label maps: a box that lies 3 voxels, and 2 voxels, further in the moving one."""
    size = [40, 36, 34][:d]
    found = torch.zeros(2, 1, *size, dtype=torch.uint8)
    found[(..., *[slice(10, 22)] * d)] = 4
    moving = torch.cat([found[:1].roll(3, 2), found[1:].roll(-2, 3)])
    return {"guide_moving": moving, "guide_fixed": found}


def dice(ddf: torch.Tensor, guides: dict[str, torch.Tensor]) -> list[float]:
    warped = warp(guides["guide_moving"].float(), ddf, mode="nearest").long()
    return label_overlap(warped, guides["guide_fixed"])[:, 0].tolist()


@pytest.mark.parametrize("d", [2, 3])
def test_guides_move_tissue_that_the_images_say_nothing_about(d):
    guides = boxes(d)
    image = torch.full(guides["guide_fixed"].shape, 0.5)
    refine = refiner(StationaryVelocity(), iterations=(20, 20), levels=(2, 1))
    ddf = StationaryVelocity()(refine(image, image, masks=guides), image.shape[2:])["ddf"]
    assert min(dice(ddf, guides)) > 0.9 > 0.85 > max(dice(0 * ddf, guides))
    assert float(jacobian_determinant(ddf).min()) > 0
    unguided = refiner(StationaryVelocity(), iterations=(20, 20), levels=(2, 1), guide_weight=0.0)
    assert not unguided(image, image, masks=guides).any()


def test_levels_have_guides_down_to_the_guides_own_grid():
    soft = torch.rand(2, 5, 20, 18, 17)
    batch = {"fixed": torch.rand(2, 1, 40, 36, 34), "guide_moving": soft, "guide_fixed": soft}
    assert "guide_fixed" not in at_level(batch, 1)
    assert torch.equal(at_level(batch, 2)["guide_fixed"], soft)
    level = at_level(batch, 4)
    assert level["guide_moving"].shape[2:] == level["fixed"].shape[2:]


def test_the_way_back_is_guided_by_the_swapped_maps():
    guides = boxes(2)
    image = torch.full(guides["guide_fixed"].shape, 0.5)
    refine = refiner(StationaryVelocity(), iterations=(20, 20), levels=(2, 1))
    inferer = BothWaysInferer(RegistrationInferer(StationaryVelocity(), refinement=refine))
    pred = inferer(torch.cat([image, image], 1), ZeroField(2), masks=guides)
    swapped = {"guide_moving": guides["guide_fixed"], "guide_fixed": guides["guide_moving"]}
    assert min(dice(pred["back"]["ddf"], swapped)) > 0.9
