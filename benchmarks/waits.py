"""Count where a program would wait for its device, on a machine that has none.

    with Waits() as waits:
        ...  # what runs on waits.device
    print(waits.places)

It stands in for `torch.cuda.set_sync_debug_mode`, which needs a GPU. The host waits for a device where it reads a value
(`item`, `bool`, `tolist`, a copy to the host), where a result's shape depends on values (`nonzero`, a mask as an
index), and where it copies values there (a tensor of a list) unless that is said to be `non_blocking`.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

DEVICE = torch.device("cpu", 0)  # torch's own tensors on the CPU say "cpu", without a number

_READ = {"item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__", "__array__", "__contains__"}
_READ |= {"nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "_unique2", "equal", "allclose"}
_READ |= {"is_nonzero", "bincount", "histc"}
_MADE_OF_VALUES = {"tensor", "as_tensor", "asarray", "from_numpy", "new_tensor"}
_MIXING = {
    "to",
    "copy_",
    "__setitem__",
    "__getitem__",
    "__get__",
    "__set__",
    "type_as",
    "new_tensor",
    "requires_grad_",
    "_has_compatible_shallow_copy_type",
}
_MARK = "_on_the_device"


class _Generator(torch.Generator):
    """A generator that says it is on the device."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return DEVICE


class Waits(TorchFunctionMode):
    """Takes `device` for a device of its own, and keeps the places where the host waits for it.

    Tensors are on it if they were made there or moved there, or computed from such ones. `device` is torch's CPU by
    another name, so that everything runs as it would on the CPU.

    Attributes:
        places: how often the host waited, by function, file and line.
        mixed: functions of tensors of which some are on the device and some are not, which a GPU refuses.
    """

    device = DEVICE

    def __init__(self) -> None:
        super().__init__()
        self.places: Counter[str] = Counter()
        self.mixed: Counter[str] = Counter()
        self._generator = torch.Generator

    def __enter__(self) -> Waits:
        torch.Generator = lambda device="cpu": (_Generator if _is_there(device) else self._generator)()  # type: ignore
        return super().__enter__()  # type: ignore[return-value]

    def __exit__(self, *error: object) -> None:
        torch.Generator = self._generator  # type: ignore[misc]
        super().__exit__(*error)  # type: ignore[arg-type]

    @property
    def total(self) -> int:
        return self.places.total()

    def mark(self, tensors: Iterable[Tensor]) -> None:
        """Take tensors, a network's weights, as being on the device already."""
        for tensor in tensors:
            setattr(tensor, _MARK, True)

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        there = any(map(_is_marked, given))
        if getattr(func, "__self__", None) is Tensor.device and there:
            # Checkpoints compare devices with what they see out of this mode.
            return func(*args) if "/checkpoint.py" in sys._getframe(1).f_code.co_filename else DEVICE
        if there and name not in _MIXING and any(t.ndim and not _is_marked(t) for t in given):
            self.mixed[self._place(name)] += 1
        result = func(*args, **kwargs)
        if name == "to":
            there = self._moved(args, kwargs)
        elif name == "copy_" and there and not _is_marked(args[0]):
            there = False
            if not kwargs.get("non_blocking"):
                self._count("copy_ to the host")
        elif name in _MADE_OF_VALUES:
            goes = _is_there(kwargs.get("device")) or (name == "new_tensor" and there)
            if (goes and not there) or (name == "new_tensor" and goes):
                self._count(name)
            there = (there and kwargs.get("device") is None) or goes
        elif there and _reads(name, args):
            self._count(name)
            there = name != "cpu"
        else:
            there = there or _is_there(kwargs.get("device")) or isinstance(kwargs.get("generator"), _Generator)
        if there:
            changed = [args[0]] if name.endswith("_") and args and isinstance(args[0], Tensor) else []
            self.mark(value for value in [*tree_leaves(result), *changed] if isinstance(value, Tensor))
        return result

    def _moved(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether the result of `Tensor.to` is on the device; counts the copy."""
        before = _is_marked(args[0])
        target = [v for v in (*args[1:], kwargs.get("device")) if isinstance(v, torch.device | str | Tensor)]
        if not target:  # a type alone
            return before
        after = _is_marked(target[0]) if isinstance(target[0], Tensor) else _is_there(target[0])
        blocking = not (kwargs.get("non_blocking") or any(value is True for value in args[2:4]))
        if before != after and (before or blocking):
            self._count("to the host" if before else "to the device")
        return after

    def _count(self, name: str) -> None:
        self.places[self._place(name)] += 1

    @staticmethod
    def _place(name: str) -> str:
        """Function, file and line outside of torch."""
        frame: FrameType | None = sys._getframe(2)
        while frame is not None and ("/torch/" in frame.f_code.co_filename or frame.f_code.co_filename == __file__):
            frame = frame.f_back
        return name if frame is None else f"{name}: {Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


def _is_marked(value: object) -> bool:
    return getattr(value, _MARK, False)


def _is_there(device: object) -> bool:
    return device is not None and str(device) == str(DEVICE)


def _reads(name: str, args: tuple[Any, ...]) -> bool:
    """Whether a function of tensors on the device reads a value."""
    if name == "__get__" or name not in _READ | {"__getitem__", "__setitem__", "repeat_interleave"}:
        return False
    if name == "repeat_interleave":
        return len(args) > 1 and isinstance(args[1], Tensor)
    if name not in ("__getitem__", "__setitem__"):
        return True
    index = args[1] if isinstance(args[1], tuple) else (args[1],)
    if any(isinstance(part, Tensor) and part.dtype == torch.bool for part in index):
        return name == "__getitem__" or (isinstance(args[2], Tensor) and args[2].ndim > 0)
    return any(
        isinstance(part, list) or (isinstance(part, Tensor) and part.ndim > 0 and not _is_marked(part))
        for part in index
    )
