"""Settings of a bundle: what its configs declare, and how values get to its components.

MONAI's parser evaluates texts that begin with `$`, resolves those that begin with `@` or `%`, and instantiates what has
a `_target_`. A config may use that, since it is code of whoever runs it. Paths, labels, attributes and all other values
from a command, a data list or a checkpoint are data. `give` therefore puts them beside the parser.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pydoc import locate
from typing import TYPE_CHECKING, Any

from ..checks import meant
from ..vocabulary import Config
from .bundles import those_with
from .typed import convert, kinds_of

if TYPE_CHECKING:
    import torch
    from monai.bundle import ConfigParser

_PRIVATE = {"_desc_", "_meta_", "imports", "initialize", "run"}

# Where the default does not tell all that is possible.
_KINDS = {
    "spacing": "float | Sequence[float]",
    "optimize": "int | Sequence[int] | 'auto'",
    "hyper": "float | Sequence[float] | str",
    "labels": "Sequence[int] | 'all'",
    "stages": "Sequence[str]",
    "template_label": "str",
    "smoothing": "float",
}


# Settings that go by a name of their own.
_PLACES = {
    "window": "preprocessing#window",
    "fill": "preprocessing#fill",
    "write_as": "save#write_as",
    "landmark_weight": "refinement#landmark_weight",
    "page": "postprocessing#page",
    "label_names": "postprocessing#label_names",
    "guide_weight": "refinement#guide_weight",
}


def give(parser: ConfigParser, values: Mapping[str, object]) -> None:
    """Set ids of a parser to Python values, which it hands to the components as they are.

    The config gets an expression of ours in their place. The parser never looks into the values.
    """
    store = parser.globals.setdefault("given", [])
    for name, value in values.items():
        parser[name] = f"$given[{len(store)}]"
        store.append(value)


def typed_settings(bundle: str, config: Config, settings: Mapping[str, object]) -> dict[str, object]:
    """Settings as the types that a bundle's config declares; those that are None are left out.

    Args:
        bundle: its name, for messages.
        config: the merged config files.
        settings: by id, texts of the command line or Python values.
    Raises:
        ValueError: if there is no such setting, it is not for values, or the value is of another kind.
    """
    result: dict[str, object] = {}
    for name, value in settings.items():
        name = _PLACES.get(name, name)
        if value is None:
            continue
        if name == "affine" and value in (True, "True"):  # a flag without a value
            value = "torch"
        if name == "device":
            result[name] = device_named(value)
        else:
            result[name] = convert(name, value, _kinds(bundle, config, name.replace("::", "#")))
    return {name: value for name, value in result.items() if value is not None}


def _kinds(bundle: str, config: Config, name: str) -> str:
    """The kinds of values of a setting, as an annotation."""
    if name.split("#")[0] not in {*config} - _PRIVATE:
        raise ValueError(_unknown(bundle, name, config))
    if name in _KINDS:
        return _KINDS[name]
    *outer, last = name.split("#")
    place: object = config
    for key in outer:
        place = _entry(place, key)
    default = _entry(place, last)
    if last.startswith("_"):
        default = place = _ABSENT
    if default is _ABSENT and isinstance(place, Mapping) and "_target_" in place:
        return _parameter(bundle, name, place, last)
    if default is _ABSENT:
        raise ValueError(f"{bundle} has no setting {name!r}")
    return _kinds_in(bundle, config, name, default)


_ABSENT = object()


def _entry(place: object, key: str) -> object:
    if isinstance(place, list) and key.isdecimal() and int(key) < len(place):
        return place[int(key)]
    return place.get(key, _ABSENT) if isinstance(place, Mapping) else _ABSENT


def _kinds_in(bundle: str, config: Config, name: str, default: object) -> str:
    """The kinds of values that can take the place of a config's entry."""
    if isinstance(default, str) and re.fullmatch(r"@[\w#:]+", default):
        return _kinds(bundle, config, default[1:].replace("::", "#"))
    is_path = isinstance(default, str) and re.match(r"\$@\w+ \+ '/", default)
    if isinstance(default, Mapping) and not _names_code(default):
        return "Mapping"
    is_code = isinstance(default, Mapping) or (isinstance(default, str) and default.startswith(("$", "@", "%")))
    if is_code and not is_path:
        raise ValueError(f"{bundle}: {name!r} is no setting but a part of the configuration: give --overlay FILE")
    return kinds_of(default)


def _names_code(value: object) -> bool:
    """Whether a config's entry has a component or an expression in it; else it is data."""
    if isinstance(value, Mapping):
        return "_target_" in value or any(map(_names_code, value.values()))
    if isinstance(value, list):
        return any(map(_names_code, value))
    return isinstance(value, str) and value.startswith(("$", "@", "%"))


def _parameter(bundle: str, name: str, component: Mapping[str, Any], key: str) -> str:
    """The kinds of values of a component's argument that the config leaves at its default."""
    target = locate(str(component["_target_"]))
    parameters = inspect.signature(target).parameters if callable(target) else {}
    if key in parameters:
        return str(parameters[key].annotation)
    free = not parameters or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    if not free:
        raise ValueError(f"{bundle} has no setting {name!r}; there are {', '.join(parameters)}")
    return "Any"


def device_named(value: object) -> torch.device:
    """A device that is there, by its name. Raises ValueError: if it is not there, or has no 64-bit numbers."""
    import torch

    try:
        device = torch.device(str(value))
        torch.empty(0, device=device)
    except (RuntimeError, TypeError, AssertionError) as error:
        raise ValueError(f"--device: there is no {str(value)!r} on this machine; 'cpu' is always there") from error
    try:
        torch.empty(0, dtype=torch.float64, device=device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"--device: {str(value)!r} has no 64-bit numbers, which measures need; take 'cpu'") from error
    return device


def _unknown(bundle: str, name: str, known: Config) -> str:
    """What is said of a setting that a bundle lacks: who has it, what else was meant, or what there is."""
    from . import discover

    flags = {flag for command in discover().values() for flag in inspect.signature(command).parameters}
    settings = {key for key in {*known} - _PRIVATE if _is_setting(bundle, known, key)}
    others = those_with(name.split("#")[0])
    near = meant(name, settings | {*_PLACES} | flags, "--")
    said = f"; {others}" if others else near or f"; there are {', '.join(sorted(settings))}"
    return f"{bundle} has no setting {name!r}{said}"


def _is_setting(bundle: str, config: Config, name: str) -> bool:
    try:
        _kinds(bundle, config, name)
    except ValueError:
        return False
    return True
