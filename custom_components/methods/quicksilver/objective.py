"""The objective of networks that learn momenta from examples, in patches."""

from __future__ import annotations

from torch import Tensor, nn

from ...deformations.kernels import Kernel, Spacing
from ...fields import pad_ends
from ...vocabulary import Batch, Result


class MomentumLoss(nn.Module):
    """Mean absolute (or squared) difference of the predicted and the true momentum p of a patch.

    With a kernel the difference is first smoothed by its power K^exponent. The momentum's finest detail, which K
    removes on the way to the velocity, is the hardest to predict and would outweigh all else: with exponent 1/2 the
    squared difference is that of the metric, <p, K p>; with 1 it is that of the velocity.

    Args:
        penalty: "l1" or "l2".
        kernel: of the momenta, periodic; None compares the momenta themselves.
        spacing: of the images' grid, in the kernel's unit; one number or one for each axis.
        stride: image voxels per voxel of the momenta's grid.
        exponent: see above.
    Raises:
        ValueError: for another penalty, or a kernel with padding.
    References: Yang et al., Quicksilver, NeuroImage 158, 2017 (the sum of absolute differences, not smoothed).
    """

    def __init__(
        self,
        penalty: str = "l1",
        kernel: Kernel | None = None,
        spacing: Spacing = 1.0,
        exponent: float = 0.5,
        *,
        stride: int = 1,
    ) -> None:
        super().__init__()
        if penalty not in ("l1", "l2"):
            raise ValueError(f"expected penalty l1 or l2, got {penalty!r}")
        if kernel is not None and kernel.padding != "none":
            raise ValueError(f"only a kernel without padding can be compared in patches, not {kernel}")
        self.penalty, self.kernel, self.exponent = penalty, kernel, exponent
        self.spacing = spacing * stride if isinstance(spacing, int | float) else [h * stride for h in spacing]

    def forward(self, pred: Result, batch: Batch) -> Tensor:
        """Loss, a scalar, of pred["prediction"] and batch["momentum"], (B, D, *P)."""
        difference = pred["prediction"].float() - batch["momentum"]
        if self.kernel is not None:
            # Zeros around, as much again: what lies beyond a patch is not compared, and must not wrap around.
            size = difference.shape[2:]
            padded = pad_ends(difference, [2 * n for n in size])
            difference = self.kernel.powered(padded, self.exponent, self.spacing)
            difference = difference[(slice(None), slice(None), *[slice(n) for n in size])]
        loss = difference.abs().mean() if self.penalty == "l1" else difference.square().mean()
        pred["terms"] = {self.penalty: loss.detach()}
        return loss
