"""The pictures of `study_t1t2`: one pair of each kind, moved by the networks that were trained on its kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

import custom_components as mz
from custom_components.fields import plain
from custom_components.space import load_image
from custom_components.vocabulary import Entry

LINES = 24  # of the drawn grid, along the longer axis


def draw(path: Path, networks: Mapping[str, mz.Registrar], pairs: Sequence[Entry]) -> None:
    """A row for each network: moving, fixed and warped image, and what the field does to a grid.

    Args:
        networks: by variant, "KIND SIMILARITY EPOCHS".
        pairs: of all kinds; the first one of the network's kind is drawn.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    if not networks:
        return
    figure, axes = pyplot.subplots(len(networks), 4, figsize=(8, 3.1 * len(networks)), squeeze=False)
    for row, (name, registrar) in zip(axes, networks.items(), strict=True):
        pair = next(pair for pair in pairs if pair["kind"] == name.split()[0])
        result = registrar(pair["moving"], pair["fixed"])
        moving, fixed = (load_image(pair[key]) for key in ("moving", "fixed"))
        images = [moving.data, fixed.data, plain(result.warped).reshape(fixed.data.shape)]
        for axis, image, title in zip(row, images, ("moving", "fixed", "warped"), strict=False):
            axis.imshow(_upright(image[0].numpy()), cmap="gray", origin="lower")
            axis.set_title(f"{title}: {name}" if title == "warped" else title, fontsize=8)
        _draw_grid(row[3], plain(result.field)[:2].reshape(2, *fixed.data.shape[1:]).numpy(), fixed.affine)
        row[3].set_title("where the grid's lines come from", fontsize=8)
    for axis in axes.ravel():
        axis.set_aspect("equal")
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def _upright(image: np.ndarray) -> np.ndarray:
    """The second axis of the file upwards, as these slices have head and feet."""
    return image.T


def _draw_grid(axis: object, field: np.ndarray, affine: np.ndarray) -> None:
    """Lines of voxels, moved by the field (2, *S), RAS mm."""
    moved = np.moveaxis(np.indices(field.shape[1:]).astype(float), 0, -1)
    moved += np.moveaxis(field, 0, -1) @ np.linalg.inv(affine[:2, :2]).T
    step = max(field.shape[1:]) // LINES
    for lines in (moved[::step], np.swapaxes(moved, 0, 1)[::step]):
        for line in lines:
            axis.plot(*line.T, color="black", lw=0.5)  # type: ignore[attr-defined]
