"""From a pair of images to fields and the warped image: network + deformation + warp."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor

from .deformations import AffineMap, StationaryVelocity
from .fields import compose, resize_field, resize_map, warp
from .networks.zero import ZeroField
from .patches import predict_in_patches
from .region_metric import label_weights
from .tuning import Criterion, tune_hyper

Deformation = Callable[..., dict[str, Tensor]]
Refinement = Callable[..., Tensor]


class RegistrationInferer(Inferer):
    """Run a registration network on a pair and apply its deformation.

    Called as `inferer(image, network)`, with `image` (B, 2C, *S): moving, then fixed. Returns the deformation's fields
    and "warped" (B, C, *S), the moving image pulled back onto the fixed grid; "seconds" (B,) is the time a pair took,
    without the samples.
    With `samples`, also "ddf_samples" (B, K, D, *S), displacements of samples of the velocity, and "velocity_sd"
    (B, D, *S'), its standard deviation in voxels of its own grid.

    Args:
        deformation: turns the network's output into fields; for training a probabilistic model, its `draw`.
        inverse: also make the inverse field.
        refinement: pairwise optimisation `refinement(moving, fixed, parameters, masks, constants=...)` that improves
            the parameters; the constants are the network's own keyword arguments ("hyper").
        precision: "float32", or "bfloat16" or "float16" to run the network (not the fields) under autocast. On CPUs
            with bfloat16 units this is faster (docs/benchmarks.md); float16 training needs the trainer's `amp=True`.
        samples: number K of samples to draw of a probabilistic deformation.
        seed: of the samples, for each batch anew: a pair gives the same in any list. The noise is drawn on the CPU, so
            that equal seeds give equal samples on any device; the samples' displacements are kept there, too.
    Raises:
        ValueError: if the precision is unknown, or samples are wanted of a deformation that has no uncertainty.
    """

    def __init__(
        self,
        deformation: Deformation,
        inverse: bool = False,
        refinement: Refinement | None = None,
        precision: str = "float32",
        samples: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if precision not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"expected precision float32, bfloat16 or float16, got {precision!r}")
        self.deformation, self.inverse, self.refinement = deformation, inverse, refinement
        if samples < 0 or (samples and not hasattr(deformation, "draw")):
            raise ValueError(
                f"expected samples of a deformation that has uncertainty, got {samples} samples of "
                f"{type(deformation).__name__}"
            )
        self.precision, self.samples, self.seed = precision, samples, seed

    def __call__(
        self,
        inputs: Tensor,
        network: Callable[..., Tensor],
        *args: Any,
        masks: dict[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        image = _plain(inputs)
        if image.shape[1] % 2:
            raise ValueError(f"expected moving and fixed with equal channels, got {image.shape[1]} channels in all")
        start = time.perf_counter()
        parameters = self.predict(image, network, *args, **kwargs)
        pred = self._register(image, parameters, start, masks, kwargs)
        if self.samples:
            pred |= self._sample(pred["posterior"], image.shape[2:])
        return pred

    def _register(
        self,
        image: Tensor,
        parameters: Tensor,
        start: float,
        masks: dict[str, Tensor] | None,
        constants: dict[str, Any],
        deformation: Deformation | None = None,
    ) -> dict[str, Any]:
        """Refinement, fields, warped image, and the seconds since the start; a pair can have a deformation of its
        own."""
        moving, fixed = image.chunk(2, 1)
        if self.refinement is not None:
            own = {} if deformation is None else {"deformation": deformation}
            parameters = self.refinement(moving, fixed, parameters, masks, constants=constants, **own)
        pred = (deformation or self.deformation)(parameters, image.shape[2:], inverse=self.inverse)
        pred["warped"] = warp(moving, pred["ddf"])
        pred["seconds"] = _seconds(image, start)
        return pred

    def predict(self, image: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """The deformation's parameters for pairs (B, 2C, *S), before refinement."""
        parameters = self._run(image, network, *args, **kwargs)
        if self.samples and parameters.shape[1] != 2 * (image.ndim - 2):
            raise ValueError("samples need a network that predicts a log variance; this one gives a velocity alone")
        return parameters

    def _run(self, image: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """The network's output, computed in the wanted precision."""
        return self._ask(image, network, *args, **kwargs).float().contiguous()

    def _ask(self, image: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What the network answers in the wanted precision, as it comes."""
        layout = torch.channels_last_3d if image.ndim == 5 else torch.channels_last
        dtype = getattr(torch, self.precision)
        with torch.autocast(image.device.type, dtype, enabled=dtype != torch.float32):
            return network(image.contiguous(memory_format=layout), *args, **kwargs)

    def _sample(self, parameters: Tensor, size: torch.Size) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        deformation: Any = self.deformation
        samples = torch.empty(len(parameters), self.samples, len(size), *size)
        for i in range(self.samples):
            samples[:, i] = deformation.draw(parameters, size, generator=generator)["ddf"]
        return {"ddf_samples": samples, "velocity_sd": deformation.velocity_sd(parameters)}


class HyperInferer(RegistrationInferer):
    """A `RegistrationInferer` for networks with hyper-parameters: for given ones, those that suit the pair, or many.

    The refinement's loss gets the same values (`losses.hyper.HyperLoss`).
    The result also has "hyper" (B, H), the values used. With `sweep`, K values of the first hyper-parameter from 0 to 1
    (the others as given) are run as well, without refinement: "sweep_hyper" (B, K, H) and "sweep_ddf" (B, K, D, *S),
    kept on the CPU, and "sweep_seconds" (B,).

    Args:
        deformation: as in `RegistrationInferer`.
        hyper: the value in [0, 1], or one for each hyper-parameter, where a call names none; "auto" finds those that
            minimise the criterion for each pair.
        sweep: number K of values, 0 for none, else at least 2.
        criterion: for "auto", called as a loss with the fields and the pair (`losses.hyper.RegularityCriterion`).
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
        image = _plain(inputs)
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


class PatchInferer(RegistrationInferer):
    """Run a network on patches alone, for its training: {"prediction": the output}."""

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {"prediction": self._run(_plain(inputs), network)}


class AffineInferer(RegistrationInferer):
    """A `RegistrationInferer` for affine networks (`networks.affine_net.MultiStepAffine`), for their training.

    Beside the fields of `deformations.AffineMap` there are "keypoints", of the fixed and of the moving image, if they
    are asked for, and with `symmetric` "back", the same for the swapped pair.

    Args:
        deformation: `deformations.AffineMap`.
        keypoints: of a network that has them; those of the first step.
        symmetric: also register the other way round, in one batch with the pairs.
        **options: of `RegistrationInferer`; no samples, no refinement.
    Raises:
        ValueError: if samples or a refinement are asked for.
    """

    def __init__(
        self, deformation: Deformation, *, keypoints: bool = False, symmetric: bool = False, **options: Any
    ) -> None:
        super().__init__(deformation, **options)
        if self.samples or self.refinement is not None:
            raise ValueError("affine maps have no samples and no refinement")
        self.keypoints, self.symmetric = keypoints, symmetric

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
        image, start = _plain(inputs), time.perf_counter()
        moving, fixed = _both_ways(image) if self.symmetric else image.chunk(2, 1)
        pair = torch.cat([moving, fixed], 1)
        found = self._ask(pair, network, located=True) if self.keypoints else (self._ask(pair, network),)
        fields = self.deformation(found[0].float(), image.shape[2:], inverse=self.inverse)
        ways = _ways({**fields, "warped": warp(moving, fields["ddf"])}, len(image))
        pred: dict[str, Any] = {**ways[0], "seconds": _seconds(image, start)}
        if self.symmetric:
            pred["back"] = ways[1]
        if self.keypoints:
            pred["keypoints"] = [points[: len(image)] for points in found[1:]]
        return pred


class MultiStepInferer(RegistrationInferer):
    """A `RegistrationInferer` that applies one network several times in a row (AVSM).

    Each step sees the moving image as the map so far warps it. That is always the original image, warped once: the
    fields are composed, `phi <- phi o phi_step`. A refinement starts from the network's answer if that is all there is,
    a single step; else it is one more step, optimised from zero.

    Beside the fields of the whole, without the parameters of a single step, there are "steps": for each, a dictionary
    with the step's own fields (its momentum and energy) and "ddf", "inverse_ddf" and "warped" of the map so far. A
    metric's "sigma" is that of the first step, on the moving image. With
    `affine`, "affine" holds "matrix" and "warped" of the affine map that comes first. With `symmetric`, "back" holds
    the same for the swapped pair.

    Args:
        deformation: see `RegistrationInferer`.
        num_steps: at least 1.
        symmetric: also register the other way round, in one batch with the pairs.
        affine: start from the answer of the network's part "affine" (`networks.affine_net.AffineMomentumNetwork`).
        **options: of `RegistrationInferer`; no samples.
    Raises:
        ValueError: for less than one step, or samples.
    References: Shen et al., Networks for joint affine and non-parametric image registration, CVPR 2019.
    """

    def __init__(
        self,
        deformation: Deformation,
        *,
        num_steps: int = 1,
        symmetric: bool = False,
        affine: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(deformation, **options)
        if num_steps < 1 or self.samples:
            raise ValueError(f"expected at least one step and no samples, got {num_steps} and {self.samples}")
        self.num_steps, self.symmetric, self.affine = num_steps, symmetric, affine

    def __call__(
        self,
        inputs: Tensor,
        network: Callable[..., Tensor],
        *args: Any,
        masks: dict[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        image, start = _plain(inputs), time.perf_counter()
        moving, fixed = _both_ways(image) if self.symmetric else image.chunk(2, 1)
        so_far: dict[str, Tensor] = {"warped": moving}
        first: dict[str, Tensor] = {}
        if self.affine:
            matrix = self._run(torch.cat([moving, fixed], 1), network, part="affine")
            so_far = AffineMap()(matrix, image.shape[2:], inverse=self.inverse)
            so_far["warped"] = warp(moving, so_far["ddf"])
            first = {key: so_far[key] for key in ("matrix", "warped")}
        steps: list[dict[str, Tensor]] = []
        single = self.refinement is not None and self.num_steps == 1 and not self.affine
        for _ in range(self.num_steps):
            parameters = self._run(torch.cat([so_far["warped"], fixed], 1), network, *args, **kwargs)
            if single and self.refinement is not None:
                parameters = self.refinement(moving, fixed, parameters, masks, constants=kwargs)
            so_far = self._compose(moving, parameters, so_far)
            steps.append(so_far)
        if self.refinement is not None and not single:
            # Masks would have to move along with the image; the fixed one stays where it is.
            kept = {key: value for key, value in (masks or {}).items() if key == "mask_fixed"}
            parameters = self.refinement(so_far["warped"], fixed, None, kept, constants=kwargs)
            steps.append(self._compose(moving, parameters, so_far))
        ways: list[dict[str, Any]] = []
        for each in zip(*(_ways(step, len(image)) for step in steps), strict=True):
            whole = {key: each[-1][key] for key in ("ddf", "inverse_ddf", "warped") if key in each[-1]}
            if "sigma" in each[0]:
                whole["sigma"] = each[0]["sigma"]
            ways.append({**whole, "steps": list(each)})
        for way, part in zip(ways, _ways(first, len(image)), strict=False):
            if part:
                way["affine"] = part
        pred = {**ways[0], "seconds": _seconds(image, start)}
        return {**pred, "back": ways[1]} if self.symmetric else pred

    def _compose(self, moving: Tensor, parameters: Tensor, before: dict[str, Tensor]) -> dict[str, Tensor]:
        step = self.deformation(parameters, moving.shape[2:], inverse=self.inverse)
        if "ddf" in before:
            step["ddf"] = compose(before["ddf"], step["ddf"])
            if self.inverse:
                step["inverse_ddf"] = compose(step["inverse_ddf"], before["inverse_ddf"])
        step["warped"] = warp(moving, step["ddf"])
        return step


class RegionInferer(RegistrationInferer):
    """A `RegistrationInferer` whose metric is that of the moving image's regions (RDMM, pre-defined regulariser).

    Called with `labels`, the moving image's label map (B, 1, *S), as `data.batches.prepare_labelled_batch` gives it.

    Args:
        deformation: `region_metric.RegionSpecificMomentum`.
        regions, elsewhere, sigma: see `region_metric.label_weights`; the labels may be strings.
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
        image, start = _plain(inputs), time.perf_counter()
        if labels is None:
            raise ValueError("the metric is that of the moving image's regions: give its label map (label_moving)")
        own: Any = self.deformation
        weights = label_weights(labels, self.regions, self.elsewhere, sigma=self.sigma, spacing=own.spacing)
        parameters = self.predict(image, network, *args, **kwargs)
        return self._register(image, parameters, start, masks, kwargs, own.given(weights))


class MetricInferer(RegistrationInferer):
    """Optimise each pair's momentum in the metric that a network finds for its moving image (metric learning).

    The network (`networks.region_net.MetricNetwork`) sees the moving image on the momentum's finest grid and the
    momentum, and gives the raw weights there; on coarser grids momentum and weights are resampled. The momentum starts
    from zero; with a `store` (training) from what the last visit to the pair left there, and what is found is kept. The
    network is frozen while the momentum is optimised; the fields that are returned have a gradient for it.

    With `networks.zero.ZeroField` in place of the network the weights are the kernel's own everywhere.

    Args:
        deformation: `region_metric.RegionSpecificMomentum`, stationary.
        refinement: `PairwiseOptimizer`, from zero.
        store: `data.momenta.MomentumStore`; the call then needs `pairs`, the pairs' names.
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
        image, start = _plain(inputs), time.perf_counter()
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
        return {**pred, "seconds": _seconds(image, start)}

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


class PatchMomentumInferer(RegistrationInferer):
    """A `RegistrationInferer` for networks that predict momenta in patches (Quicksilver).

    The patches' answers are averaged where they overlap. For a correction network, the fixed image is pulled back to
    moving space by the predicted map, and the correction, from the moving image and that one, is added: m = m_P + m_C.
    It is `correction`, or, while it is trained, the network of the call that comes after `predictor`.

    With `samples`, the network's dropout is active: the momentum is the mean of so many predictions, "ddf_samples" are
    the displacements of each, "velocity_sd" the standard deviation of their velocities.

    Args:
        deformation: `VectorMomentum`, its stride that of the network.
        correction: a network that corrects the predictions of the call's network, or None.
        predictor: a network whose predictions the call's network corrects, or None.
        patch, step, background: see `patches.predict_in_patches`.
        batch_size: patches at a time.
        samples, seed: see above; the dropout is seeded for each batch anew, on the device of the images.
        **options: of `RegistrationInferer`.
    Raises:
        ValueError: if samples are wanted of a network without dropout or together with a correction, or the correction
            is another network's.
    """

    def __init__(
        self,
        deformation: Any,
        *,
        correction: Any | None = None,
        predictor: Any | None = None,
        patch: int = 15,
        step: int = 14,
        background: float = 0.02,
        batch_size: int = 64,
        samples: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(deformation, **options)
        if samples < 0:
            raise ValueError(f"expected a number of samples of at least 0, got {samples}")
        if samples and correction is not None:
            raise ValueError("samples are drawn of the prediction alone: leave the correction out (correction: none)")
        self.deformation: Any = deformation
        self.num_samples, self.correction, self.predictor = samples, correction, predictor
        self.patches: dict[str, Any] = {
            "patch": patch,
            "step": step,
            "background": background,
            "batch_size": batch_size,
        }

    def __call__(
        self,
        inputs: Tensor,
        network: Any,
        *args: Any,
        masks: dict[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        if not self.num_samples:
            return super().__call__(inputs, network, *args, masks=masks, **kwargs)
        image, start = _plain(inputs), time.perf_counter()
        momenta = self._draw(image, network)
        pred = self._register(image, momenta.mean(0), start, masks, kwargs)
        samples = [self.deformation(momentum, image.shape[2:]) for momentum in momenta]
        pred["ddf_samples"] = torch.stack([sample["ddf"].cpu() for sample in samples], 1)
        if self.num_samples > 1:
            pred["velocity_sd"] = torch.stack([sample["velocity"] for sample in samples]).std(0)
        return pred

    def predict(self, image: Tensor, network: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The momentum (B, D, *S') of pairs, before refinement."""
        inner = getattr(network, "module", network)  # of a distributed training
        if self.correction is not None and hasattr(inner, "digest") and self.correction.corrects != inner.digest():
            raise ValueError("the correction belongs to other weights: train one for these, or leave it out (none)")
        image, momentum = self.before(image)
        momentum = momentum + self._in_patches(image, network)
        if self.correction is not None:
            momentum = momentum + self._in_patches(self.pull_back(image, momentum), self.correction)
        return momentum

    def before(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """What the call's network gets to see, and the momentum that is there already: that of the predictor."""
        if self.predictor is None:
            return image, image.new_zeros(())
        momentum = self._in_patches(image, self.predictor)
        return self.pull_back(image, momentum), momentum

    def pull_back(self, image: Tensor, momentum: Tensor) -> Tensor:
        """The pairs with their fixed images brought to moving space by the inverse map."""
        moving, fixed = image.chunk(2, 1)
        inverse = self.deformation(momentum, image.shape[2:], inverse=True)["inverse_ddf"]
        return torch.cat([moving, warp(fixed, inverse)], 1)

    def _in_patches(self, image: Tensor, network: Any) -> Tensor:
        # Without the wrapper of a distributed training, which would wait for the others at each run.
        run = partial(self._run, network=getattr(network, "module", network))
        return predict_in_patches(image, run, image.ndim - 2, stride=self.deformation.stride, **self.patches)

    def _draw(self, image: Tensor, network: Any) -> Tensor:
        """Momenta (K, B, D, *S') with the network's dropout active."""
        dropout = [m for m in network.modules() if isinstance(m, torch.nn.Dropout) and m.p]
        if not dropout:
            raise ValueError("samples need a network that was trained with dropout")
        modes = [module.training for module in dropout]
        with torch.random.fork_rng(devices=[image.device] if image.is_cuda else []):
            torch.manual_seed(self.seed)
            try:
                for module in dropout:
                    module.train()
                return torch.stack([self._in_patches(image, network) for _ in range(self.num_samples)])
            finally:
                for module, mode in zip(dropout, modes, strict=True):
                    module.train(mode)


class TemplateInferer(RegistrationInferer):
    """A `RegistrationInferer` for `AtlasNetwork`, which registers its template, as the moving image, to a scan.

    Called as `inferer(scan, network, attributes=...)` with scans (B, C, *S) and attributes (B, A) or None. The fields
    are given in the sense of a pair whose moving image is the scan and whose fixed one is the template, for results
    live on the template's grid: "ddf" there, "inverse_ddf" on the scan's grid, "warped" the scan on the template's,
    "warped_template" the template on the scan's, both (B, C, *S), and "template" (B, C, *S).
    Of a template with labels also their probabilities, "template_labels" and "warped_template_labels" (B, K, *S), and,
    without gradients, the most likely ones on the scan's grid, "warped_template_label" (B, 1, *S), and their ids,
    "template_label_ids" (B, K).
    With a mean stream "mean_displacement" (1, D, *S), the running mean of "ddf", which the call updates.

    Args:
        deformation: of a velocity: minus the velocity must be the inverse.
        mean_stream: `MeanStream`, for training.
        **options: of `RegistrationInferer`; the inverse is always made.
    Raises:
        ValueError: if the deformation is none of a velocity; on a call, if scan and template differ in size.
    """

    def __init__(
        self, deformation: Deformation, mean_stream: Callable[[Tensor], Tensor] | None = None, **options: Any
    ) -> None:
        super().__init__(deformation, **{**options, "inverse": True})
        if not isinstance(deformation, StationaryVelocity):
            raise ValueError(f"a template needs a deformation by a velocity, got {type(deformation).__name__}")
        self.mean_stream = mean_stream

    def __call__(
        self,
        inputs: Tensor,
        network: Callable[..., Tensor],
        *args: Any,
        masks: dict[str, Tensor] | None = None,
        attributes: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        if args or kwargs:
            raise ValueError(
                f"expected scans, network, masks and attributes, got also {len(args)} and {sorted(kwargs)}"
            )
        scan = inputs.as_tensor() if hasattr(inputs, "as_tensor") else inputs
        atlas: Any = getattr(network, "module", network)  # of a distributed run
        dtype = getattr(torch, self.precision)
        with torch.autocast(scan.device.type, dtype, enabled=dtype != torch.float32):
            image, logits = atlas.template.render(attributes)
        if image.shape[1:] != scan.shape[1:]:
            raise ValueError(f"expected scans {tuple(image.shape[1:])} as the template, got {tuple(scan.shape[1:])}")

        def velocity(pair: Tensor, **_: Any) -> Tensor:
            scan, template = pair.chunk(2, 1)
            parameters = network(scan, template=template)
            mean, log_variance = parameters[:, : scan.ndim - 2], parameters[:, scan.ndim - 2 :]
            return torch.cat([-mean, log_variance], 1)

        template = image.float().expand_as(scan).clone()  # not the parameter itself
        pred = super().__call__(torch.cat([scan, template], 1), velocity, masks=masks)
        pred |= {"template": template, "warped_template": warp(template, pred["inverse_ddf"])}
        if logits.shape[1]:
            pred["template_labels"] = logits.float().softmax(1).expand(len(scan), -1, *scan.shape[2:])
            pred["warped_template_labels"] = warp(pred["template_labels"], pred["inverse_ddf"], padding="border")
            if not torch.is_grad_enabled():
                pred["warped_template_label"] = atlas.template.most_likely(pred["warped_template_labels"])
                ids = torch.tensor(atlas.template.label_ids, device=scan.device)
                pred["template_label_ids"] = ids.expand(len(scan), -1)
        if self.mean_stream is not None:
            pred["mean_displacement"] = self.mean_stream(pred["ddf"])
        return pred


def _seconds(image: Tensor, start: float) -> Tensor:
    """Time a pair of the batch took, (B,)."""
    if image.is_cuda and not torch.is_grad_enabled():
        torch.cuda.synchronize()
    return torch.full((image.shape[0],), (time.perf_counter() - start) / image.shape[0])


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


def _both_ways(image: Tensor) -> tuple[Tensor, Tensor]:
    """Moving and fixed images of the pairs, then of the swapped pairs."""
    moving, fixed = image.chunk(2, 1)
    return torch.cat([moving, fixed]), torch.cat([fixed, moving])


def _ways(fields: dict[str, Tensor], batch: int) -> list[dict[str, Tensor]]:
    """The fields of the pairs and, where they are there, of the swapped pairs."""
    total = max((len(value) for value in fields.values()), default=batch)
    return [{key: value[i : i + batch] for key, value in fields.items()} for i in range(0, total, batch)]


def _plain(tensor: Tensor) -> Tensor:
    return tensor.as_tensor() if hasattr(tensor, "as_tensor") else tensor


def _values(hyper: float | Sequence[float]) -> list[float]:
    values = [float(hyper)] if isinstance(hyper, int | float) else [float(value) for value in hyper]
    if isinstance(hyper, bool) or not values or not all(0 <= value <= 1 for value in values):
        raise ValueError(f"expected hyper-parameters in [0, 1], got {hyper}")
    return values
