"""Dictionary transforms for answers of any program: a fixed and a warped image, and the field if it is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from monai.transforms import Transform

from ...checks import check_number
from ...data.names import file_stem, safe_name
from ...evaluation.metrics import foreground_mask
from ...results import publishing
from ...space.dialects.vectors import read_displacement_field
from ...space.files import write_image
from ...space.grids import Grid, canonical_grid, model_grid
from ...space.resampling import field_rows, resample, rows_on_grid
from ...space.volumes import load_image
from ...transforms.intensities import compared, scale_intensity
from ...transforms.scan_paths import ScanPath, release, source_in
from ...vocabulary import Data, Item
from .estimator import network_input
from .reporting import error_metrics


class LoadAnswerd(Transform):
    """Load an answer as the network sees it, (5, *S), under `image`, with the network's grid in `grid_affine`.

    An item has `fixed` and `warped`, images in one space, and may have `field`, a file of a displacement field in ITK's
    dialect, as `forward_field.nii.gz` is one.

    Args:
        spacing: of the network's voxels, mm.
    """

    def __init__(self, spacing: float = 2.0) -> None:
        check_number("spacing", spacing, above=0)
        self.spacing = spacing

    def __call__(self, data: Data) -> Item:
        """Adds `fixed_path`, which carries the image as it was read.

        Raises FileNotFoundError, ValueError: if a file is no 3-D image, or the two do not lie in one place.
        """
        fixed, warped = (load_image(source_in(data, key)) for key in ("fixed", "warped"))
        scaled = [scale_intensity(compared(volume)) for volume in (fixed, warped)]
        if len(fixed.grid.size) != 3 or len(warped.grid.size) != 3:
            raise ValueError(
                f"{fixed.path}: expected two images of one dimension, 3-D, got {fixed.file_shape} and "
                f"{warped.file_shape}"
            )
        canonical = canonical_grid(fixed.grid)
        grid = model_grid(canonical.affine, canonical.size, self.spacing)
        images = [
            resample(one, volume.affine, grid, antialias=True)
            for one, volume in zip(scaled, (fixed, warped), strict=True)
        ]
        if images[1].min() == images[1].max():
            raise ValueError(f"{warped.path}: nothing of it lies in {fixed.path}")
        ddf = (
            field_rows(read_displacement_field(str(data["field"])), grid, 0, grid.size[0])
            if data.get("field")
            else None
        )
        image, grid = network_input(images[0], images[1], ddf, grid, self.spacing)
        kept = {key: value for key, value in data.items() if key not in ("fixed", "warped", "field")}
        return {**kept, "image": image, "fixed_path": ScanPath(fixed), "grid_affine": torch.from_numpy(grid.affine)}


class ErrorMapd(Transform):
    """Turn the network's answer under `pred` into `error`, (1, *S) in mm on the fixed image's own grid, 0 outside the
    image's foreground; `measures` holds its median and 95 % quantile, and the path of the image."""

    def __call__(self, data: Data) -> Item:
        fixed, error = ScanPath.volume_of(data["fixed_path"]), torch.as_tensor(data["pred"]).detach().cpu().float()
        own = Grid(np.asarray(data["grid_affine"], dtype=np.float64), tuple(error.shape[1:]))
        there = rows_on_grid(error, own, fixed.grid, 0, fixed.grid.size[0])
        inside = foreground_mask({"fixed": scale_intensity(compared(fixed))[None]})[0]
        return {**data, "error": there * inside, "measures": {"fixed": str(fixed.path), **error_metrics(there, inside)}}


class SaveErrord(Transform):
    """Write `<name>_error_mm.nii.gz`. An item's `id` is the name; by default it is that of the fixed image's file.

    Args:
        output_dir: folder of the files; an earlier map of the same image is replaced, nothing else ever.
        maps: write them; without, nothing is written.
    """

    def __init__(self, output_dir: str, maps: bool = True) -> None:
        self.output_dir, self.maps = output_dir, maps

    def __call__(self, data: Data) -> Item:
        """Raises OSError: if the folder cannot be written to."""
        fixed = ScanPath.volume_of(data["fixed_path"])
        if not self.maps:
            return release(data)
        path = Path(self.output_dir) / f"{safe_name(str(data.get('id') or file_stem(fixed.path)))}_error_mm.nii.gz"
        with publishing(self.output_dir, f"error {path.stem}", {"image": fixed.origin}, add=True) as scratch:
            write_image(scratch / path.name, data["error"], fixed.affine, like=fixed)
        return {**release(data), "files": {"error": path}}
