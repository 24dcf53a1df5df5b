"""Cycle-consistent training: two images that are registered to one another should come back."""

from __future__ import annotations

import torch
from monai.inferers import Inferer
from torch import Tensor, nn

from ...checks import check_number
from ...inference.both_ways import BothWaysInferer
from ...inference.prediction import Masks, Network
from ...inference.registration import as_pair
from ...losses.multistep import swapped
from ...losses.registration import RegistrationLoss
from ...vocabulary import Batch, Result


class CycleInferer(Inferer):
    """Register a pair both ways, the two warped images to one another, and each image to itself.

    With A moving, B fixed, A' = A o phi_AB and B' = B o phi_BA, the result has beside the inferer's own entries "back",
    the result for (B, A); "returned", A' registered to B', which should be A; and "itself", the result for (B, B). The
    same stand in "back": B' registered to A', and the result for (A, A). One network does it all.

    Args:
        inferer: registers a batch of pairs.
        cycle, identity: whether there are "returned" and "itself". Without both it is the inferer alone.
    References: Kim et al., MICCAI 2019, and CycleMorph, Medical Image Analysis 71, 2021 (two networks).
    """

    def __init__(self, inferer: Inferer, *, cycle: bool = False, identity: bool = False) -> None:
        super().__init__()
        self.inferer, self.cycle, self.identity = inferer, cycle, identity
        self.both = BothWaysInferer(inferer)

    def __call__(self, inputs: Tensor, network: Network, *, masks: Masks | None = None, **options: object) -> Result:
        """As the inferer is called; masks count for the images themselves alone."""
        if not (self.cycle or self.identity):
            return self.inferer(inputs, network, masks=masks, **options)
        moving, fixed = as_pair(inputs).chunk(2, 1)
        pred = self.both(inputs, network, masks=masks, **options)
        ways = (pred, pred["back"])
        if self.cycle:
            again = self.both(torch.cat([way["warped"] for way in ways], 1), network, masks=None, **options)
            for way, result in zip(ways, (again, again["back"]), strict=True):
                way["returned"] = result["warped"]
        if self.identity:
            for way, image in zip(ways, (fixed, moving), strict=True):
                way["itself"] = self.inferer(torch.cat([image, image], 1), network, **options)
        return pred


class CycleLoss(nn.Module):
    """A registration loss, the mean of both ways, with what cycles and identities cost.

    loss(A to B) + cycle_weight * mean |A'' - A| + identity_weight * similarity(B o phi_BB, B), and the same with A and
    B exchanged; the mean of the two. A'' is A after both ways. It is a cycle of images, not of maps: what blurs, costs.

    Args:
        loss: of a pair.
        cycle_weight, identity_weight: see above; both 0 is the loss of the pair alone. (CycleMorph: 0.1 and 0.5.)
    Raises:
        ValueError: for a weight below 0, or identities without a similarity.
    References: as `CycleInferer`; sums of the two ways there.
    """

    def __init__(self, loss: RegistrationLoss, cycle_weight: float = 0.0, identity_weight: float = 0.0) -> None:
        super().__init__()
        for name, value in (("cycle_weight", cycle_weight), ("identity_weight", identity_weight)):
            check_number(name, value, least=0)
        if identity_weight and loss.similarity is None:
            raise ValueError("identities need a loss with a similarity of images")
        self.loss, self.cycle_weight, self.identity_weight = loss, cycle_weight, identity_weight

    @property
    def needs(self) -> tuple[str, ...]:
        """The keys of a batch that it needs besides the images."""
        return self.loss.needs

    def forward(self, pred: Result, batch: Batch) -> Tensor:
        """Total loss, a scalar; the weighted, detached terms are left in `pred["terms"]` by name."""
        ways = [(pred, batch)] if "back" not in pred else [(pred, batch), (pred["back"], swapped(batch))]
        terms: dict[str, Tensor] = {}
        for way, targets in ways:
            for name, value in self._of_one_way(way, targets).items():
                terms[name] = terms.get(name, torch.zeros_like(value)) + value / len(ways)
        pred["terms"] = {name: value.detach() for name, value in terms.items()}
        return torch.stack([*terms.values()]).sum()

    def _of_one_way(self, way: Result, batch: Batch) -> dict[str, Tensor]:
        terms = self.loss.terms(way, batch)
        if "returned" in way:
            terms["cycle"] = self.cycle_weight * (way["returned"] - batch["moving"]).abs().mean()
        if "itself" in way:
            assert self.loss.similarity is not None
            unlike = self.loss.similarity(way["itself"]["warped"], batch["fixed"])
            terms["identity"] = self.identity_weight * unlike
        return terms
