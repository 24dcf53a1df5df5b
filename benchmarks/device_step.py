"""One training step of a registration network on a device, of pairs that are made there (`device_synthesis`)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.device_methods import Registration
from benchmarks.device_synthesis import DevicePairs, LabelTable
from custom_components.fields import warp
from custom_components.losses.regularization import FoldingPenalty
from custom_components.losses.similarity import LNCC
from custom_components.synthesis.intensities import read_statistics

STRUCTURES = [2, 3, 4, 7, 8, 10, 11, 12, 13, 14, 15, 16, 17, 18, 24, 26, 28]
STRUCTURES += [41, 42, 43, 46, 47, 49, 50, 51, 52, 53, 54, 58, 60]
CONTRASTS = ("t1", "t2", "inverted", "random")
FIRST_EXTRACEREBRAL, FLUID = 500, 24


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        pairs: in a batch.
        learning_rate: the largest; it rises over the first 2 % of the time and falls to 0 by a cosine.
        contrasts: when the share of pairs of any contrast leaves 0, and when it has risen to `most_contrasts`, as
            shares of the whole time; None for T1-like pairs alone.
        table_share: share of those that are T1, T2 or inverted T1-like, not random.
        window, folding_weight, dice_weight: of the loss.
        ema: share of the weights' running mean that a step keeps.
    """

    pairs: int = 2
    learning_rate: float = 5e-4
    contrasts: tuple[float, float] | None = None
    most_contrasts: float = 0.8
    table_share: float = 0.35
    window: int = 7
    folding_weight: float = 10.0
    dice_weight: float = 1.0
    ema: float = 0.999


