"""`morphzoo strip`: brain masks, and images without what lies outside the brain."""

from __future__ import annotations

from collections.abc import Sequence

from .heads import Heads, find_heads, finish


def strip(
    *images: str,
    output: str = "stripped",
    border: float = 0.0,
    threshold: float = 0.6,
    bundle: str = "brain_extraction",
    weights: str | None = None,
    device: str | None = None,
    overlay: str | Sequence[str] = (),
) -> Heads:
    """Find the brain in heads of any contrast: OUTPUT/<name>_mask.nii.gz and <name>_stripped.nii.gz, each on the
    image's own grid.

    OUTPUT/volumes.csv has the volumes in mL, warnings, and why an image failed; the others are done, and the command
    ends with an error.

    Args:
        *images: files, or folders whose images are all taken; a folder may be a DICOM series.
        output: folder for the results.
        border: mm around the brain that are kept, too; negative: that are taken away.
        threshold: probability of brain from which a voxel is in the mask; lower keeps more.
        bundle: name of a bundle that segments, or its folder.
        weights: another checkpoint; default: the bundle's own.
        device: "cpu", "cuda:0", ...; default: the GPU if there is one.
        overlay: further config files, the last one wins.
    Examples:
        `morphzoo strip t1.nii.gz scans/ -o stripped`
    Returns:
        For each image its files, measures and warnings.
    Raises:
        RuntimeError: after the others are done, if an image failed.
    """
    settings = {"border": border, "threshold": threshold, "weights": weights, "device": device}
    kinds = ("mask", "stripped")
    return finish(find_heads(images, output, kinds, settings, bundle=bundle, overlay=overlay), output)
