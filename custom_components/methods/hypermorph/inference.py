"""Registration with hyper-parameters: given, found for the pair, or a sweep of many."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from monai.inferers import Inferer
from torch import Tensor

from ...deformations.base import Deformation
from ...fields import plain
from ...inference.prediction import Masks, Network, Precision
from ...inference.pyramid import at_level
from ...memory import check_memory
from ...networks.layout import channels_last
from ...networks.parallel import unwrap
from ...vocabulary import Result
from .network import HyperMorphUNet
from .tuning import Criterion, tune_hyper


@runtime_checkable
class HasHyper(Protocol):
    """A network that takes H hyper-parameters."""

    num_hyper: int


class HyperInferer(Inferer):
    """Register with given hyper-parameters, or with those that suit the pair.

    The inferer inside gets them as `hyper` (1 or B, H), and with it the network and the refinement's loss
    (`refinement.HyperRefinement`). The result also has "hyper" (B, H), the values used.

    Args:
        inferer: registers pairs, called with `hyper`.
        deformation: of the inferer.
        hyper: the value in [0, 1], or one for each hyper-parameter, where a call names none; "auto" finds those that
            minimise the criterion for each pair.
        criterion: for "auto", called as a loss with the fields and the pair (`objective.RegularityCriterion`).
        iterations: of the search for "auto".
    Raises:
        ValueError: if a value is outside [0, 1], or "auto" has no criterion.
    """

    def __init__(
        self,
        inferer: Inferer,
        deformation: Deformation,
        hyper: float | Sequence[float] | str = 0.5,
        *,
        criterion: Criterion | None = None,
        iterations: int = 12,
    ) -> None:
        super().__init__()
        self.inferer, self.deformation = inferer, deformation
        self.hyper = hyper if isinstance(hyper, str) else _values(hyper)
        if isinstance(self.hyper, str) and (self.hyper != "auto" or criterion is None):
            raise ValueError(f"expected numbers in [0, 1] or 'auto' (with a criterion) for hyper, got {hyper!r}")
        self.criterion, self.iterations = criterion, iterations

    def __call__(
        self,
        inputs: Tensor,
        network: Network,
        *,
        masks: Masks | None = None,
        hyper: Tensor | None = None,
        finer: int = 1,
        **options: object,
    ) -> Result:
        """As the inferer inside; `hyper` (1 or B, H) goes before the values given at construction."""
        image: Tensor = plain(inputs)
        start = time.perf_counter()
        if hyper is None:
            values = self._search(image, network, masks, finer) if isinstance(self.hyper, str) else [self.hyper]
            hyper = torch.tensor(values, device=image.device)
        search = (time.perf_counter() - start) / len(image)
        pred = self.inferer(image, network, masks=masks, hyper=hyper, finer=finer, **options)
        return {**pred, "seconds": pred["seconds"] + search, "hyper": hyper.expand(len(image), -1)}

    def _search(self, image: Tensor, network: Network, masks: Masks | None, finer: int) -> list[list[float]]:
        """The best values for each pair of the batch, at the network's spacing."""
        assert self.criterion is not None
        if not isinstance(network, HasHyper):
            raise ValueError(f"'auto' needs a network with hyper-parameters, not {type(network).__name__}")
        values = []
        for i in range(len(image)):
            moving, fixed = image[i : i + 1].chunk(2, 1)
            targets = {"moving": moving, "fixed": fixed, **{k: m[i : i + 1] for k, m in (masks or {}).items()}}
            targets = at_level(targets, finer)
            pair = torch.cat([targets["moving"], targets["fixed"]], 1)
            best, _ = tune_hyper(
                network, self.deformation, [(pair, targets)], self.criterion, iterations=self.iterations
            )
            values.append(best)
        return values


class SweepInferer(Inferer):
    """Add to a registration those with K values of the first hyper-parameter, from 0 to 1, without refinement.

    The other hyper-parameters are those of the registration. "sweep_hyper" (B, K, H) and "sweep_ddf" (B, K, D, *S) are
    kept on the CPU; "sweep_seconds" (B,).

    Args:
        inferer: gives "hyper" (B, H), as `HyperInferer` does.
        deformation: of the inferer.
        sweep: K; 0 adds nothing.
        precision: see `Precision`.
    Raises:
        ValueError: if there is only one value; on a call, if the network has no hyper-parameters.
    """

    def __init__(
        self, inferer: Inferer, deformation: Deformation, *, sweep: int = 0, precision: str = "float32"
    ) -> None:
        super().__init__()
        if sweep < 0 or sweep == 1:
            raise ValueError(f"expected a sweep of at least 2 values, or 0 for none, got {sweep}")
        self.inferer, self.deformation = inferer, deformation
        self.sweep, self.precision = sweep, Precision(precision)

    def __call__(self, inputs: Tensor, network: Network, *, masks: Masks | None = None, **options: object) -> Result:
        if not self.sweep:
            return self.inferer(inputs, network, masks=masks, **options)
        inner = unwrap(network)
        if not isinstance(inner, HyperMorphUNet):
            raise ValueError(f"a sweep needs a network with hyper-parameters, not {type(inner).__name__}")
        pred = self.inferer(inputs, network, masks=masks, **options)
        return {**pred, **self._swept(plain(inputs), inner, pred["hyper"])}

    @torch.no_grad()
    def _swept(self, image: Tensor, network: HyperMorphUNet, hyper: Tensor) -> dict[str, Tensor]:
        per_value = 4.0 * (image.ndim - 2) * image[:, 0].numel()
        check_memory(2 * self.sweep * per_value, f"a sweep of {self.sweep} values", "give a smaller --sweep")
        ddf = torch.empty(len(image), self.sweep, image.ndim - 2, *image.shape[2:])
        values = hyper[:, None].repeat(1, self.sweep, 1)
        values[:, :, 0] = torch.linspace(0, 1, self.sweep)
        start = time.perf_counter()
        for i in range(len(image)):
            answers = network.each(image[i : i + 1].contiguous(memory_format=channels_last(image)), values[i])
            for k in range(self.sweep):
                # The answer is computed here, not above; the field stays out of autocast.
                with self.precision.autocast(image):
                    parameters = next(answers)
                ddf[i, k] = self.deformation(parameters.float().contiguous(), image.shape[2:])["ddf"][0]
        seconds = torch.full((len(image),), (time.perf_counter() - start) / len(image))
        return {"sweep_ddf": ddf, "sweep_hyper": values.cpu(), "sweep_seconds": seconds}


def _values(hyper: float | Sequence[float]) -> list[float]:
    values = [float(hyper)] if isinstance(hyper, int | float) else [float(value) for value in hyper]
    if isinstance(hyper, bool) or not values or not all(0 <= value <= 1 for value in values):
        raise ValueError(f"expected hyper-parameters in [0, 1], got {hyper}")
    return values
