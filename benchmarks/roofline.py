"""How many operations and bytes a call has, and how long a device needs for them at least.

A call's roofline is the larger of two times: its floating-point operations (`torch.utils.flop_counter`: products and
convolutions) at the rate of the device's matrix units, and its bytes at the rate of its memory. The bytes are those of
the operations as torch runs them, one after another: each reads its inputs and writes its outputs once. What is fused
moves fewer bytes, so a call may lie below this roofline.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

# TFLOP/s of matrix units, without sparsity: bfloat16 and TF32, by the device's name, as collections of specifications
# on the web give them.
PEAKS = {"NVIDIA H200": (989.4, 494.7), "NVIDIA H100 80GB HBM3": (989.4, 494.7), "NVIDIA A100": (312.0, 156.0)}

# They read and write nothing.
_FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_has_compatible_shallow_copy_type"}


class Work(NamedTuple):
    """Of a call: floating-point operations of its products and convolutions, bytes, operations of any kind."""

    flop: int
    bytes: int
    operations: int


class _Moved(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.operations = 0, 0

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        is_view = any(one.alias_info is not None and not one.alias_info.is_write for one in func._schema.returns)
        if not is_view and func._schema.name.removeprefix("aten::") not in _FREE:
            self.operations += 1
            self.bytes += sum(map(_size, tree_leaves((args, kwargs, result))))
        return result


def _size(value: object) -> int:
    """Bytes of a tensor; one that repeats its numbers has each of them once."""
    return min(value.nbytes, value.untyped_storage().nbytes()) if isinstance(value, Tensor) else 0


def work(call: Callable[[], object]) -> Work:
    """Count what a call does."""
    with FlopCounterMode(display=False) as flop, _Moved() as moved:
        call()
    return Work(flop.get_total_flops(), moved.bytes, moved.operations)


def shares(done: Work, seconds: float, *, product: float, copy: float, peak: float | None = None) -> dict[str, object]:
    """A row's numbers: what was done, and which shares of the device's rates it reached.

    Args:
        seconds: that the call took.
        product: FLOP/s of a large product in the call's precision, measured on this device.
        copy: bytes per second of a large copy, measured on this device.
        peak: TFLOP/s that the device's specification names.
    """
    least = max(done.flop / product, done.bytes / copy)
    row: dict[str, object] = {
        "gflop": round(done.flop / 1e9, 2),
        "gb": round(done.bytes / 1e9, 3),
        "operations": done.operations,
        "matrix_share": round(done.flop / seconds / product, 4),
        "memory_share": round(done.bytes / seconds / copy, 4),
        "roofline_seconds": float(f"{least:.3g}"),
        "times_roofline": round(seconds / least, 2) if least else None,
    }
    return row if peak is None else {**row, "peak_share": round(done.flop / seconds / (peak * 1e12), 4)}


def peak_of(device: str, precision: str) -> float | None:
    """TFLOP/s of a device's matrix units in "bfloat16" or "float32" (as TF32), if they are known."""
    found = next((peaks for name, peaks in PEAKS.items() if device.startswith(name)), None)
    return None if found is None else found[precision != "bfloat16"]
