"""Angiograms with a known truth: a projected head that moves, vessels that fill and empty, and counted photons.

Convention: series (T, C, H, W), lengths in pixels, attenuations in nepers: a pixel counts photons * exp(-attenuation).
All of a series is drawn from a seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..fields import identity_grid, sample

_FINE = 2  # points along each axis that a pixel is the mean of
_THICKEST = 0.035  # radius of a vessel, at most


@dataclass(frozen=True)
class Angiogram:
    """A series and what is known of it.

    Attributes:
        counts: photons, (T, 1, H, W).
        ddf: motion since the first frame, (T, 2, H, W): without contrast agent, frame_t(x) = frame_0(x + ddf_t(x)).
        background, vessels: attenuation of the patient and of the contrast agent, (T, 1, H, W), without noise.
        photons: that a pixel counts where nothing attenuates.
    """

    counts: Tensor
    ddf: Tensor
    background: Tensor
    vessels: Tensor
    photons: float

    @property
    def noise(self) -> Tensor:
        """Standard deviation of the logarithm of the counts, (T, 1, H, W)."""
        return ((self.background + self.vessels) / 2).exp() / math.sqrt(self.photons)


def angiogram(
    size: Sequence[int] = (256, 256),
    frames: int = 20,
    seed: int = 0,
    *,
    motion: float = 1.0,
    photons: float = 2e4,
    still: int = 4,
    apart: float = 0.0,
    device: torch.device | str = "cpu",
) -> Angiogram:
    """A series of a head that breathes, is jerked once or twice, and whose vessels fill.

    Args:
        size: height and width, at least 16.
        frames: T.
        seed: of everything.
        motion: factor of all motion: at 1 a pixel of a series of 256 pixels moves by up to about 6.
        photons: see `Angiogram`.
        still: frames before the contrast agent arrives.
        apart: pixels, in an image of 256, by which soft tissue and vessels come to move against the bones. No map of
            the image then takes both along; `ddf` is that of the bones.
        device: where the series is made.
    """
    generator = Generator(torch.device(device)).manual_seed(seed)
    fine = [_FINE * n for n in size]
    soft, bones = projected_head(fine, generator)
    thickness, arrival = vessel_maps(vessel_tree(generator), fine)
    ddf = body_motion(frames, size, generator) * motion
    times = torch.arange(frames, device=device).view(-1, 1, 1, 1)
    grid = identity_grid(fine, device=device)
    places = grid + _FINE * F.interpolate(ddf, fine, mode="bilinear", align_corners=True)
    shifted = places + times / max(frames - 1, 1) * apart * max(size) / 256 * _FINE
    parts = []
    for image, where in ((soft, shifted), (bones, places), (thickness, shifted), (arrival, shifted)):
        moved = [sample(image[None], place[None], padding="border") for place in where]
        parts.append(torch.cat(moved))
    vessels = parts[2] * bolus(times - still - 0.5 * (frames - still) * parts[3], 0.35 * (frames - still))
    background, vessels = (F.avg_pool2d(part, _FINE) for part in (parts[0] + parts[1], vessels))
    counts = torch.poisson(photons * (-background - vessels).exp(), generator)
    return Angiogram(counts, ddf, background, vessels, photons)


def bolus(time: Tensor, length: float) -> Tensor:
    """Concentration at a time in frames since the contrast agent arrived: 0, up to 1 after a while, and down again."""
    phase = (time / max(length, 1e-6)).clamp(min=0)
    return phase.square() * torch.exp(2 * (1 - phase))


def body_motion(frames: int, size: Sequence[int], generator: Generator) -> Tensor:
    """Fields (T, 2, *size), pixels, 0 in the first frame: breathing, slow drift, and sudden rigid steps that remain."""
    device, scale = generator.device, max(size) / 256
    times = torch.arange(frames, device=device, dtype=torch.float32)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    def chance(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=device)

    period, phase = 8 + 8 * chance(1), 2 * math.pi * chance(1)
    breath = torch.sin(2 * math.pi * times / period + phase) - torch.sin(phase)
    total = breath.view(-1, 1, 1, 1) * (0.8 * scale * _smooth(normal(1, 2, 4, 4), size))
    total = total + (times / frames).view(-1, 1, 1, 1) * (0.8 * scale * _smooth(normal(1, 2, 6, 6), size))
    where = identity_grid(size, device=device) - torch.tensor([(n - 1) / 2 for n in size], device=device).view(2, 1, 1)
    turned = torch.stack([-where[1], where[0]])
    for begin in (frames * (0.2 + 0.3 * chance(1)), frames * (0.55 + 0.35 * chance(1))):
        step = 2.0 * scale * normal(2, 1, 1) + 0.01 * normal(1) * turned
        total = total + (times >= begin).view(-1, 1, 1, 1) * step
    return total - total[:1]


def projected_head(size: Sequence[int], generator: Generator) -> tuple[Tensor, Tensor]:
    """The attenuation of a head, (1, *size) each: soft tissue; a skull with the texture of bone, and ridges."""
    device = generator.device
    axes = [torch.linspace(-1, 1, n, device=device) for n in size]
    y, x = torch.meshgrid(*axes, indexing="ij")

    def chance(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(1, generator=generator, device=device)

    def chord(a: float, b: float) -> Tensor:
        """Length of rays through an ellipsoid."""
        return (1 - (y / a) ** 2 - (x / b) ** 2).clamp(min=0).sqrt()

    outer, inner = chord(0.92, 0.8), chord(0.85, 0.73)
    bone = (outer - 0.97 * inner).clamp(min=0)
    for scale, strength in ((64, 0.25), (24, 0.3), (10, 0.25)):
        grain = torch.randn(1, 1, *[max(2, n // scale) for n in size], generator=generator, device=device)
        bone = bone * (1 + strength * _smooth(grain, size)[0, 0]).clamp(min=0.1)
    total = 2.0 * bone
    for _ in range(14):  # ridges, sutures, teeth: with sharp edges
        angle, away = chance(0, math.pi), chance(-0.6, 0.6)
        along = torch.cos(angle) * x + torch.sin(angle) * y
        across = -torch.sin(angle) * x + torch.cos(angle) * y - away - chance(-0.5, 0.5) * along.square()
        width, reach = chance(0.008, 0.05), chance(0.1, 0.5)
        inside = torch.sigmoid((width - across.abs()) / 0.006) * torch.sigmoid((reach - (along - away).abs()) / 0.02)
        total = total + chance(0.1, 0.5) * inside * (inner > 0)
    return 1.2 * outer[None], total[None]


def vessel_tree(generator: Generator, generations: int = 7) -> Tensor:
    """Points (N, 4) of a tree that enters from below: row, column (-1 to 1), radius, and arrival from 0 to 1."""
    device = generator.device
    drawn = iter(torch.rand(20000, generator=generator, device=device).tolist())
    points: list[tuple[float, float, float, float]] = []

    def grow(row: float, column: float, angle: float, radius: float, path: float, left: int) -> None:
        for _ in range(int((8 + 16 * next(drawn)) * 0.92 ** (generations - left))):
            row, column, path = row - 0.012 * math.cos(angle), column + 0.012 * math.sin(angle), path + 0.012
            angle += 0.35 * (next(drawn) - 0.5)
            points.append((row, column, radius, path))
        if left:
            share = 0.35 + 0.3 * next(drawn)
            spread = 0.4 + 0.5 * next(drawn)
            for part, side in ((share, -1), (1 - share, 1)):  # Murray: the cubes of the radii add up
                grow(row, column, angle + side * spread * (1.2 - part), radius * part ** (1 / 3), path, left - 1)

    grow(0.85, 0.3 * (next(drawn) - 0.5), 0.0, 0.022 + 0.012 * next(drawn), 0.0, generations)
    found = torch.tensor(points, device=device)
    found[:, 3] /= found[:, 3].max()
    return found


def vessel_maps(tree: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Attenuation of full vessels and arrival times, (1, *size) each, of the points of a tree, which are balls."""
    half = [(n - 1) / 2 for n in size]
    reach = math.ceil(_THICKEST * max(half)) + 1
    steps = torch.arange(-reach, reach + 1, device=tree.device)
    offsets = torch.stack(torch.meshgrid(steps, steps, indexing="ij")).flatten(1)
    rows, columns = ((n * (1 + tree[:, axis : axis + 1])).round().long() + offsets[axis] for axis, n in enumerate(half))
    apart = (rows / half[0] - 1 - tree[:, :1]).square() + (columns / half[1] - 1 - tree[:, 1:2]).square()
    depth = (tree[:, 2:3].square() - apart).clamp(min=0).sqrt()
    depth = depth * ((rows >= 0) & (rows < size[0]) & (columns >= 0) & (columns < size[1]))
    index = (rows.clamp(0, size[0] - 1) * size[1] + columns.clamp(0, size[1] - 1)).flatten()
    flat = torch.zeros(size[0] * size[1], device=tree.device)
    thickness = flat.scatter_reduce(0, index, depth.flatten(), "amax")
    first = torch.where((depth.flatten() >= thickness[index]) & (depth.flatten() > 0), 1.0, 2.0)
    times = first * tree[:, 3:].expand(depth.shape).flatten() + (first - 1)
    arrival = torch.ones_like(flat).scatter_reduce(0, index, times, "amin")
    return (14.0 * thickness).view(1, *size), arrival.view(1, *size)


def _smooth(values: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(values, tuple(size), mode="bicubic", align_corners=True)
