"""Multi-scale Dice and bending energy: closed forms, and what the scales are for."""

from __future__ import annotations

import pytest
import torch

from custom_components.methods.weakly_supervised.objective import (
    SCALES,
    BendingEnergy,
    MultiScaleDice,
    StructureScore,
    gaussian_blurred,
    multi_scale_dice,
)

# Dice at each scale of a cube of 20 voxels, indices 22 to 41 of 64, with itself shifted by so many voxels.
CUBES = {
    0: (1, 0.84679, 0.70224, 0.46821, 0.18400, 0.04307),
    5: (0.75, 0.67129, 0.58946, 0.41812, 0.17311, 0.04235),
    20: (0, 0.02414, 0.04408, 0.06871, 0.07123, 0.03290),
}


def cube(shift: int = 0) -> torch.Tensor:
    map_ = torch.zeros(1, 1, 64, 64, 64)
    map_[:, :, 22 + shift : 42 + shift, 22:42, 22:42] = 1
    return map_


@pytest.mark.parametrize("shift", CUBES)
def test_dice_of_a_cube_at_each_scale(shift):
    found = [float(multi_scale_dice(cube(), cube(shift), [scale])) for scale in SCALES]
    assert found == pytest.approx(CUBES[shift], abs=1e-5)
    loss = MultiScaleDice()(torch.zeros(1, 3, 64, 64, 64), cube(), cube(shift))
    assert float(loss) == pytest.approx(1 - sum(CUBES[shift]) / 6, abs=1e-5)


def test_a_voxel_with_itself_gives_the_kernels_sum_of_squares():
    voxel = torch.zeros(1, 1, 33, 33, 33)
    voxel[..., 16, 16, 16] = 1
    assert float(multi_scale_dice(voxel, voxel, [1])) == pytest.approx(0.022492, abs=1e-6)


def test_a_gaussian_has_sum_one_and_ends_at_three_sigma():
    point = torch.zeros(1, 1, 64, 64)
    point[..., 32, 32] = 1
    blurred = gaussian_blurred(point, 4)
    assert float(blurred.sum()) == pytest.approx(1, abs=1e-6)
    assert blurred[..., 32 + 12, 32] > 0
    assert blurred[..., 32 + 13, 32] == 0


def test_structures_that_do_not_touch_have_a_gradient_at_wide_scales_alone():
    moving, fixed = (torch.zeros(1, 1, 48, 48) for _ in range(2))
    moving[..., 8:14, 20:26], fixed[..., 30:36, 20:26] = 1, 1
    for scales, pulls in (([0], False), (SCALES, True)):
        shift = torch.zeros(1, 2, 1, 1, requires_grad=True)
        MultiScaleDice(scales)(shift.expand(1, 2, 48, 48) + 0.3, moving, fixed).backward()
        assert bool(shift.grad[0, 0].abs() > 1e-6) == pulls
    assert shift.grad[0, 0] > 0  # to lower the loss, look at smaller indices


def test_descending_finds_a_shift_of_three_voxels():
    """A structure that lies 3 voxels further along axis 0 in the moving image: u_0 = +3."""
    moving, fixed = (torch.zeros(1, 1, 32, 32) for _ in range(2))
    moving[..., 15:23, 12:20], fixed[..., 12:20, 12:20] = 1, 1
    shift = torch.zeros(1, 2, 1, 1, requires_grad=True)
    optimizer = torch.optim.Adam([shift], lr=0.1)
    for _ in range(80):
        optimizer.zero_grad()
        MultiScaleDice()(shift.expand(1, 2, 32, 32), moving, fixed).backward()
        optimizer.step()
    assert shift.detach().flatten().tolist() == pytest.approx([3, 0], abs=0.1)


def coordinates(n=12):
    return torch.stack(torch.meshgrid(*[torch.arange(float(n), dtype=torch.float64)] * 3, indexing="ij"))


def field(component):
    zero = torch.zeros_like(component)
    return torch.stack([component, zero, zero])[None]


def test_bending_energy_of_quadratic_and_affine_fields():
    """So it does not see the affine part of the sum."""
    x, y, _ = coordinates()
    assert float(BendingEnergy()(field(0.3 * x * x))) == pytest.approx(4 * 0.3**2 / 3)
    assert float(BendingEnergy()(field(0.3 * x * y))) == pytest.approx(2 * 0.3**2 / 3)
    assert float(BendingEnergy()(field(2 * x - y + 5))) == pytest.approx(0, abs=1e-12)


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
@pytest.mark.parametrize("size", [(9, 10), (9, 10, 11)])
def test_bending_energy_is_that_of_monai_and_sees_a_checkerboard(size):
    losses = pytest.importorskip("monai.losses")
    noise = torch.rand(2, len(size), *size, generator=torch.Generator().manual_seed(0))
    assert float(BendingEnergy()(noise)) == pytest.approx(float(losses.BendingEnergyLoss()(noise)), rel=1e-5)
    x, y, z = coordinates()
    assert float(BendingEnergy()(field((-1) ** (x + y + z)))) > 1


def test_the_score_is_one_at_scale_zero_for_equal_maps_and_leaves_absent_structures_out():
    labels = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    labels[..., 2:5, 2:5] = 1
    output = {"label": {"label_moving": labels, "label_fixed": labels}, "pred": {"ddf": torch.zeros(1, 2, 8, 8)}}
    assert float(StructureScore([[1], [2]], scales=[0])(output)) == pytest.approx(1)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="at least 0 voxels"):
        MultiScaleDice([-1])
