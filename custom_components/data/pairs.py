"""The data set of pairs: drawn at random from single scans, or read as given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from monai.transforms import Randomizable
from monai.utils import get_seed
from torch import Tensor
from torch.utils.data import Dataset

from .lists import Item, as_scan, is_pair, pair_of, subject_of


class ScanPairDataset(Dataset, Randomizable):
    """Pairs for training: drawn at random of single scans, or read as given.

    Convention: an item has the keys `moving fixed label_moving label_fixed mask_moving mask_fixed` as far as the data
    have them (any other key `k` of a scan becomes `k_moving` and `k_fixed`), and `image` (2C, *S): moving, then fixed,
    concatenated after `pair_transform`. Of scans, images come as float32 tensors, labels and masks as integer ones.

    - Scans (items with `image` and / or `label`, as MONAI Label passes them, too): item i is a random ordered pair,
      drawn anew in each epoch, whose two scans are of different people. With `atlas`, `fixed` is the atlas. Scans with
      a `group` (the level of a 2-D slice, say) only meet scans of the same group.
    - Pairs: item i is pair i; `transform` gets the pair.

    Args:
        data: scan items or pair items.
        transform: applied to each scan (or pair) once, for instance loading, reorienting, normalising. Must not be
            random unless `cache` is false.
        pair_transform: applied to each drawn pair, for instance augmentation or synthesis of images from labels.
        num_pairs: length of an epoch; by default the number of items. Of pairs: only the first `num_pairs` are used.
        atlas: a scan item or the path of an image; every scan is then a moving one, in order unless `num_pairs` is
            given.
        cache: keep the transformed scans in memory; they are loaded at construction, with a progress bar.
        between_people: draw the two scans from different people; else two scans of one person may meet.
        with_itself: pair each scan with itself, where augmentation is what tells the two apart.
        alone: item i is one scan drawn at random, as the moving image, and `image` is that scan: for networks that
            supply the other one (atlases).
        shuffle: if false, the pairs are the same in each epoch: `num_pairs` (default all) of the possible ordered
            pairs, drawn evenly from their list. For validation.
        cache_workers: threads that fill the cache.
    Raises:
        ValueError: if no pair can be formed, only some scans have an image, or moving and fixed differ in size when
            they are to be concatenated.
    """

    def __init__(
        self,
        data: Sequence[Item],
        transform: Callable[[Item], Item] | None = None,
        pair_transform: Callable[[Item], Item] | None = None,
        *,
        num_pairs: int | None = None,
        atlas: Item | str | None = None,
        cache: bool = True,
        between_people: bool = True,
        with_itself: bool = False,
        alone: bool = False,
        shuffle: bool = True,
        cache_workers: int = 2,
    ) -> None:
        if not data:
            raise ValueError("expected at least one scan or pair, got an empty list")
        self.data = [dict(item) for item in data]
        self.pairs_given = is_pair(self.data[0])
        if any(is_pair(item) != self.pairs_given for item in self.data):
            raise ValueError("expected only scans or only pairs, got a mixture")
        bare = [item for item in self.data if not self.pairs_given and item.get("image") is None]
        if 0 < len(bare) < len(self.data):
            raise ValueError(f"expected images of all scans or of none, got {len(bare)} without: {bare[0]}")
        self.transform, self.pair_transform = transform, pair_transform
        self.num_scans = len(self.data)
        self.has_atlas = atlas is not None and not self.pairs_given
        if atlas is not None and self.has_atlas:
            self.data.append(as_scan(atlas))
        if self.pairs_given:
            num_pairs = min(num_pairs or self.num_scans, self.num_scans)
        self.in_order = self.pairs_given or (self.has_atlas and num_pairs is None)
        self.num_pairs = num_pairs or self.num_scans
        self._fixed_pairs: list[tuple[int, int]] | None = None
        self.with_itself, self.alone = with_itself or alone, alone
        if self.with_itself and (self.pairs_given or atlas is not None):
            raise ValueError("with_itself and alone take single scans: no pairs and no atlas")
        people = [subject_of(scan) if between_people else str(i) for i, scan in enumerate(self.data)]
        self._person = np.unique(people, return_inverse=True)[1]
        self._group = np.unique([str(scan.get("group", "")) for scan in self.data], return_inverse=True)[1]
        if self.has_atlas and not shuffle and num_pairs:
            step = max(1.0, self.num_scans / num_pairs)
            self._fixed_pairs = [(int(i * step), self.num_scans) for i in range(min(num_pairs, self.num_scans))]
            self.num_pairs = len(self._fixed_pairs)
        if not self.pairs_given and not self.has_atlas:
            partners = [self._partners(i) for i in range(self.num_scans)]
            if not any(p.size for p in partners):
                raise ValueError(f"no pair of different people can be formed of these {self.num_scans} scans")
            self._with_partner = np.flatnonzero([p.size > 0 for p in partners])
            if not shuffle:
                every = [(moving, int(fixed)) for moving, p in enumerate(partners) for fixed in p]
                step = max(1.0, len(every) / (num_pairs or len(every)))
                self._fixed_pairs = [every[int(i * step)] for i in range(min(num_pairs or len(every), len(every)))]
                self.num_pairs = len(self._fixed_pairs)
        self.set_random_state(seed=get_seed())
        self._cache = self._fill_cache(cache_workers) if cache else None

    def __len__(self) -> int:
        return self.num_pairs

    def __getitem__(self, index: int) -> Item:
        if not -len(self) <= index < len(self):
            raise IndexError(f"item {index} of a dataset of {len(self)} pairs")
        index %= len(self)
        if self.pairs_given:
            pair = self._load(index)
        else:
            moving, fixed = self._draw(index)
            pair = pair_of(self._load(moving), {} if self.alone else self._load(fixed))
        if self.pair_transform is not None:
            pair = self.pair_transform(pair)
        return _with_image(pair)

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> ScanPairDataset:
        """Seed the drawing of pairs and the random transforms; MONAI's DataLoader does so in each worker."""
        Randomizable.set_random_state(self, seed=seed, state=state)
        for transform in (self.transform, self.pair_transform):
            if isinstance(transform, Randomizable):
                transform.set_random_state(seed=int(self.R.randint(2**31)))
        return self

    def randomize(self, data: Any = None) -> None:
        """Required by `Randomizable`; pairs are drawn when they are asked for."""

    def _draw(self, index: int) -> tuple[int, int]:
        """Positions of the moving and the fixed scan."""
        if self._fixed_pairs is not None:
            return self._fixed_pairs[index]
        if self.in_order:
            return index, self.num_scans
        # The index is part of the seed, so that processes of a multi-GPU run with equal seeds draw different pairs.
        rng = np.random.default_rng([int(self.R.randint(2**31)), index])
        if self.has_atlas:
            return int(rng.integers(self.num_scans)), self.num_scans
        moving = int(rng.choice(self._with_partner))
        return moving, int(rng.choice(self._partners(moving)))

    def _partners(self, position: int) -> np.ndarray:
        """Positions of the scans of other people in the same group (or its own)."""
        if self.with_itself:
            return np.array([position])
        other = self._person != self._person[position]
        return np.flatnonzero(other & (self._group == self._group[position]))

    def _load(self, position: int) -> Item:
        """A transformed scan or pair; the cached tensors are copied, so that no transform can change them."""
        if self._cache is None:
            return self._prepare(position)
        return {k: v.clone() if isinstance(v, Tensor) else v for k, v in self._cache[position].items()}

    def _prepare(self, position: int) -> Item:
        item = dict(self.data[position])
        if self.transform is not None:
            item = self.transform(item)
        return item if self.pairs_given else {key: _compact(key, value) for key, value in item.items()}

    def _fill_cache(self, workers: int) -> list[Item]:
        from tqdm import tqdm

        with ThreadPoolExecutor(max(1, workers)) as pool:
            loaded = pool.map(self._prepare, range(len(self.data)))
            bar = tqdm(loaded, total=len(self.data), desc="loading scans", disable=None if self.transform else True)
            return list(bar)


