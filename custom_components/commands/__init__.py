"""The commands of `morphzoo`, one file each: a module that is no part of others holds the function of its name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable

# What commands are made of.
PARTS = {
    "bundles",
    "console",
    "export_checks",
    "exporting",
    "heads",
    "hub_card",
    "label_server_export",
    "labelling",
    "listed",
    "loaded",
    "manual",
    "monai_transforms",
    "network_files",
    "origin",
    "registrar",
    "settings",
    "subjects",
    "typed",
    "words",
    "workflow",
    "zoo_test",
}


def discover() -> dict[str, Callable[..., object]]:
    """The commands by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in PARTS)
    return {name: getattr(importlib.import_module(f"{__name__}.{name}"), name) for name in names}
