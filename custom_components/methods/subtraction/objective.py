"""The objective: background must fit, vessels need not, and motion is smooth in space and, but for jerks, in time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ...checks import check_number
from ...constants import filled
from ...fields import identity_grid
from ...losses.regularization import GradientPenalty
from ...repeatable import median
from ...vocabulary import Batch, Result

_TUKEY = 4.685  # deviations beyond which a darker pixel is a vessel, and pulls no more
_HUBER = 1.345  # deviations beyond which a brighter pixel pulls no stronger
_SEEN = 4096  # pixels of a frame that tell its deviation
_JERK = 0.1  # pixels: what differs by less from one frame to the next costs its square


def vessel_robust(difference: Tensor, scale: Tensor) -> Tensor:
    """What a difference frame - warped mask costs, in units of squared deviations.

    Near 0 half the square of difference / scale. Contrast agent only darkens: below 0 Tukey's function, which is
    constant from 4.685 deviations on, above 0 Huber's, which grows linearly from 1.345 on.

    Args:
        difference: any shape.
        scale: standard deviation of the background's differences, to be broadcast.
    """
    dark = (1 - (difference / scale / _TUKEY).square()).clamp(min=0)
    return torch.where(difference < 0, _TUKEY**2 / 6 * (1 - dark**3), huber(difference, scale))


def huber(difference: Tensor, scale: Tensor) -> Tensor:
    """Half the square of difference / scale up to 1.345, and linear beyond."""
    x = (difference / scale).abs()
    short = x.clamp(max=_HUBER)
    return short * (x - short / 2)


def half_square(difference: Tensor, scale: Tensor) -> Tensor:
    """Half the square of difference / scale."""
    return (difference / scale).square() / 2


COSTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "vessels": vessel_robust,
    "edges": huber,
    "squares": half_square,
}


def robust_scale(difference: Tensor) -> tuple[Tensor, Tensor]:
    """The median of each frame, (T, 1, 1, 1), and one scale, 1.4826 times their median absolute deviation from it, by
    some of the pixels. The scale is the median over frames: one that was jerked counts as much as the others. It is at
    least a hundredth of the root mean square, or frames that equal the mask would make all others infinitely far."""
    flat = difference.flatten(1)
    flat = flat[:, :: max(1, flat.shape[1] // _SEEN)]
    middle = median(flat, 1)
    scale = 1.4826 * median((flat - middle).abs(), 1)
    least = 0.01 * (flat - middle).square().mean().sqrt()
    scale = torch.maximum(scale.flatten().sort().values[len(scale) // 2], least)
    return middle.view(-1, 1, 1, 1), scale.clamp(min=1e-6)


def inside(ddf: Tensor) -> Tensor:
    """Where points of frames lie in the mask's image, (T, 1, H, W), 0 or 1: beyond, warped images are 0."""
    places = identity_grid(ddf.shape[2:], device=ddf.device) + ddf
    most = filled([n - 1 for n in ddf.shape[2:]], ddf).view(1, -1, 1, 1)
    return ((places >= 0) & (places <= most)).all(1, keepdim=True).float()


class SubtractionLoss(nn.Module):
    """mean rho(frame - warped mask) + smoothness |Du|^2 + temporal |u(t + 1) - u(t)|.

    The batch is a series: its samples are neighbours in time. Frames may differ from the mask by a constant, as of
    exposure. The scale of rho, and the constant, are those of the differences when a size of images is first seen,
    which is where a coarser level has brought them; with `fresh` those of each call, as for training.

    Args:
        smoothness: of the mean squared slope of the fields.
        temporal: of the mean length of the change from frame to frame, pixels.
        robust: "vessels", see `vessel_robust`; "edges", Huber's function on both sides, which still pulls where images
            are far apart; "squares", which pull vessels into the background.
        fresh: see above.
    Raises:
        ValueError: for a negative weight, or another word.
    """

    def __init__(
        self, smoothness: float = 1.0, temporal: float = 0.02, robust: str = "vessels", *, fresh: bool = False
    ) -> None:
        super().__init__()
        for name, value in (("smoothness", smoothness), ("temporal", temporal)):
            check_number(name, value, least=0)
        if robust not in COSTS:
            raise ValueError(f"expected robust {', '.join(COSTS)}, got {robust!r}")
        self.smoothness, self.temporal, self.robust, self.fresh = smoothness, temporal, robust, fresh
        self.slopes = GradientPenalty()
        self._scales: tuple[torch.Size, tuple[Tensor, Tensor]] | None = None

    def forward(self, pred: Result, batch: Batch) -> Tensor:
        """Loss, a scalar, of pred["ddf"] (T, 2, H, W) and pred["warped"] (T, 1, H, W) for batch["fixed"]."""
        difference = batch["fixed"] - pred["warped"]
        middle, scale = self._scale(difference.detach())
        ddf = pred["ddf"]
        seen = inside(ddf.detach())
        cost = COSTS[self.robust](difference - middle, scale)
        similarity = (cost * seen).sum() / seen.sum().clamp(min=1)
        terms = {"similarity": similarity, "smoothness": self.smoothness * self.slopes(ddf)}
        if len(ddf) > 1 and self.temporal:
            change = ddf.diff(dim=0).square().sum(1)
            terms["temporal"] = self.temporal * ((change + _JERK**2).sqrt() - _JERK).mean()
        pred["terms"] = {name: value.detach() for name, value in terms.items()}
        return torch.stack(list(terms.values())).sum()

    def _scale(self, difference: Tensor) -> tuple[Tensor, Tensor]:
        if self.fresh:
            return robust_scale(difference)
        if self._scales is None or self._scales[0] != difference.shape:
            self._scales = difference.shape, robust_scale(difference)
        return self._scales[1]
