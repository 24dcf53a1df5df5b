"""`prepare_batch` functions for MONAI's engines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

# What a `prepare_batch` returns: network input, targets of the loss, (), keyword arguments of the inferer.
Prepared = tuple[Tensor, dict[str, Tensor], tuple[()], dict[str, Any]]
Prepare = Callable[..., Prepared]

PAIR_KEYS = (
    *("moving", "fixed", "label_moving", "label_fixed", "mask_moving", "mask_fixed"),
    *("distance_moving", "distance_fixed", "momentum"),
)


def prepare_pair_batch(
    batch: Mapping[str, Any], device: torch.device | str | None = None, non_blocking: bool = False, **kwargs: Any
) -> Prepared:
    """A batch of pairs as (network input, targets of the loss, (), keyword arguments of the inferer), on the device.

    Args:
        batch: has "image" (B, 2C, *S), moving then fixed, and any of `PAIR_KEYS`.
    Returns:
        The image, a dictionary of the `PAIR_KEYS` that the batch has, no positional arguments, and "masks" if any.
    """
    targets = {key: _plain(batch[key]) for key in PAIR_KEYS if isinstance(batch.get(key), Tensor)}
    targets = {key: value.to(device, non_blocking=non_blocking, **kwargs) for key, value in targets.items()}
    masks = {key: value for key, value in targets.items() if key.startswith("mask_")}
    image = _plain(batch["image"]).to(device, non_blocking=non_blocking, **kwargs)
    return image, targets, (), {"masks": masks} if masks else {}


def prepare_labelled_batch(
    batch: Mapping[str, Any], device: torch.device | str | None = None, non_blocking: bool = False, **kwargs: Any
) -> Prepared:
    """As `prepare_pair_batch`, with the moving image's label map, if there is one, for the inferer, "labels"."""
    image, targets, args, options = prepare_pair_batch(batch, device, non_blocking, **kwargs)
    return image, targets, args, {**options, "labels": targets.get("label_moving")}


def prepare_named_batch(
    batch: Mapping[str, Any], device: torch.device | str | None = None, non_blocking: bool = False, **kwargs: Any
) -> Prepared:
    """As `prepare_pair_batch`, with the pairs' names for the inferer, "pairs" (`data.momenta.SteadyPairs`)."""
    image, targets, args, options = prepare_pair_batch(batch, device, non_blocking, **kwargs)
    return image, targets, args, {**options, "pairs": list(batch["pair"])}


