"""Choose the hyper-parameters of a trained HyperMorph network by gradient descent through it."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from monai.bundle import ConfigParser
from torch import Tensor
from tqdm.auto import tqdm

from ...data.batches import prepare_pair_batch
from ...evaluation.overlap import label_overlap, present_labels
from ...fields import warp
from ...files import write_metrics, write_table
from ...results import check_place, publishing
from ...vocabulary import Batch, Entry, Result, Row
from .network import HyperMorphUNet
from .objective import LabelCriterion

logger = logging.getLogger(__name__)

_TUNING = "tuning"  # the part of the folder's manifest


Criterion = Callable[[Result, Batch], Tensor]


@torch.enable_grad()
def tune_hyper(
    network: torch.nn.Module,
    deformation: Callable[..., dict[str, Tensor]],
    pairs: Sequence[tuple[Tensor, Mapping[str, Tensor]]],
    criterion: Criterion,
    *,
    start: float = 0.3,
    iterations: int = 12,
    pairs_per_step: int = 8,
    learning_rate: float = 0.5,
    seed: int = 0,
    progress: bool = False,
) -> tuple[list[float], list[Row]]:
    """The hyper-parameters that minimise a criterion over pairs, by descent on their logits; no weight changes.

    If each step sees some of the pairs, drawn anew, the optimiser is Adam, and its step falls to nothing along a
    cosine, so that the last values are settled; they are the result. If there are no more pairs than a step takes, the
    gradient is exact, only its sign counts (Rprop), and the best values tried are the result.

    Args:
        network: `network(image, hyper)`, with `num_hyper` (`HyperMorphUNet`).
        deformation: turns its output into fields.
        pairs: images (1, 2C, *S), moving then fixed, each with its targets (1, ...): "moving", "fixed", labels, masks.
        criterion: called as a loss, with the fields and the targets.
        start: first value of every hyper-parameter, inside (0, 1).
        iterations: steps of the descent.
        pairs_per_step: how many pairs a step sees.
        learning_rate: first step of the logit: 0.5 is 0.12 in the middle of the range.
        seed: of the draw of these pairs.
        progress: show a progress bar.
    Returns:
        The values, and for each iteration the values it tried and their mean criterion.
    Raises:
        ValueError: without pairs, or for a start outside (0, 1).
        RuntimeError: if the criterion stops being finite.
    """
    if not pairs or not 0 < start < 1:
        raise ValueError(f"expected pairs and a start inside (0, 1), got {len(pairs)} pairs and {start}")
    number: int = network.num_hyper  # type: ignore[assignment]
    logits = torch.full((number,), start, device=pairs[0][0].device).logit().requires_grad_()
    exact = len(pairs) <= pairs_per_step
    optimizer, schedule = _optimizer(logits, learning_rate, None if exact else iterations)
    generator = torch.Generator().manual_seed(seed)
    history: list[Row] = []
    with _frozen(network):
        for _ in tqdm(range(iterations), desc="tuning", disable=not progress, leave=False):
            optimizer.zero_grad()
            values = logits.sigmoid().tolist()
            chosen = torch.randperm(len(pairs), generator=generator)[:pairs_per_step].tolist()
            total = 0.0
            for i in chosen:
                image, targets = pairs[i]
                pred = deformation(network(image, hyper=logits.sigmoid()[None]).float(), image.shape[2:])
                pred["warped"] = warp(targets["moving"], pred["ddf"])
                loss = criterion(pred, targets) / len(chosen)
                loss.backward()
                total += float(loss.detach())
            if not math.isfinite(total):
                raise RuntimeError(f"the criterion became {total} at hyper-parameters {values}")
            history.append({"hyper": values, "criterion": total})
            if not bool(torch.isfinite(logits.grad).all()):  # type: ignore[arg-type]
                raise RuntimeError(f"the criterion's gradient became {logits.grad} at hyper-parameters {values}")
            optimizer.step()
            if schedule is not None:
                schedule.step()
    if exact:
        return min(history, key=lambda entry: entry["criterion"])["hyper"], history
    return logits.detach().sigmoid().tolist(), history


def _optimizer(
    logits: Tensor, learning_rate: float, steps: int | None
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler | None]:
    """Adam whose step falls to nothing over `steps`, for gradients that are drawn; Rprop for exact ones (None)."""
    if steps is None:
        return torch.optim.Rprop([logits], lr=learning_rate, etas=(0.5, 1.2), step_sizes=(1e-3, 1.0)), None
    optimizer = torch.optim.Adam([logits], lr=learning_rate, betas=(0.8, 0.95))
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)


@contextlib.contextmanager
def _frozen(network: torch.nn.Module) -> Iterator[None]:
    """No parameter of the network asks for a gradient meanwhile."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@torch.no_grad()
