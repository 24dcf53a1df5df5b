"""The one handler that keeps a training: its checkpoints, averaged weights, schedule, curves and progress."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from ignite.engine import Engine, Events
from monai.handlers import LrScheduleHandler, StatsHandler, TensorBoardStatsHandler
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

from ..checks import check_number, check_switch, writable_folder
from ..networks.parallel import is_first_process, unwrap
from ..vocabulary import Stateful
from .checkpoints import AverageWeights, BestCheckpoint, ResumableCheckpoint, WeightAverage
from .finite import FiniteLoss
from .logs import ProgressBar, TimeLeft, TrainingCurve, WarpedPanel, write_events
from .run_files import RunFiles

logger = logging.getLogger(__name__)


def default_precision() -> str:
    """The precision in which networks train: bfloat16 on a CPU that has instructions for it, else float32.

    There it halves the time of a step. A CPU without them emulates bfloat16: a step of the small U-Net took 6.3 CPU
    seconds instead of 0.15 (AMD EPYC with AVX2 alone, torch 2.13, one thread, two pairs of 20 x 24 x 32 voxels).
    """
    if torch.cuda.is_available():
        return "float32"
    return "bfloat16" if torch.cpu._is_avx512_bf16_supported() else "float32"


class TrainingRecord:
    """Keep a training: everything that a run leaves behind, and everything that it needs to continue.

    It attaches to a trainer, in this order:

    - the end of the run when the loss is no longer a number (`FiniteLoss`);
    - the learning-rate schedule, one step an epoch: along a cosine to zero at the last epoch, unless `objects` has an
      `lr_scheduler`;
    - the moving average of the weights, which the evaluator uses and `best` saves;
    - `last.pt` beside the best weights: `objects`, schedule, average and best score. `resume` continues from it,
      `initial_weights` starts from a model.pt (see `ResumableCheckpoint`);
    - in `output_dir`, the curve (`curve.csv`) and TensorBoard's events with a panel of images, and a progress bar.

    The manifests of both folders list what this training wrote; see `RunFiles`.

    In a distributed run every process resumes and steps the schedule, but only the first one writes.

    Args:
        objects: what `last.pt` keeps, by name: the trained `network` and its `optimizer`, and whatever else a method
            needs; an `lr_scheduler` takes the place of the cosine.
        evaluator: the validation engine.
        best: saves the best weights; it is attached to the evaluator here. Its folder also holds `last.pt`.
        output_dir: folder of the curve and of TensorBoard.
        ema_decay: share of the old average at each iteration (see `WeightAverage`); 0 keeps no average.
        resume: continue from `last.pt` if it exists.
        initial_weights: file of the network's weights to start from, unless a run is resumed.
        fresh: parts of the names of weights that `initial_weights` may lack.
    Raises:
        ValueError: if `ema_decay` is no number from 0 to below 1, or `resume` is neither True nor False.
    """

    def __init__(
        self,
        objects: Mapping[str, Stateful],
        evaluator: Engine,
        best: BestCheckpoint,
        output_dir: str | os.PathLike[str],
        *,
        ema_decay: float = 0.0,
        resume: bool = False,
        initial_weights: str | os.PathLike[str] | None = None,
        fresh: Sequence[str] = (),
    ) -> None:
        check_number("ema_decay", ema_decay, least=0, below=1)
        check_switch("resume", resume)
        self.objects, self.evaluator, self.best, self.output_dir = dict(objects), evaluator, best, Path(output_dir)
        self.ema_decay, self.resume, self.initial_weights, self.fresh = ema_decay, resume, initial_weights, fresh

    def attach(self, engine: Engine) -> None:
        """Attach every part to the trainer, and those of validation to the evaluator."""
        for folder in (self.best.folder, self.output_dir):
            writable_folder(folder)
        FiniteLoss().attach(engine)
        files = RunFiles(self.objects, self.best, self.output_dir, resume=self.resume)
        files.attach(engine, self.evaluator)
        objects = dict(self.objects)
        if "lr_scheduler" not in objects:
            optimizer = cast(Optimizer, objects["optimizer"])
            objects["lr_scheduler"] = CosineAnnealingLR(optimizer, T_max=engine.state.max_epochs)
        LrScheduleHandler(objects["lr_scheduler"], print_lr=False).attach(engine)
        average = WeightAverage(cast(nn.Module, unwrap(objects["network"])), self.ema_decay)
        AverageWeights(average, self.evaluator).attach(engine)
        objects |= {"average": average, "best": self.best}
        ResumableCheckpoint(
            self.best.folder / "last.pt",
            objects,
            resume=self.resume,
            initial_weights=self.initial_weights,
            fresh=self.fresh,
        ).attach(engine)
        self.best.attach(self.evaluator, engine)
        if is_first_process():
            self._attach_logs(engine)
        files.attach_last(engine)

    def _attach_logs(self, engine: Engine) -> None:
        statistics = StatsHandler(iteration_log=False)
        statistics.attach(self.evaluator)
        # It would log the traceback of an error that ends the run with a sentence.
        self.evaluator.remove_event_handler(statistics.exception_raised, Events.EXCEPTION_RAISED)
        TrainingCurve(self.output_dir / "curve.csv", self.evaluator).attach(engine)
        if importlib.util.find_spec("tensorboard") is None:
            logger.warning("tensorboard is not installed: no events are written to %s", self.output_dir)
        else:
            TensorBoardStatsHandler(log_dir=str(self.output_dir), iteration_event_writer=write_events).attach(engine)
            WarpedPanel(self.output_dir).attach(self.evaluator)
        ProgressBar().attach(engine)
        TimeLeft().attach(engine)
