"""Two time points of one person, compared half-way between them: neither is interpolated more than the other.

Convention: RAS mm. M, applied twice, is the rigid map from A's points to B's; once it takes A's points to the middle,
and the middle's to B. There, v is the velocity from A to B: what shows at a point of the middle lies at exp(-v / 2) in
A, and at exp(v / 2) in B. Exchanging the time points inverts M and negates v; two equal scans have M = 1 and v = 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..evaluation.overlap import present_labels
from ..fields import integrate_velocity, jacobian_determinant
from ..space.affine import register_affine
from ..space.grids import Grid, canonical_grid
from ..space.resampling import DisplacementField, Step, field_rows, resample, rows_on_grid
from ..space.volumes import Volume
from ..space.warping import warp_image, warp_to_grid
from ..vocabulary import Row
from .middle import half_rigid
from .people import Register, dense_map
from .place import Place

SCANS = ("first", "second")


@dataclass(frozen=True)
class Halfway:
    """Two time points after the rigid alignment.

    Args:
        a, b: the images. half: M, the matrix (D + 1, D + 1).
    """

    a: Volume
    b: Volume
    half: np.ndarray

    @classmethod
    def between(cls, a: Volume, b: Volume, engine: str = "torch") -> Halfway:
        """The mean of the rigid maps that are found from A to B and from B to A.

        Raises:
            ValueError: as `register_affine`.
        """
        there = register_affine(a, b, stage="rigid", engine=engine)
        back = register_affine(b, a, stage="rigid", engine=engine)
        # The midpoint of two rigid maps does not depend on their order, and its inverse is that of their inverses.
        mean = there @ half_rigid(np.linalg.inv(there) @ np.linalg.inv(back))
        return cls(a, b, half_rigid(mean))

    @property
    def rigid(self) -> tuple[np.ndarray, np.ndarray]:
        """From the middle's points to A's, and to B's."""
        return np.linalg.inv(self.half), self.half

    @cached_property
    def place(self) -> Place:
        """A grid with the mean directions and middle of both images, the smaller spacing and the larger extent."""
        to_middle = (self.half, np.linalg.inv(self.half))
        grids = [canonical_grid(image.grid) for image in (self.a, self.b)]
        d = len(grids[0].size)
        turned = [m[:d, :d] @ g.affine[:d, :d] / g.spacing for m, g in zip(to_middle, grids, strict=True)]
        u, _, vt = np.linalg.svd(turned[0] + turned[1])
        spacing = np.minimum(*[g.spacing for g in grids])
        extent = np.maximum(*[(np.array(g.size) - 1) * g.spacing for g in grids])
        size = np.ceil(extent / spacing - 1e-3).astype(int) + 1
        center = np.mean([(m @ np.append(g.center, 1))[:d] for m, g in zip(to_middle, grids, strict=True)], axis=0)
        affine = np.eye(d + 1)
        affine[:d, :d] = u @ vt * spacing
        affine[:d, d] = center - affine[:d, :d] @ ((size - 1) / 2)
        flat = Place.of(self.a)
        return Place(Grid(affine, tuple(map(int, size))), flat.frame, flat.thickness_mm, flat.is_slice)

    @cached_property
    def seen(self) -> Tensor:
        """Where both images show something of the person, (1, *S) on the grid of the middle."""
        ones = [
            resample(torch.ones_like(image.data[:1]), image.affine, self.place.grid, world_matrix=matrix)
            for image, matrix in zip((self.a, self.b), self.rigid, strict=True)
        ]
        return (torch.minimum(*ones) > 0.5).to(torch.uint8)

    def velocity(self, register: Register, scratch: Path) -> DisplacementField:
        """v: half the difference of what is found from A to B and from B to A.

        Args:
            register: registers a pair in memory, see `people.Register`.
            scratch: folder for the images in the middle.
        Raises:
            ValueError: as the bundle.
        """
        paths, mask = [str(scratch / f"{name}.nii.gz") for name in SCANS], str(scratch / "seen.nii.gz")
        for path, image, matrix in zip(paths, (self.a, self.b), self.rigid, strict=True):
            self.place.write(path, warp_image(image, self.place.grid, [matrix]))
        self.place.write(mask, self.seen)
        given = None if bool(self.seen.all()) else mask
        a, b = paths
        there, back = (
            dense_map(register(*pair, affine="none", mask_moving=given, mask_fixed=given)).velocity
            for pair in ((b, a), (a, b))
        )
        return DisplacementField((there.ddf - field_rows(back, there.grid, 0, there.grid.size[0])) / 2, there.grid)


@dataclass(frozen=True)
class Change:
    """What changed between two time points.

    Args:
        halfway: where they are compared. velocity: v.
    """

    halfway: Halfway
    velocity: DisplacementField

    def part(self, time: float) -> DisplacementField:
        """exp(time v)."""
        return DisplacementField(integrate_velocity(time * self.velocity.ddf[None])[0], self.velocity.grid)

    @property
    def steps(self) -> tuple[list[Step], list[Step]]:
        """From the middle's points to A's, and to B's."""
        to_a, to_b = self.halfway.rigid
        return [self.part(-0.5), to_a], [self.part(0.5), to_b]

    @cached_property
    def sizes(self) -> tuple[Tensor, Tensor]:
        """How much larger than a voxel of the middle what it shows is in A, and in B: (1, *S) on the grid."""
        place, own = self.halfway.place.grid, self.velocity.grid
        found = [jacobian_determinant(self.part(time).ddf[None])[0] for time in (-0.5, 0.5)]
        # The grids share their border; the outermost half voxel of the coarser one is as its neighbour.
        a, b = (rows_on_grid(one - 1, own, place, 0, place.size[0]) + 1 for one in found)
        return a, b

    @property
    def percent(self) -> Tensor:
        """The local change of volume from A to B in percent of A, (1, *S)."""
        a, b = self.sizes
        return 100 * (b / a - 1)

    def images(self) -> tuple[Tensor, Tensor]:
        """Both in the middle, with one interpolation of each."""
        volumes = (self.halfway.a, self.halfway.b)
        a, b = (warp_image(v, self.halfway.place.grid, s) for v, s in zip(volumes, self.steps, strict=True))
        return a, b

    def carried(self, labels: Sequence[Volume | None]) -> dict[str, Tensor]:
        """Label maps of A and of B in the middle, (1, *S) each, by the name of the scan, as far as there are some."""
        sides = zip(SCANS, labels, self.steps, strict=True)
        return {
            name: warp_to_grid(one.data, one.affine, self.halfway.place.grid, steps, mode="nearest")
            for name, one, steps in sides
            if one is not None
        }

    def volumes(self, carried: Sequence[Tensor], names: Mapping[int, str]) -> list[Row]:
        """The volume of each label in A and in B, and its change. mL, in 2-D cm2.

        Args:
            carried: label maps in the middle (1, *S), that of A or of B; of both each counts half.
            names: of labels; without any the rows have none.
        """
        spacing = self.halfway.place.grid.spacing
        voxel = float(np.prod(spacing)) / 10 ** len(spacing)
        rows: list[Row] = []
        for label in present_labels(*carried) if carried else []:
            share = torch.stack([(one == label).float() for one in carried]).mean(0)
            a, b = (voxel * float((share * size).double().sum()) for size in self.sizes)
            changes = {"percent": 100 * (b / a - 1), "symmetric_percent": 200 * (b - a) / (a + b)}
            name = {"name": names.get(label, "")} if names else {}
            rows.append({"label": label, **name, "volume_first": a, "volume_second": b, **changes})
        return rows
