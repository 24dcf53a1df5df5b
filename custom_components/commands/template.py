"""`morphzoo template`: the average anatomy of a group."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .bundles import DEFAULT_BUNDLE, overlay_path
from .heads import images_in
from .optimize import training_free
from .registrar import Registrar
from .workflow import as_list, check_settings, words_of

if TYPE_CHECKING:
    from ..cohorts.plan import TemplateResult
    from ..cohorts.subjects import Subject


def template(
    scans: str,
    output: str = "template",
    *,
    bundle: str = DEFAULT_BUNDLE,
    model: str | None = None,
    section: str = "training",
    dataset_dir: str | None = None,
    contrasts: Sequence[str] = (),
    contrast_weights: Sequence[float] | None = None,
    affine: str = "torch",
    affine_rounds: int = 2,
    rounds: int = 4,
    average: str = "mean",
    sharpen: float = 0.0,
    symmetric: bool = False,
    resolution: float | None = None,
    initial: Sequence[str] = (),
    jobs: int = 1,
    scheduler: str | None = None,
    label_names: str | None = None,
    overlay: str | Sequence[str] = (),
    **settings: object,
) -> TemplateResult:
    """Make the template of a group: OUTPUT/template.nii.gz, and each person's transforms to and from it.

    In each round all are registered to the template; their average takes its place, in the middle of them. With label
    maps there are also the most frequent labels and each label's share. A person who fails is left out, and the
    command then ends with an error. A second call, also after a run that was killed, does only what is missing.

    Args:
        scans: a data list of scans (data_lists/README.md), or a folder of images, one for each person.
        output: folder for the results.
        bundle: what registers the deformable rounds: name of a bundle, or its folder.
        model: register without a network: "svf", "lddmm", "vsvf", "ddf", "bspline", "demons" or "flow", as
            `optimize`.
        section: of the list.
        dataset_dir: folder to which the list's paths are relative; default: the list's folder.
        contrasts: keys of the list with further images of each person, aligned with the first.
        contrast_weights: how much each contrast counts in the registration, the first one first.
        affine: what aligns people first: "torch", "itk", or "none" if their headers do.
        affine_rounds, rounds: averages after affine maps, and then after deformations.
        average: "mean", or "median", which a few that fit badly do not blur.
        sharpen: share of the average that is sharpened after each round, from 0 to 1; 0.1 does little.
        symmetric: let left and right be mirror images.
        resolution: voxel size of the template, mm; default: that of the first scan.
        initial: file of the image that is the first template, and whose grid is kept (one for each contrast);
            default: the first scan, or with --affine none the mean of all.
        jobs: processes, each of one thread.
        scheduler: a Dask scheduler whose workers do it instead, tcp://HOST:PORT or its file (docs/cohort.md).
        label_names: table of the labels' names, CSV (id,name) or TSV as BIDS has it (index, name), for
            volumes.csv; default: labels.csv or dseg.tsv beside the list.
        overlay: further config files, the last one wins.
        **settings: any setting of the bundle's inference.json, for instance --optimize 25, --smoothness 2.
    Examples:
        `morphzoo template list.json -o template --jobs 4`
    Returns:
        The rounds, and how well each person fits.
    Raises:
        RuntimeError: at the end, if a person failed.
    """
    from ..cohorts.plan import Plan
    from ..cohorts.template import TemplateBuilder
    from ..data.label_names import find_label_names
    from ..space.volumes import spatial_dims_of
    from ..tasks import Workers
    from ..transforms.requests import request_of

    keys = words_of(contrasts)
    names = find_label_names(label_names, scans).names
    people = _people(scans, output, section, dataset_dir, keys)
    plan = Plan(affine, affine_rounds, rounds, average, sharpen, symmetric, resolution, tuple(as_list(initial)))
    overlays = [*(training_free(model) if model else []), *as_list(overlay), overlay_path("fields_only")]
    register = Registrar(bundle, overlay=overlays, **settings)
    dims = spatial_dims_of(people[0].images[0])
    request = request_of({}, register.bundle, *check_settings(register.bundle, overlays, settings, dims))
    weights = None if contrast_weights is None else tuple(contrast_weights)
    workers = Workers(jobs, scheduler)
    return TemplateBuilder(people, register, Path(output), plan, keys, weights, request, workers).run(names)


def _people(scans: str, output: str, section: str, dataset_dir: str | None, contrasts: list[str]) -> list[Subject]:
    """Those of a data list, or of a folder of images."""
    from ..cohorts.subjects import in_files, listed

    if not os.path.isdir(scans):
        return listed(scans, section, dataset_dir, contrasts)
    if contrasts:
        raise ValueError("--contrasts are keys of a data list, and this is a folder")
    return in_files(images_in([scans], output))
