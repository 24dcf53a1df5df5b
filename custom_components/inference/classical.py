"""Registration that compares intensities alone, by name: demons and optical flow."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..checks import check_number
from ..deformations.base import Deformation
from ..deformations.kernels import Spacing
from ..losses.pair import pair_loss
from ..losses.similarity import MSE
from .demons import LogDemons, relative
from .descent import diffused
from .level import Steps
from .optical_flow import HornSchunck
from .refinement import PairwiseOptimizer
from .refiner import trusting
from .robust import RobustOptimizer

_FLAT = 0.05  # of the intensities' range: a deviation below which a place shows nothing
_CONTRAST = 0.2  # standard deviation of the intensities that are compared


class LocalIntensities(PairwiseOptimizer):
    """A `PairwiseOptimizer` of images whose local brightness and contrast are the same everywhere.

    Two people's scans differ in both from place to place, and a difference of intensities cannot tell this from motion.
    """

    window: float = 16.0
    spacing: Spacing = 1.0

    def _prepared(self, batch: dict[str, Tensor], finer: int) -> dict[str, Tensor]:
        images = {key: locally_normalized(batch[key], self.window, self.spacing) for key in ("moving", "fixed")}
        return super()._prepared({**batch, **images}, finer)


def locally_normalized(image: Tensor, window: float, spacing: Spacing = 1.0) -> Tensor:
    """Intensities less their mean about each voxel, over their standard deviation there; flat places are 0.

    Args:
        image: shape (B, C, *S), in [0, 1].
        window: standard deviation of the Gaussian that looks about, voxels; 0 returns the image.
        spacing: of the voxels, see `LogDemons`.
    """
    if window == 0:
        return image
    widths = [window / h for h in relative(spacing, image)]
    rest = image - diffused(image, widths)
    return _CONTRAST * rest / (diffused(rest.square(), widths) + _FLAT**2).sqrt()


def by_intensities(
    deformation: Deformation,
    method: str,
    *,
    strength: float = 1.0,
    window: float = 16.0,
    smoothness: float = 1.0,
    spacing: Spacing | None = None,
    iterations: int | Sequence[int] | str = (30, 30, 20),
    levels: int | Sequence[int] = (4, 2, 1),
    similarity: str = "auto",
    robust: bool = False,
    progress: bool = False,
) -> PairwiseOptimizer | RobustOptimizer:
    """Search a velocity by demons (`LogDemons`), or a displacement by optical flow (`HornSchunck`).

    The levels, and when they end, are those of `PairwiseOptimizer`; its loss here is the mean squared difference.

    Args:
        deformation: a `StationaryVelocity` for demons, a `Displacement` for flow.
        method: "demons" or "flow".
        strength: of the regularisation: the standard deviation of the demons' diffusion, or the flow's alpha.
        window: see `locally_normalized`; 0 compares the intensities as they are.
        smoothness: factor of the regularisation: of the variance of the diffusion, of the square of alpha.
        spacing: of the image grid, one number or one for each axis; None is 1.
        iterations, levels, progress: as for `PairwiseOptimizer`.
        similarity: "auto" or "mse", which are the same here.
        robust: see `refiner.refiner`.
    Raises:
        ValueError: for another method or similarity, or a negative strength, smoothness or window.
    """
    if similarity not in ("auto", "mse"):
        got = repr(similarity) if isinstance(similarity, str) else type(similarity).__name__
        raise ValueError(f"{method} follows the difference of intensities: expected similarity mse, got {got}")
    for key, number in (("strength", strength), ("smoothness", smoothness), ("window", window)):
        check_number(key, number, least=0)
    edges, strength = 1.0 if spacing is None else spacing, strength * smoothness**0.5
    makers: dict[str, Steps] = {
        "demons": LogDemons(diffusion=strength, spacing=edges),
        "flow": HornSchunck(alpha=strength, spacing=edges),
    }
    if method not in makers:
        raise ValueError(f"expected method {' or '.join(makers)}, got {method!r}")
    loss = pair_loss(0.0, regularized="ddf", similarity=MSE())
    optimizer = LocalIntensities(
        deformation, loss, levels=levels, iterations=iterations, method=makers[method], progress=progress
    )
    optimizer.window, optimizer.spacing = window, edges
    return trusting(optimizer, smoothness, "auto") if robust else optimizer
