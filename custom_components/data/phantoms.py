"""Phantoms: brain-like images with labels and a known, smooth, invertible deformation between them.

The phantom is a function of position, so a deformed phantom is that function at deformed positions: exact, without
interpolation. Everything is drawn from a seed and is the same on every run. Convention: as `fields`; tensors have a
batch axis; sizes and lengths in voxels.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..fields import identity_grid, integrate_velocity, per_channel

# Label: name, intensity. 0 is the background, intensity 0.
STRUCTURES = {1: ("cortex", 0.55), 2: ("white matter", 0.9), 3: ("ventricle", 0.2), 4: ("deep nucleus", 0.7)}


_SLAB = 16  # an axis of fewer voxels is the thin one of a slab


def random_velocity(
    size: Sequence[int],
    *,
    amplitude: float = 3.0,
    spacings: Sequence[float] = (8.0, 16.0),
    batch: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """A smooth random velocity field: a sum of cubic B-splines with random control points.

    Args:
        size: spatial size, 2 or 3 axes.
        amplitude: length of the longest vector of each field, in voxels per unit time.
        spacings: distances of the control points in voxels, one spline each; a spline's weight is its spacing, so the
            slopes are alike. An `amplitude` below the smallest spacing keeps the integrated field free of folds.
        batch: number of fields.
        generator: source of the random numbers.
    Returns:
        Shape (B, D, *size), voxels per unit time. Vectors along an axis of one voxel are 0.
    Raises:
        ValueError: if the size has not 2 or 3 axes, or a spacing is not positive.
    """
    if len(size) not in (2, 3) or min(spacings, default=0.0) <= 0:
        raise ValueError(
            f"expected a size of 2 or 3 axes and positive spacings, got {tuple(size)} and {tuple(spacings)}"
        )
    velocity = torch.zeros(batch, len(size), *size)
    for spacing in spacings:
        bases = [_cubic_basis(n, spacing) for n in size]
        field = torch.randn(batch, len(size), *(basis.shape[1] for basis in bases), generator=generator)
        for axis, basis in enumerate(bases, start=2):
            field = torch.tensordot(field, basis, dims=([axis], [1])).movedim(-1, axis)
        velocity += spacing * field
    velocity *= per_channel([float(n > 1) for n in size], velocity)
    longest = velocity.square().sum(1, keepdim=True).flatten(1).amax(1).sqrt().clamp_min(1e-12)
    return velocity * (amplitude / longest).view(-1, *[1] * (len(size) + 1))


def phantom(locations: Tensor, size: Sequence[int], *, edge: float = 0.7) -> tuple[Tensor, Tensor]:
    """The phantom at given locations: an ellipsoid with a folded cortex, two ventricles and two nuclei.

    Args:
        locations: shape (B, D, *S), voxels of the grid of the given size.
        size: the grid on which the phantom fills about 4/5 of each axis; an axis of fewer than 16 voxels is a slab: the
            phantom does not end along it.
        edge: width of the blurred boundaries in voxels.
    Returns:
        Image (B, 1, *S) float32 in [0, 1] and label map (B, 1, *S) int16 with the labels of `STRUCTURES`.
    """
    extent = min(n for n in size if n >= _SLAB) if max(size) >= _SLAB else min(size)
    centre = per_channel([(n - 1) / 2 for n in size], locations)
    half = per_channel([n / 2 if n >= _SLAB else 1e6 for n in size], locations)
    x = (locations - centre) / half
    phases = per_channel([1.0, -0.5, 0.3][: len(size)], x)
    folds = 0.09 * torch.cos(11 * x + phases).prod(dim=1, keepdim=True)
    left, right = x.clone(), x.clone()
    left[:, 0] += 0.13
    right[:, 0] -= 0.13
    ventricle = _inside(left, (0.09, 0.26, 0.24)).maximum(_inside(right, (0.09, 0.26, 0.24)))
    left[:, 0] += 0.18
    right[:, 0] -= 0.18
    nucleus = _inside(left, (0.11, 0.17, 0.17)).maximum(_inside(right, (0.11, 0.17, 0.17)))
    # Signed depths (1 - radius) of the nested structures, later ones painted over earlier ones.
    depths = torch.cat([_inside(x, (0.8, 0.8, 0.8)), _inside(x, (0.64, 0.64, 0.64)) + folds, ventricle, nucleus], dim=1)
    # A depth is in units of the structure's radius, whose mean size in voxels turns it into voxels.
    radii = per_channel([0.8, 0.64, 0.18, 0.15], depths) * extent / 2
    weights = torch.sigmoid(depths * radii / edge)
    image = torch.zeros_like(depths[:, :1])
    label = torch.zeros_like(image, dtype=torch.int16)
    for channel, (value, (_, intensity)) in enumerate(STRUCTURES.items()):
        weight = weights[:, channel : channel + 1]
        image = image + weight * (intensity - image)
        label = torch.where(depths[:, channel : channel + 1] > 0, torch.full_like(label, value), label)
    return image.masked_fill(weights[:, :1] < 0.02, 0.0), label


def phantom_pair(
    size: Sequence[int] = (48, 48, 48),
    seed: int = 0,
    *,
    amplitude: float | None = None,
    noise: float = 0.0,
    batch: int = 1,
) -> dict[str, Tensor]:
    """A pair of phantoms and the true map between them: `fixed(x) = moving(x + ddf(x))`, `label_fixed` likewise.

    Args:
        size: spatial size, 2 or 3 axes.
        seed: of the deformation and the noise; each sample of the batch has its own.
        amplitude: longest velocity vector in voxels; by default 6% of the longest axis.
        noise: SD of the noise added inside the brain, where intensities are between 0 and 1.
        batch: number of pairs.
    Returns:
        `moving`, `fixed` (B, 1, *S) float32 in [0, 1]; `label_moving`, `label_fixed` (B, 1, *S) int16; `image`
        (B, 2, *S): moving, fixed; `svf`, `ddf`, `inverse_ddf` (B, D, *S), voxels: the true fields, `ddf` the integral
        of `svf`.
    """
    generator = torch.Generator().manual_seed(seed)
    amplitude = 0.06 * max(size) if amplitude is None else amplitude
    spacings = [max(size) / 6, max(size) / 3]
    svf = random_velocity(size, amplitude=amplitude, spacings=spacings, batch=batch, generator=generator)
    # A slab moves within its plane: what leaves a thin slab is lost to the other image.
    svf = svf * per_channel([float(n >= _SLAB) for n in size], svf)
    ddf, inverse_ddf = integrate_velocity(svf), integrate_velocity(-svf)
    identity = identity_grid(size).unsqueeze(0)
    moving, label_moving = (t.repeat(batch, *[1] * (t.ndim - 1)) for t in phantom(identity, size))
    fixed, label_fixed = phantom(identity + ddf, size)
    moving, fixed = (_add_noise(image, noise, generator) for image in (moving, fixed))
    return {
        "moving": moving,
        "fixed": fixed,
        "label_moving": label_moving,
        "label_fixed": label_fixed,
        "image": torch.cat([moving, fixed], dim=1),
        "svf": svf,
        "ddf": ddf,
        "inverse_ddf": inverse_ddf,
    }


def write_phantom_scans(
    folder: str | os.PathLike[str],
    n: int = 6,
    size: Sequence[int] = (32, 32, 32),
    *,
    seed: int = 0,
    spacing_mm: float | Sequence[float] = 1.0,
    axcodes: str = "RAS",
    num_validation: int = 2,
    noise: float = 0.02,
) -> str:
    """Write phantoms of n people as NIfTI files with a data list, for tests and the smoke overlay.

    Args:
        folder: made if needed; gets `images/`, `labels/` and `datalist.json`.
        n: number of people, one scan each.
        size: voxels along R, A, S. Two axes give a slab of one voxel along S,
            a short last axis a slab that many voxels thick.
        seed: of all deformations and noise.
        spacing_mm: voxel size, one number or one for each axis.
        axcodes: orientation in which the arrays are stored; the anatomy stays the same.
        num_validation: how many of the people are for validation; their ordered pairs are in `validation_pairs`.
        noise: SD of the noise.
    Returns:
        Path of the data list, with the sections training, validation, validation_pairs.
    Raises:
        ValueError: if fewer than two people would be left for training.
    """
    import nibabel as nib

    if n - num_validation < 2:
        raise ValueError(f"expected at least 2 people for training, got {n} of which {num_validation} for validation")
    folder = Path(folder)
    shape = (*size, 1) if len(size) == 2 else tuple(size)
    affine = _centred_affine(shape, spacing_mm)
    to_stored = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(affine), nib.orientations.axcodes2ornt(axcodes)
    )
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    scans = []
    for person in range(n):
        pair = phantom_pair(size, seed * 1000 + person, noise=noise)
        scan = {"image": f"images/phantom_{person:02d}.nii.gz", "label": f"labels/phantom_{person:02d}.nii.gz"}
        for name, array in ((scan["image"], pair["fixed"].numpy()), (scan["label"], pair["label_fixed"].numpy())):
            volume = nib.Nifti1Image(array.reshape(shape), affine).as_reoriented(to_stored)
            nib.save(volume, folder / name)
        scans.append({**scan, "subject": f"phantom_{person:02d}"})
    training, validation = scans[: n - num_validation], scans[n - num_validation :]
    path = folder / "datalist.json"
    sections = {"training": training, "validation": validation, "validation_pairs": _ordered_pairs(validation)}
    path.write_text(json.dumps({"name": "phantoms", **sections}, indent=2), encoding="utf-8")
    return str(path)


def _centred_affine(shape: Sequence[int], spacing_mm: float | Sequence[float]) -> np.ndarray:
    """RAS voxel-to-mm matrix (4, 4) of a grid of three axes with the origin of the world at its centre."""
    spacing = [float(spacing_mm)] * 3 if isinstance(spacing_mm, int | float) else [float(s) for s in spacing_mm]
    spacing += [1.0] * (3 - len(spacing))
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = [-(m - 1) / 2 * s for m, s in zip(shape, spacing, strict=True)]
    return affine


def _ordered_pairs(scans: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    return [
        {"id": f"{m['subject']}-to-{f['subject']}", "moving": m["image"], "fixed": f["image"]}
        | {"label_moving": m["label"], "label_fixed": f["label"]}
        for m in scans
        for f in scans
        if m is not f
    ]


def _inside(x: Tensor, radii: Sequence[float]) -> Tensor:
    """1 - radius of an ellipsoid at normalised positions (B, D, *S): positive inside, shape (B, 1, *S)."""
    scale = per_channel(list(radii)[: x.shape[1]], x)
    return 1 - (x / scale).square().sum(1, keepdim=True).sqrt()


def _add_noise(image: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    if not noise:
        return image
    noisy = image + noise * torch.randn(image.shape, generator=generator)
    return torch.where(image > 0, noisy.clamp(1e-3, 1.0), image)


def _cubic_basis(n: int, spacing: float) -> Tensor:
    """Values of uniform cubic B-splines with the given knot distance at 0 ... n - 1, shape (n, number of splines)."""
    count = int((n - 1) / spacing) + 4
    t = (torch.arange(n).unsqueeze(1) / spacing - torch.arange(count) + 1).abs()
    near, far = 2 / 3 - t.square() + t.pow(3) / 2, (2 - t).clamp_min(0).pow(3) / 6
    return torch.where(t < 1, near, far)