def _compact(key: str, value: Any) -> Any:
    """Tensors as small as they can be: labels and masks int16 (int32 for large ids), every other float float32."""
    if not isinstance(value, torch.Tensor | np.ndarray):
        return value
    tensor = torch.as_tensor(value)
    if hasattr(tensor, "as_tensor"):  # MetaTensor: what follows works on voxels, the space is the model grid's
        tensor = tensor.as_tensor()
    if key in ("label", "mask") and bool((tensor == tensor.round()).all()):
        return tensor.to(torch.int16 if not tensor.numel() or tensor.abs().max() < 2**15 else torch.int32).contiguous()
    return tensor.float().contiguous() if tensor.is_floating_point() else tensor.contiguous()


def _with_image(pair: Item) -> Item:
    moving, fixed = pair.get("moving"), pair.get("fixed")
    if "image" not in pair and isinstance(moving, Tensor) and fixed is None:
        return {**pair, "image": moving}
    if "image" in pair or not isinstance(moving, Tensor) or not isinstance(fixed, Tensor):
        return pair
    if moving.shape[1:] != fixed.shape[1:]:
        raise ValueError(
            "moving and fixed must have one size to be concatenated, "
            f"got {tuple(moving.shape)} and {tuple(fixed.shape)}: bring them to one grid in the transform"
        )
    plain = [t.as_tensor() if hasattr(t, "as_tensor") else t for t in (moving, fixed)]
    return {**pair, "image": torch.cat(plain)}
