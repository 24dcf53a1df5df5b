"""What a training writes for people: the loss terms, a progress bar, a CSV curve, TensorBoard panels."""

from __future__ import annotations

import csv
import logging
import math
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import ignite.handlers
import torch
from ignite.engine import Engine, Events
from torch import Tensor

from ..files import write_table
from .loss_log import LossLog

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)

_PAUSE = 60.0  # seconds between two lines on the time left


class ProgressBar(ignite.handlers.ProgressBar):
    """ignite's progress bar, one for each epoch, showing the total loss and its terms as they were last read."""

    def attach(self, engine: Engine, *args: object, **kwargs: object) -> None:
        """Attach to the trainer."""
        log = LossLog.of(engine)
        super().attach(engine, output_transform=lambda output: log.latest)


class TimeLeft:
    """Say after an epoch, once a minute at most, how long the training will still take at the pace so far."""

    def __init__(self) -> None:
        self.begin = self.said = 0.0
        self.first = 0

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.say)

    def start(self, engine: Engine) -> None:
        """Take the time; a resumed run has done epochs before."""
        self.begin, self.said, self.first = time.monotonic(), -math.inf, engine.state.epoch

    def say(self, engine: Engine) -> None:
        """Log the time left."""
        now, epochs = time.monotonic(), engine.state.max_epochs or 0
        done, left = engine.state.epoch - self.first, epochs - engine.state.epoch
        if left and done and now - self.said >= _PAUSE:
            self.said = now
            minutes = (now - self.begin) / done * left / 60
            logger.info("epoch %d of %d, about %.3g min left", engine.state.epoch, epochs, minutes)


class TrainingCurve:
    """Write one CSV line per epoch: epoch, iteration, seconds, CPU seconds, mean of each loss term, validation metrics.

    The cells of the metrics are empty in epochs without validation. A resumed run continues the file: its lines replace
    those of the same and of later epochs. In a distributed run the losses are means over the first process's share of
    the data, the metrics over all data.

    Args:
        path: the CSV file.
        evaluator: the validation engine whose metrics are written beside the losses.
    """

    def __init__(self, path: str | os.PathLike[str], evaluator: Engine | None = None) -> None:
        self.path, self.evaluator = Path(path), evaluator
        self.sums: dict[str, float] = {}
        self.count = 0
        self.metrics: dict[str, float] = {}
        self.start = (time.perf_counter(), time.process_time())

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer."""
        self.log = LossLog.of(engine)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.write)
        if self.evaluator is not None:
            self.evaluator.add_event_handler(Events.COMPLETED, self.collect_metrics)

    def collect(self, engine: Engine) -> None:
        """Add the loss terms that were read to the epoch's sums."""
        for _, terms in self.log.rows:
            for name, value in terms.items():
                self.sums[name] = self.sums.get(name, 0.0) + value
            self.count += 1

    def collect_metrics(self, engine: Engine) -> None:
        """Keep the metrics of a validation for the epoch's line."""
        self.metrics = {name: float(value) for name, value in engine.state.metrics.items()}

    def write(self, engine: Engine) -> None:
        """Write the epoch's line."""
        row: dict[str, float] = {
            "epoch": engine.state.epoch,
            "iteration": engine.state.iteration,
            "seconds": round(time.perf_counter() - self.start[0], 1),
            "cpu_seconds": round(time.process_time() - self.start[1], 1),
        }
        row |= {name: round(value / self.count, 6) for name, value in self.sums.items()}
        row |= {name: round(value, 6) for name, value in self.metrics.items()}
        self.sums, self.count, self.metrics = {}, 0, {}
        line = {name: str(value) for name, value in row.items()}  # as rounded above
        rows = [*self._earlier_rows(engine.state.epoch), line]
        write_table(self.path, rows)  # the first validation may come later: columns are added to a file without them

    def _earlier_rows(self, epoch: int) -> list[dict[str, str]]:
        if epoch == 1 or not self.path.exists():
            return []
        with open(self.path, encoding="utf-8", newline="") as file:
            return [line for line in csv.DictReader(file) if int(line["epoch"]) < epoch]


def write_events(engine: Engine, writer: SummaryWriter) -> None:
    """Write the loss terms that were read to TensorBoard, each at its step (for TensorBoardStatsHandler)."""
    rows = LossLog.of(engine).rows
    for step, terms in rows:
        for name in sorted(terms):
            writer.add_scalar(name, terms[name], step)
    if rows:
        writer.flush()


class WarpedPanel:
    """Show middle slices of moving, fixed, warped and their difference in TensorBoard, one panel for each validation.

    The fixed image is the target's; if the network supplies it (a template), it is the prediction's.

    Args:
        log_dir: TensorBoard's folder.
    """

    def __init__(self, log_dir: str | os.PathLike[str]) -> None:
        self.log_dir = str(log_dir)
        self.panels = 0
        self.writer: SummaryWriter | None = None

    def attach(self, engine: Engine) -> None:
        """Attach to the evaluator."""
        engine.add_event_handler(Events.COMPLETED, self.write)

    def write(self, engine: Engine) -> None:
        """Add a panel of the last batch's first pair; a segmentation has none."""
        if "warped" not in engine.state.output["pred"]:
            return
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(self.log_dir)
        self.panels += 1
        output = engine.state.output
        targets, warped = output["label"], output["pred"]["warped"]
        fixed = targets["fixed"] if "fixed" in targets else output["pred"]["fixed"]
        images = [targets["moving"], fixed, warped, (warped - fixed).abs()]
        panel = torch.cat([_middle_slice(image).float().cpu() for image in images], dim=1)
        self.writer.add_image("moving | fixed | warped | difference", panel.clamp(0, 1), self.panels, dataformats="HW")
        self.writer.flush()


def _middle_slice(image: Tensor) -> Tensor:
    first = image[0, 0]
    return first if first.ndim == 2 else first[:, :, first.shape[2] // 2]
