"""Rigid offsets of a known target registration error (TRE), with which the networks are trained and tested.

Convention: offsets (B, D, D + 1) act on points about the centre of a ball, in mm.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...affine import rotation_matrix
from ...checks import check_number


def ball_covariance(radius_mm: float, spatial_dims: int = 3) -> Tensor:
    """Covariance (D, D) of the points of a ball, or of a disc."""
    return torch.eye(spatial_dims) * radius_mm**2 / (spatial_dims + 2)


def rms_displacement(offset: Tensor, covariance: Tensor) -> Tensor:
    """Root mean square of |R x + t - x| over points x of mean 0 and a covariance (D, D); shape (B,), mm.

    In 3-D this is the root of |t|^2 + 2 (1 - cos theta) (tr C - n^T C n), n being the axis of the rotation.
    """
    d = offset.shape[1]
    moved = offset[:, :, :d] - torch.eye(d, dtype=offset.dtype, device=offset.device)
    covariance = covariance.to(moved)
    turned = (moved @ covariance * moved).sum((1, 2))
    return (turned + offset[:, :, d].square().sum(1)).sqrt()


def offsets_of(tre: Tensor, radius_mm: float, spatial_dims: int = 3) -> Tensor:
    """Random offsets (B, D, D + 1) of a given TRE (B,), its root mean square over a ball.

    A uniform share of the squared TRE comes from the rotation, the rest from the translation; directions are uniform.

    Raises:
        ValueError: if the radius is not above 0, or no rotation moves the ball's points so far.
    """
    check_number("radius_mm", radius_mm, above=0)
    d, device = spatial_dims, tre.device
    share = torch.rand(len(tre), device=device)
    # A turn moves points along the two axes across its own, and the variance along each is r^2 / (D + 2):
    # TRE^2 = 8 sin(angle / 2)^2 r^2 / (D + 2).
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
