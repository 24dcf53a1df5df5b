"""Registration in the metric of the moving image: of its regions, or found by a network."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ...fields import plain, resize_field, resize_map, warp
from ...inference.registration import Refinement, RegistrationInferer, seconds_per_pair
from ...networks.zero import ZeroField
from .weights import label_weights


class RegionInferer(RegistrationInferer):
    """A `RegistrationInferer` whose metric is that of the moving image's regions (RDMM, pre-defined regulariser).

    Called with `labels`, the moving image's label map (B, 1, *S), as `data.prepare_labelled_batch` gives it.

    Args:
        deformation: `metric.RegionSpecificMomentum`.
        regions, elsewhere, sigma: see `weights.label_weights`; the labels may be strings.
        **options: of `RegistrationInferer`.
    """

    def __init__(
        self,
        deformation: Any,
        *,
        regions: Mapping[Any, Sequence[float]],
        elsewhere: Sequence[float],
        sigma: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(deformation, **options)
        self.regions = {int(label): list(weights) for label, weights in regions.items()}
        self.elsewhere, self.sigma = list(elsewhere), sigma

    def __call__(
        self,
        inputs: Tensor,
        network: Callable[..., Tensor],
        *args: Any,
        masks: dict[str, Tensor] | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        image, start = plain(inputs), time.perf_counter()
        if labels is None:
            raise ValueError("the metric is that of the moving image's regions: give its label map (label_moving)")
        own: Any = self.deformation
        weights = label_weights(labels, self.regions, self.elsewhere, sigma=self.sigma, spacing=own.spacing)
        parameters = self.predict(image, network, *args, **kwargs)
        return self._register(image, parameters, start, masks, kwargs, own.given(weights))


class MetricInferer(RegistrationInferer):
    """Optimise each pair's momentum in the metric that a network finds for its moving image (metric learning).

    The network (`networks.MetricNetwork`) sees the moving image on the momentum's finest grid and the
    momentum, and gives the raw weights there; on coarser grids momentum and weights are resampled. The momentum starts
    from zero; with a `store` (training) from what the last visit to the pair left there, and what is found is kept. The
    network is frozen while the momentum is optimised; the fields that are returned have a gradient for it.

    With `networks.zero.ZeroField` in place of the network the weights are the kernel's own everywhere.

    Args:
        deformation: `metric.RegionSpecificMomentum`, stationary.
        refinement: `PairwiseOptimizer`, from zero.
        store: `data.MomentumStore`; the call then needs `pairs`, the pairs' names.
        revisit: `PairwiseOptimizer`, from a stored momentum.
        **options: of `RegistrationInferer`; no samples.
    References: Niethammer, Kwitt, Vialard, Metric learning for image registration, CVPR 2019 (L-BFGS instead of
        stochastic gradient descent in the momenta).
    """

    def __init__(
        self,
        deformation: Any,
        refinement: Refinement,
        *,
        store: Any | None = None,
        revisit: Refinement | None = None,
        **options: Any,
    ) -> None:
        super().__init__(deformation, refinement=refinement, **options)
        if self.samples or (store is not None and revisit is None):
            raise ValueError("metric learning has no samples, and a store needs an optimiser for a second visit")
        self.deformation: Any = deformation
        self.store, self.revisit = store, revisit

    def __call__(
        self,
        inputs: Tensor,
        network: Any,
        *args: Any,
        masks: dict[str, Tensor] | None = None,
        pairs: Sequence[str] = (),
        **kwargs: Any,
    ) -> dict[str, Any]:
        image, start = plain(inputs), time.perf_counter()
        moving, fixed = image.chunk(2, 1)
        inner = getattr(network, "module", network)  # of a distributed training
        with _frozen(inner):
            momentum = None if self.store is None else self.store.load(pairs)
            optimizer = self.refinement if momentum is None or self.revisit is None else self.revisit
            assert optimizer is not None
            frozen = self._in_metric_of(inner, moving)
            momentum = optimizer(
                moving, fixed, None if momentum is None else momentum.to(moving), masks, deformation=frozen
            )
        if self.store is not None:
            self.store.save(pairs, momentum)
        pred = self._in_metric_of(network, moving)(momentum, image.shape[2:], inverse=self.inverse)
        pred["warped"] = warp(moving, pred["ddf"])
        return {**pred, "seconds": seconds_per_pair(image, start)}

    def _in_metric_of(self, network: Any, moving: Tensor) -> Any:
        """The deformation with the weights that the network finds."""
        size = self.deformation.parameter_size(moving.shape[2:])
        if isinstance(network, ZeroField):
            base = moving.new_tensor(self.deformation.kernel.weights).view(1, -1, *[1] * len(size))
            return self.deformation.given(base.expand(1, -1, *size))
        seen = resize_map(moving, size)

        def weights(momentum: Tensor) -> Tensor:
            x = self._run(torch.cat([seen, resize_field(momentum, size)], 1), network)
            return resize_map(x, momentum.shape[2:])

        return self.deformation.predicted_by(weights)


@contextmanager
def _frozen(network: torch.nn.Module) -> Iterator[None]:
    """The network in evaluation mode and without gradients for its parameters; then as it was."""
    training, parameters = network.training, [p for p in network.parameters() if p.requires_grad]
    network.eval()
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        network.train(training)
        for parameter in parameters:
            parameter.requires_grad_(True)
