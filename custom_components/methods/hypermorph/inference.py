"""Registration with hyper-parameters: given, found for the pair, or a sweep of many."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...fields import plain
from ...inference.registration import Deformation, RegistrationInferer
from .tuning import Criterion, tune_hyper


class HyperInferer(RegistrationInferer):
    """A `RegistrationInferer` for networks with hyper-parameters: for given ones, those that suit the pair, or many.

    The refinement's loss gets the same values (`objective.HyperLoss`).
    The result also has "hyper" (B, H), the values used. With `sweep`, K values of the first hyper-parameter from 0 to 1
    (the others as given) are run as well, without refinement: "sweep_hyper" (B, K, H) and "sweep_ddf" (B, K, D, *S),
    kept on the CPU, and "sweep_seconds" (B,).

    Args:
        deformation: as in `RegistrationInferer`.
        hyper: the value in [0, 1], or one for each hyper-parameter, where a call names none; "auto" finds those that
            minimise the criterion for each pair.
        sweep: number K of values, 0 for none, else at least 2.
        criterion: for "auto", called as a loss with the fields and the pair (`objective.RegularityCriterion`).
        iterations: of the search for "auto".
        **options: of `RegistrationInferer`.
    Raises:
        ValueError: if a value is outside [0, 1], "auto" has no criterion, or a sweep has one value.
    """

    def __init__(
        self,
        deformation: Deformation,
        hyper: float | Sequence[float] | str = 0.5,
        *,
        sweep: int = 0,
        criterion: Criterion | None = None,
        iterations: int = 12,
        **options: Any,
    ) -> None:
        super().__init__(deformation, **options)
        self.hyper = hyper if isinstance(hyper, str) else _values(hyper)
        if isinstance(self.hyper, str) and (self.hyper != "auto" or criterion is None):
            raise ValueError(f"expected numbers in [0, 1] or 'auto' (with a criterion) for hyper, got {hyper!r}")
        if sweep < 0 or sweep == 1:
            raise ValueError(f"expected a sweep of at least 2 values, or 0 for none, got {sweep}")
        self.sweep, self.criterion, self.iterations = sweep, criterion, iterations

    def __call__(
        self,
        inputs: Tensor,
        network: Callable[..., Tensor],
        *args: Any,
        masks: dict[str, Tensor] | None = None,
        hyper: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        image = plain(inputs)
        start = time.perf_counter()
        wanted = ["each"] * bool(self.sweep) + ["num_hyper"] * (self.hyper == "auto")
        if not all(hasattr(network, name) for name in wanted):
            raise ValueError(f"a sweep and 'auto' need a network with hyper-parameters, not {type(network).__name__}")
        if hyper is None:
            values = self._choose(image, network, masks) if isinstance(self.hyper, str) else [self.hyper]
            hyper = torch.tensor(values, device=image.device)
        chosen = (time.perf_counter() - start) / len(image)
        pred = super().__call__(image, network, *args, masks=masks, hyper=hyper, **kwargs)
        pred["seconds"] = pred["seconds"] + chosen
        pred["hyper"] = hyper.expand(len(image), -1)
        return pred | self._sweep(image, network, pred["hyper"]) if self.sweep else pred

    def _choose(self, image: Tensor, network: Any, masks: dict[str, Tensor] | None) -> list[list[float]]:
        assert self.criterion is not None
        values = []
        for i in range(len(image)):
            one = image[i : i + 1]
            moving, fixed = one.chunk(2, 1)
            targets = {"moving": moving, "fixed": fixed, **{k: m[i : i + 1] for k, m in (masks or {}).items()}}
            found = tune_hyper(network, self.deformation, [(one, targets)], self.criterion, iterations=self.iterations)
            values.append(found[0])
        return values

    @torch.no_grad()
    def _sweep(self, image: Tensor, network: Any, hyper: Tensor) -> dict[str, Tensor]:
        dtype = getattr(torch, self.precision)
        layout = torch.channels_last_3d if image.ndim == 5 else torch.channels_last
        values = hyper[:, None].repeat(1, self.sweep, 1)
        values[:, :, 0] = torch.linspace(0, 1, self.sweep)
        ddf = torch.empty(len(image), self.sweep, image.ndim - 2, *image.shape[2:])
        start = time.perf_counter()
        for i in range(len(image)):
            one = image[i : i + 1].contiguous(memory_format=layout)
            with torch.autocast(image.device.type, dtype, enabled=dtype != torch.float32):
                for k, parameters in enumerate(network.each(one, values[i])):
                    with torch.autocast(image.device.type, enabled=False):
                        ddf[i, k] = self.deformation(parameters.float().contiguous(), image.shape[2:])["ddf"][0]
        seconds = torch.full((len(image),), (time.perf_counter() - start) / len(image))
        return {"sweep_ddf": ddf, "sweep_hyper": values.cpu(), "sweep_seconds": seconds}


def _values(hyper: float | Sequence[float]) -> list[float]:
    values = [float(hyper)] if isinstance(hyper, int | float) else [float(value) for value in hyper]
    if isinstance(hyper, bool) or not values or not all(0 <= value <= 1 for value in values):
        raise ValueError(f"expected hyper-parameters in [0, 1], got {hyper}")
    return values
