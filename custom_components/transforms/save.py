"""The images and transforms of a registered pair."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from ..notices import warn
from ..space.dialects import Frames, dialect_files, dialect_named
from ..space.dialects.itk import write_affine_transform, write_composite_transform
from ..space.grids import Grid
from ..space.resampling import Step
from ..space.volumes import Volume
from ..space.warping import warp_to_grid
from .publish import OutputFile, Report, field_file, image_file
from .registered import RegisteredPair

logger = logging.getLogger(__name__)

_MORE_OUTPUTS = ("warped_fixed", "warped_fixed_label", "log_jacobian")

_SMALLEST = 1e-3  # determinant whose logarithm is written

_OUTPUTS = ("warped", "warped_label", "forward", "inverse", "affine", "composite", "jacobian")


class PairFiles:
    """A reporter: the original moving image on the fixed image's own grid, and transforms.

    What needs the inverse map is there if the prediction holds `inverse_ddf`. Files, by the names in `write`:

        warped: warped.nii.gz, float32, one interpolation of the original.
        warped_label: warped_label.nii.gz, in the label file's type, if there is a moving label map.
        warped_fixed: warped_fixed.nii.gz, the fixed image on the moving image's grid.
        warped_fixed_label: warped_fixed_label.nii.gz, the fixed label map there, if there is one.
        forward, inverse: forward_field.nii.gz, inverse_field.nii.gz, the dense part alone, on the model grid and, where
            it moves there, beyond it, until it has faded to nothing.
        affine: affine.tfm, if there was a pre-alignment, or the slices of a 2-D pair lie apart.
        composite: transform.h5, inverse_transform.h5, dense and affine in one file; without `itk` there is none, and
            the log says so. Forward resamples the moving image onto the fixed one, inverse the other way round.
        jacobian: jacobian.nii.gz, determinant of the whole transform, affine and dense, on the fixed image's grid; that
            of the dense part is interpolated from the model grid.
        log_jacobian: log_jacobian.nii.gz, its natural logarithm; of determinants below .001, as of folds, that of .001.

    Args:
        label_mode: "nearest", or "linear" to interpolate each label and take the most likely.
        write_as: dialects in which both composites are written, too: transform_fsl.nii.gz, inverse_transform_fsl.nii.gz
            and so on (see `space.dialects`). What cannot hold the transform is left out with a warning.
    Returns (of the call): the files by the names above (transform and inverse_transform for composite).
    Raises:
        ValueError: for an output, mode or dialect that there is not, or a dialect whose package is not installed.
    """

    def __init__(
        self, write: Sequence[str] = _OUTPUTS, *, label_mode: str = "nearest", write_as: Sequence[str] | str = ()
    ) -> None:
        unknown = set(write) - {*_OUTPUTS, *_MORE_OUTPUTS}
        if unknown or label_mode not in ("nearest", "linear"):
            raise ValueError(
                f"expected outputs among {_OUTPUTS + _MORE_OUTPUTS} and label_mode nearest or linear, "
                f"got {list(write)} and {label_mode!r}"
            )
        if "composite" in write and importlib.util.find_spec("itk") is None:
            logger.warning("no composite transforms are written: itk is not installed (pip install 'morphzoo[demo]')")
            write = [name for name in write if name != "composite"]
        self.write, self.label_mode = tuple(write), label_mode
        self.dialects = [dialect_named(name) for name in ([write_as] if isinstance(write_as, str) else write_as)]
        for dialect in self.dialects:
            if dialect.needs is not None and importlib.util.find_spec(dialect.needs) is None:
                raise ValueError(f"--write_as {dialect.name} needs the package {dialect.needs}, which is not installed")

    def __call__(self, pair: RegisteredPair, earlier: Report) -> Report:
        return Report(files=self._images(pair) | self._transforms(pair))

    def _images(self, pair: RegisteredPair) -> dict[str, OutputFile]:
        files = {}
        there = ("", "moving", "fixed", pair.forward)
        back = ("_fixed", "fixed", "moving", pair.inverse)
        for suffix, source, target, steps in (there, back):
            like = pair.volumes[target]
            name = f"warped{suffix}"
            if name in self.write and steps:
                warped = pair.warped(source, target, steps)
                files[name] = image_file(f"{name}.nii.gz", warped, like.affine, like=like)
            labels, name = pair.volumes.get(f"label_{source}"), f"warped{suffix}_label"
            if name in self.write and labels and steps:
                warped = warp_labels(labels, like.grid, steps, mode=self.label_mode)
                files[name] = image_file(f"{name}.nii.gz", warped, like.affine, like=like, dtype=labels.file_dtype)
        return files | self._jacobians(pair)

    def _jacobians(self, pair: RegisteredPair) -> dict[str, OutputFile]:
        wanted = [name for name in ("jacobian", "log_jacobian") if name in self.write]
        if not wanted:
            return {}
        fixed = pair.volumes["fixed"]
        matrices = [step for step in pair.forward if isinstance(step, np.ndarray)]
        determinant = pair.written.determinant * float(np.prod([np.linalg.det(matrix) for matrix in matrices]))
        images = {"jacobian": determinant, "log_jacobian": determinant.clamp_min(_SMALLEST).log()}
        return {name: image_file(f"{name}.nii.gz", images[name], fixed.affine, like=fixed) for name in wanted}

    def _transforms(self, pair: RegisteredPair) -> dict[str, OutputFile]:
        files = {}
        matrices = [step for step in pair.in_files(pair.forward) if isinstance(step, np.ndarray)]
        if "affine" in self.write and matrices:
            files["affine"] = OutputFile("affine.tfm", partial(_write_affine, matrices[0]))
        forward = ("forward", "ddf", "transform", pair.forward)
        inverse = ("inverse", "inverse_ddf", "inverse_transform", pair.inverse)
        for name, key, composite, steps in (forward, inverse):
            if name in self.write and steps:
                files[name] = field_file(f"{name}_field.nii.gz", pair.pred[key], pair)
            if "composite" in self.write and steps:
                write = partial(_write_composite, pair.transforms[composite].steps)
                files[composite] = OutputFile(f"{composite}.h5", write)
            files |= self._in_dialects(pair, composite) if steps else {}
        return files

    def _in_dialects(self, pair: RegisteredPair, stem: str) -> dict[str, OutputFile]:
        moving = pair.volumes["moving"]
        frames = Frames(pair.volumes["fixed"], moving.whole or moving)  # of the files, also where a slice was cut
        frames = frames.swapped() if stem.startswith("inverse") else frames
        files: dict[str, OutputFile] = {}
        for dialect in self.dialects:
            try:
                parts = dialect_files(dialect.name, stem, pair.transforms[stem].steps, frames)
            except ValueError as error:
                warn(f"{stem}: {error}; not written")
                continue
            files |= {name.partition(".")[0]: OutputFile(name, write) for name, write in parts.items()}
        return files


def warp_labels(labels: Volume, grid: Grid, steps: Sequence[Step], *, mode: str = "nearest") -> Tensor:
    """A label map looked up on a grid, shape (1, *grid.size), by nearest neighbour or by the most likely label."""
    mode = "label" if mode == "linear" else mode
    return warp_to_grid(labels.data, labels.affine, grid, steps, mode=mode)


def _write_affine(matrix: np.ndarray, path: Path) -> None:
    write_affine_transform(path, matrix)


def _write_composite(steps: Sequence[Step], path: Path) -> None:
    write_composite_transform(path, steps)
