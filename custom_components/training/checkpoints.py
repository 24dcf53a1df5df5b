"""Checkpoints for training: exact resumption, the best weights so far, averaged weights."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from ignite.engine import Engine, Events
from monai.transforms import Randomizable
from monai.utils import get_seed
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from ..files import read_state, save_tensors
from ..networks.parallel import is_first_process, unwrap
from ..vocabulary import Stateful
from ..weights import sidecar_path, write_sidecar
from .finite import check_finite

logger = logging.getLogger(__name__)


class ResumableCheckpoint:
    """Save everything a run needs to continue (network, optimiser, schedule, engine position), and resume from it.

    The file is written under another name and renamed, so an interrupted run never leaves a truncated checkpoint.
    Only the first process of a distributed run writes; all of them resume.

    The random numbers of an epoch, torch's and those of a dataset that has its own, depend only on the run's seed and
    the epoch. A resumed run therefore continues exactly as an uninterrupted one. A resumed cosine schedule takes the
    length of the new run, so a finished run can be extended.

    Args:
        path: the checkpoint file; its folder is made.
        objects: name to object with `state_dict` and `load_state_dict`.
        interval: epochs between checkpoints; one is always written at the end.
        resume: continue from `path` if it exists; if False an existing file is replaced at the first save.
        initial_weights: file of weights for the object `network` (a shipped model.pt) to start from, unless a run is
            resumed.
        fresh: parts of the names of weights that `initial_weights` may lack (a second head, for instance). They keep
            their initial values, and the log names them.
    Raises:
        RuntimeError: if a file belongs to another architecture: `attach` checks the initial weights, the start of the
            run checks the checkpoint.
        FloatingPointError: if a file has, or would get, values that are not finite. Then it stays as it was.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        objects: Mapping[str, Stateful],
        *,
        interval: int = 1,
        resume: bool = False,
        initial_weights: str | os.PathLike[str] | None = None,
        fresh: Sequence[str] = (),
    ) -> None:
        self.path, self.objects, self.interval, self.resume = Path(path), dict(objects), interval, resume
        self.initial_weights, self.fresh = initial_weights, tuple(fresh)

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer; unless a checkpoint is resumed, `initial_weights` are loaded at once."""
        if self.resume and self.path.exists():
            engine.add_event_handler(Events.STARTED, self.load)
        elif self.initial_weights is not None:
            weights = read_state(self.initial_weights)
            current = unwrap(self.objects["network"]).state_dict() if self.fresh else {}
            fresh = {k: v for k, v in current.items() if k not in weights and any(part in k for part in self.fresh)}
            self._restore("network", {**weights, **fresh}, self.initial_weights)
            if fresh:
                logger.warning("%s lacks %s: they start afresh", self.initial_weights, ", ".join(fresh))
        engine.add_event_handler(Events.EPOCH_STARTED, self.seed)
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self.save)
        engine.add_event_handler(Events.COMPLETED, self.save)

    def seed(self, engine: Engine) -> None:
        """Seed torch and the dataset from the run's seed and the epoch; a run without a seed stays unseeded."""
        run = get_seed()
        if run is not None:
            seed = (run + 1_000_003 * engine.state.epoch) % 2**32
            torch.manual_seed(seed)
            dataset = getattr(engine.state.dataloader, "dataset", None)
            if isinstance(dataset, Randomizable):
                dataset.set_random_state(seed)

    def load(self, engine: Engine) -> None:
        """Restore every object and the engine's position from the checkpoint.

        Raises:
            RuntimeError: if the file is no checkpoint of this training.
        """
        checkpoint = read_state(self.path)
        for name in self.objects:
            if name not in checkpoint:
                raise RuntimeError(f"{self.path} is no checkpoint of this training: it has no {name}")
            self._restore(name, checkpoint[name], self.path)
        engine.state.epoch = checkpoint["epoch"]
        engine.state.iteration = checkpoint["iteration"]
        if engine.state.max_epochs is not None and checkpoint["epoch"] >= engine.state.max_epochs:
            logger.warning("%s has all %d epochs: raise max_epochs to continue", self.path, checkpoint["epoch"])

    def _restore(self, name: str, state: Mapping[str, object], source: str | os.PathLike[str]) -> None:
        check_finite(state, f"{source}: the {name}")
        thing = unwrap(self.objects[name])
        length = thing.T_max if isinstance(thing, CosineAnnealingLR) else None
        try:
            thing.load_state_dict(state)
            if isinstance(thing, CosineAnnealingLR) and length is not None and length != thing.T_max:
                _stretch(thing, length)
        except (RuntimeError, ValueError, TypeError) as error:
            reason = str(error).splitlines()[:2][-1].strip()[:160]  # torch's first line names the class alone
            raise RuntimeError(f"{source} is a checkpoint of another {name}: {reason}") from error

    def save(self, engine: Engine) -> None:
        """Write the checkpoint, if all of it is finite; only the first process of a distributed run does."""
        if not is_first_process():
            return
        state = {name: unwrap(thing).state_dict() for name, thing in self.objects.items()}
        check_finite(state, f"{self.path} is not written: the training")
        save_tensors(self.path, {**state, "epoch": engine.state.epoch, "iteration": engine.state.iteration})