def read_maps(path: Path, part: str, device: torch.device, crop: int | None = None) -> tuple[Tensor, np.ndarray]:
    """The maps of "training" or "validation", (N, *2S), and the ids (L,) whose positions they hold.

    Args:
        crop: keep a box of so many voxels of the maps: a rehearsal.
    """
    stored = np.load(path)
    maps = stored["maps"][stored["split"] == part]
    if crop:
        maps = maps[(slice(None), *[slice((n - crop) // 2, (n + crop) // 2) for n in maps.shape[1:]])]
    return torch.as_tensor(maps, device=device), stored["ids"]


def label_table(path: Path, ids: np.ndarray, device: torch.device) -> LabelTable:
    """The table of the ids (L,), ascending, from the file that `read_statistics` reads; equal statistics are a group.

    Raises:
        ValueError: if the file lacks an id.
    """
    number = torch.as_tensor(ids.astype(np.int64))
    (mean, spread), (t2_mean, _) = (read_statistics(path, contrast=c) for c in ("t1", "t2"))
    mean, spread, t2_mean = (values[number] for values in (mean, spread, t2_mean))
    if mean.isnan().any():
        raise ValueError(f"{path}: expected statistics of all labels, got none of {number[mean.isnan()].tolist()}")
    chosen = [STRUCTURES.index(i) if i in STRUCTURES else len(STRUCTURES) for i in number.tolist()]
    columns = {
        "mean": mean,
        "spread": spread,
        "t2_mean": t2_mean.clamp(0, 255),
        "group": torch.stack([mean, spread], 1).unique(dim=0, return_inverse=True)[1],
        "chosen": torch.tensor(chosen),
        "cerebral": number < FIRST_EXTRACEREBRAL,
        "fluid": number == FLUID,
    }
    return LabelTable(**{name: values.to(device) for name, values in columns.items()})


class Training:
    """One network's training step, as a function of nothing, and its state on the device.

    Args:
        registration: the network and its deformation.
        pairs: draws the anatomies.
    """

    names = ("similarity", "penalty", "folding", "overlap")

    def __init__(self, registration: Registration, pairs: DevicePairs, recipe: Recipe) -> None:
        self.registration, self.network = registration, registration.network
        self.pairs, self.recipe, self.device = pairs, recipe, pairs.maps.device
        trained = [p for p in self.network.parameters() if p.requires_grad]
        graph = self.device.type == "cuda"
        # A tensor: a captured step reads it anew. Adam takes none on the CPU.
        self.rate = torch.tensor(recipe.learning_rate, device=self.device) if graph else recipe.learning_rate
        self.optimizer = torch.optim.Adam(trained, lr=self.rate, capturable=graph, foreach=True)
        self.any_contrast = torch.zeros((), device=self.device)
        self.mean = [p.detach().clone() for p in self.network.parameters()]
        self.sums = torch.zeros(len(self.names) + 1, device=self.device)
        self.similarity, self.folding = LNCC(recipe.window), FoldingPenalty(0.2)

    def kinds(self, count: int) -> Tensor:
        """The contrasts of `count` pairs, moving ones first: 0 T1, 1 T2, 2 inverted, 3 random; (2 P,)."""
        table = torch.randint(3, (2, count), device=self.device)
        by_table = torch.rand(2, count, device=self.device) < self.recipe.table_share
        same = torch.rand(count, device=self.device) < 0.2
        kind = table.masked_fill(~by_table, 3)
        kind[1] = torch.where(same, kind[0], kind[1])
        return (kind * (torch.rand(count, device=self.device) < self.any_contrast)).flatten()

    def images(self, labels: Tensor, kind: Tensor) -> Tensor:
        """Network inputs (P, 2, *S) of maps (2 P, *2S) and contrasts (2 P,)."""
        means = self.pairs.means(len(labels), kind)
        noise = 16 + 16 * (kind == 3)
        image = self.pairs.render(labels, means, noise.float())
        return torch.cat(image.chunk(2), 1)

    def terms(self, labels: Tensor, kind: Tensor) -> list[Tensor]:
        """Similarity, the method's penalty, folding, overlap; scalars, weighted, added up over the network's steps."""
        recipe, method = self.recipe, self.registration.method
        with torch.no_grad():
            image = self.images(labels, kind)
            described = torch.cat([self.pairs.clean(labels), self.pairs.shares(labels)], 1)
            moving, fixed = described.chunk(2)
            brain = self.pairs.brain(labels).chunk(2)[1]
        hyper = self.hyper() if method.hyper else None
        data, size = (1.0, 1.0) if hyper is None else (1 - hyper.squeeze(), hyper.squeeze())
        sums = [torch.zeros((), device=self.device)] * len(Training.names)
        for fields in self.registration.steps(image, hyper, drawn=method.drawn):
            warped = warp(moving, fields["ddf"])
            terms = [
                data * method.data_weight * self.similarity(warped[:, :1], fixed[:, :1], brain),
                size * self.registration.penalty(fields),
                method.data_weight * recipe.folding_weight * self.folding(fields["ddf"]),
                data * method.data_weight * recipe.dice_weight * (1 - soft_dice(warped[:, 1:], fixed[:, 1:])),
            ]
            sums = [total + term for total, term in zip(sums, terms, strict=True)]
        return sums

    def hyper(self) -> Tensor:
        """A lambda for all pairs of a step, (1, 1): uniform, but 0 or 1 in a fifth of the steps."""
        value, chance = torch.rand(2, 1, 1, device=self.device)
        return torch.where(chance < 0.2, value.round(), value)

    def step(self) -> None:
        """One step of the optimiser; the terms are added to `sums`, the mean weights follow."""
        labels = self.pairs.anatomies(self.recipe.pairs)
        terms = self.terms(labels, self.kinds(self.recipe.pairs))
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack(terms).sum().backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.registration.method.data_weight, foreach=True)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.mean, list(self.network.parameters()), 1 - self.recipe.ema)
            self.sums += torch.stack([*terms, terms[0].new_ones(())]).detach()

    def schedule(self, progress: float) -> None:
        """Set what changes over the time, progress in [0, 1]."""
        warm = min(1.0, progress / 0.02 + 0.01)
        rate = self.recipe.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        if isinstance(self.rate, Tensor):
            self.rate.fill_(rate)
        else:
            self.optimizer.param_groups[0]["lr"] = rate
        if self.recipe.contrasts is not None:
            start, end = self.recipe.contrasts
            share = min(1.0, max(0.0, (progress - start) / (end - start)))
            self.any_contrast.fill_(self.recipe.most_contrasts * share)

    def means(self) -> dict[str, Tensor]:
        """The running mean of the weights, as a state dictionary."""
        names = [name for name, _ in self.network.named_parameters()]
        return {**self.network.state_dict(), **dict(zip(names, self.mean, strict=True))}


def soft_dice(first: Tensor, second: Tensor) -> Tensor:
    """Mean Dice of shares (B, K, *S) over the structures that either has."""
    axes = tuple(range(2, first.ndim))
    both, total = (first * second).sum(axes), first.square().sum(axes) + second.square().sum(axes)
    present = (total > 1).float()
    return (2 * both / total.clamp(min=1) * present).sum() / present.sum().clamp(min=1)
