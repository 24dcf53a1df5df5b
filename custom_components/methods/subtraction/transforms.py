"""Dictionary transforms and the inferer of the bundle: a series to its motion, and to the files of its subtraction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from monai.inferers import Inferer
from monai.transforms import Transform
from torch import Tensor, nn

from ...data.names import file_stem, safe_name
from ...fields import plain
from ...vocabulary import Data, Item
from .correction import correct, subtracted
from .files import write_correction
from .measures import series_metrics
from .objective import SubtractionLoss
from .series import Series, read_series


class LoadSeriesd(Transform):
    """Load the series under `image`, a path, as logarithms of intensities (T, 1, H, W); adds `series_path`, `affine`.

    Args:
        intensities: see `read_series`.
    """

    def __init__(self, intensities: str = "auto") -> None:
        self.intensities = intensities

    def __call__(self, data: Data) -> Item:
        """Raises FileNotFoundError, ValueError: as `read_series`."""
        found = read_series(str(data["image"]), self.intensities)
        return {
            **data,
            "image": found.frames,
            "series_path": found.path,
            "affine": torch.from_numpy(np.asarray(found.affine)),
        }


class SubtractionInferer(Inferer):
    """The motion of series (B, T, 1, H, W) and the mask that moves, (B, T, 3, H, W): two channels of motion, pixels,
    and the mask.

    Args:
        mask_frames: the mask is the mean of so many first frames.
        optimize: iterations after the network; 0 takes its motion as it is.
        smoothness, temporal: see `SubtractionLoss`.
    """

    def __init__(
        self, mask_frames: int = 3, optimize: int = 30, smoothness: float = 1.0, temporal: float = 0.02
    ) -> None:
        super().__init__()
        self.mask_frames, self.optimize = mask_frames, optimize
        self.smoothness, self.temporal = smoothness, temporal

    def __call__(self, inputs: Tensor, network: nn.Module, *args: object, **kwargs: object) -> Tensor:
        answers = []
        for series in plain(inputs):
            found = correct(
                series,
                frames_of_mask(self.mask_frames, len(series)),
                loss=SubtractionLoss(self.smoothness, self.temporal),
                network=network,
                iterations=[self.optimize] if self.optimize else [],
            )
            answers.append(torch.cat([found.ddf, found.mask.expand_as(series)], 1))
        return torch.stack(answers)


class Subtractd(Transform):
    """Turn the answer under `pred` into `correction`, the series before and after; `measures` has the path beside what
    `series_metrics` measures.

    Args:
        mask_frames: as of the inferer.
    """

    def __init__(self, mask_frames: int = 3) -> None:
        self.mask_frames = mask_frames

    def __call__(self, data: Data) -> Item:
        series, answer = (plain(data[key]).detach().cpu().float() for key in ("image", "pred"))
        frames = frames_of_mask(self.mask_frames, len(series))
        found = subtracted(series, answer[:1, 2:], answer[:, :2], frames)
        return {**data, "correction": found, "measures": {"series": data["series_path"], **series_metrics(found)}}


class SaveSubtractiond(Transform):
    """Write the files of `write_correction` into a folder of the item's `id`, by default the name of the series' file.

    Args:
        output_dir: where the folders are.
        files: write them; without, nothing is written.
    """

    def __init__(self, output_dir: str, files: bool = True) -> None:
        self.output_dir, self.files = output_dir, files

    def __call__(self, data: Data) -> Item:
        """Raises OSError: if the folder cannot be written to."""
        path, found = str(data["series_path"]), data["correction"]
        if not self.files:
            return {"series_path": path, "files": {}, "measures": data["measures"]}
        folder = Path(self.output_dir) / safe_name(str(data.get("id") or file_stem(path)))
        series = Series(plain(data["image"]).cpu().float(), np.asarray(data["affine"]), path)
        files, _ = write_correction(folder, series, found, found.mask_frames)
        return {"series_path": path, "files": files, "measures": data["measures"]}


def frames_of_mask(number: int, frames: int) -> Sequence[int]:
    """The first frames, so many, or all if there are fewer."""
    return range(min(number, frames))
