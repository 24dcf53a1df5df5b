"""Which pairs of scans a training sees: drawn at random, one after the other, or the same in each epoch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from ..vocabulary import Entry
from .lists import subject_of

PARTNERS = ("another person", "another scan", "itself", "none")


class Pairing(ABC):
    """Positions of the scans of each pair. `len()` is the length of an epoch."""

    def __init__(self, num_pairs: int) -> None:
        self.num_pairs = num_pairs

    def __len__(self) -> int:
        return self.num_pairs

    @abstractmethod
    def draw(self, index: int, number: int) -> tuple[int, int]:
        """Positions of the moving and the fixed scan of pair `index`; random ones depend on it and on the number."""


class SamePairs(Pairing):
    """The same pairs in each epoch: `num_pairs` (default all) of the possible ones, taken evenly from their list."""

    def __init__(self, pairs: Sequence[tuple[int, int]], num_pairs: int | None = None) -> None:
        step = max(1.0, len(pairs) / (num_pairs or len(pairs)))
        self.pairs = [pairs[int(i * step)] for i in range(min(num_pairs or len(pairs), len(pairs)))]
        super().__init__(len(self.pairs))

    def draw(self, index: int, number: int) -> tuple[int, int]:
        return self.pairs[index]


class RandomPartners(Pairing):
    """Random ordered pairs: a scan that has partners, then one of its partners.

    Args:
        partners: for each scan the positions of those that it may be paired with.
        num_pairs: length of an epoch.
    """

    def __init__(self, partners: Sequence[np.ndarray], num_pairs: int) -> None:
        super().__init__(num_pairs)
        self.partners = partners
        self.scans = np.flatnonzero([len(p) > 0 for p in partners])

    def draw(self, index: int, number: int) -> tuple[int, int]:
        # The index takes part, so that the processes of a multi-GPU run, seeded alike, still draw different pairs.
        rng = np.random.default_rng([number, index])
        moving = int(rng.choice(self.scans))
        return moving, int(rng.choice(self.partners[moving]))


class RandomToAtlas(Pairing):
    """A random scan with the atlas, which stands at position `num_scans`."""

    def __init__(self, num_scans: int, num_pairs: int) -> None:
        super().__init__(num_pairs)
        self.num_scans = num_scans

    def draw(self, index: int, number: int) -> tuple[int, int]:
        rng = np.random.default_rng([number, index])
        return int(rng.integers(self.num_scans)), self.num_scans


def pair_with_atlas(num_scans: int, num_pairs: int | None, shuffle: bool) -> Pairing:
    """Every scan with the atlas, which follows the scans: in order, unless `num_pairs` and `shuffle` are given."""
    if shuffle and num_pairs:
        return RandomToAtlas(num_scans, num_pairs)
    return SamePairs([(i, num_scans) for i in range(num_scans)], num_pairs)


def _no_pair(scans: Sequence[Entry]) -> str:
    people = len({subject_of(scan) for scan in scans})
    groups = ", and no two people of one group" if people > 1 else ""
    return f"no pair of different people can be formed: {len(scans)} scans of {people}{groups}"


def pair_scans(scans: Sequence[Entry], partner: str, num_pairs: int | None, shuffle: bool) -> Pairing:
    """Pairs of scans with their partners.

    Args:
        scans: only scans of one `group` meet (the level of a 2-D slice, say).
        partner: which scans a scan may meet, one of `PARTNERS`.
        num_pairs: length of an epoch; by default the number of scans, or of all possible pairs without `shuffle`.
        shuffle: draw at random; if false, the pairs are the same in each epoch.
    Raises:
        ValueError: if the partner is unknown, or no pair can be formed.
    """
    if partner not in PARTNERS:
        raise ValueError(f"expected a partner out of {', '.join(PARTNERS)}, got {partner!r}")
    partners = [np.array([i]) for i in range(len(scans))]
    if partner.startswith("another"):
        people = [subject_of(scan) if partner == "another person" else str(i) for i, scan in enumerate(scans)]
        person = np.unique(people, return_inverse=True)[1]
        group = np.unique([str(scan.get("group", "")) for scan in scans], return_inverse=True)[1]
        partners = [np.flatnonzero((person != person[i]) & (group == group[i])) for i in range(len(scans))]
    if not any(len(p) for p in partners):
        raise ValueError(_no_pair(scans))
    if shuffle:
        return RandomPartners(partners, num_pairs or len(scans))
    return SamePairs([(moving, int(fixed)) for moving, p in enumerate(partners) for fixed in p], num_pairs)
