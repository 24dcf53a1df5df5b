"""Write what became of a series."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from ...files import write_metrics
from ...results import publishing
from ...space.files import write_voxels
from ...vocabulary import Metrics
from .correction import Correction
from .measures import series_metrics
from .pictures import write_animation
from .series import Series

logger = logging.getLogger(__name__)

_NAMES = {
    "subtraction": "subtraction.nii.gz",
    "field": "field.nii.gz",
    "animation": "before_after.gif",
    "metrics": "metrics.json",
}


def write_correction(
    folder: Path, series: Series, found: Correction, mask_frames: Sequence[int], warnings: Sequence[str] = ()
) -> tuple[dict[str, Path], Metrics]:
    """Write the files of a corrected series; what an earlier run wrote of the same series is replaced.

    Returns:
        Their paths by kind, and the measures. Without Pillow there is no animation, and the log says so.
    Raises:
        OSError: if the folder cannot be written to, or has the result of another series.
    """
    metrics: Metrics = {"series": series.path, "frames": len(series.frames), "mask_frames": list(mask_frames)}
    metrics = {**metrics, **series_metrics(found), "warnings": list(warnings)}
    with publishing(folder, "subtraction", {"series": series.path}) as scratch:
        after = torch.movedim(found.after[:, 0], 0, 2).cpu().numpy()
        write_voxels(scratch / _NAMES["subtraction"], after, series.affine)
        field = found.ddf.permute(2, 3, 0, 1).cpu().numpy()
        write_voxels(scratch / _NAMES["field"], field, series.affine)
        if importlib.util.find_spec("PIL") is None:
            logger.warning("no animation is drawn: Pillow is not installed")
        else:
            write_animation(scratch / _NAMES["animation"], series.frames.to(found.after), found)
        write_metrics(scratch / _NAMES["metrics"], metrics)
    return {kind: folder / name for kind, name in _NAMES.items() if (folder / name).is_file()}, metrics
