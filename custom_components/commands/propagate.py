"""`morphzoo propagate`: the labels of atlases on the scans of a list, and their volumes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..vocabulary import Entry
from .bundles import DEFAULT_BUNDLE, find_bundle, overlay_path
from .listed import run_list
from .loaded import Registering
from .origin import origin_of
from .workflow import as_list, check_files, check_settings, check_takes_pairs, spatial_dims

if TYPE_CHECKING:
    from ..evaluation.cohort import Cohort


def propagate(
    *atlases: str,
    to: str,
    output: str = "propagated",
    fusion: Literal["best"] | Literal["majority"] | Literal["local"] | Literal["joint"] | Literal["staple"] = "joint",
    bundle: str = DEFAULT_BUNDLE,
    section: str = "validation",
    dataset_dir: str | None = None,
    again: bool = False,
    jobs: int = 1,
    scheduler: str | None = None,
    label_names: str | None = None,
    overlay: str | Sequence[str] = (),
    **settings: object,
) -> Cohort:
    """Bring the labels of one or several atlases to each scan of a list, and measure volumes.

    Each atlas is registered to each scan, and what they propose is fused where they differ. OUTPUT/<id>/labels.nii.gz
    is on the scan's own grid; OUTPUT/volumes.csv has a row for each scan and label: mL, mL in the atlases' size
    (through the affine part), intracranial mL if the scan has a mask, and Dice if it has a label map. A scan that fails
    is a row of metrics.csv with the reason; the others are done, and the command ends with an error. A second call does
    only what is missing or has changed.

    Args:
        *atlases: each IMAGE,LABELS, or a data list whose scans have labels (its section training). An atlas is not
            taken for its own image.
        to: a data list with scans, or one image.
        output: folder for the results.
        fusion: "joint" and "local" weigh atlases by how like the scan they are about each voxel, "joint" also by how
            they err together; "majority" counts; "best" takes the atlas that is most like the scan; "staple" weighs
            them by how well they agree with all.
        bundle: name of a bundle that registers pairs, or its folder.
        section: of the list of scans.
        dataset_dir: folder to which that list's paths are relative; default: the list's folder.
        again: do all scans again.
        jobs: processes, each of one thread; 1 uses all threads for one scan after the other.
        scheduler: a Dask scheduler whose workers do the scans instead, tcp://HOST:PORT or its file (docs/cohort.md).
        label_names: table of the labels' names, CSV (id,name) or TSV as BIDS has it (index, name), for pages and
            tables; default: labels.csv or dseg.tsv beside the atlases' list, else beside the scans'.
        overlay: further config files, the last one wins.
        **settings: any setting of the bundle's inference.json, as of `register`.
    Examples:
        `morphzoo propagate atlas.nii.gz,labels.nii.gz --to list.json -o propagated`
    Returns:
        The result of each scan.
    Raises:
        ValueError: if there are no atlases.
        RuntimeError: after the others are done, if a scan failed.
    """
    from ..cohorts.propagation import Propagating, write_volumes
    from ..data.label_names import find_label_names
    from ..evaluation.cohort import CohortReport
    from ..tasks import Workers
    from ..transforms.requests import request_of

    root, workers = find_bundle(bundle), Workers(jobs, scheduler)
    check_takes_pairs(root)
    labelled = [scan for one in atlases for scan in _atlases(one)]
    if not labelled:
        raise ValueError("expected atlases, each IMAGE,LABELS, or a data list")
    scans = _scans(to, section, dataset_dir)
    table = find_label_names(label_names, *atlases, to)
    check_files([*labelled, *scans])
    dimension = spatial_dims([{"fixed": scan["image"]} for scan in scans])
    overlays = [*as_list(overlay), overlay_path("propagate")]
    settings |= {"output_dir": str(output)}
    configs, given = check_settings(root, overlays, settings, dimension)
    known = {f"atlas {k} {key}": scan[key] for k, scan in enumerate(labelled) for key in ("image", "label")}
    scans = [
        {**scan, "request": request_of({**scan, **known, "fusion": fusion}, root, configs, given)} for scan in scans
    ]
    registering = Registering(root, dimension, overlays, settings)
    propagating = Propagating(labelled, registering.register, str(output), fusion)
    origin = origin_of(root, overlays, settings | {"label_names": table.path})
    report = CohortReport(output, origin=origin, nouns=("scan", "scans"), label_names=table.names)
    tables = partial(write_volumes, output, names=table.names)
    return run_list(
        scans, propagating, report, workers, title="scans", again=again, load=registering.load, tables=tables
    )


def _atlases(given: str) -> list[Entry]:
    """The scans of an atlas or a list of them. Raises ValueError: if one has no labels."""
    from ..data.lists import load_list

    if Path(given).suffix == ".json":
        scans = load_list(given)
        if not all(scan.get("image") and scan.get("label") for scan in scans):
            raise ValueError(f"{given}: expected scans with image and label as atlases")
        return scans
    files = as_list(given)
    if len(files) != 2:
        raise ValueError(f"expected an atlas as IMAGE,LABELS, or a data list, got {given!r}")
    return [dict(zip(("image", "label"), files, strict=True))]


def _scans(to: str, section: str, dataset_dir: str | None) -> list[Entry]:
    """The scans that get labels, each with an id. Raises ValueError: if the list holds something else."""
    from ..data.lists import load_list
    from ..data.names import named

    scans = load_list(to, section, dataset_dir) if Path(to).suffix == ".json" else [{"image": str(to)}]
    if not all(scan.get("image") for scan in scans):
        raise ValueError(f"section {section!r} of {to}: expected scans with images")
    return named(scans)
