"""The README's picture: the moving image of a result walks to the fixed one.

    morphzoo demo -o demo_output
    python -m benchmarks.demo_animation MOVING FIXED RESULT docs/demo.gif

MOVING and FIXED are in demo_output/subjects, RESULT is the folder of the pair. Each point of two planes of the fixed
image goes the straight way from itself to where the transform takes it; the moving image is shown as it is found there,
beside the fixed image and their difference.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import map_coordinates

import custom_components as mz
from custom_components.space.volumes import Volume, load_image

Array = np.ndarray
STEPS, HOLD = 12, 10  # frames on the way, and at each end
SIDE = 220  # pixels of a panel
COLOURS = 32


def plane(fixed: Volume, axis: int) -> Array:
    """Points (SIDE, SIDE, 3) in RAS mm of the middle plane across a world axis, the picture's top up or in front."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in fixed.data.shape[1:]])).reshape(3, -1).T
    world = corners @ fixed.affine[:3, :3].T + fixed.affine[:3, 3]
    low, high = world.min(0), world.max(0)
    middle, reach = (low + high) / 2, (high - low).max() / 2 * 0.9
    across, up = [k for k in range(3) if k != axis]
    grid = np.empty((SIDE, SIDE, 3))
    steps = np.linspace(-reach, reach, SIDE)
    grid[..., axis] = middle[axis]
    grid[..., across] = middle[across] - steps[None, :]  # right is left, as radiologists see it
    grid[..., up] = middle[up] - steps[:, None]
    return grid


def shown(image: Volume, points: Array) -> Array:
    """The image's values at points in RAS mm, 0 to 1."""
    values = image.data[0].numpy().astype(np.float32)
    matrix = np.linalg.inv(image.affine)
    places = points @ matrix[:3, :3].T + matrix[:3, 3]
    found = map_coordinates(values, np.moveaxis(places, -1, 0), order=1)
    return np.clip(found / np.percentile(values[values > 0], 99.5), 0, 1)


def frame(rows: Sequence[Sequence[Array]]) -> Image.Image:
    picture = Image.fromarray((255 * np.vstack([np.hstack(row) for row in rows])).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for k, text in enumerate(("moving", "fixed", "difference")):
        draw.text((k * SIDE + 8, 6), text, fill=230, font_size=13)
    return picture.quantize(COLOURS)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("moving", type=Path)
    parser.add_argument("fixed", type=Path)
    parser.add_argument("result", type=Path, help="folder of the pair")
    parser.add_argument("output", type=Path, help="GIF file")
    given = parser.parse_args(words)
    moving, fixed = load_image(given.moving), load_image(given.fixed)
    transform = mz.Transform.read(given.result / "transform.h5")
    planes = [plane(fixed, axis) for axis in (2, 1)]
    ends = [np.asarray(transform.points(points.reshape(-1, 3))).reshape(points.shape) for points in planes]
    targets = [shown(fixed, points) for points in planes]
    frames = []
    for share in np.sin(np.linspace(0, np.pi / 2, STEPS)) ** 2:
        images = [shown(moving, a + share * (b - a)) for a, b in zip(planes, ends, strict=True)]
        rows = [(image, target, abs(image - target)) for image, target in zip(images, targets, strict=True)]
        frames.append(frame(rows))
    film = [frames[0]] * HOLD + frames + [frames[-1]] * HOLD
    film[0].save(given.output, save_all=True, append_images=film[1:], duration=90, loop=0, optimize=True)


if __name__ == "__main__":
    main()
