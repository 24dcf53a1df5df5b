"""Structures of label maps, and the draw of one of them for each pair."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...checks import check_number
from ...data.batches import Prepared, prepare_pair_batch
from ...evaluation.overlap import present_labels
from ...vocabulary import Collated
from .augmentation import Augmentation

Structures = Sequence[Sequence[int]] | str


def indicators(moving: Tensor, fixed: Tensor, structures: Structures) -> tuple[Tensor, Tensor]:
    """Where each structure is, bool, (B, K, *S) for each of two label maps (B, 1, *S).

    Args:
        moving, fixed: integer label maps (B, 1, *S).
        structures: the ids that belong to each; they may share ids, as a gland and what lies in it. "all" takes each id
            above 0 that occurs as a structure of its own.
    Raises:
        ValueError: for another word, or no structure.
    """
    if isinstance(structures, str):
        if structures != "all":
            raise ValueError(f"expected lists of ids or 'all' for the structures, got {structures!r}")
        structures = [[label] for label in present_labels(moving, fixed)]
    if not structures:
        raise ValueError("expected at least one structure in the label maps, got none")
    moving, fixed = (torch.cat([_is_any(labels, ids) for ids in structures], 1) for labels in (moving, fixed))
    return moving, fixed


def _is_any(labels: Tensor, ids: Sequence[int]) -> Tensor:
    found = labels == ids[0]
    for label in ids[1:]:
        found = found | (labels == label)
    return found


class DrawnStructureBatch:
    """`prepare_batch` that puts one structure in place of all labels, drawn uniformly for each pair and step.

    Only structures that both images of a pair show are drawn, the same one for both.

    The random numbers are torch's, so that a seeded run can be repeated.

    Args:
        structures: see `indicators`.
        augmentation: changes images and label maps of a pair first; None leaves them.
        mixed: probability that the pairs of a batch swap their fixed images among one another. Then the first structure
            is compared, which everybody has (a gland; landmarks are one person's own). It makes few people many pairs.
    Raises:
        ValueError: for a probability that is none.
    References: Hu et al., Medical Image Analysis 49, 2018.
    """

    def __init__(
        self, structures: Structures = "all", augmentation: Augmentation | None = None, mixed: float = 0.0
    ) -> None:
        check_number("the probability of mixed pairs", mixed, least=0, most=1)
        self.structures, self.augmentation, self.mixed = structures, augmentation, mixed

    @torch.no_grad()
    def __call__(
        self, batch: Collated, device: torch.device | str | None = None, non_blocking: bool = False, **kwargs: object
    ) -> Prepared:
        """As `prepare_pair_batch`; "label_moving" and "label_fixed" are the drawn structure's indicators, float32.

        Raises:
            ValueError: if the batch has no label maps.
        """
        _, targets, positional, options = prepare_pair_batch(batch, device, non_blocking, **kwargs)
        missing = [key for key in ("label_moving", "label_fixed") if key not in targets]
        if missing:
            raise ValueError(f"this training compares labels, and the pairs have no {missing[0]!r}")
        structures = self.structures
        if torch.rand(()) < self.mixed:
            targets |= {key: targets[key].roll(1, 0) for key in ("fixed", "label_fixed")}
            structures = structures if isinstance(structures, str) else structures[:1]
        if self.augmentation is not None:
            targets = self.augmentation(targets)
        image = torch.cat([targets["moving"], targets["fixed"]], 1)
        moving, fixed = indicators(targets["label_moving"], targets["label_fixed"], structures)
        drawn = draw(moving, fixed)
        targets |= {"label_moving": _taken(moving, drawn), "label_fixed": _taken(fixed, drawn)}
        return image, targets, positional, options


def draw(moving: Tensor, fixed: Tensor) -> Tensor:
    """The position of one structure for each pair that shows it in both images, (B,); 0 where there is none.

    Args:
        moving, fixed: bool, (B, K, *S).
    """
    shown = moving.flatten(2).any(2) & fixed.flatten(2).any(2)
    chance = torch.rand(shown.shape, device=shown.device)
    return (chance * shown).argmax(1)


def _taken(maps: Tensor, drawn: Tensor) -> Tensor:
    return maps[torch.arange(len(maps), device=maps.device), drawn].unsqueeze(1).float()
