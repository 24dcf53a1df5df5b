"""Text and Python values as the types that a function or a bundle declares. Nothing here is ever evaluated."""

from __future__ import annotations

import ast
import inspect
import math
import os
import re
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any, NoReturn


def convert(name: str, value: object, kinds: str) -> object:
    """A value as one of the kinds that an annotation names.

    The kinds are tried in the order bool, int, float, numbers, text, texts, mapping; `'all'` is a text that may be
    given. Other kinds take a Python value as it is, and a text as a literal (a number, a list, ...).

    Args:
        name: of the setting, for the message.
        value: a text of the command line, or a Python value.
        kinds: an annotation, for instance `float | Sequence[float] | 'auto' | None`.
    Returns:
        The value; None where None is given.
    Raises:
        ValueError: if the value is of none of the kinds, in one sentence.
    """
    named = [_word(kind.strip()) for kind in kinds.split("|")]
    if value is None or (value == "None" and "str" not in named):
        return None
    for kind, read in _READERS.items():
        if kind in named:
            try:
                return read(value)
            except (TypeError, ValueError, OverflowError):
                continue
    words = [kind for kind in named if kind.startswith("'")]
    if repr(value) in words:
        return value
    if not {*named} <= {*_READERS, *words, "None"}:
        return _literal(value)
    wanted = " or ".join([*(_WORDS[kind] for kind in _READERS if kind in named), *words])
    raise ValueError(f"--{name}: expected {wanted}, got {str(value)!r}")


def _word(kind: str) -> str:
    """A kind, without the `Literal[...]` around a text that may be given."""
    return kind.removeprefix("Literal[").rstrip("]").replace('"', "'") if kind.startswith("Literal[") else kind


def converted(function: Callable[..., object], values: Mapping[str, object]) -> dict[str, Any]:
    """Values by name as the function declares its arguments; those it does not name stay as they are."""
    parameters = inspect.signature(function).parameters
    return {
        name: convert(name, value, str(parameters[name].annotation)) if name in parameters else value
        for name, value in values.items()
    }


def kinds_of(default: object) -> str:
    """The kinds of values that can take the place of a default, as an annotation."""
    for kind in (bool, int, float, str):
        if isinstance(default, kind):
            return kind.__name__
    for item in (int, float, str):
        if isinstance(default, list) and default and all(type(value) is item for value in default):
            several = f"Sequence[{item.__name__}]"
            return several if item is str else f"{item.__name__} | {several}"
    return "Any"


def _bool(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if str(value).lower() not in ("true", "false"):
        _refuse(value)
    return str(value).lower() == "true"


def _int(value: object) -> int:
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d{1,18}", value):
        return int(value)
    if isinstance(value, bool) or not isinstance(value, Real) or value != int(float(value)):
        _refuse(value)
    return int(float(value))


def _float(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, str | Real):
        _refuse(value)
    number = float(value)
    if not math.isfinite(number):
        _refuse(value)
    return number


def _str(value: object) -> str:
    if not isinstance(value, str | os.PathLike):
        _refuse(value)
    return str(value)


def _mapping(value: object) -> Mapping[str, object]:
    found = _literal(value)
    if not isinstance(found, Mapping):
        _refuse(value)
    return found


def _several(read: Callable[[object], object]) -> Callable[[object], list[object]]:
    def reader(value: object) -> list[object]:
        if isinstance(value, str):
            inner = re.fullmatch(r"\s*[\[(](.*)[\])]\s*", value, re.DOTALL)
            parts = (inner[1] if inner else value).split(",")
            return [read(part.strip().strip("'\"")) for part in parts if part.strip()]
        if isinstance(value, Mapping):
            _refuse(value)
        return [read(item) for item in (value if hasattr(value, "__iter__") else [value])]

    return reader


def _refuse(value: object) -> NoReturn:
    raise ValueError(value)


def _literal(value: object) -> object:
    """A text as the number, list or other plain value that it spells; else the text itself."""
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return value


_READERS: dict[str, Callable[[object], object]] = {
    "bool": _bool,
    "int": _int,
    "float": _float,
    "Sequence[int]": _several(_int),
    "Sequence[float]": _several(_float),
    "str": _str,
    "Sequence[str]": _several(_str),
    "Mapping": _mapping,
}

_WORDS = {
    "bool": "True or False",
    "int": "a whole number",
    "float": "a number",
    "Sequence[int]": "whole numbers with commas between them",
    "Sequence[float]": "numbers with commas between them",
    "str": "a text",
    "Sequence[str]": "texts with commas between them",
    "Mapping": "names with values, {'NAME': VALUE}",
}
