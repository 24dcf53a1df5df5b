"""Docstrings of public names: the arguments that they list are there, none is missing, and errors are named."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).resolve().parents[1] / "custom_components"
ERRORS = {"ValueError", "TypeError", "RuntimeError", "OSError", "FileNotFoundError", "FileExistsError", "ImportError"}


class Documented(NamedTuple):
    """A public function or method: where it is, its docstring, that of its class, and the function itself."""

    place: str
    text: str
    of_class: str
    function: ast.FunctionDef


def documented() -> Iterator[Documented]:
    """Public functions, and classes by their constructors; methods that have a docstring."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            place = f"{path.relative_to(PACKAGE)}: {getattr(node, 'name', '')}"
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                yield Documented(place, ast.get_docstring(node) or "", "", node)
            elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                told = ast.get_docstring(node) or ""
                for method in (one for one in node.body if isinstance(one, ast.FunctionDef)):
                    text = told if method.name == "__init__" else ast.get_docstring(method)
                    if text and (method.name == "__init__" or not method.name.startswith("_")):
                        yield Documented(f"{place}.{method.name}", text, told, method)


def listed(text: str) -> set[str]:
    """The names in the section Args."""
    section = re.search(r"^Args:\n((?: {4}.*\n?|\n)*)", text + "\n", re.MULTILINE)
    lines = section[1].splitlines() if section else []
    heads = filter(None, (re.match(r" {4}(\*{0,2}\w+(?:, \*{0,2}\w+)*):", line) for line in lines))
    return {name.strip().lstrip("*") for head in heads for name in head[1].split(",")}


def arguments(function: ast.FunctionDef) -> set[str]:
    given = function.args
    found = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    return {one.arg for one in found if one is not None} - {"self", "cls"}


def raised(function: ast.FunctionDef) -> set[str]:
    """The kinds of errors that a function raises itself."""
    errors = [node.exc for node in ast.walk(function) if isinstance(node, ast.Raise) and node.exc is not None]
    names = {ast.unparse(error.func if isinstance(error, ast.Call) else error) for error in errors}
    return names & ERRORS


def test_there_are_docstrings_to_look_at():
    assert len(list(documented())) > 900


def test_every_public_function_has_a_docstring():
    assert [one.place for one in documented() if not one.text] == []


def test_no_docstring_lists_an_argument_that_is_not_there():
    stale = {one.place: listed(one.text) - arguments(one.function) for one in documented()}
    assert {place: names for place, names in stale.items() if names} == {}


def test_a_docstring_that_lists_arguments_speaks_of_all():
    silent = {
        one.place: {name for name in arguments(one.function) if not re.search(rf"\b{name}\b", one.text)}
        for one in documented()
        if listed(one.text)
    }
    assert {place: names for place, names in silent.items() if names} == {}


def test_errors_that_a_function_raises_are_in_its_docstring():
    """Or in that of its class, or the docstring says whose errors it has."""
    silent = {
        one.place: {name for name in raised(one.function) if name not in one.text + one.of_class}
        for one in documented()
        if not re.search(r"(Errors|errors|Raises:) as|Raises: as", one.text)
    }
    assert {place: names for place, names in silent.items() if names} == {}
