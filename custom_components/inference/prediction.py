"""From a pair of images to the parameters of a deformation.

A `Predictor` is the part of an inferer in which methods differ: a network's output, the answers of patches, an optimum.
It knows nothing of warping or refinement; `registration.RegistrationInferer` adds those.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from ..deformations.base import Deformation
from ..fields import per_channel
from ..networks.layout import fastest_layout
from ..vocabulary import Pred

# What a network answers depends on the network: mostly a tensor, sometimes several.
Network = Callable[..., Any]
Masks = Mapping[str, Tensor]


@dataclass(frozen=True)
class Prediction:
    """Parameters for a batch of pairs, and the deformation that they belong to.

    Args:
        parameters: shape (B, P, *S').
        deformation: the inferer's own, or one that depends on the pairs.
        extra: further entries of the result.
    """

    parameters: Tensor
    deformation: Deformation
    extra: Pred = field(default_factory=dict)


class Predictor(Protocol):
    """Parameters for pairs of images."""

    def __call__(
        self,
        image: Tensor,
        network: Network,
        deformation: Deformation,
        *,
        masks: Masks | None = None,
        **options: object,
    ) -> Prediction:
        """Predictor.

        Args:
            image: shape (B, 2C, *S), moving, then fixed.
            network: the one the engine runs.
            deformation: what the parameters are for.
            masks: "mask_moving", "mask_fixed", shape (B, 1, *S), landmarks and guides (`losses`).
            **options: what else a batch brings for its network ("hyper").
        """


class Refinement(Protocol):
    """Optimise parameters for pairs of images, as `refinement.PairwiseOptimizer` does."""

    def __call__(
        self,
        moving: Tensor,
        fixed: Tensor,
        parameters: Tensor | None = None,
        masks: Masks | None = None,
        *,
        constants: Mapping[str, object] | None = None,
        deformation: Deformation | None = None,
        finer: int = 1,
    ) -> Tensor:
        """Optimise, starting from `parameters` or, without any, from zero.

        Args:
            constants: what else the loss needs of the batch.
            deformation: in place of the optimiser's own.
            finer: the start was found with so many times fewer voxels along each axis.
        """


class Precision:
    """Runs networks in a floating-point precision; their output, and all fields, stay in float32.

    Small volumes are trained in float32 on CPUs, whatever the precision: in bfloat16 oneDNN's gradient for the weights
    of a 3-D convolution reads memory that nobody wrote where its input has two voxels along the first axis (found with
    torch 2.13 on an AMD EPYC; 1, 3 and more voxels are right). No network here divides an axis by more than 16.

    Args:
        name: "float32", or "bfloat16" or "float16" for autocast. On CPUs with bfloat16 units this is faster
            (docs/benchmarks.md); training in float16 needs the trainer's `amp=True`.
    Raises:
        ValueError: for another name.
    """

    SMALL = 48  # voxels along the first axis, of which a sixteenth can be two

    def __init__(self, name: str = "float32") -> None:
        if name not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"expected precision float32, bfloat16 or float16, got {name!r}")
        self.name = name

    def autocast(self, image: Tensor) -> torch.autocast:
        """The context in which the network sees an image (B, C, *S).

        Raises:
            ValueError: for bfloat16 on a GPU that only emulates it.
        """
        device, dtype = image.device, getattr(torch, self.name)
        small = image.ndim == 5 and image.shape[2] < self.SMALL
        if device.type == "cpu" and small and torch.is_grad_enabled():
            dtype = torch.float32
        if dtype == torch.bfloat16 and device.type == "cuda" and not _has_bfloat16():
            raise ValueError(
                "this GPU has no bfloat16: give precision float32, or float16 (in a training with amp true)"
            )
        return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)

    def ask(self, network: Network, image: Tensor, **options: object) -> Any:
        """The network's answer as it comes, in whatever precision."""
        with self.autocast(image):
            layout = fastest_layout(network, image, options)
            return network(image.contiguous(memory_format=layout), **options)

    def run(self, network: Network, image: Tensor, **options: object) -> Tensor:
        """The network's output, one tensor, in float32."""
        output: Tensor = self.ask(network, image, **options)
        return output.float().contiguous()


@functools.cache
def _has_bfloat16() -> bool:
    return torch.cuda.is_bf16_supported(including_emulation=False)


class NetworkPredictor:
    """The parameters are the network's output, or the mean of its answers to symmetric versions of the pair.

    A registration should not depend on which side is which, nor on which image moves. A network's answers differ a
    little; their mean errs less than each, and has the symmetry itself.

    - "mirror": also the pair mirrored along its first axis, the answer mirrored back. For networks trained with such
      pairs.
    - "swap": also the pair swapped, the answer negated. For velocities that stay and vectors whose negative is the
      inverse map: the pair and the swapped pair then get inverse maps. Channels beyond the vector's, a log variance for
      instance, are not negated.

    Args:
        precision: see `Precision`.
        average: "mirror", "swap" or both, which costs 2 or 4 runs of the network.
        **options: keyword arguments for each call of the network, beside those of the batch.
    Raises:
        ValueError: for another word in `average`.
    """

    def __init__(self, precision: str = "float32", average: Sequence[str] = (), **options: object) -> None:
        if isinstance(average, str) or not set(average) <= {"mirror", "swap"}:
            raise ValueError(f"expected a list of mirror and swap to average over, got {average!r}")
        self.precision, self.options = Precision(precision), options
        self.mirror, self.swap = "mirror" in average, "swap" in average

    def __call__(
        self,
        image: Tensor,
        network: Network,
        deformation: Deformation,
        *,
        masks: Masks | None = None,
        **options: object,
    ) -> Prediction:
        def run(image: Tensor) -> Tensor:
            return self.precision.run(network, image, **self.options, **options)

        def both_ways(image: Tensor) -> Tensor:
            if not self.swap:
                return run(image)
            moving, fixed = image.chunk(2, 1)
            back = run(torch.cat([fixed, moving], 1))
            return (run(image) + _negated(back, range(image.ndim - 2))) / 2

        parameters = both_ways(image)
        if self.mirror:
            parameters = (parameters + _negated(both_ways(image.flip(2)).flip(2), range(1))) / 2
        return Prediction(parameters, deformation)


def _negated(parameters: Tensor, channels: range) -> Tensor:
    """Parameters (B, P, *S), some of whose channels change their sign."""
    return parameters * per_channel([-1.0 if i in channels else 1.0 for i in range(parameters.shape[1])], parameters)


class OptimizingPredictor:
    """The parameters are optimised from zero; there is no network.

    Args:
        refinement: the optimiser.
    """

    takes_channels = True  # networks see the first channel alone

    def __init__(self, refinement: Refinement) -> None:
        self.refinement = refinement

    def __call__(
        self,
        image: Tensor,
        network: Network,
        deformation: Deformation,
        *,
        masks: Masks | None = None,
        **options: object,
    ) -> Prediction:
        moving, fixed = image.chunk(2, 1)
        parameters = self.refinement(moving, fixed, None, masks, constants=options, deformation=deformation)
        return Prediction(parameters, deformation)
