"""Event handlers and output functions for MONAI's engines: logs, checkpoints, averaged weights, panels."""

from __future__ import annotations

import csv
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.handlers
import torch
from ignite.engine import Engine, Events
from monai.transforms import Randomizable
from monai.utils import get_seed
from torch import Tensor, nn

from .fields import warp
from .losses.overlap import label_indicators
from .metrics import mean_dice, normalized_cross_correlation, replacing, write_cohort, write_table
from .report import cohort_page

logger = logging.getLogger(__name__)


def loss_terms(output: Mapping[str, Any]) -> dict[str, Tensor]:
    """The total loss and its named terms, from a trainer's output (for StatsHandler and TensorBoardStatsHandler)."""
    return {"loss": output["loss"], **output["pred"].get("terms", {})}


def registration_score(output: Mapping[str, Any]) -> Tensor:
    """The higher, the better: mean Dice after registration where labels exist, else normalised cross-correlation.

    Args:
        output: an evaluator's output, not decollated: "label" is the targets' dictionary, "pred" the fields.
    """
    targets, pred = output["label"], output["pred"]
    if "label_moving" in targets and "label_fixed" in targets:
        warped = warp(targets["label_moving"], pred["ddf"], mode="nearest")
        return torch.as_tensor(mean_dice(warped, targets["label_fixed"])).float().nanmean()
    return torch.as_tensor(normalized_cross_correlation(pred["warped"], targets["fixed"])).float().mean()


def template_score(output: Mapping[str, Any]) -> Tensor:
    """The higher, the better: mean Dice of the template's most likely labels with the scans' where it has labels, else
    normalised cross-correlation of scans and warped template.

    Args:
        output: an evaluator's output, not decollated; "pred" as `TemplateInferer` returns it.
    """
    targets, pred = output["label"], output["pred"]
    if "warped_template_label" in pred and "label_moving" in targets:
        # A scan may have further labels, which are not the template's.
        labels = [int(label) for label in pred["template_label_ids"][0] if label]
        dice = mean_dice(pred["warped_template_label"], targets["label_moving"], labels)
        return torch.as_tensor(dice).float().nanmean()
    return torch.as_tensor(normalized_cross_correlation(pred["warped_template"], targets["moving"])).float().mean()


class InitializeTemplate:
    """Before training: the template becomes the linear regression of the scans on their attributes, or their mean.

    Without such a start registration soon explains what the attributes could, and the template may never follow them.
    The scans, unregistered, are drawn as in training, in whole batches until there are `num_scans`; the
    attributes' mean and deviation are those of all scans. What is resumed or loaded afterwards replaces all of it, so
    this handler stands before `ResumableCheckpoint`.

    Args:
        network: `AtlasNetwork`; the affine of its grid becomes that of the scans (the mean, where they differ).
        dataloader: of the training.
        prepare_batch: of the training (`AtlasBatch`).
        registration_weights: a file of weights for the registration network alone (another bundle's model.pt), or None.
        num_scans: see above.
    """

    def __init__(
        self,
        network: Any,
        dataloader: Any,
        prepare_batch: Any,
        *,
        registration_weights: str | os.PathLike | None = None,
        num_scans: int = 100,
    ) -> None:
        self.network, self.dataloader, self.prepare_batch = network, dataloader, prepare_batch
        self.registration_weights, self.num_scans = registration_weights, num_scans

    @torch.no_grad()
    def attach(self, engine: Engine) -> None:
        template, device = self.network.template, self.network.affine.device
        encoder = template.encoder
        if template.conditional:
            scans = self.dataloader.dataset.data
            encoder.fit(torch.stack([encoder.values({n: s[n] for n in encoder.names if n in s}) for s in scans]))
        # Sums of products with the code (1, e): of itself, of the images, of the labels' indicator maps.
        products: list[Any] = [0.0, 0.0, None]
        affine = torch.zeros_like(self.network.affine)
        count = 0
        for batch in self.dataloader:
            scan, targets, _, options = self.prepare_batch(batch, device)
            code = scan.new_ones(len(scan), 1)
            if template.conditional:
                code = torch.cat([code, encoder(options["attributes"]) - encoder()], 1)
            products[0] = products[0] + torch.einsum("be,bf->ef", code.double(), code.double())
            products[1] = products[1] + torch.einsum("be,b...->e...", code, scan)
            if template.label_ids and "label_moving" in targets:
                shares = label_indicators(targets["label_moving"], template.label_ids).float()
                products[2] = torch.einsum("be,b...->e...", code, shares) + (
                    0.0 if products[2] is None else products[2]
                )
            affine += batch["grid_affine_moving"].to(affine).sum(0)  # as `LoadScand` gives it
            count += len(scan)
            if count >= self.num_scans:
                break
        # The pseudo-inverse: the columns of categories add up to 0, and scans may be fewer than attributes.
        solve = torch.linalg.pinv(products[0], rtol=1e-6, hermitian=True).to(products[1])
        image, labels = (None if p is None else torch.einsum("ef,f...->e...", solve, p) for p in products[1:])
        template.initialize(image, labels)
        self.network.affine.copy_(affine / count)
        if self.registration_weights is not None:
            weights = torch.load(self.registration_weights, map_location="cpu", weights_only=True)
            try:
                self.network.registration.load_state_dict(weights)
            except RuntimeError as error:
                raise RuntimeError(f"{self.registration_weights}: weights of another registration network") from error
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for value in (*self.network.parameters(), *self.network.buffers()):
                torch.distributed.broadcast(value.data, 0)


