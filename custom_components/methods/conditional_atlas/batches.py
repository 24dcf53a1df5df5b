"""Batches of single scans for the training of an atlas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

import torch
from torch import Generator, Tensor

from ...data.batches import Prepare, Prepared, prepare_pair_batch
from ...synthesis.contrast import ContrastDraw, RandomContrast
from ...synthesis.noise import uniform
from ...vocabulary import Collated
from .attributes import AttributeEncoder


class AtlasBatch:
    """`prepare_batch` for a network that supplies the other image itself, a template for the scan's attributes.

    The network input is the moving image, the scan; its attributes, raw values (B, A), go to the inferer.

    Args:
        encoder: has `names` and `values(attributes by name)` (`AttributeEncoder`); the batch has the attributes by
            name, or by name and "_moving" as `ScanPairDataset` calls them.
        prepare: makes the batch itself.
    Raises:
        ValueError: on a call, if an attribute is missing or impossible.
    """

    def __init__(self, encoder: AttributeEncoder, prepare: Prepare = prepare_pair_batch) -> None:
        self.encoder, self.prepare = encoder, prepare

    def __call__(
        self, batch: Collated, device: torch.device | str | None = None, non_blocking: bool = False, **kwargs: object
    ) -> Prepared:
        """As `prepare` returns it, with `attributes`."""
        _image, targets, _args, options = self.prepare(batch, device, non_blocking, **kwargs)
        scan = targets["moving"]
        if not self.encoder.names:
            return scan, targets, (), options
        keys = {name: f"{name}_moving" if f"{name}_moving" in batch else name for name in self.encoder.names}
        missing = [name for name, key in keys.items() if key not in batch]
        if missing:
            raise ValueError(f"the scans have no attribute {', '.join(missing)}: add it to the data list")
        rows = [self.encoder.values({name: batch[key][i] for name, key in keys.items()}) for i in range(len(scan))]
        return scan, targets, (), {**options, "attributes": torch.stack(rows).to(scan.device, non_blocking=True)}


class ScanDraw(TypedDict):
    """What `SynthesizeScan` draws: which maps lose labels, (B,), and the contrast."""

    strip: Tensor
    contrast: ContrastDraw


class SynthesizeScan:
    """Single scans rendered from their label maps, where they lie.

    Args:
        contrast: draws the images.
        strip: probability that a map loses the labels from `first_extracerebral` on (skull-stripping).
        groups: ids of the label map that is handed on, for each structure's id ("id of the map": "id of its group"; an
            id that is not named becomes 0); None leaves the map as it is.
    """

    def __init__(
        self,
        contrast: RandomContrast,
        *,
        strip: float = 0.0,
        first_extracerebral: int = 500,
        groups: Mapping[str | int, int] | None = None,
    ) -> None:
        self.contrast, self.strip, self.first_extracerebral = contrast, strip, first_extracerebral
        self.groups: Tensor | None = None
        if groups is not None:
            self.groups = torch.zeros(contrast.intensities.num_labels, dtype=torch.int16)
            for label, group in groups.items():
                self.groups[int(label)] = int(group)

    def draw(self, batch: int, size: Sequence[int], generator: Generator) -> ScanDraw:
        """Draw "strip" (B,) and "contrast"."""
        return {
            "strip": uniform((0, 1), (batch,), generator) < self.strip,
            "contrast": self.contrast.draw(batch, size, generator),
        }

    def __call__(self, label_moving: Tensor, draw: ScanDraw) -> dict[str, Tensor]:
        """`moving`, the images (B, 1, *S), and `label_moving`, for integer maps (B, 1, *S)."""
        shape = (-1, *[1] * (label_moving.ndim - 1))
        labels = label_moving.masked_fill((label_moving >= self.first_extracerebral) & draw["strip"].view(shape), 0)
        image = self.contrast(labels, draw["contrast"])
        if self.groups is not None:
            labels = self.groups.to(labels.device)[labels.long()]
        return {"moving": image, "label_moving": labels}