class SynthesizedBatch:
    """`prepare_batch` for label maps: images are made of them on the training device, anew at each call.

    Args:
        synthesis: has `draw(batch, size, generator)`, and called with both maps and the draw gives `moving`, `fixed`,
            `label_moving` and `label_fixed` (see `transforms.synthesis.SynthesizePair`); or with the one map of a scan
            alone, and gives what is `moving` (`SynthesizeScan`).
        slices: cuts both maps into 2-D ones first; `draw(generator)` and a call (`transforms.synthesis.TakeSlices`).
        seed: the same random numbers at each call, for validation; None draws a new seed from torch's global generator,
            so that a seeded run can be repeated, and each process of a distributed run goes its own way.
    """

    def __init__(self, synthesis: Any, slices: Any | None = None, seed: int | None = None) -> None:
        self.synthesis, self.slices, self.seed = synthesis, slices, seed

    @torch.no_grad()
    def __call__(
        self,
        batch: Mapping[str, Any],
        device: torch.device | str | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> Prepared:
        """As `prepare_pair_batch`; the batch needs `label_moving` and, unless scans come alone, `label_fixed`."""
        maps = [_plain(batch[key]) for key in ("label_moving", "label_fixed") if key in batch]
        maps = [labels.to(device, non_blocking=non_blocking, **kwargs) for labels in maps]
        seed = int(torch.randint(2**62, (1,))) if self.seed is None else self.seed
        generator = torch.Generator(maps[0].device).manual_seed(seed)
        if self.slices is not None:
            maps = self.slices(*maps, self.slices.draw(generator))
        draw = self.synthesis.draw(maps[0].shape[0], maps[0].shape[2:], generator)
        targets = self.synthesis(*maps, draw)
        return torch.cat([targets[role] for role in ("moving", "fixed") if role in targets], 1), targets, (), {}


class ContrastBatch:
    """`prepare_batch` that shows the network other images of the pairs than those the result is judged by.

    Args:
        inputs: entries of the batch that the network sees, moving and fixed (another contrast of the same anatomy);
            None changes nothing.
        prepare: makes the batch itself.
    """

    def __init__(self, inputs: Sequence[str] | None = None, prepare: Prepare = prepare_pair_batch) -> None:
        self.inputs, self.prepare = inputs, prepare

    def __call__(
        self,
        batch: Mapping[str, Any],
        device: torch.device | str | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> Prepared:
        """As `prepare` returns it, with the other images as the network's input."""
        image, targets, args, options = self.prepare(batch, device, non_blocking, **kwargs)
        if self.inputs is not None:
            seen = torch.cat([_plain(batch[key]) for key in self.inputs], 1)
            image = seen.to(device, non_blocking=non_blocking, **kwargs)
        return image, targets, args, options


class HyperBatch:
    """`prepare_batch` that adds hyper-parameters of the objective, for the network and for the loss.

    They come to the inferer as `hyper` (B, H), which hands it to the network, and to the loss among the targets.

    Args:
        hyper: either draws them, `hyper(number) -> (number, H)` (`HyperSampler`), or is a list of values, each a number
            or a list of H numbers: then every pair is repeated for each of them (validation).
        prepare: makes the batch itself.
        num_hyper: number H of hyper-parameters, for a list: a number in it stands for all H.
    Raises:
        ValueError: if a listed value is outside [0, 1], has not H numbers, or there is none.
    """

    def __init__(
        self,
        hyper: Callable[[int], Tensor] | Sequence[Any],
        prepare: Prepare = prepare_pair_batch,
        num_hyper: int = 1,
    ) -> None:
        self.prepare = prepare
        self.hyper: Callable[[int], Tensor] | Tensor
        if callable(hyper):
            self.hyper = hyper
        else:
            rows = [list(value) if isinstance(value, Sequence) else [value] * num_hyper for value in hyper]
            if not rows or any(len(row) != num_hyper or not all(0 <= v <= 1 for v in row) for row in rows):
                raise ValueError(f"expected values in [0, 1] of {num_hyper} hyper-parameters, got {list(hyper)}")
            self.hyper = torch.tensor(rows, dtype=torch.float32)

    def __call__(
        self,
        batch: Mapping[str, Any],
        device: torch.device | str | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> Prepared:
        """As `prepare` returns it, with `hyper`."""
        image, targets, _args, options = self.prepare(batch, device, non_blocking, **kwargs)
        if isinstance(self.hyper, Tensor):
            hyper, times = self.hyper.repeat(len(image), 1), len(self.hyper)
            image, targets, options = (_repeat(thing, times) for thing in (image, targets, options))
        else:
            hyper = self.hyper(len(image))
        hyper = hyper.to(image.device)
        return image, {**targets, "hyper": hyper}, (), {**options, "hyper": hyper}


class HyperSampler:
    """Random hyper-parameters in [0, 1]: a Beta distribution, and more often the end points than it gives.

    The end points are the hardest values to interpolate to, and no continuous distribution draws them.

    Args:
        num_hyper: number H of them, drawn independently.
        prior: (a, b) of the Beta distribution; (1, 1) is uniform. Or H such pairs.
        endpoint_share: probability that a value is 0 or 1, each as often, instead.
    References: Hoopes et al., MELBA 2022; the share is the reference implementation's.
    """

    def __init__(
        self,
        num_hyper: int = 1,
        prior: Sequence[float] | Sequence[Sequence[float]] = (1.0, 1.0),
        endpoint_share: float = 0.2,
    ) -> None:
        pairs = torch.as_tensor(prior, dtype=torch.float32)
        if num_hyper < 1 or pairs.shape not in ((2,), (num_hyper, 2)):
            raise ValueError(f"expected (a, b) or a pair for each of {num_hyper} hyper-parameters, got {prior}")
        if not bool((pairs > 0).all()) or not 0 <= endpoint_share <= 1:
            raise ValueError(
                f"expected a, b above 0 of a Beta distribution and a share in [0, 1], got {prior} and {endpoint_share}"
            )
        pairs = pairs.expand(num_hyper, 2)
        self.distribution = torch.distributions.Beta(pairs[:, 0], pairs[:, 1])
        self.num_hyper, self.endpoint_share = num_hyper, endpoint_share

    def __call__(self, number: int) -> Tensor:
        """Values (number, H), from torch's global generator."""
        values = self.distribution.sample((number,))
        ends = torch.randint(2, values.shape).to(values.dtype)
        return torch.where(torch.rand(values.shape) < self.endpoint_share, ends, values)


class AtlasBatch:
    """`prepare_batch` for a network that supplies the other image itself, a template for the scan's attributes.

    The network input is the moving image, the scan; its attributes, raw values (B, A), go to the inferer.

    Args:
        encoder: has `names` and `values(attributes by name)` (`AttributeEncoder`); the batch has the attributes by
            name, or by name and "_moving" as `ScanPairDataset` calls them.
        prepare: makes the batch itself.
    Raises:
        ValueError: on a call, if an attribute is missing or impossible.
    """

    def __init__(
        self,
        encoder: Any,
        prepare: Prepare = prepare_pair_batch,
    ) -> None:
        self.encoder, self.prepare = encoder, prepare

    def __call__(
        self,
        batch: Mapping[str, Any],
        device: torch.device | str | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> Prepared:
        """As `prepare` returns it, with `attributes`."""
        _image, targets, _args, options = self.prepare(batch, device, non_blocking, **kwargs)
        scan = targets["moving"]
        if not self.encoder.names:
            return scan, targets, (), options
        keys = {name: f"{name}_moving" if f"{name}_moving" in batch else name for name in self.encoder.names}
        missing = [name for name, key in keys.items() if key not in batch]
        if missing:
            raise ValueError(f"the scans have no attribute {', '.join(missing)}: add it to the data list")
        rows = [self.encoder.values({name: batch[key][i] for name, key in keys.items()}) for i in range(len(scan))]
        return scan, targets, (), {**options, "attributes": torch.stack(rows).to(scan.device)}


def _repeat(thing: Any, times: int) -> Any:
    if isinstance(thing, Mapping):
        return {key: _repeat(value, times) for key, value in thing.items()}
    return thing.repeat_interleave(times, 0)


def _plain(tensor: Tensor) -> Tensor:
    return tensor.as_tensor() if hasattr(tensor, "as_tensor") else tensor