class ProgressBar(ignite.handlers.ProgressBar):
    """ignite's progress bar, one for each epoch, showing the total loss and its terms."""

    def attach(self, engine: Engine, *args: Any, **kwargs: Any) -> None:
        super().attach(engine, output_transform=lambda output: {k: float(v) for k, v in loss_terms(output).items()})


class ResumableCheckpoint:
    """Save everything a run needs to go on (network, optimiser, schedule, engine position) and resume from it.

    The file is written under another name and renamed, so that a run cut at any moment leaves a whole checkpoint.
    Only the first process of a distributed run writes; all of them resume.

    Each epoch's random numbers, torch's and those of a dataset that has its own, depend on the run's seed and the epoch
    alone: a resumed run goes on like one that was not interrupted. A cosine schedule goes on at the length of the new
    run, so that a finished one can be prolonged.

    Args:
        path: the checkpoint file; its folder is made.
        objects: name to object with `state_dict` and `load_state_dict`.
        interval: epochs between checkpoints; one is always written at the end.
        resume: continue from `path` if it exists; if False an existing file is replaced at the first save.
        initial_weights: a file of weights for the object `network` (a shipped model.pt), to start from unless resumed.
        fresh: parts of the names of weights that `initial_weights` may lack; they keep their initial values, and the
            log says so (a second head, for instance).
    Raises:
        RuntimeError: if the file is of another architecture; on attach, of a checkpoint to resume when the run starts.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        objects: Mapping[str, Any],
        *,
        interval: int = 1,
        resume: bool = False,
        initial_weights: str | os.PathLike | None = None,
        fresh: Sequence[str] = (),
    ) -> None:
        self.path, self.objects, self.interval, self.resume = Path(path), dict(objects), interval, resume
        self.initial_weights, self.fresh = initial_weights, tuple(fresh)

    def attach(self, engine: Engine) -> None:
        if self.resume and self.path.exists():
            engine.add_event_handler(Events.STARTED, self.load)
        elif self.initial_weights is not None:
            weights = torch.load(self.initial_weights, map_location="cpu", weights_only=True)
            current = _unwrap(self.objects["network"]).state_dict() if self.fresh else {}
            fresh = {k: v for k, v in current.items() if k not in weights and any(part in k for part in self.fresh)}
            self._restore("network", {**weights, **fresh}, self.initial_weights)
            if fresh:
                logger.warning("%s lacks %s: they start afresh", self.initial_weights, ", ".join(fresh))
        engine.add_event_handler(Events.EPOCH_STARTED, self.seed)
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self.save)
        engine.add_event_handler(Events.COMPLETED, self.save)

    def seed(self, engine: Engine) -> None:
        run = get_seed()
        if run is not None:
            seed = (run + 1_000_003 * engine.state.epoch) % 2**32
            torch.manual_seed(seed)
            dataset = getattr(engine.state.dataloader, "dataset", None)
            if isinstance(dataset, Randomizable):
                dataset.set_random_state(seed)

    def load(self, engine: Engine) -> None:
        checkpoint = torch.load(self.path, map_location="cpu", weights_only=True)
        for name in self.objects:
            if name not in checkpoint:
                raise RuntimeError(f"{self.path} is no checkpoint of this training: it has no {name}")
            self._restore(name, checkpoint[name], self.path)
        engine.state.epoch = checkpoint["epoch"]
        engine.state.iteration = checkpoint["iteration"]
        if engine.state.max_epochs is not None and checkpoint["epoch"] >= engine.state.max_epochs:
            logger.warning("%s has all %d epochs: give more max_epochs to go on", self.path, checkpoint["epoch"])

    def _restore(self, name: str, state: Mapping[str, Any], source: str | os.PathLike) -> None:
        thing = _unwrap(self.objects[name])
        length = getattr(thing, "T_max", None)
        try:
            thing.load_state_dict(state)
            if length is not None and length != thing.T_max:
                _stretch(thing, length)
        except (RuntimeError, ValueError, TypeError) as error:
            reason = str(error).splitlines()[:2][-1].strip()  # torch's first line names the class alone
            raise RuntimeError(f"{source} is a checkpoint of another {name}: {reason}") from error

    def save(self, engine: Engine) -> None:
        if torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_rank():
            return
        state = {name: _unwrap(thing).state_dict() for name, thing in self.objects.items()}
        with replacing(self.path) as partial:
            torch.save({**state, "epoch": engine.state.epoch, "iteration": engine.state.iteration}, partial)


class BestCheckpoint:
    """Save networks whenever validation finds a key metric above all before, also those before a resumption.

    To be attached to the evaluator. A file is a state dict; it is written under another name and renamed.

    Args:
        folder: of the files; it is made.
        networks: by the names of their files.
    """

    def __init__(self, folder: str | os.PathLike, networks: Mapping[str, nn.Module]) -> None:
        self.folder, self.networks = Path(folder), dict(networks)
        self.score: float | None = None

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)

    def save(self, engine: Engine) -> None:
        score = float(engine.state.metrics[engine.state.key_metric_name])
        if math.isnan(score):
            logger.warning("the validation's %s is not a number", engine.state.key_metric_name)
            score = -math.inf
        if self.score is not None and score <= self.score:
            return
        for name, network in self.networks.items():
            with replacing(self.folder / name) as partial:
                torch.save(_unwrap(network).state_dict(), partial)
        self.score = score

    def state_dict(self) -> dict[str, float | None]:
        return {"score": self.score}

    def load_state_dict(self, state: Mapping[str, float | None]) -> None:
        self.score = state["score"]


class WeightAverage:
    """Exponential moving average of a network's weights and of its batch statistics, for `AverageWeights`.

    It has a state to be resumed, as an optimiser has.

    Args:
        network: the trained network.
        decay: share of the old average at each iteration; 0 for no average.
    """

    def __init__(self, network: nn.Module, decay: float = 0.999) -> None:
        self.network, self.decay = network, decay
        self.average: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, iteration: int) -> None:
        """Take in the weights after an iteration, counted from 1."""
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
        return dict(self.average)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Raises RuntimeError: if it is an average of another network."""
        values = dict(self._values())
        if any(name not in values or values[name].shape != value.shape for name, value in state.items()):
            raise RuntimeError("an average of other weights")
        self.average = {name: value.to(values[name]) for name, value in state.items()}

    def _values(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.network.named_parameters()
        yield from ((name, value) for name, value in self.network.named_buffers() if value.is_floating_point())


class AverageWeights:
    """Keep a `WeightAverage` in training, and use it for validation and for the checkpoints saved there.

    Args:
        average: with decay 0 the handler does nothing.
        evaluator: the validation engine; while it runs, the network's weights are the average.
    """

    def __init__(self, average: WeightAverage, evaluator: Engine) -> None:
        self.average, self.evaluator = average, evaluator

    def attach(self, engine: Engine) -> None:
        if self.average.decay > 0:
            engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: self.average.update(e.state.iteration))
            self.evaluator.add_event_handler(Events.STARTED, self.average.exchange)
            self.evaluator.add_event_handler(Events.COMPLETED, self.average.exchange)


