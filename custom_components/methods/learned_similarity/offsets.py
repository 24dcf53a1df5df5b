"""Rigid offsets of a known target registration error (TRE), with which the networks are trained and tested.

Convention: offsets (B, D, D + 1) act on points about the centre of a ball, in mm.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...affine import rotation_matrix
from ...checks import check_number


def offsets_of(tre: Tensor, radius_mm: float, spatial_dims: int = 3) -> Tensor:
    """Random offsets (B, D, D + 1) of a given TRE (B,), its root mean square over a ball.

    A uniform share of the squared TRE comes from the rotation, the rest from the translation; directions are uniform.

    Raises:
        ValueError: if the radius is not above 0, or no rotation moves the ball's points so far.
    """
    check_number("radius_mm", radius_mm, above=0)
    d, device = spatial_dims, tre.device
    share = torch.rand(len(tre), device=device)
    # `affine.ball_displacement` of a turn: TRE^2 = 8 sin(angle / 2)^2 r^2 / (D + 2).
    sine = (share * (d + 2) / 8).sqrt() * tre / radius_mm
    if device.type == "cpu" and bool((sine > 1).any()):
        raise ValueError(f"no rotation of a ball of {radius_mm} mm moves its points by {float(tre.max()):g} mm")
    angle = 2 * sine.clamp(max=1).arcsin()
    axis = torch.randn(len(tre), 3 if d == 3 else 1, device=device)
    axis = axis / axis.norm(dim=1, keepdim=True)
    shift = torch.randn(len(tre), d, device=device)
    shift = shift / shift.norm(dim=1, keepdim=True) * (tre * (1 - share).sqrt())[:, None]
    return torch.cat([rotation_matrix(axis * angle[:, None]), shift[:, :, None]], 2)


def draw_tre(count: int, largest_mm: float, device: torch.device | str = "cpu") -> Tensor:
    """Uniform in TRE, not in the parameters, which would make small errors rare: three quarters up to `largest_mm`, the
    rest up to twice as much, for a search looks there, too."""
    near, chance = torch.rand(2, count, device=device)
    return largest_mm * torch.where(chance < 0.75, near, 1 + near)
