"""The types that several rooms hand to one another, each with what it holds.

A dictionary whose keys are fixed by MONAI or by a file, and not by this code, keeps values of any type: that is said
once, here. Nothing is imported at run time, so that the lists and the command line stay light.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

# A pair or scan on its way through MONAI's dictionary transforms: first paths, then images, fields and measures.
Item: TypeAlias = dict[Hashable, Any]
# The same, only read. MONAI calls transforms with it.
Data: TypeAlias = Mapping[Hashable, Any]
# A scan or pair of a data list, as its JSON file has it: paths by role, and any other key that the file has.
Entry: TypeAlias = dict[str, Any]
# Items that MONAI's data loader collated: tensors (B, ...), and lists of what is no tensor.
Collated: TypeAlias = Mapping[str, Any]
# What a loss compares with: images, labels and masks (B, C, *S) by role.
Batch: TypeAlias = "Mapping[str, Tensor]"
# What an inferer finds: tensors by name, some of them in lists (steps) or dictionaries (the way back).
Result: TypeAlias = dict[str, Any]
# The same, only read.
Pred: TypeAlias = Mapping[str, Any]
# What an engine hands to handlers and metrics: "pred" is a `Result`, "label" a `Batch`, "loss" a number.
Output: TypeAlias = Mapping[str, Any]
# A configuration or description from a JSON file: objects, lists, text and numbers, nested as the file's author likes.
Config: TypeAlias = dict[str, Any]
# Measures of a pair by name, for a table or a JSON file: numbers, text, and lists of them.
Metrics: TypeAlias = Mapping[str, object]
# The same as a row that is being made or read by name.
Row: TypeAlias = dict[str, Any]


class Stateful(Protocol):
    """What a checkpoint can keep: networks, optimisers, schedules, and handlers like them."""

    def state_dict(self) -> dict[str, Any]:
        """What is kept."""

    def load_state_dict(self, state_dict: Any, /) -> object:
        """Go back to what was kept."""
