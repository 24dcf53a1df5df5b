"""The data set of pairs: drawn from single scans, or read as given."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence

import numpy as np
import torch
from monai.transforms import RandFlipd, Randomizable
from monai.utils import get_seed
from torch import Tensor
from torch.utils.data import Dataset

from ..checks import check_number
from ..fields import plain
from ..vocabulary import Entry
from .drawing import Pairing, SamePairs, pair_scans, pair_with_atlas
from .keeping import ScanCache
from .lists import as_scan, is_pair, load_list, pair_of

_KINDS = ("", "contrast_", "label_", "mask_", "distance_")
_FLIPPED = tuple(f"{kind}{side}" for kind in _KINDS for side in ("moving", "fixed"))


class TrainingPairs:
    """The pairs of a data list: for training drawn anew in each epoch, for validation always the same.

    Args:
        data_list, base_dir: the list, as for `load_list`.
        transform: loads a scan (or pair); see `ScanPairDataset`.
        atlas, partner: see `ScanPairDataset`.
        flip_probability: of mirroring a training pair along its first axis (left and right).
        cache: where the transformed scans are kept, "device", "memory", "none" or "auto"; see `ScanCache`.
        device: where the training runs.
    Raises:
        ValueError: if the probability is none, or the cache unknown; from the methods, which name the section and the
            list, as `load_list` and `ScanPairDataset` do.
    """

    def __init__(
        self,
        data_list: str | os.PathLike[str],
        base_dir: str | os.PathLike[str] | None,
        transform: Callable[[Entry], Entry] | None,
        *,
        atlas: Entry | str | None = None,
        partner: str = "another person",
        flip_probability: float = 0.0,
        cache: str = "auto",
        device: torch.device | str = "cpu",
    ) -> None:
        check_number("flip_probability", flip_probability, least=0, most=1)
        self.data_list, self.base_dir, self.transform = data_list, base_dir, transform
        self.atlas, self.partner, self.flip_probability = atlas, partner, flip_probability
        self.cache, self.device = cache, device
        ScanCache(cache, device)

    def training(
        self,
        num_pairs: int | None = None,
        *,
        section: str = "training",
        shuffle: bool = True,
        data: Sequence[Entry] | None = None,
    ) -> ScanPairDataset:
        """The data set for training: `num_pairs` an epoch; without `shuffle` the same ones in each epoch.

        `data` takes the place of the list: MONAI Label hands its items over as `train#dataset#data`.
        """
        flip = None
        if self.flip_probability:
            flip = RandFlipd(_FLIPPED, prob=self.flip_probability, spatial_axis=0, allow_missing_keys=True)
        return self._dataset(section, data, flip, num_pairs, shuffle)

    def validation(
        self, num_pairs: int | None = None, *, section: str = "validation", data: Sequence[Entry] | None = None
    ) -> ScanPairDataset:
        """The data set for validation: the same `num_pairs` each time, unflipped; `data` as for `training`."""
        return self._dataset(section, data, None, num_pairs, False)

    def _dataset(
        self,
        section: str,
        data: Sequence[Entry] | None,
        flip: Callable[[Entry], Entry] | None,
        num_pairs: int | None,
        shuffle: bool,
    ) -> ScanPairDataset:
        scans = load_list(self.data_list, section, self.base_dir) if data is None else data
        try:
            return ScanPairDataset(
                scans,
                self.transform,
                flip,
                num_pairs=num_pairs,
                atlas=self.atlas,
                partner=self.partner,
                shuffle=shuffle,
                cache=ScanCache(self.cache, self.device),
            )
        except ValueError as error:
            place = "" if data is not None else f" (section {section!r} of {self.data_list})"
            raise ValueError(f"{error}{place}") from error


class ScanPairDataset(Dataset[Entry], Randomizable):
    """Pairs for training: drawn from single scans, or read as given.

    Convention: an item has the keys `moving fixed label_moving label_fixed mask_moving mask_fixed`, as far as the data
    have them (any other key `k` of a scan becomes `k_moving` and `k_fixed`), and `image` (2C, *S): moving, then fixed,
    concatenated after `pair_transform`. The images of scans come as float32 tensors, labels and masks as integer ones.

    - Scans (items with `image` and / or `label`, as MONAI Label passes them, too): item i is a random ordered pair,
      drawn anew in each epoch. Scans with a `group` (the level of a 2-D slice, say) only meet scans of the same group.
    - Pairs: item i is pair i; `transform` gets the pair.

    Args:
        data: scan items or pair items.
        transform: applied to each scan (or pair) once, for instance loading, reorienting, normalising. Must not be
            random unless `cache` is false.
        pair_transform: applied to each drawn pair, for instance augmentation or synthesis of images from labels.
        num_pairs: length of an epoch; by default the number of items. Of pairs, only the first `num_pairs` are used.
        atlas: a scan item or the path of an image that is the fixed image of every pair. The scans then come in order
            unless `num_pairs` is given.
        partner: the fixed image of a scan: one of "another person"; "another scan", of the same person or another one;
            "itself", where augmentation is what tells the two apart; "none": the scan comes alone, and `image` is that
            scan, for networks that supply the other image (atlases).
        shuffle: draw pairs at random. If false, they are the same in each epoch: `num_pairs` (default all) of the
            possible ordered pairs, taken evenly from their list. For validation.
        cache: keeps the transformed scans, which are loaded at construction; true for those in memory, false for none.
    Raises:
        ValueError: if no pair can be formed, only some scans have an image, or moving and fixed differ in size when
            they are to be concatenated.
    """

    def __init__(
        self,
        data: Sequence[Entry],
        transform: Callable[[Entry], Entry] | None = None,
        pair_transform: Callable[[Entry], Entry] | None = None,
        *,
        num_pairs: int | None = None,
        atlas: Entry | str | None = None,
        partner: str = "another person",
        shuffle: bool = True,
        cache: ScanCache | bool = True,
    ) -> None:
        if num_pairs is not None:
            check_number("the number of pairs", num_pairs, least=1, whole=True)
        self.data = [dict(item) for item in data]
        self.num_given = len(self.data)  # an atlas follows them
        self.pairs_given = _check(self.data)
        self.transform, self.pair_transform, self.partner = transform, pair_transform, partner
        self.pairing: Pairing
        if (self.pairs_given or atlas is not None) and partner in ("itself", "none"):
            raise ValueError(f"partner {partner!r} takes single scans: no pairs and no atlas")
        if self.pairs_given:
            length = min(num_pairs or len(self.data), len(self.data))
            self.pairing = SamePairs([(i, i) for i in range(length)])
        elif atlas is not None:
            self.pairing = pair_with_atlas(len(self.data), num_pairs, shuffle)
            self.data.append(as_scan(atlas))
        else:
            self.pairing = pair_scans(self.data, partner, num_pairs, shuffle)
        self.set_random_state(seed=get_seed())
        self.cache = cache if isinstance(cache, ScanCache) else ScanCache("memory" if cache else "none")
        self.cache.fill(self._prepare, len(self.data), shown=self.transform is not None)

    def __len__(self) -> int:
        return len(self.pairing)

    def __getitem__(self, index: int | tuple[int, int]) -> Entry:
        """A pair; `index` may bring the number from which all its random numbers come, in whatever process."""
        index, number = index if isinstance(index, tuple) else (index, self.number())
        if not -len(self) <= index < len(self):
            raise IndexError(f"item {index} of a dataset of {len(self)} pairs")
        moving, fixed = self.pairing.draw(index % len(self), number)
        for i, transform in enumerate((self.transform if self.cache.kept is None else None, self.pair_transform)):
            if isinstance(transform, Randomizable):
                transform.set_random_state(seed=int(np.random.default_rng([number, index, i]).integers(2**31)))
        pair = self._load(moving)
        if not self.pairs_given:
            pair = pair_of(pair, {} if self.partner == "none" else self._load(fixed))
        if self.pair_transform is not None:
            pair = self.pair_transform(pair)
        return _with_image(pair)

    def number(self) -> int:
        """A random number for the next pair."""
        return int(self.R.randint(2**31))

    def check_keys(self, needed: Collection[str], alike: bool) -> None:
        """Refuse scans or pairs without a key of a pair that a training needs.

        Args:
            needed: keys of a pair that all of them need.
            alike: whether they need to have the same keys, as those of one batch do.
        Raises:
            ValueError: with the key, how many lack it, and the first of them.
        """
        for key in ("label_moving", "label_fixed", "mask_moving", "mask_fixed"):
            name = key if self.pairs_given else key.rpartition("_")[0]
            given = self.data[: self.num_given]
            lacking = [item for item in given if name not in item]
            if lacking and (key in needed or (alike and len(lacking) < len(given))):
                why = "the loss compares them" if key in needed else "those of a batch are alike: give batch_size 1"
                first = next((value for value in lacking[0].values() if isinstance(value, str)), "an array")
                raise ValueError(f"{len(lacking)} of {len(given)} items have no {name!r}, {first} the first; {why}")

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> ScanPairDataset:
        """Seed the numbers of the pairs, and the random transforms."""
        Randomizable.set_random_state(self, seed=seed, state=state)
        for transform in (self.transform, self.pair_transform):
            if isinstance(transform, Randomizable):
                transform.set_random_state(seed=int(self.R.randint(2**31)))
        return self

    def randomize(self, data: object = None) -> None:
        """Required by `Randomizable`; pairs are drawn when they are asked for."""

    def _load(self, position: int) -> Entry:
        """A transformed scan or pair; the cached tensors are copied, so that no transform can change them."""
        kept = self.cache.kept
        if kept is None:
            return self._prepare(position)
        return {k: v.clone() if isinstance(v, Tensor) else v for k, v in kept[position].items()}

    def _prepare(self, position: int) -> Entry:
        item = dict(self.data[position])
        if self.transform is not None:
            item = self.transform(item)
        return item if self.pairs_given else {key: _compact(key, value) for key, value in item.items()}


def _check(data: Sequence[Entry]) -> bool:
    """Whether the items are pairs; they must be all pairs, or all scans with an image, or all scans without."""
    if not data:
        raise ValueError("expected at least one scan or pair, got an empty list")
    pairs_given = is_pair(data[0])
    if any(is_pair(item) != pairs_given for item in data):
        raise ValueError("expected only scans or only pairs, got a mixture")
    bare = [item for item in data if not pairs_given and item.get("image") is None]
    if 0 < len(bare) < len(data):
        raise ValueError(f"expected images of all scans or of none, got {len(bare)} without: {bare[0]}")
    return pairs_given


def _compact(key: str, value: object) -> object:
    """Tensors as small as they can be: labels and masks int16 (int32 for large ids), every other float float32."""
    if not isinstance(value, torch.Tensor | np.ndarray):
        return value
    tensor = plain(torch.as_tensor(value))  # what follows works on voxels, the space is the model grid's
    if key in ("label", "mask") and bool((tensor == tensor.round()).all()):
        return tensor.to(torch.int16 if not tensor.numel() or tensor.abs().max() < 2**15 else torch.int32).contiguous()
    return tensor.float().contiguous() if tensor.is_floating_point() else tensor.contiguous()


def _with_image(pair: Entry) -> Entry:
    """The pair with `image`: moving, then fixed; or the moving image alone."""
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
    return {**pair, "image": torch.cat([plain(moving), plain(fixed)])}
