"""The bundles' networks and deformations as `device_training` trains them: one function of images that never waits."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.experiments import bundle_config
from custom_components.deformations.base import Fields
from custom_components.fields import compose, warp
from custom_components.files import read_state
from custom_components.losses.regularization import GradientPenalty, MeanEnergy
from custom_components.methods.rdmm.objective import OMTPenalty
from custom_components.methods.voxelmorph_probabilistic.objective import GaussianKL

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Method:
    """What a bundle's objective weighs.

    Attributes:
        regularized: the field whose size counts: "svf" by its gradient, "energy" by its mean, "posterior" by its
            divergence from the prior.
        weight: of this size.
        data_weight: of similarity and overlap.
        steps: times the network is applied in a row.
        drawn: compare a sample of what the network predicts.
        hyper: the network is given lambda: similarity and overlap count (1 - lambda), the size lambda.
        narrow_weight: of the share of narrow Gaussians in a metric that varies.
        fresh: parts of the names of weights that a file to begin from may lack.
    """

    regularized: str = "svf"
    weight: float = 0.1
    data_weight: float = 1.0
    steps: int = 1
    drawn: bool = False
    hyper: bool = False
    narrow_weight: float = 0.0
    fresh: tuple[str, ...] = ()


METHODS = {
    "voxelmorph": Method(),
    "synthmorph": Method(),
    "voxelmorph_probabilistic": Method("posterior", weight=1.0, data_weight=40.0, drawn=True, fresh=("log_variance.",)),
    "hypermorph": Method(weight=1.0, data_weight=5.0, hyper=True, fresh=("hypernetwork.", ".project.")),
    "avsm": Method("energy", weight=0.001, steps=2),
    "rdmm": Method("energy", weight=0.001, narrow_weight=0.1),
}


class Registration(nn.Module):
    """A bundle's network and deformation.

    Args:
        bundle: its name, a key of METHODS.
        spatial_dims: 2 takes what the bundle's inference_2d.json says.
        initial: weights to begin from.
        precision: of the network, under autocast.
    Attributes:
        network, deformation, method, default_hyper.
        learns_variance: false: the log variance that a network predicts gets no gradient.
    """

    learns_variance = True

    def __init__(
        self, bundle: str, *, spatial_dims: int = 3, initial: Path | None = None, precision: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        names = ["inference", *["inference_2d"] * (spatial_dims == 2)]
        config = bundle_config(bundle, names, device=torch.device("cpu"))
        self.method, self.precision = METHODS[bundle], precision
        self.network: nn.Module = config.get_parsed_content("network_def")
        self.deformation: Any = config.get_parsed_content("deformation")
        if hasattr(self.deformation, "checked"):
            self.deformation.checked, self.deformation.checkpoint = False, False
        self.default_hyper = float(config.get_parsed_content("hyper")) if self.method.hyper else None
        self.size_of = _size(self.method, config)
        self.narrow = OMTPenalty(self.deformation.kernel.sigmas, squared=True) if self.method.narrow_weight else None
        if initial is not None:
            self.begin(initial)

    def begin(self, initial: Path) -> None:
        """Load weights; those that the method adds to the file's network may be missing.

        Raises:
            ValueError: if others are missing, or the file holds another network's.
        """
        own, state = self.network.state_dict(), read_state(initial)
        fresh = [k for k in own if k not in state and any(part in k for part in self.method.fresh)]
        try:
            self.network.load_state_dict({**state, **{k: own[k] for k in fresh}})
        except RuntimeError as error:
            raise ValueError(f"{initial}: these are not weights to begin this network from") from error
        if fresh:
            logger.info("%s lacks %d weights: they start afresh", initial, len(fresh))

    def parameters_of(self, image: Tensor, hyper: Tensor | None = None) -> Tensor:
        """The deformation's parameters for pairs (B, 2, *S), in float32."""
        device = image.device.type
        with torch.autocast(device, self.precision, enabled=self.precision != torch.float32):
            answer = self.network(image) if hyper is None else self.network(image, hyper)
        if not self.learns_variance:
            mean, log_variance = answer.chunk(2, 1)
            answer = torch.cat([mean, log_variance.detach()], 1)
        return answer.float()

    def steps(self, image: Tensor, hyper: Tensor | None = None, *, drawn: bool = False) -> Iterator[Fields]:
        """Each step's fields; "ddf" is the map so far.

        Args:
            hyper: lambda, (1, 1), for a network that is given one.
            drawn: of a sample.
        """
        moving, fixed = image.chunk(2, 1)
        so_far: Tensor | None = None
        for _ in range(self.method.steps):
            seen = image if so_far is None else torch.cat([warp(moving, so_far), fixed], 1)
            make = self.deformation.draw if drawn else self.deformation
            fields: Fields = make(self.parameters_of(seen, hyper), image.shape[2:])
            so_far = fields["ddf"] if so_far is None else compose(so_far, fields["ddf"])
            yield {**fields, "ddf": so_far}

    def ddf(self, image: Tensor) -> Tensor:
        """The displacement of the answer itself, with the bundle's hyper-parameter."""
        hyper = None if self.default_hyper is None else image.new_full((1, 1), self.default_hyper)
        *_, last = self.steps(image, hyper)
        return last["ddf"]

    def penalty(self, fields: Fields) -> Tensor:
        """The weighted size of a step's deformation."""
        size = self.method.weight * self.size_of(fields[self.method.regularized])
        if self.narrow is not None:
            size = size + self.method.narrow_weight * self.narrow(fields["weights"])
        return size


def _size(method: Method, config: Any) -> nn.Module:
    if method.regularized == "posterior":
        return GaussianKL(
            config.get_parsed_content("prior_precision"), smoothing=config.get_parsed_content("smoothing")
        )
    return MeanEnergy() if method.regularized == "energy" else GradientPenalty()
