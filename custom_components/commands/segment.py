"""`morphzoo segment`: label maps of the brain's structures, and their volumes."""

from __future__ import annotations

from collections.abc import Sequence

from .heads import Heads, find_heads, finish


def segment(
    *images: str,
    output: str = "segmented",
    bundle: str = "brain_extraction",
    weights: str | None = None,
    device: str | None = None,
    overlay: str | Sequence[str] = (),
) -> Heads:
    """Label the brain's structures in heads of any contrast: OUTPUT/<name>_labels.nii.gz on the image's own grid, and
    OUTPUT/volumes.csv in mL.

    Both sides of a structure are one label; the bundle's metadata name them. An image that fails is a row with the
    reason; the others are done, and the command ends with an error.

    Args:
        *images: files, or folders whose images are all taken; a folder may be a DICOM series.
        output: folder for the results.
        bundle: name of a bundle that segments, or its folder.
        weights: other weights than the bundle's.
        device: cpu or cuda:0, ...
        overlay: further config files, the last one wins.
    Returns:
        For each image its files, measures and warnings.
    Raises:
        RuntimeError: after the others are done, if an image failed.
    """
    settings = {"weights": weights, "device": device}
    return finish(find_heads(images, output, ("labels",), settings, bundle=bundle, overlay=overlay), output)
