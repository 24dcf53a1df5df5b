"""The parts of MONAI's engines that are the same in every training: data loaders, the trainer and the validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from ignite.metrics import Average
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import ValidationHandler
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..checks import check_number, check_switch
from ..data.batches import Prepare, prepare_pair_batch
from ..data.pairs import ScanPairDataset
from ..vocabulary import Entry, Output, Result
from .compiling import compile_network
from .loading import loader
from .scores import registration_score


def trainer(
    network: nn.Module,
    dataset: Dataset[Entry],
    inferer: Callable[..., Result],
    prepare_batch: Prepare,
    device: torch.device,
    *,
    loss_function: Callable[..., Tensor],
    optimizer: torch.optim.Optimizer,
    evaluator: SupervisedEvaluator,
    max_epochs: int,
    batch_size: int = 1,
    val_interval: int = 1,
    amp: bool = False,
    compile: bool = False,
    num_workers: int | None = None,
    train_handlers: Sequence[object] = (),
) -> SupervisedTrainer:
    """MONAI's trainer on a data set, which is shuffled, with a validation after some epochs.

    Args:
        network, inferer, prepare_batch, device, loss_function, optimizer, max_epochs, amp: as for `SupervisedTrainer`.
        dataset: the training items; their number is the length of an epoch.
        batch_size: items in a batch.
        compile: run the network, in the validation, too, as `torch.compile` makes it (see `compile_network`).
        num_workers: processes that load (see `loader`).
        evaluator: runs after every `val_interval` epochs, before the handlers of that event.
        train_handlers: further handlers, attached in this order.
    Raises:
        ValueError: for a number that is none or out of its range, where no validation would come, and for scans without
            the labels that the loss compares.
    """
    _check_trainer(optimizer, max_epochs, val_interval, amp)
    check_switch("compile", compile)
    if compile:
        compile_network(network, torch.device(device))
    if isinstance(dataset, ScanPairDataset) and prepare_batch is prepare_pair_batch:
        dataset.check_keys(getattr(loss_function, "needs", ()), alike=batch_size != 1)
    return SupervisedTrainer(
        device=device,
        max_epochs=max_epochs,
        train_data_loader=loader(dataset, batch_size, num_workers=num_workers),
        network=network,
        optimizer=optimizer,
        loss_function=loss_function,
        inferer=inferer,
        prepare_batch=prepare_batch,
        non_blocking=True,  # batches are pinned, or there already
        train_handlers=[ValidationHandler(val_interval, evaluator), *train_handlers],
        amp=amp,
        decollate=False,
    )


def _check_trainer(optimizer: torch.optim.Optimizer, max_epochs: int, val_interval: int, amp: bool) -> None:
    for group in optimizer.param_groups:
        check_number("learning_rate", group["lr"], above=0)
    check_number("max_epochs", max_epochs, least=1, whole=True)
    check_number("val_interval", val_interval, least=1, whole=True)
    check_switch("amp", amp)
    if val_interval > max_epochs:
        raise ValueError(
            f"expected a val_interval of at most max_epochs, {max_epochs}, got {val_interval}: no validation would "
            "choose weights"
        )


def validator(
    network: nn.Module,
    dataset: Dataset[Entry],
    inferer: Callable[..., Result],
    prepare_batch: Prepare,
    device: torch.device,
    *,
    score: Callable[[Output], Tensor] = registration_score,
    val_handlers: Sequence[object] | None = None,
) -> SupervisedEvaluator:
    """MONAI's evaluator on a data set, one item at a time; its key metric is the mean "score", the higher the better.

    Args:
        network, inferer, prepare_batch, device: as for `SupervisedEvaluator`.
        dataset: the validation items.
        score: of an output, not decollated.
        val_handlers: handlers of the engine (MONAI's experiment tracking adds some).
    """
    return SupervisedEvaluator(
        device=device,
        val_data_loader=loader(dataset, shuffle=False),
        network=network,
        inferer=inferer,
        prepare_batch=prepare_batch,
        key_val_metric={"score": Average(output_transform=score)},
        val_handlers=val_handlers,
        decollate=False,
    )
