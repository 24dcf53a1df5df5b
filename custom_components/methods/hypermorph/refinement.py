"""Refinement whose regularisation follows each pair's lambda."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ...deformations.base import Deformation
from ...inference.prediction import Masks
from ...inference.refinement import PairwiseOptimizer
from ...inference.refiner import refiner
from ...inference.robust import RobustOptimizer

_REFINER: Callable[..., PairwiseOptimizer | RobustOptimizer] = refiner
_MOST = 100.0  # times the usual smoothness: by then nothing moves any more


class HyperRefinement:
    """Refine each pair by `refiner`, with a smoothness in proportion to lambda / (1 - lambda).

    That ratio is the weight of the regularisation to that of the images in the network's objective. Other
    hyper-parameters are of the network alone.

    Args:
        deformation: parameters to fields.
        names: of the hyper-parameters; without "lambda" all pairs have the same smoothness.
        usual: the lambda at which the smoothness is the given one.
        smoothness: of `refiner`, at the usual lambda.
        **settings: others of `refiner`.
    Raises:
        ValueError: if the usual lambda is not between 0 and 1.
    """

    def __init__(
        self,
        deformation: Deformation,
        names: Sequence[str] = ("lambda",),
        *,
        usual: float = 0.3,
        smoothness: float = 1.0,
        **settings: object,
    ) -> None:
        if not 0 < usual < 1:
            raise ValueError(f"expected the usual lambda between 0 and 1, got {usual}")
        self.deformation, self.names, self.usual = deformation, tuple(names), usual
        self.smoothness, self.settings = smoothness, settings
        self._refiner(usual)  # a wrong setting is an error here already

    def __call__(
        self,
        moving: Tensor,
        fixed: Tensor,
        parameters: Tensor | None = None,
        masks: Masks | None = None,
        *,
        constants: Mapping[str, Tensor] | None = None,
        deformation: Deformation | None = None,
        finer: int = 1,
    ) -> Tensor:
        """As `PairwiseOptimizer`; `constants` has "hyper" (B, H)."""
        rest = dict(constants or {})
        hyper = rest.pop("hyper", None)
        result = []
        for i in range(len(moving)):
            value = self.usual
            if hyper is not None and "lambda" in self.names:
                value = float(hyper[min(i, len(hyper) - 1), self.names.index("lambda")])
            one = slice(i, i + 1)
            result.append(
                self._refiner(value)(
                    moving[one],
                    fixed[one],
                    None if parameters is None else parameters[one],
                    {key: mask[one] for key, mask in (masks or {}).items()},
                    constants=rest,
                    deformation=deformation,
                    finer=finer,
                )
            )
        return torch.cat(result)

    def _refiner(self, value: float) -> PairwiseOptimizer | RobustOptimizer:
        ratio = value / (1 - value) if value < 1 else _MOST
        return _REFINER(
            self.deformation,
            smoothness=self.smoothness * min(ratio / (self.usual / (1 - self.usual)), _MOST),
            **self.settings,
        )
