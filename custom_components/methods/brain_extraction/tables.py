"""The table of a run: what was measured in each image."""

from __future__ import annotations

import os
from pathlib import Path

from ignite.engine import Engine, Events

from ...files import write_table


class HeadTable:
    """A handler that writes `volumes.csv`: a row for each image, its `measures`.

    Args:
        output_dir: its folder.
    """

    def __init__(self, output_dir: str | os.PathLike[str]) -> None:
        self.path = Path(output_dir) / "volumes.csv"
        self.rows: list[dict[str, object]] = []

    def attach(self, engine: Engine) -> None:
        """Attach to the evaluator."""
        engine.add_event_handler(Events.STARTED, self.rows.clear)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.COMPLETED, self.write)

    def collect(self, engine: Engine) -> None:
        """Keep the measures of an iteration's items, which are decollated."""
        self.rows += [item["measures"] for item in engine.state.output]

    def write(self) -> None:
        """Write the table; one of an earlier run is replaced."""
        write_table(self.path, self.rows)
