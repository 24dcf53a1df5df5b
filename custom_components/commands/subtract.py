"""`morphzoo subtract`: vessels of an angiography without the motion of all else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..checks import check_number, check_switch
from .bundles import find_bundle
from .settings import device_named
from .workflow import results_in, words_of

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class Subtraction:
    """What became of a series: the folder, the paths of the files by kind, and the measures."""

    folder: Path
    files: Mapping[str, Path]
    metrics: Mapping[str, object]

    def __str__(self) -> str:
        before, after = (self.metrics[f"background_to_noise_{stage}"] for stage in ("before", "after"))
        return f"background {before:.2f} -> {after:.2f} times the noise; results in {self.folder}"


def subtract(
    series: str,
    output: str = "subtracted",
    *,
    mask_frames: int = 3,
    mask: int | Sequence[int] | None = None,
    intensities: str = "auto",
    smoothness: float = 1.0,
    temporal: float = 0.02,
    spacing: float = 16.0,
    network: bool = False,
    optimize: int = 30,
    weights: str | None = None,
    device: str = "cpu",
) -> Subtraction:
    """Subtract the mask from each frame of an angiography, moved to the frame by a deformable registration.

    OUTPUT gets subtraction.nii.gz (attenuation of the contrast agent, one frame after another along the third axis),
    before_after.gif, field.nii.gz (pixels, from each frame to the mask) and metrics.json. Frames and vessels are never
    resampled: the mask is.

    Args:
        series: DICOM file of several frames, NIfTI or other image whose third axis is time, or a folder of frames.
        output: folder for the results.
        mask_frames: the mask is the mean of so many first frames, which are moved to the first of them.
        mask: frames for it in place of the first ones, by their numbers from 0 on, for instance 2,3; no file.
        intensities: "linear" or "log"; "auto" asks the DICOM file, and takes other formats for linear.
        smoothness: of the motion in space; larger is smoother.
        temporal: of the motion in time; sudden steps cost no more than slow ones.
        spacing: distance between the control points of the motion, in pixels of an image of 256.
        network: start from the motion that the bundle `subtraction`'s network gives, instead of from none.
        optimize: iterations that improve the network's motion; 0 takes it as it is.
        weights: of the network, other than the bundle's.
        device: "cpu", "cuda:0", ...
    Examples:
        `morphzoo subtract series.dcm -o subtracted`
        `morphzoo subtract series.dcm -o subtracted --network`
    Returns:
        The files and measures.
    Raises:
        FileNotFoundError: if there is no such series, or no such weights.
        ValueError: if it is none, or a setting is impossible.
    """
    from ..methods.subtraction.correction import correct
    from ..methods.subtraction.files import write_correction
    from ..methods.subtraction.objective import SubtractionLoss
    from ..methods.subtraction.series import read_series
    from ..notices import collecting

    check_number("mask_frames", mask_frames, least=1, whole=True)
    loss, place = SubtractionLoss(smoothness, temporal), device_named(device)
    motion, iterations = motion_start(network, optimize, weights, place)
    with collecting() as warnings:
        found = read_series(series, intensities)
        frames = range(min(int(mask_frames), len(found.frames))) if mask is None else numbers(mask)
        with results_in(output, []):
            logs = found.frames.to(place)
            corrected = correct(
                logs, list(frames), spacing=spacing, loss=loss, iterations=iterations, network=motion, progress=True
            )
            files, metrics = write_correction(Path(output), found, corrected, list(frames), warnings)
    return Subtraction(Path(output), files, metrics)


def motion_start(
    network: bool, optimize: int, weights: str | None, device: torch.device
) -> tuple[nn.Module | None, Sequence[int]]:
    """The network from whose motion a search starts, or None, and the iterations of its stages.

    Raises:
        ValueError: for weights without a network, or those of another one.
    """
    from ..methods.subtraction.correction import ITERATIONS
    from ..methods.subtraction.network import MotionNetwork
    from ..weights import load_weights

    check_switch("network", network)
    check_number("optimize", optimize, least=0, whole=True)
    if not network:
        if weights is not None:
            raise ValueError("--weights are those of a network: give --network, too")
        return None, ITERATIONS
    motion = MotionNetwork()
    path = weights or find_bundle("subtraction") / "models" / "model.pt"
    load_weights(motion, path, "motion", {"spatial_dims": 2})
    return motion.to(device).eval(), [optimize] if optimize else []


def numbers(given: int | str | Sequence[int]) -> list[int]:
    """Whole numbers of a setting. Raises ValueError: if they are none."""
    parts = [str(given)] if isinstance(given, int) else words_of(given)  # type: ignore[arg-type]
    if not all(part.strip().isdecimal() for part in parts):
        raise ValueError(f"--mask: expected numbers of frames from 0 on, got {given!r}")
    return [int(part) for part in parts]
