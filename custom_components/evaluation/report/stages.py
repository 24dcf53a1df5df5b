"""Names of measures and the stage that they hold: "dice_after" is "dice" after registration."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ...vocabulary import Row
from ..result import MEASURED


def split_stage(name: str) -> tuple[str, str]:
    """A measure's name without its stage, and the stage; what names none is of the whole transform."""
    found = re.search(rf"_({'|'.join(MEASURED)})(?=_|$)", name)
    return (name, "after") if found is None else (name[: found.start()] + name[found.end() :], found[1])


def stage_table(values: Mapping[str, object], measures: Sequence[str]) -> dict[str, Row]:
    """Measures by their name without the stage, and for each its value by stage."""
    table: dict[str, Row] = {}
    for name in measures:
        base, stage = split_stage(name)
        table.setdefault(base, {})[stage] = values[name]
    return table
