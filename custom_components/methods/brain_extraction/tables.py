"""What a run writes: the files of each image, and the table of what was measured in them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ignite.engine import Engine, Events

from ...files import write_table
from ...vocabulary import Data, Item


class HeadTable:
    """A handler that has each image's files written, and writes `volumes.csv`: a row for each image, its `measures`.

    Files are not written by the postprocessing, of which MONAI Label takes the answer alone.

    Args:
        output_dir: folder of the table.
        save: writes the files of an item, as `SaveHeadd` does.
    """

    def __init__(self, output_dir: str | os.PathLike[str], save: Callable[[Data], Item]) -> None:
        self.path, self.save = Path(output_dir) / "volumes.csv", save
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
