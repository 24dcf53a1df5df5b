"""Errors of registrations that are known: random fields, and answers of networks to pairs with known deformations."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import torch
from torch import Generator, Tensor, nn

from ...checks import check_number
from ...deformations.base import Deformation
from ...deformations.bspline import bspline_field, control_size
from ...deformations.velocity import StationaryVelocity
from ...synthesis.noise import Draw, uniform
from ...weights import FixedNetwork

# Standard deviation of a cubic B-spline of independent control points of deviation 1, mean over a cell, by axis.
_SPLINE = (151 / 315) ** 0.5


class RandomResiduals:
    """Random fields of any size: cubic B-splines of several scales, strong in some places and weak in others.

    Their standard deviation per component is drawn log-uniformly for each sample and shared among the scales at random;
    a scale takes at most a share of its spacing, so that fields hardly fold. An envelope, a B-spline too, then weakens
    them from place to place.

    Args:
        spacings: distances between control points, in voxels, from large to small.
        deviations: least and largest standard deviation, in voxels.
        largest_share: of a scale's spacing, that its standard deviation may take.
        envelope: distance between the control points of the envelope, in voxels.
    Raises:
        ValueError: if there is no scale, or a number is out of range.
    """

    def __init__(
        self,
        spacings: Sequence[float] = (48.0, 24.0, 12.0, 6.0),
        deviations: tuple[float, float] = (0.1, 4.0),
        *,
        largest_share: float = 0.1,
        envelope: float = 20.0,
    ) -> None:
        if not spacings:
            raise ValueError("expected at least one spacing")
        for spacing in (*spacings, envelope):
            check_number("spacing", spacing, above=0)
        check_number("the least deviation", deviations[0], above=0)
        check_number("the largest deviation", deviations[1], least=deviations[0])
        self.spacings, self.deviations, self.largest_share = tuple(spacings), deviations, largest_share
        self.envelope = envelope

    def draw(self, batch: int, size: Sequence[int], generator: Generator) -> Draw:
        """Control points "0", "1", ... of the scales (B, D, *S'), and "envelope" (B, 1, *S')."""
        d, low, high = len(size), *(torch.log(torch.tensor(self.deviations)).tolist())
        wanted = uniform((low, high), (batch, 1), generator).exp()
        shares = uniform((0, 1), (batch, len(self.spacings)), generator) ** 2
        shares = shares / shares.square().sum(1, keepdim=True).sqrt().clamp(min=1e-6)
        draw: Draw = {}
        for k, spacing in enumerate(self.spacings):
            std = (wanted[:, 0] * shares[:, k]).clamp(max=self.largest_share * spacing)
            points = torch.randn(batch, d, *control_size(size, spacing), generator=generator, device=generator.device)
            draw[str(k)] = (std / _SPLINE**d).view(-1, *[1] * (d + 1)) * points
        draw["envelope"] = uniform((-0.5, 1.5), (batch, 1, *control_size(size, self.envelope)), generator)
        return draw

    def __call__(self, draw: Mapping[str, Tensor], size: Sequence[int]) -> Tensor:
        """The fields (B, D, *size), voxels."""
        fields = [bspline_field(draw[str(k)], size, spacing) for k, spacing in enumerate(self.spacings)]
        total = fields[0]
        for field in fields[1:]:
            total = total + field
        return total * bspline_field(draw["envelope"], size, self.envelope).clamp(0, 1)


class NetworkAnswer:
    """A registration network and its weights, which are loaded at the first use: it answers pairs, and errs.

    Args:
        network: parameters of a deformation from a pair (B, 2, *S).
        weights: their file.
        deformation: parameters to fields; default: a stationary velocity.
    """

    def __init__(
        self, network: nn.Module, weights: str | os.PathLike[str] | None, deformation: Deformation | None = None
    ) -> None:
        self.network = FixedNetwork(network, weights, "registration")
        self.deformation: Deformation = StationaryVelocity() if deformation is None else deformation

    @torch.no_grad()
    def __call__(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """The displacements (B, D, *S), voxels, that bring moving images (B, 1, *S) to fixed ones.

        Raises:
            FileNotFoundError, ValueError: if the weights are missing or another network's.
        """
        parameters = self.network.on(moving.device)(torch.cat([moving, fixed], 1)).float()
        return self.deformation(parameters, moving.shape[2:])["ddf"]
