"""The memory format in which a network sees its images: channels last, or what a GPU is faster with."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .parallel import unwrap

logger = logging.getLogger(__name__)

_MEASURED = {"cuda"}  # kinds of devices; others take channels last (docs/gpu.md)
_CALLS = 3

_chosen: dict[tuple[object, ...], torch.memory_format] = {}


def channels_last(image: Tensor) -> torch.memory_format:
    """The format of an image (B, C, *S) in which the channels of a voxel lie side by side."""
    return torch.channels_last_3d if image.ndim == 5 else torch.channels_last


def fastest_layout(network: object, image: Tensor, options: Mapping[str, object] | None = None) -> torch.memory_format:
    """The format in which a network is fastest: channels last or, on a GPU that may choose, what a trial says.

    A trial runs a copy of the network in both formats, with its gradient if gradients are wanted; the log names both
    times. It is held once in a process for each kind of network, precision and device. Another format means other
    kernels and other last digits, so there is no trial unless cuDNN may try kernels, too (`deterministic` false).

    Args:
        network: called with the image and the options, in the autocast that is on.
        image: shape (B, C, *S).
    """
    device = image.device
    usual = channels_last(image)
    if not isinstance(network, nn.Module) or device.type not in _MEASURED or not torch.backends.cudnn.benchmark:
        return usual
    precision = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else image.dtype
    key = (type(unwrap(network)), image.ndim, precision, device, torch.is_grad_enabled())
    if key not in _chosen:
        _chosen[key] = usual
        seconds = {form: _trial(unwrap(network), image, options or {}, form) for form in _forms(image)}
        _chosen[key] = min(seconds, key=seconds.__getitem__)
        times = ", ".join(f"{form} {value:.4f} s" for form, value in seconds.items())
        logger.info("%s on %s: %s; %s is taken", type(unwrap(network)).__name__, device, times, _chosen[key])
    return _chosen[key]


def in_format(network: nn.Module, form: torch.memory_format) -> nn.Module:
    """The network, its weights in a format, too: images of one channel lie the same way in either."""
    return network.to(memory_format=form)  # type: ignore[call-overload]


def _forms(image: Tensor) -> tuple[torch.memory_format, torch.memory_format]:
    return channels_last(image), torch.contiguous_format


def _trial(network: nn.Module, image: Tensor, options: Mapping[str, object], form: torch.memory_format) -> float:
    """The least seconds of a few calls, after one that does not count."""
    ours = in_format(copy.deepcopy(network), form)
    weights = [weight for weight in ours.parameters() if weight.requires_grad]
    given = image.detach().contiguous(memory_format=form)
    seconds = []
    with torch.random.fork_rng([image.device] if image.device.type == "cuda" else []):
        for _ in range(1 + _CALLS):
            _wait(image.device)
            begin = time.perf_counter()
            answer = ours(given, **options)
            if torch.is_grad_enabled() and weights:
                total = torch.stack([t.float().sum() for t in tree_leaves(answer) if isinstance(t, Tensor)]).sum()
                torch.autograd.grad(total, weights, allow_unused=True)
            _wait(image.device)
            seconds.append(time.perf_counter() - begin)
    return min(seconds[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
