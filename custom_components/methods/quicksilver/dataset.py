"""Training data of Quicksilver: pairs, their optimised momenta on disk, and patches of both."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from monai.transforms import Randomizable
from monai.utils import get_seed
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from ...data.batches import Prepare, Prepared, prepare_pair_batch, seeded_batch
from ...data.names import pair_name, pair_paths
from ...deformations.momentum import VectorMomentum
from ...fields import plain, resize_field
from ...files import read_state, save_tensors
from ...inference.refinement import PairwiseOptimizer
from ...inference.registration import RegistrationInferer
from ...networks.parallel import is_distributed
from ...vocabulary import Collated, Entry
from .inference import PatchPredictor, Teacher
from .patches import brightest, cut, pad_to_patches

logger = logging.getLogger(__name__)

# From pairs to what the network of a correction sees, and the momentum that is there already.
Before = Callable[[Tensor], tuple[Tensor, Tensor]]


class OptimizedMomenta:
    """Pairs of images and the momenta that numerical optimisation (LDDMM) found for them, in files.

    At construction each pair is registered, and its images and momentum are kept in a file of `cache_dir`: an
    interrupted run continues where it stopped, and further trainings reuse the files. A file made with
    another kernel, or with other `settings`, is an error: its momentum means something else.

    Item i is the images (2, *S), float16, and the momentum (D, *S') of pair i.

    Args:
        pairs: the same pairs at each visit (`ScanPairDataset(shuffle=False)`), on one grid.
        optimizer: `PairwiseOptimizer` with `VectorMomentum`, or a `Teacher`; called as `optimizer(moving, fixed)`.
        cache_dir: folder of the files.
        prepare: makes the images of a batch of pairs; random ones are seeded with the pair's number.
        settings: what else the momenta depend on (weights, iterations): written to the files and compared.
        batch_size: pairs that are optimised together.
        device: to optimise on.
    Raises:
        ValueError: on access, if a file does not fit.
    """

    def __init__(
        self,
        pairs: Dataset[Entry],
        optimizer: PairwiseOptimizer | Teacher,
        cache_dir: str | os.PathLike[str],
        *,
        prepare: Prepare = prepare_pair_batch,
        settings: Mapping[str, object] | None = None,
        batch_size: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        self.pairs, self.optimizer, self.cache_dir = pairs, optimizer, Path(cache_dir)
        self.prepare, self.device = prepare, device
        self.deformation = optimizer.deformation
        description = {"kernel": str(cast(VectorMomentum, self.deformation).kernel), **(settings or {})}
        self.description = json.loads(json.dumps(description))
        self._files = self._make(batch_size)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        path = self._files[index]
        content = read_state(path)
        found = json.loads(content["description"])
        wanted = {**self.description, "pair": self._pairs[index]}
        for name in wanted | found:
            if found.get(name) != wanted.get(name):
                raise ValueError(
                    f"{path}: a momentum made with {name} = {found.get(name)}, not {wanted.get(name)}: "
                    "take another cache_dir"
                )
        return content["image"], content["momentum"]

    def _make(self, batch_size: int) -> list[Path]:
        """The pairs' files; those that are missing are made."""
        self.cache_dir.mkdir(parents=True, exist_ok=True)
        items = [self.pairs[i] for i in range(len(self.pairs))]  # type: ignore[arg-type]
        files = [self.cache_dir / f"{i:05d}_{pair_name(item)}.pt" for i, item in enumerate(items)]
        self._pairs = [pair_paths(item) for item in items]
        rank, world = 0, 1
        if is_distributed():
            rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        missing = [i for i in range(rank, len(files), world) if not files[i].exists()]
        with tqdm(total=len(missing), desc=f"momenta in {self.cache_dir}", disable=not missing) as bar:
            for first in range(0, len(missing), batch_size):
                chunk = missing[first : first + batch_size]
                self._optimize({i: items[i] for i in chunk}, files)
                bar.update(len(chunk))
        # The other processes' share: no barrier, whose time runs out.
        while not all(path.exists() for path in files):
            time.sleep(1)
        return files

    def _optimize(self, items: Mapping[int, Entry], files: Sequence[Path]) -> None:
        """Register pairs, by their numbers, in one batch and write their files."""
        images = [seeded_batch(self.prepare, item, i, self.device)[0].float() for i, item in items.items()]
        image = torch.cat(images).to(self.device)
        moving, fixed = image.chunk(2, 1)
        momenta = self.optimizer(moving, fixed).cpu()
        for (i, item), shown, momentum in zip(items.items(), image.cpu().half(), momenta, strict=True):
            description = json.dumps({**self.description, "pair": pair_paths(item)})
            # Clones, or each file would hold the whole batch.
            save_tensors(files[i], {"image": shown.clone(), "momentum": momentum.clone(), "description": description})


class MomentumPatchDataset(Dataset[dict[str, Tensor]], Randomizable):
    """Patches of image pairs and of their momenta.

    Item i is a random patch of a random pair, `image` (2, *[patch * stride]) and `momentum` (D, *[patch]), out of those
    where one of the images exceeds `background`; all are drawn anew in each epoch.

    Args:
        momenta: the pairs and what was found for them.
        inputs: in place of the images that are registered, the network sees these entries of the pairs, moving and
            fixed (another contrast of the same anatomy).
        inferer: registers with a `PatchPredictor`; if that has a `predictor`, the patches train a correction of its
            predictions: the fixed image is pulled back to moving space by the predicted map, the momentum is what the
            prediction lacks.
        quantity: "momentum", or "velocity" (at time 0) or "displacement", to compare networks that predict these.
        patch, stride, background: see `patches.predict_in_patches`.
        num_patches: length of an epoch.
    Raises:
        ValueError: if a momentum does not fit its images, or no patch shows anything.
    """

    def __init__(
        self,
        momenta: OptimizedMomenta,
        *,
        inputs: tuple[str, str] | None = None,
        inferer: RegistrationInferer | None = None,
        quantity: str = "momentum",
        patch: int = 15,
        stride: int = 1,
        background: float = 0.02,
        num_patches: int = 1000,
    ) -> None:
        if quantity not in ("momentum", "velocity", "displacement"):
            raise ValueError(f"expected quantity momentum, velocity or displacement, got {quantity!r}")
        self.momenta, self.inputs, self.quantity = momenta, inputs, quantity
        self.patch, self.stride, self.background, self.num_patches = patch, stride, background, num_patches
        self.set_random_state(seed=get_seed())
        self.examples = [self._example(i) for i in range(len(momenta))]
        predict = None if inferer is None else inferer.predict
        if inferer is not None and isinstance(predict, PatchPredictor) and predict.predictor is not None:
            before = partial(predict.before, deformation=inferer.deformation)
            self.examples = [self._rest(before, *example) for example in tqdm(self.examples, desc="predictions")]
        # Only now: maps are those of the whole image, which padding would stretch.
        self.examples = [self._padded(*example) for example in self.examples]
        self._places = torch.cat([self._shown(i, image) for i, (image, _) in enumerate(self.examples)])
        if not len(self._places):
            raise ValueError(f"none of {len(momenta)} pairs shows anything above {background}")

    def __len__(self) -> int:
        return self.num_patches

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of a dataset of {len(self)} patches")
        i, *start = self._places[int(self.R.randint(len(self._places)))].tolist()
        image, momentum = self.examples[i]
        return {
            "image": cut(image, start, self.patch, self.stride).float(),
            "momentum": cut(momentum, start, self.patch),
        }

    def randomize(self, data: object = None) -> None:
        """Required by `Randomizable`; patches are drawn when they are asked for."""

    def _shown(self, index: int, image: Tensor) -> Tensor:
        """Places (N, 1 + D), the index before the first voxel, of the patches that are not background."""
        starts = (brightest(image[None], self.patch, self.stride)[0] > self.background).nonzero()
        return torch.cat([torch.full_like(starts[:, :1], index), starts], 1).to(torch.int16)

    def _example(self, index: int) -> tuple[Tensor, Tensor]:
        """The images that the network sees, and what it is to predict."""
        image, momentum = self.momenta[index]
        size = image.shape[1:]
        if list(momentum.shape[1:]) != [-(-n // self.stride) for n in size]:
            raise ValueError(
                f"pair {index}: a momentum of size {tuple(momentum.shape[1:])} for images of {tuple(size)}"
            )
        if self.inputs is not None:
            item = self.momenta.pairs[index]
            image = torch.cat([torch.as_tensor(item[key]) for key in self.inputs]).half()
        if self.quantity != "momentum":
            with torch.no_grad():
                pred = self.momenta.deformation(momentum[None], size)
            field = pred["velocity"] if self.quantity == "velocity" else resize_field(pred["ddf"], momentum.shape[1:])
            momentum = field[0]
        return image, momentum

    def _padded(self, image: Tensor, momentum: Tensor) -> tuple[Tensor, Tensor]:
        return pad_to_patches(image[None], self.patch, self.stride)[0], pad_to_patches(momentum[None], self.patch, 1)[0]

    @torch.no_grad()
    def _rest(self, before: Before, image: Tensor, momentum: Tensor) -> tuple[Tensor, Tensor]:
        """The example of a correction: what its network sees, and what the prediction lacks."""
        seen, predicted = before(image[None].float().to(self.momenta.device))
        return seen[0].cpu().half(), momentum - predicted[0].cpu()


class ContrastBatch:
    """`prepare_batch` that shows the network other images of the pairs than those the result is judged by.

    Args:
        inputs: entries of the batch that the network sees, moving and fixed (another contrast of the same anatomy);
            None changes nothing.
        prepare: makes the batch itself.
    """

    def __init__(self, inputs: Sequence[str] | None = None, prepare: Prepare = prepare_pair_batch) -> None:
        self.inputs, self.prepare = inputs, prepare

    def __call__(
        self, batch: Collated, device: torch.device | str | None = None, non_blocking: bool = False, **kwargs: Any
    ) -> Prepared:
        """As `prepare` returns it, with the other images as the network's input."""
        image, targets, args, options = self.prepare(batch, device, non_blocking, **kwargs)
        if self.inputs is not None:
            seen = torch.cat([plain(batch[key]) for key in self.inputs], 1)
            image = seen.to(device, non_blocking=non_blocking, **kwargs)
        return image, targets, args, options
