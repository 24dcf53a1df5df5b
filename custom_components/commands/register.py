"""`morphzoo register`: register one image to another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from .bundles import DEFAULT_BUNDLE
from .registrar import Registrar

if TYPE_CHECKING:
    from ..evaluation.result import Registration
    from ..space.memory_images import Image


def register(
    moving: str | Image,
    fixed: str | Image,
    output: str | None = None,
    *,
    bundle: str = DEFAULT_BUNDLE,
    quality: Literal["fast"] | Literal["default"] | Literal["best"] | None = None,
    optimize: int | Literal["auto"] | None = None,
    affine: str | bool | None = None,
    stages: Sequence[str] | None = None,
    label_moving: str | Image | None = None,
    label_fixed: str | Image | None = None,
    mask_moving: str | Image | None = None,
    mask_fixed: str | Image | None = None,
    channel_weights: Sequence[float] | None = None,
    landmarks_moving: str | None = None,
    landmarks_fixed: str | None = None,
    landmark_weight: float | None = None,
    guide_moving: str | Image | None = None,
    guide_fixed: str | Image | None = None,
    guide_weight: float | None = None,
    id: str | None = None,
    spacing: float | None = None,
    samples: int | None = None,
    hyper: float | Sequence[float] | str | None = None,
    sweep: int | None = None,
    weights: str | None = None,
    device: str | None = None,
    overlay: str | Sequence[str] = (),
    window: Sequence[float] | None = None,
    fill: float | None = None,
    write_as: Sequence[str] | None = None,
    error_map: bool = False,
    **settings: object,
) -> Registration:
    """Register one image to another with a bundle's network.

    The command saves everything under OUTPUT/<fixed>__<moving>. In Python nothing is written without `output`; images
    may also be nibabel's, ITK's, a MetaTensor (C, *S), or (array, affine) with the affine to RAS mm.

    Args:
        moving: image that is deformed (NIfTI or MGZ; NRRD, MHA, a folder with a DICOM series and others with `itk`).
            Several channels of one person, t1.nii.gz,t2.nii.gz (in Python a list), are resampled to the first's grid.
        fixed: image whose space the result lives in, with as many channels.
        output: folder for the results; default of the command: registered.
        bundle: name of a bundle, or its folder.
        optimize: iterations of pairwise refinement after the network, 0 for none, or "auto" for as many as bring the
            images closer; default: the bundle's.
        quality: "fast" refines a little, "default" as the bundle does, "best" takes more iterations, which takes twice
            as long or more.
        affine: what aligns first: "itk"; "torch" (or --affine alone), which takes a third of the time; "learned", a
            network; "search" or "agent", rigid ones (experimental); "none", which trusts the headers; or the path of
            an affine transform file. Default: the bundle's, for synthmorph "itk".
        stages: what is done: names out of translation, rigid, similarity, affine and deformable. "rigid" or "affine"
            alone deforms nothing and needs no network; default: affine,deformable.
        label_moving, label_fixed: label maps, warped along and compared.
        mask_moving, mask_fixed: where the images count during alignment and refinement.
        channel_weights: how much each channel counts in the refinement, for instance 1,0.5; default: all the same.
        landmarks_moving, landmarks_fixed: points that correspond, whose distance is measured before and after: CSV or
            TSV with x, y, z (mm, RAS) or i, j, k (voxels), Slicer's fcsv or mrk.json, row by row; or label maps.
        landmark_weight: let the refinement also bring the landmarks together: what a millimetre of their mean distance
            weighs against 1 - LNCC, for instance 0.01; a few points need more, as 0.3.
        guide_moving, guide_fixed: label maps with common ids, which the refinement brings together, too. They are not
            measured.
        guide_weight: what 1 - the mean Dice of the guiding label maps weighs against 1 - LNCC; default: 1.
        id: name of the result; default: <fixed>__<moving>.
        spacing: of the model grid, mm; default: the bundle's, for which its weights were trained.
        samples: of a probabilistic bundle: number of deformations to draw. They are written with maps of their standard
            deviation and of the warped labels' entropy; `--seed` draws others.
        hyper: of a bundle with hyper-parameters: the smoothness, from 0 (best match at any cost) to 1 (no motion), or
            "auto" to choose it for the pair.
        sweep: of such a bundle: also try this many values from 0 to 1 (of its first hyper-parameter), without
            refinement, and write a 4-D image, a table and a picture.
        weights: another checkpoint; default: the bundle's own.
        device: "cpu", "cuda:0", ...; default: the GPU if there is one.
        overlay: further config files, the last one wins.
        window: lowest and highest intensity that is compared, in both images, for instance -160,240 for soft tissue of
            a CT; default: all, but of a CT no air.
        fill: value of the warped image outside the moving image; default: what most voxels on its faces hold, air of a
            CT.
        write_as: write the transforms for other tools, too: ants, fsl, freesurfer, x5, ... (docs/transforms.md).
        error_map: also estimate the error at each voxel by a network: error_mm.nii.gz, in mm, its median and 95 %
            quantile among the measures, and a warning if it is large. 3-D, brains.
        **settings: any other setting of the bundle's inference.json, for instance --smoothness 2, a factor of the
            refinement's regularisation, --similarity mind, --robust for lesions that only one image shows, --page
            volumes for a viewer of them in report.html, or --label_names FILE for names of labels there: CSV (id,name)
            or TSV as BIDS has it (index, name).
    Examples:
        `morphzoo register moving.nii.gz fixed.nii.gz -o out`
        `morphzoo register moving.nii.gz fixed.nii.gz -o out --quality fast --label_moving seg.nii.gz`
    Returns:
        The warped images, the transforms, the measures, and the paths of the files if there are some.
    """
    settings |= {"quality": quality, "optimize": optimize, "affine": affine, "spacing": spacing, "samples": samples}
    settings |= {"hyper": hyper, "sweep": sweep, "weights": weights, "device": device, "window": window, "fill": fill}
    settings |= {"write_as": write_as, "landmark_weight": landmark_weight, "guide_weight": guide_weight}
    settings |= {"stages": stages, "error_map": error_map or None}
    registrar = Registrar(bundle, overlay=overlay, **settings)
    images = {"label_moving": label_moving, "label_fixed": label_fixed, "mask_moving": mask_moving}
    images |= {"mask_fixed": mask_fixed, "guide_moving": guide_moving, "guide_fixed": guide_fixed}
    more: dict[str, object] = {"landmarks_moving": landmarks_moving, "landmarks_fixed": landmarks_fixed}
    more |= {"channel_weights": channel_weights}
    return registrar(moving, fixed, output, id=id, **images, **more)  # type: ignore[arg-type]
