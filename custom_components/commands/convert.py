"""`morphzoo convert`: write a transform as another tool keeps it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .workflow import as_list


@dataclass(frozen=True)
class Converted:
    """A transform that was written as another tool keeps it: its path, or ANTs' prefix, and the dialect."""

    path: Path
    dialect: str

    def __str__(self) -> str:
        return f"wrote {self.path} ({self.dialect})"


def convert(
    transform: str | Sequence[str],
    output: str,
    *,
    moving: str | None = None,
    fixed: str | None = None,
    dialect: str | None = None,
    source_dialect: str | None = None,
    invert: bool = False,
) -> Converted:
    """Write a transform in the dialect of another tool.

    Written and read are ITK's .tfm, .txt, .h5, .mat and NIfTI fields; ANTs' <prefix>1Warp.nii.gz and
    <prefix>0GenericAffine.mat; FSL's .mat and warps; FreeSurfer's .lta and .mgz warps; AFNI's .aff12.1D; BIDS's .x5.
    docs/transforms.md lists them.

    Args:
        transform: file, or prefix of ANTs' pair; several, separated by commas, become one transform: points of the
            fixed image go through them in the order given.
        output: file to write; with the dialect ants a prefix.
        moving, fixed: the registered images. FSL, FreeSurfer and AFNI need both; a dense field of a whole transform is
            sampled on the fixed one.
        dialect: itk, ants, fsl, freesurfer, afni or x5; default: as the output's ending says.
        source_dialect: of the transform; default: as its content says.
        invert: write the way back, from moving to fixed; fields are inverted numerically. --moving and --fixed are
            still the images of the transform that was given.
    Examples:
        `morphzoo convert out/fixed__moving/transform.h5 warp --dialect ants --fixed fixed.nii.gz`
    Returns:
        What was written.
    """
    from ..space.dialects import Frames, dialect_for, read_chain, write_transform
    from ..space.transform import Transform

    frames = Frames.of_files(fixed, moving)
    steps = read_chain(as_list(transform), frames, dialect=source_dialect)
    if invert:
        steps, frames = list(Transform(tuple(steps)).inverse().steps), frames.swapped()
    write_transform(output, steps, frames, dialect=dialect)
    return Converted(Path(output), dialect or dialect_for(output).name)
