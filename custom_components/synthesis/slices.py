"""Random 2-D slices of 3-D label maps."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Generator, Tensor

from .noise import Draw, uniform


class TakeSlices:
    """2-D label maps for `SynthesizePair`: random parallel slices of 3-D maps that share a space.

    Args:
        count: slices of each pair of maps.
        levels: for each array axis that may be cut, the range of indices.
        jitter: largest difference between the levels of moving and fixed.
        transpose: probability that the two axes of all slices change places: 2-D files come either way.
    """

    def __init__(
        self, count: int, levels: Mapping[int, tuple[int, int]], jitter: int = 0, transpose: float = 0.0
    ) -> None:
        self.count, self.levels, self.jitter = count, {int(k): v for k, v in levels.items()}, jitter
        self.transpose = transpose

    def draw(self, generator: Generator) -> Draw:
        """Draw "axis" and "swap", one for all slices, and "levels" (2, count), of moving and of fixed."""
        axes = list(self.levels)
        axis = axes[int(torch.randint(len(axes), (1,), generator=generator, device=generator.device))]
        low, high = self.levels[axis]
        level = torch.randint(low, high + 1, (self.count,), generator=generator, device=generator.device)
        offset = torch.randint(
            -self.jitter, self.jitter + 1, (self.count,), generator=generator, device=generator.device
        )
        swap = bool(uniform((0, 1), (1,), generator) < self.transpose)
        return {
            "axis": torch.tensor(axis),
            "swap": torch.tensor(swap),
            "levels": torch.stack([level, (level + offset).clamp(low, high)]),
        }

    def __call__(self, label_moving: Tensor, label_fixed: Tensor, draw: Mapping[str, Tensor]) -> list[Tensor]:
        """Two batches (B * count, 1, H, W), of maps (B, 1, *S) in 3-D."""
        if label_moving.ndim != 5 or label_moving.shape != label_fixed.shape:
            raise ValueError(
                "expected two batches of 3-D maps of equal size, "
                f"got {tuple(label_moving.shape)} and {tuple(label_fixed.shape)}"
            )
        axis = int(draw["axis"]) + 2
        maps = zip((label_moving, label_fixed), draw["levels"], strict=True)
        slices = [labels.index_select(axis, level).movedim(axis, 1).flatten(0, 1) for labels, level in maps]
        return [one.mT.contiguous() for one in slices] if draw["swap"] else slices
