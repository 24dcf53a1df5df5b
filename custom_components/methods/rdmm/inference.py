"""Registration in the metric of the moving image: of its regions, or found by a network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ...deformations.base import Deformation
from ...fields import per_channel, resize_field, resize_map
from ...inference.prediction import Masks, Network, NetworkPredictor, Precision, Prediction, Predictor, Refinement
from ...networks.parallel import unwrap
from ...networks.zero import ZeroField
from .data import MomentumStore
from .metric import LocalMetricMomentum
from .weights import label_weights


class RegionPredictor:
    """Another prediction, in the metric of the moving image's regions (RDMM, pre-defined regulariser).

    The call takes `labels`, the moving image's label map (B, 1, *S), as `data.prepare_labelled_batch` gives it.

    Args:
        predict: the other prediction; None takes the network's output.
        regions, elsewhere, sigma: see `weights.label_weights`; the labels may be strings.
    """

    def __init__(
        self,
        regions: Mapping[str | int, Sequence[float]],
        elsewhere: Sequence[float],
        sigma: float = 0.0,
        predict: Predictor | None = None,
    ) -> None:
        self.predict = NetworkPredictor() if predict is None else predict
        self.regions = {int(label): list(weights) for label, weights in regions.items()}
        self.elsewhere, self.sigma = list(elsewhere), sigma

    def __call__(
        self,
        image: Tensor,
        network: Network,
        deformation: Deformation,
        *,
        masks: Masks | None = None,
        labels: Tensor | None = None,
        **options: object,
    ) -> Prediction:
        if labels is None:
            raise ValueError("the metric is that of the moving image's regions: give its label map (label_moving)")
        metric = _metric(deformation)
        weights = label_weights(labels, self.regions, self.elsewhere, sigma=self.sigma, spacing=metric.spacing)
        return self.predict(image, network, metric.given(weights), masks=masks, **options)


class MetricPredictor:
    """Optimise each pair's momentum in the metric that a network finds for its moving image (metric learning).

    The network (`networks.MetricNetwork`) sees the moving image on the momentum's finest grid and the
    momentum, and gives the raw weights there; on coarser grids momentum and weights are resampled. The momentum starts
    from zero; with a `store` (training) from what the last visit to the pair left there, and what is found is kept. The
    network is frozen while the momentum is optimised; the deformation that is returned has a gradient for it.

    With `networks.zero.ZeroField` in place of the network the weights are the kernel's own everywhere; a deformation
    whose metric has no weights is then optimised as it is.

    Args:
        optimizer: `PairwiseOptimizer`, from zero.
        store: `data.MomentumStore`; the call then needs `pairs`, the pairs' names.
        revisit: `PairwiseOptimizer`, from a stored momentum.
        precision: see `Precision`.
    Raises:
        ValueError: for a store without an optimiser for a second visit.
    References: Niethammer, Kwitt, Vialard, Metric learning for image registration, CVPR 2019 (L-BFGS instead of
        stochastic gradient descent in the momenta).
    """

    def __init__(
        self,
        optimizer: Refinement,
        *,
        store: MomentumStore | None = None,
        revisit: Refinement | None = None,
        precision: str = "float32",
    ) -> None:
        if store is not None and revisit is None:
            raise ValueError("a store needs an optimiser for a second visit")
        self.optimizer, self.store, self.precision = optimizer, store, Precision(precision)
        self.revisit = optimizer if revisit is None else revisit

    def __call__(
        self,
        image: Tensor,
        network: Network,
        deformation: Deformation,
        *,
        masks: Masks | None = None,
        pairs: Sequence[str] = (),
        **options: object,
    ) -> Prediction:
        moving, fixed = image.chunk(2, 1)
        stored = None if self.store is None else self.store.load(pairs)
        optimizer = self.optimizer if stored is None else self.revisit
        inner: torch.nn.Module = unwrap(network)  # type: ignore[assignment]
        with _frozen(inner):
            start = None if stored is None else stored.to(moving)
            metric = self._metric_of(inner, moving, deformation)
            momentum = optimizer(moving, fixed, start, masks, deformation=metric)
        if self.store is not None:
            self.store.save(pairs, momentum)
        return Prediction(momentum, self._metric_of(network, moving, deformation))

    def _metric_of(self, network: Network, moving: Tensor, deformation: Deformation) -> Deformation:
        """The deformation with the weights that the network finds."""
        if isinstance(network, ZeroField) and not isinstance(deformation, LocalMetricMomentum):
            return deformation
        metric, size = _metric(deformation), deformation.parameter_size(moving.shape[2:])
        if isinstance(network, ZeroField):
            base = per_channel(metric.base_weights, moving)
            return metric.given(base.expand(1, -1, *size))
        shown = resize_map(moving, size)

        def weights(momentum: Tensor) -> Tensor:
            x = self.precision.run(network, torch.cat([shown, resize_field(momentum, size)], 1))
            return resize_map(x, momentum.shape[2:])

        return metric.predicted_by(weights)


def _metric(deformation: Deformation) -> LocalMetricMomentum:
    if not isinstance(deformation, LocalMetricMomentum):
        raise ValueError(f"expected a deformation whose metric has weights, got {type(deformation).__name__}")
    return deformation


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