def sweep_dice(
    network: HyperMorphUNet,
    deformation: Callable[..., dict[str, Tensor]],
    pairs: Sequence[tuple[Tensor, Mapping[str, Tensor]]],
    hyper: Tensor,
    labels: Sequence[int],
    *,
    progress: bool = False,
) -> Tensor:
    """Dice of each label for each row of hyper-parameters, shape (K, len(labels)): the mean of the pairs that have it.

    Args:
        network: `HyperMorphUNet`.
        deformation: turns its output into fields.
        pairs: as in `tune_hyper`, with "label_moving" and "label_fixed".
        hyper: shape (K, H).
        labels: ids.
        progress: show a progress bar.
    """
    dice = []
    for image, targets in tqdm(pairs, desc="sweeping", disable=not progress, leave=False):
        rows = []
        for parameters in network.each(image, hyper.to(image.device)):
            ddf = deformation(parameters.float(), image.shape[2:])["ddf"]
            warped = warp(targets["label_moving"], ddf, mode="nearest")
            rows.append(label_overlap(warped, targets["label_fixed"], labels)[0])
        dice.append(torch.stack(rows))
    return torch.stack(dice).nanmean(0)


def tune_bundle(
    parser: ConfigParser,
    items: Sequence[Entry],
    output: Path,
    *,
    labels: Sequence[int] | None = None,
    criterion: str = "auto",
    iterations: int = 30,
    sweep: int = 21,
    start: float = 0.3,
) -> dict[str, float]:
    """Tune the hyper-parameters of a bundle on the pairs of a list, and write what was found to `output`.

    Files: tuned.json (the values by name), tuning.csv (a line for each iteration); with labels sweep.csv (mean Dice of
    each structure for values of the first hyper-parameter from 0 to 1, the others as tuned) and structures.csv (the
    best of these for each structure, its Dice there and at the tuned value).

    Args:
        parser: of the bundle's inference.json, with its ids network (whose weights are loaded), deformation,
            preprocessing, criterion and hyper_names.
        items: pairs of a data list.
        labels: ids that count; None for all that occur, without the background.
        criterion: "labels" (`LabelCriterion`), "regularity" (the bundle's `criterion`), or "auto": by labels if all
            pairs have them.
        iterations: of `tune_hyper`.
        sweep: values in the tables, 0 for no tables.
        start: first value of every hyper-parameter.
    Returns:
        The value of each hyper-parameter by name.
    Raises:
        ValueError: if the criterion is unknown, or is "labels" and a pair has none; for less than 1 iteration or a
            sweep of one value.
    """
    _check_tuning(criterion, iterations, sweep)
    check_place(output, _TUNING, ("tuned.json", "tuning.csv", "sweep.csv", "structures.csv"))
    network, deformation = (parser.get_parsed_content(name) for name in ("network", "deformation"))
    network.eval()
    pairs = _load_pairs(parser, items)
    ids = _label_ids(pairs, labels)
    if (criterion == "labels" or labels) and ids is None:
        raise ValueError("tuning by labels needs a moving and a fixed label map of every pair in the list")
    by_labels = ids is not None and criterion != "regularity"
    reason = "the Dice of the labels" if by_labels else "regularity: each pair's excess over the limit counts"
    logger.info("tuning on %d pairs by %s", len(pairs), reason)
    judge = LabelCriterion(ids or []) if by_labels else parser.get_parsed_content("criterion")
    names = parser.get_parsed_content("hyper_names")
    start = min(max(start, 0.01), 0.99)  # the logit of 0 and 1 is infinite
    values, history = tune_hyper(network, deformation, pairs, judge, start=start, iterations=iterations, progress=True)
    rows = [{**dict(zip(names, h["hyper"], strict=True)), "criterion": h["criterion"]} for h in history]
    found = {name: round(value, 6) for name, value in zip(names, values, strict=True)}
    used: Row = {"criterion": "labels" if by_labels else "regularity"}
    used |= {"pairs": len(pairs), "iterations": iterations}
    with publishing(output, _TUNING) as scratch:
        write_table(scratch / "tuning.csv", rows)
        if ids is not None and sweep:
            hyper = torch.tensor([values]).repeat(sweep + 1, 1)
            hyper[:-1, 0] = torch.linspace(0, 1, sweep)
            dice = sweep_dice(network, deformation, pairs, hyper, ids, progress=True)
            used["dice"] = _write_sweep(scratch, names[0], hyper[:, 0].tolist(), dice, ids)
        write_metrics(scratch / "tuned.json", {**found, **used})
    return found


