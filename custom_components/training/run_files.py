"""Keep the files of two trainings in one folder apart."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ignite.engine import Engine, Events

from ..networks.parallel import is_first_process, unwrap
from ..results import list_files, retract
from ..vocabulary import Stateful
from .checkpoints import BestCheckpoint
from .finite import check_finite

_TRAINING = "training"  # the part of a folder's manifest

_EVENTS = "events.out.tfevents.*"


class RunFiles:
    """List what a training writes in the manifests of its folders: `last.pt`, the best weights and their sidecar, the
    curve, and the events of TensorBoard.

    A training that is not resumed deletes what an earlier one listed, just before it writes its own first file; one
    that fails before leaves all as it was. Until the last epoch is over the manifests say `unfinished`. Weights that no
    manifest lists, such as those a bundle came with, stay until better ones replace them.

    Args:
        objects: what `last.pt` keeps; if it is not finite, nothing is deleted.
        best: writes the best weights; `last.pt` lies in its folder.
        output_dir: folder of the curve.
        resume: the training continues from `last.pt` if it is there.
    """

    def __init__(
        self,
        objects: Mapping[str, Stateful],
        best: BestCheckpoint,
        output_dir: str | os.PathLike[str],
        *,
        resume: bool = False,
    ) -> None:
        self.objects = objects
        self.files = [best.folder / "last.pt", *best.files, Path(output_dir) / "curve.csv"]
        self.is_new = not (resume and self.files[0].exists())
        self.output_dir, self._events = Path(output_dir), set(Path(output_dir).glob(_EVENTS))
        self._before: dict[Path, int] | None = None

    def attach(self, engine: Engine, evaluator: Engine) -> None:
        """Attach to the trainer and the evaluator, before all that writes."""
        if is_first_process():
            for one in (engine, evaluator):
                one.add_event_handler(Events.EPOCH_COMPLETED, self.begin)

    def attach_last(self, engine: Engine) -> None:
        """Attach to the trainer, after all that writes."""
        if is_first_process():
            engine.add_event_handler(Events.EPOCH_COMPLETED, self.list)
            engine.add_event_handler(Events.COMPLETED, self.finish)

    def begin(self) -> None:
        """Delete what an earlier training listed, once.

        Raises:
            FloatingPointError: if there is nothing finite to put in its place.
        """
        if self._before is not None:
            return
        for name, thing in self.objects.items():
            check_finite(unwrap(thing).state_dict(), f"{self.files[0]}: the {name}")
        if self.is_new:
            for folder in {path.parent for path in self.files}:
                retract(folder, _TRAINING)
        self._before = self._times()

    def list(self) -> None:
        """List what has been written."""
        self._list(unfinished=True)

    def finish(self) -> None:
        """Say that the training is over."""
        self._list(unfinished=False)

    def _list(self, *, unfinished: bool) -> None:
        before = self._before or {}
        written = [path for path, time in self._times().items() if before.get(path) != time]
        written += {*self.output_dir.glob(_EVENTS)} - self._events
        for folder in {path.parent for path in written}:
            names = [path.name for path in written if path.parent == folder]
            list_files(folder, _TRAINING, names, unfinished=unfinished)

    def _times(self) -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in self.files if path.exists()}
