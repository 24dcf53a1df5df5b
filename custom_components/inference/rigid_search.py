"""Rigid alignment by any similarity: by its gradient from many starts, or by differential evolution before that.

Convention: a pose is a row of mm, shape (B, 3 + 3) or (B, 1 + 2): a turn about the fixed object's centre, as far as it
moves a point at the object's radius, then a shift. Maps take world points of the fixed image to those of the moving
one, RAS mm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ..affine import rotation_matrix
from ..checks import check_number
from ..fields import identity_grid, sample
from ..space.affine_levels import Scan, image_weights, spread_of
from ..space.grids import center_of_mass, fixed_size_grid
from ..space.resampling import resample
from ..space.volumes import Volume
from .refiner import Similarity, named_similarity

SEARCHES = ("gradient", "evolution")

_STEP = (0.7, 0.05)  # of a pose, first and last, in voxels


class Poses:
    """A pair at one resolution: what a similarity says of poses.

    A learned similarity, and one that interpolates, is rough. So a pose is looked at `passes` times, with the fixed
    image's grid shifted by parts of a voxel: both images are interpolated there, and what depends on how voxels lie on
    voxels averages out.

    Args:
        similarity: called as `similarity(warped, fixed, mask)`, smaller is more similar.
        fixed, moving: one channel each.
        start: world matrix (D + 1, D + 1) that is applied after the pose.
        passes: how often a pose is looked at.
        seed: of the shifts.
    """

    def __init__(
        self, similarity: nn.Module, fixed: Scan, moving: Scan, start: np.ndarray, *, passes: int = 4, seed: int = 0
    ) -> None:
        check_number("passes", passes, least=1, whole=True)
        self.similarity, self.moving, self.grid = similarity, moving.image[None].float(), fixed.grid
        self.d, device = len(fixed.grid.size), fixed.image.device
        center, covariance = spread_of(image_weights(fixed.image.cpu()), fixed.grid.affine)
        self.center, self.radius = torch.from_numpy(center), max(float(np.sqrt(np.trace(covariance))), 1e-3)
        self.voxel_from_world = torch.from_numpy(np.linalg.inv(moving.grid.affine) @ start)
        generator = torch.Generator().manual_seed(seed)
        shifts = torch.rand(passes, self.d, generator=generator) - 0.5 if passes > 1 else torch.zeros(1, self.d)
        voxels = identity_grid(fixed.grid.size, device=device)
        self.voxels = [voxels + shift.view(-1, *[1] * self.d).to(device) for shift in shifts]
        self.fixed = [sample(fixed.image[None].float(), v[None], padding="border") for v in self.voxels]
        self.mask = None if bool((fixed.weights == 1).all()) else fixed.weights[None]

    @property
    def turns(self) -> int:
        """How many numbers of a pose turn."""
        return 3 if self.d == 3 else 1

    def matrices(self, poses: Tensor) -> Tensor:
        """World maps (B, D + 1, D + 1) of poses, without the start, float64."""
        poses = poses.double().cpu()
        rotation = rotation_matrix(poses[:, : self.turns] / self.radius)
        shift = self.center + poses[:, self.turns :] - rotation @ self.center
        last = torch.eye(self.d + 1, dtype=torch.float64)[-1:].expand(len(poses), 1, -1)
        return torch.cat([torch.cat([rotation, shift[:, :, None]], 2), last], 1)

    def warped(self, poses: Tensor, number: int) -> Tensor:
        """The moving image under poses, on the grid of a pass, (B, 1, *S)."""
        device, size = self.moving.device, self.grid.size
        affine = torch.from_numpy(self.grid.affine)
        maps = (self.voxel_from_world @ self.matrices(poses) @ affine)[:, : self.d].float().to(device)
        places = torch.einsum("bij,j...->ib...", maps[:, :, : self.d], self.voxels[number])
        places = places + maps[:, :, self.d].T.reshape(self.d, -1, *[1] * self.d)
        found = sample(self.moving, places.reshape(1, self.d, -1, *size[1:]))
        return found.view(len(poses), 1, *size)

    def loss(self, poses: Tensor, number: int) -> Tensor:
        """The sum over poses, by the grid of a pass."""
        fixed = self.fixed[number].expand(len(poses), *[-1] * (self.d + 1))
        return len(poses) * self.similarity(self.warped(poses, number), fixed, self.mask)

    @torch.no_grad()
    def values(self, poses: Tensor) -> Tensor:
        """Of each pose, the mean over the passes, (B,)."""
        passes = range(len(self.fixed))
        each = [torch.stack([self.loss(pose[None], k) for k in passes]).mean() for pose in poses]
        return torch.stack(each).double().cpu()

    def descend(self, poses: Tensor, iterations: int) -> Tensor:
        """Follow the slope from all poses at once, by steps that shrink from 0.7 to 0.05 voxels; each step looks at
        another pass."""
        voxel = float(self.grid.spacing.mean())
        unknown = poses.detach().clone().float().cpu().requires_grad_()
        optimizer = torch.optim.Adam([unknown], betas=(0.8, 0.95))
        first, last = (voxel * step for step in _STEP)
        for number in range(iterations):
            share = 0.5 * (1 + math.cos(math.pi * number / iterations))
            optimizer.param_groups[0]["lr"] = last + (first - last) * share
            optimizer.zero_grad()
            self.loss(unknown, number % len(self.fixed)).backward()
            optimizer.step()
        return unknown.detach()

    def evolve(self, reach_mm: float, generations: int, seed: int) -> Tensor:
        """The best pose (1, P) within a reach along each axis, by differential evolution of 5 P poses."""
        from scipy.optimize import differential_evolution

        count = self.turns + self.d
        found = differential_evolution(
            lambda columns: self.values(torch.from_numpy(columns.T)).numpy(),
            [(-reach_mm, reach_mm)] * count,
            popsize=5,
            maxiter=generations,
            polish=False,
            vectorized=True,
            updating="deferred",
            x0=np.zeros(count),
            seed=seed,
        )
        return torch.from_numpy(found.x)[None].float()


class RigidSearch:
    """Find the rigid map at which a similarity is least.

    Args:
        similarity: called as `similarity(warped, fixed, mask)`.
        search: "gradient", from several starts, or "evolution", which needs no slope, before that.
        levels: shrink factors of the images, coarse to fine. A similarity that was trained at a spacing has (1,).
        iterations: of the descent at each level.
        generations: of the evolution.
        starts: the given one, and random ones whose turns and shifts reach as far as `reach_mm`. After each level the
            better half goes on.
        reach_mm: how far the images may lie apart.
        passes: see `Poses`.
    Raises:
        ValueError: for another search, or a number out of its range.
    References: Haskins et al., IJCARS 14, 2019 (evolution, then a descent, of averaged evaluations; the descent there
        is of second order).
    """

    def __init__(
        self,
        similarity: nn.Module,
        *,
        search: str = "gradient",
        levels: Sequence[int] = (2, 1),
        iterations: int = 40,
        generations: int = 20,
        starts: int = 8,
        reach_mm: float = 30.0,
        passes: int = 4,
    ) -> None:
        if search not in SEARCHES:
            raise ValueError(f"expected a search of {', '.join(SEARCHES)}, got {search!r}")
        for name, value in (("iterations", iterations), ("generations", generations), ("starts", starts)):
            check_number(name, value, least=1, whole=True)
        check_number("reach_mm", reach_mm, least=0)
        self.similarity, self.search, self.levels, self.iterations = similarity, search, tuple(levels), iterations
        self.generations, self.starts, self.reach_mm, self.passes = generations, starts, reach_mm, passes

    def __call__(
        self,
        fixed: Scan,
        moving: Scan,
        start: np.ndarray | None = None,
        *,
        shift_mm: Sequence[float] | np.ndarray | None = None,
        seed: int = 0,
    ) -> np.ndarray:
        """The world map (D + 1, D + 1), RAS mm.

        Args:
            fixed, moving: one channel each, at one isotropic spacing.
            start: what is known of the map; None takes the headers.
            shift_mm: of another start, before `start`, which takes the place of the last random one.
            seed: of the random starts and of the passes.
        """
        start = np.eye(len(fixed.grid.size) + 1) if start is None else start
        levels = [self._poses(fixed, moving, start, factor, seed) for factor in self.levels]
        poses = self._starts(levels[0], seed)
        if shift_mm is not None:
            poses[-1] = torch.cat([torch.zeros(levels[0].turns), torch.as_tensor(shift_mm).float()])
        if self.search == "evolution":
            poses = torch.cat([poses[:1], levels[0].evolve(self.reach_mm, self.generations, seed)])
        for level in levels:
            poses = level.descend(poses, self.iterations)
            poses = poses[level.values(poses).argsort()[: max(1, len(poses) // 2)]]
        return start @ levels[-1].matrices(poses[:1])[0].numpy()

    def _poses(self, fixed: Scan, moving: Scan, start: np.ndarray, factor: int, seed: int) -> Poses:
        if factor > 1:
            spacing = factor * float(fixed.grid.spacing.mean())
            fixed, moving = fixed.reduced(spacing), moving.reduced(spacing)
        return Poses(self.similarity, fixed, moving, start, passes=self.passes, seed=seed)

    def _starts(self, level: Poses, seed: int) -> Tensor:
        count = level.turns + level.d
        random = torch.randn(self.starts - 1, count, generator=torch.Generator().manual_seed(seed))
        length = self.reach_mm * torch.linspace(0.3, 1, max(1, self.starts - 1))[: self.starts - 1, None]
        return torch.cat([torch.zeros(1, count), random / random.norm(dim=1, keepdim=True) * length])


class SearchAligner:
    """Align a pair rigidly by a similarity, on coarse grids about each image's centre of mass.

    The search begins with centre of mass on centre of mass; another start is what the headers say.

    Args:
        similarity: by its name, as in `refiner`, or a module.
        spacing, size: of the grids, mm and voxels along each axis. The moving image's grid is half as large again.
        device: where the search runs.
        levels, search, starts: as for `RigidSearch`.
    Raises: as `RigidSearch`.
    """

    def __init__(
        self,
        similarity: Similarity,
        spacing: float = 3.0,
        size: Sequence[int] = (64, 64, 64),
        device: torch.device | str = "cpu",
        *,
        levels: Sequence[int] = (2, 1),
        search: str = "gradient",
        starts: int = 8,
    ) -> None:
        compare = named_similarity(similarity)[0](9)
        self.search = RigidSearch(compare, search=search, levels=levels, starts=starts)
        self.spacing, self.size, self.device = float(spacing), tuple(size), device

    def __call__(self, fixed: Volume, moving: Volume) -> np.ndarray:
        """World matrix (D + 1, D + 1), fixed to moving, of two images with intensities in [0, 1].

        Raises:
            ValueError: if an image has another number of axes than the grid.
        """
        scans, centers = [], []
        for volume, share in ((fixed, 1.0), (moving, 1.5)):
            if len(volume.grid.size) != len(self.size):
                raise ValueError(
                    f"{volume.path}: expected a {len(self.size)}-D image, for the search is {len(self.size)}-D"
                )
            centers.append(center_of_mass(image_weights(volume.data[:1]), volume.affine))
            grid = fixed_size_grid(self.spacing, [round(share * n) for n in self.size], centers[-1])
            image = resample(volume.data[:1], volume.affine, grid, antialias=True).float().to(self.device)
            scans.append(Scan(image, torch.ones_like(image), grid))
        start = np.eye(len(self.size) + 1)
        start[:-1, -1] = centers[1] - centers[0]
        with torch.enable_grad():
            return self.search(scans[0], scans[1], start, shift_mm=centers[0] - centers[1])