def _check_tuning(criterion: str, iterations: int, sweep: int) -> None:
    if criterion not in ("auto", "labels", "regularity") or iterations < 1 or sweep == 1 or sweep < 0:
        raise ValueError(
            "expected criterion auto, labels or regularity, at least 1 iteration, and 2 values to sweep or 0, "
            f"got {criterion!r}, {iterations} and {sweep}"
        )


def _load_pairs(parser: ConfigParser, items: Sequence[Entry]) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """Image and targets of each pair, as `tune_hyper` takes them."""
    load, pairs = parser.get_parsed_content("preprocessing"), []
    for item in tqdm(items, desc="loading", leave=False):
        batch = {key: value[None] for key, value in load(item).items() if isinstance(value, Tensor)}
        image, targets, _, _ = prepare_pair_batch(batch, parser.get_parsed_content("device"))
        pairs.append((image, targets))
    return pairs


def _label_ids(pairs: Sequence[tuple[Tensor, Mapping[str, Tensor]]], labels: Sequence[int] | None) -> list[int] | None:
    """The labels that count, all that occur if none are given; None if a pair lacks a label map."""
    if not all({"label_moving", "label_fixed"} <= targets.keys() for _, targets in pairs):
        return None
    found = {label for _, t in pairs for label in present_labels(t["label_moving"], t["label_fixed"])}
    return list(labels or []) or sorted(found)


def _write_sweep(output: Path, name: str, values: Sequence[float], dice: Tensor, labels: Sequence[int]) -> float:
    """Write sweep.csv and structures.csv for values (K) of a hyper-parameter, of which the last is the tuned one.

    Args:
        dice: shape (K, len(labels)).
    Returns:
        The mean Dice at the tuned value.
    """
    columns = [
        {
            name: value,
            "dice": float(row.nanmean()),
            **{f"dice_{label}": float(d) for label, d in zip(labels, row, strict=True)},
        }
        for value, row in zip(values, dice, strict=True)
    ]
    write_table(output / "sweep.csv", columns[:-1])
    tuned = dict(zip(labels, dice[-1].tolist(), strict=True))
    best = best_values(values[:-1], dice[:-1], labels, name)
    write_table(output / "structures.csv", [{**row, "dice_tuned": tuned[row["label"]]} for row in best])
    return columns[-1]["dice"]


def best_values(values: Sequence[float], dice: Tensor, labels: Sequence[int], name: str) -> list[Row]:
    """The value of a setting that is best for each label: rows with "label", the value under `name`, and "dice".

    Args:
        values: K of them.
        dice: shape (K, len(labels)); a label that is nowhere (all NaN) gets no row.
    """
    rows = []
    for label, column in zip(labels, dice.T, strict=True):
        if not column.isnan().all():
            best = int(column.nan_to_num(-1).argmax())
            rows.append({"label": label, name: values[best], "dice": float(column[best])})
    return rows