class BestCheckpoint:
    """Save networks whenever a validation's key metric exceeds all earlier ones, those before a resumption included.

    Each file is a state dict; it is written under another name and renamed. Only the first process of a distributed run
    writes. Weights that are not finite raise a FloatingPointError, and the files stay as they were.

    Args:
        folder: where the files are written; it is made.
        networks: networks by the names of their files; by default the evaluator's network as `model.pt`.
        settings: what the first network is trained for, by the keys of a sidecar (see `weights`), which is written
            beside its file; None writes none.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        networks: Mapping[str, nn.Module] | None = None,
        settings: Mapping[str, object] | None = None,
    ) -> None:
        self.folder, self.networks, self.settings = Path(folder), dict(networks or {}), settings
        self.score: float | None = None
        self.trainer: Engine | None = None

    @property
    def files(self) -> list[Path]:
        """What is written."""
        weights = [self.folder / name for name in self.networks or ["model.pt"]]
        return weights if self.settings is None else [*weights, sidecar_path(weights[0])]

    def attach(self, engine: Engine, trainer: Engine | None = None) -> None:
        """Attach to the evaluator; the trainer knows how long the training has been."""
        self.trainer = trainer
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)

    def save(self, engine: Engine) -> None:
        """Save the networks if the key metric is the best so far; a metric that is not a number counts as the worst."""
        score = float(engine.state.metrics[engine.state.key_metric_name])
        if math.isnan(score):
            logger.warning("the validation's %s is not a number", engine.state.key_metric_name)
            score = -math.inf
        if self.score is not None and score <= self.score:
            return
        if is_first_process():
            networks = self.networks or {"model.pt": engine.network}
            states = {self.folder / name: unwrap(network).state_dict() for name, network in networks.items()}
            for path, state in states.items():
                check_finite(state, f"{path} is not written: the network")
            for path, state in states.items():
                save_tensors(path, state)
            if self.settings is not None:
                write_sidecar(self.files[0], {**self.settings, **self._progress(), "validation": score})
        self.score = score

    def _progress(self) -> dict[str, object]:
        if self.trainer is None:
            return {}
        state = self.trainer.state
        return {"steps": state.iteration, "pairs_per_step": getattr(state.dataloader, "batch_size", None)}

    def state_dict(self) -> dict[str, float | None]:
        """The best score so far."""
        return {"score": self.score}

    def load_state_dict(self, state: Mapping[str, float | None]) -> None:
        """Take the best score of an earlier run."""
        self.score = state["score"]


class WeightAverage:
    """Exponential moving average of a network's weights and batch statistics; `AverageWeights` keeps it up to date.

    Like an optimiser, it has a state that can be resumed.

    Args:
        network: the trained network.
        decay: share of the old average at each iteration; 0 for no average.
    """

    def __init__(self, network: nn.Module, decay: float = 0.999) -> None:
        self.network, self.decay = network, decay
        self.average: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, iteration: int) -> None:
        """Add the network's weights after an iteration, counted from 1."""
        # Early on the average is a plain mean, so that it does not remember the initial weights.
        decay = min(self.decay, (iteration - 1) / (iteration + 9))
        for name, weight in self._values():
            if name not in self.average:
                self.average[name] = weight.detach().clone()
            self.average[name].lerp_(weight, 1 - decay)

    @torch.no_grad()
    def exchange(self) -> None:
        """Swap the network's weights and the average."""
        for name, weight in self._values():
            if name in self.average:
                kept = weight.clone()
                weight.copy_(self.average[name])
                self.average[name] = kept

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by the names of the weights."""
        return dict(self.average)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the average of an earlier run.

        Raises:
            RuntimeError: if it is the average of another network.
        """
        values = dict(self._values())
        if any(name not in values or values[name].shape != value.shape for name, value in state.items()):
            raise RuntimeError("an average of other weights")
        self.average = {name: value.to(values[name]) for name, value in state.items()}

    def _values(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.network.named_parameters()
        yield from ((name, value) for name, value in self.network.named_buffers() if value.is_floating_point())


class AverageWeights:
    """Update a `WeightAverage` while training, and validate (and save the best weights) with it.

    Args:
        average: the average; with decay 0 this handler does nothing.
        evaluator: the validation engine; while it runs, the network's weights are the average.
    """

    def __init__(self, average: WeightAverage, evaluator: Engine) -> None:
        self.average, self.evaluator = average, evaluator

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer."""
        if self.average.decay > 0:
            engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: self.average.update(e.state.iteration))
            self.evaluator.add_event_handler(Events.STARTED, self.average.exchange)
            self.evaluator.add_event_handler(Events.COMPLETED, self.average.exchange)


def _stretch(scheduler: CosineAnnealingLR, length: int) -> None:
    """Change the length of a loaded CosineAnnealingLR, and set the learning rates that it then has at this epoch."""
    scheduler.T_max = length
    share = (1 + math.cos(math.pi * min(1, scheduler.last_epoch / length))) / 2
    for group, base in zip(scheduler.optimizer.param_groups, scheduler.base_lrs, strict=True):
        group["lr"] = scheduler.eta_min + (base - scheduler.eta_min) * share
