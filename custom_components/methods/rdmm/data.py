"""Pairs that return, with names, and the momenta kept for them (metric learning); label maps for the metric."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ...data.batches import Prepare, Prepared, prepare_pair_batch, seeded_batch
from ...data.names import pair_digest, pair_name
from ...files import read_state, save_tensors
from ...networks.parallel import is_distributed, is_first_process
from ...results import publishing, read_manifest
from ...vocabulary import Collated, Entry

_STORE = "momenta"  # the part of the folder's manifest


class SteadyPairs(Dataset[dict[str, str | Tensor]]):
    """Pairs that are the same at each visit: random images are seeded with the pair's number.

    Item i has `image` (2, *S), moving and fixed, what else the loss needs (labels), and `pair`, a name of its own, made
    of its number and its files.

    Args:
        pairs: the same pairs at each visit (`ScanPairDataset(shuffle=False)`).
        prepare: makes the images of a batch of pairs (`SynthesizedBatch`).
    """

    def __init__(self, pairs: Dataset[Entry], prepare: Prepare = prepare_pair_batch) -> None:
        self.pairs, self.prepare = pairs, prepare

    def __len__(self) -> int:
        return len(self.pairs)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> dict[str, str | Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of {len(self)} pairs")
        item = self.pairs[index]
        image, targets, _, _ = seeded_batch(self.prepare, item, index)
        return {
            "pair": f"{index:05d}_{pair_name(item)}_{pair_digest(item)}",
            "image": image[0],
            **{k: v[0] for k, v in targets.items()},
        }


class MomentumStore:
    """The momenta of pairs between visits, on disk, one file for each pair.

    Args:
        folder: of the files; it is made at the first momentum.
        settings: what the momenta depend on (kernel, spacing): written to the files and compared.
    """

    def __init__(self, folder: str | os.PathLike[str], settings: Mapping[str, object] | None = None) -> None:
        self.folder = Path(folder)
        self._known: set[str] = set()  # files that the manifest lists
        self.description = json.dumps({key: str(value) for key, value in (settings or {}).items()}, sort_keys=True)

    def clear(self) -> None:
        """Forget all momenta, as a training does that is not resumed; the processes of a distributed run wait for the
        first one, which deletes the files. Files that no store wrote stay."""
        if is_first_process() and self.folder.is_dir():
            with publishing(self.folder, _STORE):
                pass  # no files take the place of those that are there
        if is_distributed():
            torch.distributed.barrier()
        self._known = set()

    def load(self, pairs: Sequence[str]) -> Tensor | None:
        """The momenta (B, D, *S') of a batch of pairs, or None if one of them has none yet.

        Raises:
            ValueError: if a file was made with other settings.
        """
        files = [self._file(pair) for pair in pairs]
        if not files or not all(self._has(file) for file in files):
            return None
        momenta = []
        for file in files:
            content = read_state(file)
            if content.get("description") != self.description:
                raise ValueError(
                    f"{file}: a momentum made with {content.get('description')}, not {self.description}: "
                    "take another folder"
                )
            momenta.append(content["momentum"])
        return torch.stack(momenta)

    def save(self, pairs: Sequence[str], momenta: Tensor) -> None:
        """Keep momenta (B, D, *S')."""
        for pair, momentum in zip(pairs, momenta.detach().cpu(), strict=True):
            file, content = self._file(pair), {"momentum": momentum.clone(), "description": self.description}
            if self._has(file):
                save_tensors(file, content)
                continue
            with publishing(self.folder, _STORE, add=True) as scratch:
                save_tensors(scratch / file.name, content)

    def _has(self, file: Path) -> bool:
        if file.name not in self._known:  # another process may have written it
            self._known = set(read_manifest(self.folder).get(_STORE, {}).get("files", []))
        return file.name in self._known and file.exists()

    def _file(self, pair: str) -> Path:
        return self.folder / f"{pair}.pt"


def prepare_labelled_batch(
    batch: Collated, device: torch.device | str | None = None, non_blocking: bool = False, **kwargs: object
) -> Prepared:
    """As `prepare_pair_batch`, with the moving image's label map, if there is one, for the inferer, "labels"."""
    image, targets, args, options = prepare_pair_batch(batch, device, non_blocking, **kwargs)
    return image, targets, args, {**options, "labels": targets.get("label_moving")}


def prepare_named_batch(
    batch: Collated, device: torch.device | str | None = None, non_blocking: bool = False, **kwargs: object
) -> Prepared:
    """As `prepare_pair_batch`, with the pairs' names for the inferer, "pairs" (`data.SteadyPairs`)."""
    image, targets, args, options = prepare_pair_batch(batch, device, non_blocking, **kwargs)
    return image, targets, args, {**options, "pairs": list(batch["pair"])}