class Schedule:
    """Set a number of an object, a weight of a loss for instance, at the start of each epoch; also of resumed ones.

    Args:
        owner: the object.
        name: of its attribute.
        value: of the epoch, counted from 0: a function, or the values by the epoch from which on they hold.
    Raises:
        ValueError: if the object has no such attribute, or no value holds from epoch 0 on.
    """

    def __init__(self, owner: Any, name: str, value: Callable[[int], Any] | Mapping[Any, Any]) -> None:
        if not hasattr(owner, name):
            raise ValueError(f"{type(owner).__name__} has no {name!r} to set")
        if isinstance(value, Mapping):
            steps = {int(epoch): one for epoch, one in value.items()}
            if 0 not in steps:
                raise ValueError(f"expected a value from epoch 0 on, got epochs {sorted(steps)}")
            self.value: Callable[[int], Any] = lambda epoch: steps[max(e for e in steps if e <= epoch)]
        else:
            self.value = value
        self.owner, self.name = owner, name

    def attach(self, engine: Engine) -> None:
        """To the trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.set)

    def set(self, engine: Engine) -> None:
        setattr(self.owner, self.name, self.value(engine.state.epoch - 1))


class TrainingCurve:
    """Write one CSV line per epoch: epoch, iteration, seconds, CPU seconds, mean of each loss term, validation metrics.

    The metrics' cells are empty in epochs without validation. A resumed run goes on in the file: its lines replace
    those of the same epochs and later ones. In a distributed run the losses are those of the first process's share of
    the data; the metrics are over all.

    Args:
        path: the CSV file.
        evaluator: the validation engine whose metrics are written beside the losses.
    """

    def __init__(self, path: str | os.PathLike, evaluator: Engine | None = None) -> None:
        self.path, self.evaluator = Path(path), evaluator
        self.sums: dict[str, float] = {}
        self.count = 0
        self.metrics: dict[str, float] = {}
        self.start = (time.perf_counter(), time.process_time())

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.write)
        if self.evaluator is not None:
            self.evaluator.add_event_handler(Events.COMPLETED, self.collect_metrics)

    def collect(self, engine: Engine) -> None:
        for name, value in loss_terms(engine.state.output).items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)
        self.count += 1

    def collect_metrics(self, engine: Engine) -> None:
        self.metrics = {name: float(value) for name, value in engine.state.metrics.items()}

    def write(self, engine: Engine) -> None:
        row: dict[str, Any] = {
            "epoch": engine.state.epoch,
            "iteration": engine.state.iteration,
            "seconds": round(time.perf_counter() - self.start[0], 1),
            "cpu_seconds": round(time.process_time() - self.start[1], 1),
        }
        row |= {name: round(value / self.count, 6) for name, value in self.sums.items()}
        row |= {name: round(value, 6) for name, value in self.metrics.items()}
        self.sums, self.count, self.metrics = {}, 0, {}
        rows = [*self._earlier_rows(engine.state.epoch), row]
        rows = [{name: str(value) for name, value in line.items()} for line in rows]  # as rounded above
        write_table(self.path, rows)  # the first validation may come later: columns are added to a file without them

    def _earlier_rows(self, epoch: int) -> list[dict[str, Any]]:
        if epoch == 1 or not self.path.exists():
            return []
        with open(self.path, newline="") as file:
            return [line for line in csv.DictReader(file) if int(line["epoch"]) < epoch]


class WarpedPanel:
    """Show middle slices of moving, fixed, warped and the difference in TensorBoard, one panel per validation.

    Args:
        log_dir: TensorBoard's folder.
    """

    def __init__(self, log_dir: str | os.PathLike) -> None:
        self.log_dir = str(log_dir)
        self.panels = 0
        self.writer: Any = None

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.COMPLETED, self.write)

    def write(self, engine: Engine) -> None:
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(self.log_dir)
        self.panels += 1
        output = engine.state.output
        targets, warped = output["label"], output["pred"]["warped"]
        fixed = targets["fixed"] if "fixed" in targets else output["pred"]["template"]
        images = [targets["moving"], fixed, warped, (warped - fixed).abs()]
        panel = torch.cat([_middle_slice(image).float().cpu() for image in images], dim=1)
        self.writer.add_image("moving | fixed | warped | difference", panel.clamp(0, 1), self.panels, dataformats="HW")
        self.writer.flush()


class CohortReport:
    """After an inference run: all pairs' measures as `metrics.csv`, `metrics.json` and a page, `index.html`.

    Args:
        output_dir: folder of the run.
    """

    def __init__(self, output_dir: str | os.PathLike) -> None:
        self.output_dir = Path(output_dir)
        self.rows: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.COMPLETED, self.write)

    def collect(self, engine: Engine) -> None:
        self.rows += [item["metrics"] for item in engine.state.output if "metrics" in item]

    def write(self, engine: Engine) -> None:
        if len(self.rows) > 1:
            write_cohort(self.output_dir, self.rows)
            cohort_page(self.output_dir, self.rows)


def _middle_slice(image: Tensor) -> Tensor:
    first = image[0, 0]
    return first if first.ndim == 2 else first[:, :, first.shape[2] // 2]


def _stretch(scheduler: Any, length: int) -> None:
    """Give a loaded CosineAnnealingLR another length, with the learning rates that it then has by now."""
    scheduler.T_max = length
    share = (1 + math.cos(math.pi * min(1, scheduler.last_epoch / length))) / 2
    for group, base in zip(scheduler.optimizer.param_groups, scheduler.base_lrs, strict=True):
        group["lr"] = scheduler.eta_min + (base - scheduler.eta_min) * share


def _unwrap(thing: Any) -> Any:
    return thing.module if isinstance(thing, nn.parallel.DistributedDataParallel | nn.DataParallel) else thing
