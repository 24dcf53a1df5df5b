"""`morphzoo segment`: label maps of the brain's structures, and their volumes."""

from __future__ import annotations

from collections.abc import Sequence

from .heads import Heads, find_heads, finish


def segment(
    *images: str,
    output: str = "segmented",
    atlases: int = 8,
    bundle: str = "brain_extraction",
    weights: str | None = None,
    device: str | None = None,
    overlay: str | Sequence[str] = (),
) -> Heads:
    """Label the brain's structures in heads of any contrast: OUTPUT/<name>_labels.nii.gz on the image's own grid, and
    OUTPUT/volumes.csv in mL.

    Both sides of a structure are one label; the bundle's metadata name them. Eight label maps of people, rendered as
    T1-like heads, are registered to each image, and their labels are fused: about a minute and a half of one core.
    `--atlases 0` takes the labels of the bundle's network, in 5 s and much coarser. The volume of the brain is that of
    the network's mask, as of `strip`. An image that fails is a row with the reason; the others are done, and the
    command ends with an error.

    Args:
        *images: files, or folders whose images are all taken; a folder may be a DICOM series.
        output: folder for the results.
        atlases: how many people label each image, 1 to 8; more are better and slower. 0: the network does.
        bundle: name of a bundle that segments, or its folder.
        weights: another checkpoint; default: the bundle's own.
        device: "cpu", "cuda:0", ...; default: the GPU if there is one.
        overlay: further config files, the last one wins.
    Examples:
        `morphzoo segment t1.nii.gz -o segmented`
    Returns:
        For each image its files, measures and warnings.
    Raises:
        RuntimeError: after the others are done, if an image failed.
    """
    settings = {"weights": weights, "device": device}
    return finish(
        find_heads(images, output, ("labels",), settings, bundle=bundle, overlay=overlay, atlases=atlases), output
    )
