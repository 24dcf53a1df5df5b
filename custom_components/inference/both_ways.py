"""Registration of a pair in both directions."""

from __future__ import annotations

import torch
from monai.inferers import Inferer
from torch import Tensor

from ..vocabulary import Result
from .prediction import Masks, Network
from .registration import as_pair


class BothWaysInferer(Inferer):
    """Register pairs and, in the same batch, the swapped pairs, whose result is "back".

    Args:
        inferer: registers the doubled batch.
        both: False registers the pairs alone, and the result has no "back".
    """

    def __init__(self, inferer: Inferer, both: bool = True) -> None:
        super().__init__()
        self.inferer, self.both = inferer, both

    def __call__(self, inputs: Tensor, network: Network, *, masks: Masks | None = None, **options: object) -> Result:
        """As the inferer is called; its options are the same for both ways."""
        if not self.both:
            return self.inferer(inputs, network, masks=masks, **options)
        image = as_pair(inputs)
        batch, (moving, fixed) = len(image), image.chunk(2, 1)
        doubled = torch.cat([image, torch.cat([fixed, moving], 1)])
        options = {key: _twice(value) for key, value in options.items()}
        pred = self.inferer(doubled, network, masks=None if masks is None else _both_masks(masks), **options)
        there, back = (_samples(pred, part) for part in (slice(None, batch), slice(batch, None)))
        return {**there, "seconds": there["seconds"] + back.pop("seconds"), "back": back}


def _twice(value: object) -> object:
    return torch.cat([value, value]) if isinstance(value, Tensor) else value


def _both_masks(masks: Masks) -> dict[str, Tensor]:
    """The masks of the doubled batch; where a role has none, its image counts everywhere."""
    doubled = {key: torch.cat([masks[key]] * 2) for key in ("channel_weights", "landmarks_mm") if key in masks}
    for kind in ("mask", "landmarks", "guide"):
        given = [masks[f"{kind}_{role}"] for role in ("moving", "fixed") if f"{kind}_{role}" in masks]
        if given:
            moving, fixed = (masks.get(f"{kind}_{role}", torch.ones_like(given[0])) for role in ("moving", "fixed"))
            doubled |= {f"{kind}_moving": torch.cat([moving, fixed]), f"{kind}_fixed": torch.cat([fixed, moving])}
    return doubled


def _samples(pred: Result, part: slice) -> Result:
    """Some of the batch's samples, in every tensor of a result."""
    return {key: _some(value, part) for key, value in pred.items()}


def _some(value: object, part: slice) -> object:
    if isinstance(value, Tensor):
        return value[part]
    if isinstance(value, dict):
        return _samples(value, part)
    return [_some(entry, part) for entry in value] if isinstance(value, list) else value
