"""Read a series of an angiography: DICOM with several frames, a stack, or a folder of frames."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...notices import warn
from ...space.readers import dicom_texts, existing, is_nibabel, read_itk_components, read_nibabel

INTENSITIES = ("auto", "linear", "log")
_RELATION, _INSTANCE, _PHOTOMETRY = "0028|1040", "0020|0013", "0028|0004"


@dataclass(frozen=True)
class Series:
    """A series as it was read.

    Attributes:
        frames: logarithms of intensities, (T, 1, H, W); contrast agent is darker.
        affine: of the stack (H, W, T), (4, 4), RAS mm along the first two axes.
        path: of the series.
    """

    frames: Tensor
    affine: np.ndarray
    path: str


def read_series(path: str | os.PathLike[str], intensities: str = "auto") -> Series:
    """Read a series.

    Args:
        path: a DICOM file of several frames, or another image of three axes, the last of which is time; or a folder of
            2-D images, one a frame, in the order of their DICOM instance numbers, or of their names, numbers by value.
        intensities: "linear" takes logarithms, "log" does not; "auto" asks a DICOM file, and takes others for linear.
    Raises:
        FileNotFoundError: if there is no such file or folder.
        ValueError: if it is no series of 2-D frames of one size, or one number everywhere, or `intensities` is another
            word.
        ImportError: if the format needs `itk` and it is not installed.
    """
    if intensities not in INTENSITIES:
        raise ValueError(f"expected intensities {', '.join(INTENSITIES)}, got {intensities!r}")
    path = existing(path)
    files = _frames_in(path) if os.path.isdir(path) else [path]
    parts, affine = [], np.eye(4)
    for file in files:
        array, affine = _read(file)
        parts.append(array)
    if len({part.shape[:2] for part in parts}) > 1:
        raise ValueError(f"{path}: expected frames of one size, got {sorted({part.shape[:2] for part in parts})}")
    stack = np.concatenate(parts, 2)
    if stack.shape[2] < 2:
        raise ValueError(f"{path}: expected a series of at least 2 frames, got an image of shape {stack.shape}")
    if not np.isfinite(stack).all():
        raise ValueError(f"{path}: the series has values that are not finite")
    if stack.min() == stack.max():
        raise ValueError(f"{path}: expected a series that shows something, got {stack.min():g} everywhere")
    frames = torch.from_numpy(np.ascontiguousarray(np.moveaxis(stack, 2, 0)[:, None], dtype=np.float32))
    return Series(_logarithms(frames, files[0], intensities), affine, path)


def _read(path: str) -> tuple[np.ndarray, np.ndarray]:
    """The frames (H, W, T) of a file, float, one channel, and the affine of its first three axes."""
    if is_nibabel(path):
        array, frame = read_nibabel(path)
        if array.dtype.names:  # colours
            array = np.stack([array[name] for name in array.dtype.names[:3]], -1).mean(-1)
    else:
        array, frame, d = read_itk_components(path)
        if array.ndim > d:  # colours
            array = array[..., : min(3, array.shape[-1])].mean(-1)
    array = np.asarray(array, dtype=np.float32)
    while array.ndim > 3 and 1 in array.shape[2:]:
        array = np.squeeze(array, 2 + array.shape[2:].index(1))
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or min(array.shape[:2]) < 2:
        raise ValueError(f"{path}: expected 2-D frames along a third axis, got shape {array.shape}")
    return array, frame.affine


def _frames_in(folder: str) -> list[str]:
    """The frames in a folder, in order."""
    files = [str(one) for one in Path(folder).iterdir() if one.is_file() and not one.name.startswith(".")]
    files = [one for one in files if Path(one).suffix.lower() not in (".json", ".txt", ".csv", ".xml", ".html")]
    if not files:
        raise ValueError(f"{folder}: expected a folder of frames, found no file there")
    numbers = {one: _instance(one) for one in files}
    if all(number is not None for number in numbers.values()):
        return sorted(files, key=lambda one: numbers[one] or 0)
    return sorted(files, key=_natural)


def _instance(path: str) -> int | None:
    """A DICOM file's instance number."""
    if Path(path).suffix.lower() not in ("", ".dcm", ".ima"):
        return None
    (text,) = dicom_texts(path, _INSTANCE)
    return int(text) if text.lstrip("-").isdecimal() else None


def _natural(path: str) -> list[tuple[int, str]]:
    """A name to sort by: frame_2 before frame_10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", Path(path).name) if part]


def _logarithms(frames: Tensor, path: str, intensities: str) -> Tensor:
    """Logarithms, in which contrast agent is darker, of frames as they were read."""
    relation, photometry = "", ""
    if Path(path).suffix.lower() in (".dcm", ".ima", ""):
        relation, photometry = dicom_texts(path, _RELATION, _PHOTOMETRY)
    if photometry == "MONOCHROME1":  # the larger the darker
        frames = frames.max() + frames.min() - frames
    if intensities == "auto":
        if relation not in ("", "LIN", "LOG", "DISP"):
            warn(f"{path}: its intensities are {relation}, which is not known; they are taken for linear")
        if relation == "DISP":
            warn(f"{path}: its intensities were changed for display: vessels may not cancel exactly")
        intensities = "log" if relation == "LOG" else "linear"
    if intensities == "log":
        span = frames.max() - frames.min()
        return frames / span if span > 0 else frames
    if frames.min() < 0:
        raise ValueError(
            f"{path}: linear intensities are at least 0, found {float(frames.min()):g}; --intensities log?"
        )
    largest = frames.max()
    least = 1.0 if largest > 64 else 1e-3 * float(largest.clamp(min=1e-12))
    return frames.clamp(min=least).log()
