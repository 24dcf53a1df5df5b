"""The words of a command line, checked before a command starts. fire finds the command."""

from __future__ import annotations

import functools
import inspect
import os
import re
from collections.abc import Callable, Mapping, Sequence

from ..checks import meant
from .typed import convert

_FOLDER = "registered"  # where results go if nothing else is said

_POSITIONAL = inspect.Parameter.POSITIONAL_OR_KEYWORD
_SEVERAL = inspect.Parameter.VAR_POSITIONAL

# What everybody types, whatever else begins with the letter.
_SHORT = {"o": "output", "b": "bundle"}


def checked(words: Sequence[str], commands: Mapping[str, Callable[..., object]]) -> list[str]:
    """The words for fire, with full names of flags, each flag with its value.

    fire reads values as Python literals, so each is quoted: a text stays the text that was typed. Only `~/` at its
    beginning becomes the home folder, as in a shell.

    Raises:
        ValueError: if there is no such command or flag, a flag has no value, or there are too many or too few words.
    """
    if not words or _is_flag(words[0]):
        return list(words)
    command, rest = words[0], list(words[1:])
    if command not in commands:
        raise ValueError(f"there is no command {command!r}; there are {', '.join(commands)}{meant(command, commands)}")
    parameters = inspect.signature(commands[command]).parameters
    positional, flags = _split(command, rest, parameters)
    _check_number(command, positional, flags, parameters)
    texts = [repr(_home(word)) for word in positional]
    return [command, *texts, *(f"--{name}={_home(value)!r}" for name, value in flags.items())]


def _check_number(
    command: str, positional: list[str], flags: dict[str, str], parameters: Mapping[str, inspect.Parameter]
) -> None:
    names = [name for name, parameter in parameters.items() if parameter.kind is _POSITIONAL]
    if any(parameter.kind is _SEVERAL for parameter in parameters.values()):
        return  # the command says what it makes of none
    if len(positional) > len(names):
        raise ValueError(f"{command} takes {_listed(names)}, not also {positional[len(names)]!r}")
    twice = [name for name in names[: len(positional)] if name in flags]
    if twice:
        raise ValueError(f"--{twice[0]} is given twice")
    needed = [name for name in names[len(positional) :] if parameters[name].default is inspect.Parameter.empty]
    lacking = [name for name in needed if name not in flags]
    if lacking:
        raise ValueError(f"{command} needs {_listed(lacking)}: morphzoo {command} --help")


def _split(
    command: str, words: list[str], parameters: Mapping[str, inspect.Parameter]
) -> tuple[list[str], dict[str, str]]:
    """The words without flags, and the values of flags by full name."""
    positional, flags = [], {}
    open_ended = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    while words:
        word = words.pop(0)
        if not _is_flag(word):
            positional.append(word)
            continue
        key, equals, value = word.lstrip("-").partition("=")
        if not key or (len(key) > 1 and not word.startswith("--")):
            raise ValueError(
                f"{word!r}: a flag of several letters begins with --; a path that begins with - is ./{word}"
            )
        name = _full_name(word, key.replace("-", "_"), parameters)
        if name not in parameters and not open_ended:
            there = ", ".join(f"--{other}" for other in parameters)
            raise ValueError(f"{command} has no {word.partition('=')[0]}; it has {there}")
        if not equals:
            value = words.pop(0) if words and not _is_flag(words[0]) else _without_value(name, parameters, words)
        flags[name] = value
    return positional, flags


def _is_flag(word: str) -> bool:
    return re.match(r"--|-[a-zA-Z]", word) is not None


def _full_name(word: str, key: str, parameters: Mapping[str, inspect.Parameter]) -> str:
    """The name of a flag, which may be its first letter."""
    if len(key) != 1 or key in parameters or word.startswith("--"):
        return key
    if _SHORT.get(key) in parameters:
        return _SHORT[key]
    named = [name for name, parameter in parameters.items() if parameter.kind is not inspect.Parameter.VAR_KEYWORD]
    found = [name for name in named if name.startswith(key)]
    if len(found) > 1:
        raise ValueError(f"-{key} can be {' or '.join(f'--{name}' for name in found)}")
    return found[0] if found else key


def _without_value(name: str, parameters: Mapping[str, inspect.Parameter], words: list[str]) -> str:
    """What a flag without a value means: True where that is possible."""
    kinds = str(parameters[name].annotation) if name in parameters else "bool"
    if "bool" in kinds:
        return "True"
    if "int" in kinds or "float" in kinds:
        raise ValueError(f"--{name} needs a number, for instance --{name} {0.3 if 'float' in kinds else 20}")
    raise ValueError(f"--{name} needs a value, --{name}={words[0] if words else 'VALUE'}")


def _home(word: str) -> str:
    return os.path.expanduser(word) if word.startswith("~/") and not os.path.lexists(word) else word


def _listed(names: Sequence[str]) -> str:
    return " and ".join(name.upper() for name in names) or "no words"


def from_text(command: Callable[..., object]) -> Callable[..., object]:
    """The command for texts, which are converted as the command declares its arguments.

    A command that need not write anything does so here. What it takes as further settings stays text, for a bundle says
    what that means.
    """
    signature = inspect.signature(command)
    place = signature.parameters.get("output")

    @functools.wraps(command)
    def run(*args: str, **kwargs: str) -> object:
        bound = signature.bind(*args, **kwargs)
        if place is not None and place.default is None:
            bound.arguments.setdefault("output", _FOLDER)
        for name, value in bound.arguments.items():
            kind, kinds = signature.parameters[name].kind, str(signature.parameters[name].annotation)
            if kind is _SEVERAL:
                bound.arguments[name] = tuple(convert(name, one, kinds) for one in value)
            elif kind is not inspect.Parameter.VAR_KEYWORD:
                bound.arguments[name] = convert(name, value, kinds)
        return command(*bound.args, **bound.kwargs)

    return run
