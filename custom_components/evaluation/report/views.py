"""Slices of two images as small images in text, for pages to show on top of one another and to blink.

Convention: as in `pictures`. Views are a dictionary that JSON can hold: `size`, width and height in
pixels, and `frames` and `layers`, data URIs by name. Frames are opaque, layers lie over a frame. Needs Pillow.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from ...fields import identity_grid, jacobian_determinant, warp
from ..drawing import FIXED_COLOUR, MOVING_COLOUR, View, centre_of, first_channel, grey_window, on_cpu, views_of

if TYPE_CHECKING:
    from PIL.Image import Image

Views = dict[str, object]

_WIDTH, _HEIGHT, _GAP = 660, 340, 6  # at most, in pixels, and between slices

_QUALITY = 72  # of WebP, half as large as a JPEG that looks alike

_GRID_COLOUR, _FOLD_COLOUR = "#7fd6a0", "#ff1f1f"

_SHRINKS, _GROWS = "#35c4dc", "#ffb347"  # of log det J and percent, more opaque the larger

_LEVELS = 7  # of either colour


def make_views(
    moving: Tensor,
    fixed: Tensor,
    warped: Tensor,
    ddf: Tensor,
    *,
    spacing_mm: Sequence[float],
    label_moving: Tensor | None = None,
    label_fixed: Tensor | None = None,
) -> Views:
    """The views of a registered pair.

    Frames: `fixed`, `aligned` (moving), `after` (warped). Layers: `grid`, where lines of the moving image come to lie;
    `jacobian`, log det J up to a factor of two, blue where the fixed image's tissue shrinks, red folds;
    `outlines_fixed`, `outlines_aligned`, `outlines_after` of label maps.

    Args:
        moving, fixed, warped: shape (C, *S), all on one grid.
        ddf: shape (D, *S), voxels.
        spacing_mm: voxel size along each axis.
        label_moving, label_fixed: label maps (1, *S).
    Raises:
        ValueError: if shapes do not fit each other.
    """
    images = {"fixed": fixed, "aligned": moving, "after": warped}
    volumes = {name: first_channel(image, ddf, name) for name, image in images.items()}
    ddf = on_cpu(ddf).float()
    labels = {"fixed": label_fixed, "aligned": label_moving}
    maps = {name: first_channel(label, ddf, name) for name, label in labels.items() if label is not None}
    if "aligned" in maps:
        maps["after"] = warp(maps["aligned"][None, None], ddf[None], mode="nearest")[0, 0]
    views = views_of(ddf.shape[1:], spacing_mm, centre_of(volumes["fixed"]))
    low, high = grey_window({"fixed": volumes["fixed"], "moving": volumes["aligned"]})["intensity"]
    sheet = _Sheet(views)
    frames = {
        name: sheet.grey(((volume - low) / (high - low)).clamp(0, 1).mul(255)) for name, volume in volumes.items()
    }
    colours = {"fixed": FIXED_COLOUR, "aligned": MOVING_COLOUR, "after": MOVING_COLOUR}
    determinant = jacobian_determinant(ddf[None])[0, 0]
    layers = {
        "grid": sheet.grid(ddf),
        "jacobian": sheet.signed(determinant.clamp_min(1e-3).log2(), 1, determinant <= 0),
    }
    layers |= {f"outlines_{name}": sheet.outlines(label, colours[name]) for name, label in maps.items()}
    return {"size": list(sheet.size), "frames": frames, "layers": layers}


def change_views(
    frames: Mapping[str, Tensor],
    percent: Tensor,
    *,
    limit: float,
    spacing_mm: Sequence[float],
    labels: Mapping[str, Tensor] | None = None,
) -> Views:
    """The views of two time points.

    Frames: those given, each time point on a grey scale of its own. Layers: `percent`, blue where tissue shrinks;
    `outlines_first`, `outlines_second` of label maps.

    Args:
        frames: `first_aligned` and `second_aligned`, before the deformation, `first` and `second`, after it; shape
            (C, *S).
        percent: change of volume, shape (1, *S).
        limit: of the colours, percent.
        spacing_mm: voxel size along each axis.
        labels: `first`, `second`, (1, *S), as far as there are.
    Raises:
        ValueError: if shapes do not fit each other.
    """
    images = {name: first_channel(image, percent, name) for name, image in frames.items()}
    sheet = _Sheet(views_of(percent.shape[1:], spacing_mm, centre_of(images["first"])))
    shown = {}
    for name, image in images.items():
        one = images[f"{name.partition('_')[0]}_aligned"]
        low, high = grey_window({"fixed": one, "moving": one})["intensity"]
        shown[name] = sheet.grey(((image - low) / (high - low)).clamp(0, 1).mul(255))
    layers = {"percent": sheet.signed(on_cpu(percent)[0].float(), limit)}
    for name, label in (labels or {}).items():
        colour = {"first": FIXED_COLOUR, "second": MOVING_COLOUR}[name]
        layers[f"outlines_{name}"] = sheet.outlines(first_channel(label, percent, name), colour)
    return {"size": list(sheet.size), "frames": shown, "layers": layers}


class _Sheet:
    """Slices side by side, all on one scale; those that are lower are centred."""

    def __init__(self, views: Sequence[View]) -> None:
        self.views = views
        across = _WIDTH - _GAP * (len(views) - 1)
        scale = min(across / sum(view.width_mm for view in views), _HEIGHT / max(view.height_mm for view in views))
        self.sizes = [(max(1, round(v.width_mm * scale)), max(1, round(v.height_mm * scale))) for v in views]
        self.size = sum(w for w, _ in self.sizes) + _GAP * (len(views) - 1), max(h for _, h in self.sizes)

    def grey(self, volume: Tensor) -> str:
        """A WebP of values from 0 to 255; a JPEG where Pillow was built without."""
        from PIL import Image, features

        pixels = self._paste(lambda view, size: _resized(view.cut(volume), view, size).clip(0, 255))
        kind = "webp" if features.check("webp") else "jpeg"
        return _uri(Image.fromarray(pixels.astype(np.uint8)), kind, quality=_QUALITY)

    def outlines(self, labels: Tensor, colour: str) -> str:
        return self._drawn(lambda view, size: _borders(_resized(view.cut(labels), view, size, smooth=False)), [colour])

    def grid(self, ddf: Tensor) -> str:
        step = max(2, round(max(ddf.shape[1:]) / 24))
        cells = (identity_grid(ddf.shape[1:]) + ddf) / step

        def lines(view: View, size: tuple[int, int]) -> np.ndarray:
            shown = [_resized(view.cut(cells[axis]), view, size) for axis in (view.horizontal, view.vertical)]
            return np.logical_or(*(_borders(np.floor(one)) for one in shown))

        return self._drawn(lines, [_GRID_COLOUR])

    def signed(self, values: Tensor, limit: float, folds: Tensor | None = None) -> str:
        """Levels of values up to a limit: first those below 0, then those above, then where a map folds."""

        def levels(view: View, size: tuple[int, int]) -> np.ndarray:
            signed = np.rint(_resized(view.cut(values) / limit, view, size) * _LEVELS).clip(-_LEVELS, _LEVELS)
            found = np.where(signed < 0, -signed, signed + _LEVELS * (signed > 0))
            if folds is None:
                return found
            return np.where(_resized(view.cut(folds).float(), view, size, smooth=False) > 0, 2 * _LEVELS + 1, found)

        ramp = [f"{round(220 * (k + 1) / _LEVELS):02x}" for k in range(_LEVELS)]
        return self._drawn(levels, [c + a for c in (_SHRINKS, _GROWS) for a in ramp] + [_FOLD_COLOUR])

    def _drawn(self, draw: Callable[[View, tuple[int, int]], np.ndarray], colours: Sequence[str]) -> str:
        """A PNG of whole numbers: 0 is transparent, n has the n-th colour, #rrggbb or #rrggbbaa."""
        from PIL import Image

        image = Image.fromarray(self._paste(draw).astype(np.uint8), mode="P")
        rgba = [bytes.fromhex((colour + "ff")[1:9]) for colour in ("#00000000", *colours)]
        image.putpalette(b"".join(one[:3] for one in rgba))
        return _uri(image, "png", transparency=bytes(one[3] for one in rgba))

    def _paste(self, draw: Callable[[View, tuple[int, int]], np.ndarray]) -> np.ndarray:
        sheet = np.zeros((self.size[1], self.size[0]), dtype=np.float32)
        left = 0
        for view, (width, height) in zip(self.views, self.sizes, strict=True):
            top = (self.size[1] - height) // 2
            sheet[top : top + height, left : left + width] = draw(view, (width, height))
            left += width + _GAP
        return sheet


def _resized(pixels: Tensor, view: View, size: tuple[int, int], *, smooth: bool = True) -> np.ndarray:
    """A slice of a view as pixels of a page: the first row is on top."""
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(pixels.numpy(), dtype=np.float32))
    found = np.asarray(image.resize(size, Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST))[::-1]
    return found[:, ::-1] if view.flipped else found


def _borders(values: np.ndarray) -> np.ndarray:
    """Where a whole number differs from its right or lower neighbour."""
    found = np.zeros(values.shape, dtype=bool)
    found[:, :-1] |= values[:, 1:] != values[:, :-1]
    found[:-1] |= values[1:] != values[:-1]
    return found


def _uri(image: Image, kind: str, **options: object) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, optimize=True, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
