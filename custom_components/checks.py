"""Checks of settings: one sentence for a number, or a switch, that is none or out of its range."""

from __future__ import annotations

import difflib
import math
import operator
import os
from collections.abc import Iterable
from numbers import Integral, Real
from pathlib import Path
from typing import Any


def check_number(
    name: str,
    value: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    whole: bool = False,
) -> None:
    """Refuse what is not a finite number within the bounds, those that are given.

    Args:
        name: of the setting, for the message.
        value: what came.
        least, above: the smallest number allowed, or a bound that it has to exceed.
        most, below: the largest number allowed, or a bound that it has to stay below.
        whole: take whole numbers only.
    Raises:
        ValueError: with the name, what was wanted and what came.
    """
    tests = {
        "of at least": (operator.ge, least),
        "above": (operator.gt, above),
        "of at most": (operator.le, most),
        "below": (operator.lt, below),
    }
    bounds = {word: (test, bound) for word, (test, bound) in tests.items() if bound is not None}
    if not _is_finite(value, whole) or not all(test(value, bound) for test, bound in bounds.values()):
        words = " and ".join(f"{word} {bound:g}" for word, (_, bound) in bounds.items())
        raise ValueError(f"expected {name} to be a {'whole ' * whole}number {words}".rstrip() + f", got {value!r}")


def is_word(text: str) -> bool:
    """Whether a setting that takes a word or a file is a word: it has no ending and no folder; `./itk` is a file."""
    return not Path(text).suffix and not {"/", os.sep} & {*text}


def meant(word: str, names: Iterable[str], sign: str = "") -> str:
    """The end of a sentence that refuses a word: "; did you mean NAME?", or nothing if no name is like it.

    Args:
        names: those there are.
        sign: before the name.
    """
    found = difflib.get_close_matches(word, sorted(names), n=1, cutoff=0.7)
    return f"; did you mean {sign}{found[0]}?" if found else ""


def _is_finite(value: Any, whole: bool) -> bool:
    kind = Integral if whole else Real
    return isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)


def check_switch(name: str, value: object) -> None:
    """Refuse what is neither True nor False; a text such as "false" would count as true.

    Raises:
        ValueError: with the name and what came.
    """
    if not isinstance(value, bool):
        raise ValueError(f"expected {name} to be True or False, got {value!r}")


def writable_folder(folder: str | os.PathLike[str]) -> Path:
    """Make a folder, or say at once why that is impossible.

    Raises:
        OSError: if it cannot be made, or nothing can be written there.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"{path}: cannot make the output folder ({error.strerror})") from error
    if not os.access(path, os.W_OK):
        raise PermissionError(f"{path}: no permission to write there")
    return path
