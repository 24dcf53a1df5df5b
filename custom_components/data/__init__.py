"""Data lists, pairs, batches and phantoms."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    # Only now: reading a data list needs neither torch nor MONAI.
    if name == "TrainingPairs":
        from .pairs import TrainingPairs

        return TrainingPairs
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
