"""The map from a template's points to a person's, as it is kept between the steps of a cohort's work.

Convention: RAS mm; the dense part is applied first: x -> matrix(x + u(x)).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..files import read_state, save_tensors
from ..space.grids import Grid
from ..space.resampling import DisplacementField, Step


def log_of(ddf: Tensor, inverse_ddf: Tensor) -> Tensor:
    """About the velocity v of a map phi = exp(v): half the difference of its displacement and its inverse's.

    The terms of even order cancel, so the error is of third order in v. Maps that no velocity made, as those of a
    momentum, have one, too. The inverse map has the negative one.
    """
    return (ddf - inverse_ddf) / 2


@dataclass(frozen=True)
class PersonsMap:
    """A map and its inverse.

    Args:
        matrix: (D + 1, D + 1).
        dense: u, and the displacement of the inverse of id + u; None of a map that is affine.
    """

    matrix: np.ndarray
    dense: tuple[DisplacementField, DisplacementField] | None = None

    @property
    def forth(self) -> list[Step]:
        """From the template's points to the person's."""
        return [*([] if self.dense is None else [self.dense[0]]), self.matrix]

    @property
    def back(self) -> list[Step]:
        """From the person's points to the template's."""
        return [np.linalg.inv(self.matrix), *([] if self.dense is None else [self.dense[1]])]

    @property
    def velocity(self) -> DisplacementField:
        """About the velocity of the dense part, see `log_of`."""
        assert self.dense is not None
        ddf, inverse = self.dense
        return DisplacementField(log_of(ddf.ddf, inverse.ddf), ddf.grid)

    def save(self, path: Path, request: str) -> None:
        """Write it, with what it is the answer to."""
        saved: dict[str, object] = {"request": request, "matrix": torch.from_numpy(self.matrix)}
        if self.dense is not None:
            saved |= {"ddf": self.dense[0].ddf, "inverse_ddf": self.dense[1].ddf}
            saved["affine"] = torch.from_numpy(self.dense[0].grid.affine)
        save_tensors(path, saved)

    @classmethod
    def read(cls, path: Path, request: str) -> PersonsMap | None:
        """What `save` wrote, if it is there and answers this request."""
        try:
            saved = read_state(path)
        except (FileNotFoundError, ValueError):
            return None
        if saved.get("request") != request:
            return None
        matrix = saved["matrix"].numpy()
        if "ddf" not in saved:
            return cls(matrix)
        grid = Grid(saved["affine"].numpy(), tuple(saved["ddf"].shape[1:]))
        return cls(matrix, (DisplacementField(saved["ddf"], grid), DisplacementField(saved["inverse_ddf"], grid)))


def kept(path: Path, request: str) -> PersonsMap:
    """What an earlier step wrote.

    Raises:
        FileNotFoundError: if it is not there any more.
    """
    found = PersonsMap.read(path, request)
    if found is None:
        raise FileNotFoundError(f"{path}: the map of an earlier step is gone; call again")
    return found
