"""Count the operations that a GPU does in another order in each run, on a machine that has none.

    with Refused() as refused:
        ...  # forward and backward
    print(refused.places)

`torch.use_deterministic_algorithms(True)` refuses them on CUDA. The list is that of its documentation (torch 2.13); an
operation's gradient is an operation of its own. `sorted` counts those for which it takes a slower kernel.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_REFUSED = {
    *("avg_pool3d_backward", "_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward"),
    *("adaptive_max_pool2d_backward", "fractional_max_pool2d_backward", "fractional_max_pool3d_backward"),
    *("max_unpool2d", "max_unpool3d", "reflection_pad1d_backward", "reflection_pad2d_backward"),
    *("reflection_pad3d_backward", "nll_loss_forward", "nll_loss2d_forward", "_ctc_loss_backward", "histc", "put_"),
    *("upsample_linear1d_backward", "upsample_bilinear2d_backward", "upsample_bicubic2d_backward"),
    "upsample_trilinear3d_backward",
}
_SORTED = {"scatter_add", "scatter_add_", "index_add", "index_add_", "index_put", "index_put_", "_index_put_impl_"}
_SORTED |= {"scatter_reduce", "scatter_reduce_", "max_pool3d_with_indices_backward"}


class Refused(TorchDispatchMode):
    """Counts what torch would refuse.

    Attributes:
        places: how often, by operation; of an operation that is no gradient, with file and line.
        sorted: those that have a deterministic kernel, which sorts.
    """

    def __init__(self) -> None:
        super().__init__()
        self.places: Counter[str] = Counter()
        self.sorted: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if name in _REFUSED or _depends(name, args, kwargs or {}):
            self.places[_place(name)] += 1
        elif name in _SORTED and torch.are_deterministic_algorithms_enabled():
            self.sorted[_place(name)] += 1
        return func(*args, **(kwargs or {}))


def _depends(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Operations that are refused for some arguments alone."""
    if name.startswith("grid_sampler") and name.endswith(
        "backward"
    ):  # refused by torch, but each number of a grid's gradient has one thread
        return bool((kwargs.get("output_mask") or args[-1])[0])
    if name in ("cumsum", "cumsum_"):
        return (kwargs.get("dtype") or args[0].dtype).is_floating_point
    if name == "bincount":
        return kwargs.get("weights", args[1] if len(args) > 1 else None) is not None
    return name == "median" and len(args) > 1 and isinstance(args[0], Tensor)


def _place(name: str) -> str:
    """Operation, file and line outside of torch."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and ("/torch/" in frame.f_code.co_filename or frame.f_code.co_filename == __file__):
        frame = frame.f_back
    return name if frame is None else f"{name}: {Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
