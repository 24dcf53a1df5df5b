"""The series before and after, as an animation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .correction import Correction

_SIDE = 256  # pixels of a panel
_COLOURS = 64
_TITLES = ("frame", "subtracted", "after motion correction")


def write_animation(path: Path, series: Tensor, found: Correction, titles: Sequence[str] = _TITLES) -> None:
    """A GIF of each frame, of the mask less the frame, and of the moved mask less the frame; needs Pillow.

    The first axis of a frame runs across, as in image files.
    Both differences have the same grey scale: vessels are dark, and what is equal is light grey.
    """
    from PIL import Image, ImageDraw

    spread = float(found.after.abs().flatten().sort().values[int(0.997 * (found.after.numel() - 1))])
    low, high = (float(series.flatten().sort().values[int(q * (series.numel() - 1))]) for q in (0.01, 0.999))
    shown = [
        (series - low) / max(high - low, 1e-6),
        0.8 - 0.8 * found.before / max(spread, 1e-6),
        0.8 - 0.8 * found.after / max(spread, 1e-6),
    ]
    row = torch.cat([_fitted(one.transpose(2, 3)) for one in shown], 3).clamp(0, 1)
    pictures = []
    for frame in (255 * row[:, 0]).to(torch.uint8).cpu().numpy():
        picture = Image.fromarray(np.ascontiguousarray(frame))
        draw = ImageDraw.Draw(picture)
        for k, text in enumerate(titles):
            draw.text((k * picture.width // 3 + 6, 4), text, fill=0)
        pictures.append(picture.quantize(_COLOURS))
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=200, loop=0, optimize=True)


def _fitted(images: Tensor) -> Tensor:
    factor = _SIDE / max(images.shape[2:])
    size = [max(1, round(factor * n)) for n in images.shape[2:]]
    return F.interpolate(images.float(), size, mode="bilinear", align_corners=False, antialias=factor < 1)
