"""What a run over single items writes: the files of each, and the table of what was measured in them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ignite.engine import Engine, Events

from ..files import write_table
from ..vocabulary import Data, Item


class ItemTable:
    """A handler that has each item's files written, and writes a table: a row for each item, its `measures`.

    Files are not written by the postprocessing, of which MONAI Label takes the answer alone.

    Args:
        output_dir: folder of the table.
        save: writes the files of an item.
        name: of the table's file.
    """

    def __init__(
        self, output_dir: str | os.PathLike[str], save: Callable[[Data], Item], name: str = "volumes.csv"
    ) -> None:
        self.path, self.save = Path(output_dir) / name, save
        self.rows: list[dict[str, object]] = []

    def attach(self, engine: Engine) -> None:
        """Attach to the evaluator."""
        engine.add_event_handler(Events.STARTED, self.rows.clear)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.COMPLETED, self.write)

    def collect(self, engine: Engine) -> None:
        """Write the files of an iteration's items, which are decollated, and keep their measures."""
        for batch, output in zip(engine.state.batch, engine.state.output, strict=True):
            self.save({**batch, **output})
            self.rows.append(output["measures"])

    def write(self) -> None:
        """Write the table; one of an earlier run is replaced."""
        write_table(self.path, self.rows)
