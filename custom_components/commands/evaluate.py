"""`morphzoo evaluate`: register and measure all pairs of a data list."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..vocabulary import Entry
from .bundles import DEFAULT_BUNDLE, find_bundle, overlay_path, takes_scans
from .listed import run_list
from .loaded import Registering
from .origin import origin_of
from .workflow import as_list, check_files, check_settings, check_takes_pairs, spatial_dims

if TYPE_CHECKING:
    from ..evaluation.cohort import Cohort


def evaluate(
    data_list: str,
    output: str = "evaluated",
    *,
    bundle: str = DEFAULT_BUNDLE,
    section: str = "validation_pairs",
    dataset_dir: str | None = None,
    again: bool = False,
    jobs: int = 1,
    scheduler: str | None = None,
    overlay: str | Sequence[str] = (),
    window: Sequence[float] | None = None,
    fill: float | None = None,
    compare: str | Sequence[str] = (),
    label_names: str | None = None,
    **settings: object,
) -> Cohort:
    """Register all pairs of a data list and measure them: OUTPUT/metrics.csv, metrics.json and index.html.

    Each pair's folder has its measures and its warped labels; for other files give `--save#write`, for pictures
    `--pictures True`. A pair that fails, for instance for a damaged file, is a row with the reason; the others are
    done, and the command ends with an error. A second call does only the pairs whose files, settings or weights
    changed, or that have no result yet.

    Args:
        data_list: JSON file, see data_lists/README.md.
        output: folder for the results.
        bundle: name of a bundle, or its folder.
        section: of the list; its items are pairs.
        dataset_dir: folder to which the list's paths are relative; default: the list's folder.
        again: do all pairs again.
        jobs: processes, each of one thread; 1 uses all threads for one pair after the other.
        scheduler: a Dask scheduler whose workers do the pairs instead, tcp://HOST:PORT or its file (docs/cohort.md).
        overlay: further config files, the last one wins.
        window: lowest and highest intensity that is compared; default: all, but of a CT no air.
        fill: value outside the moving image; default: what most voxels on its faces hold, air of a CT.
        compare: folders of other runs, or their tables metrics.csv, which index.html shows beside this one.
        label_names: table of the labels' names, CSV (id,name) or TSV as BIDS has it (index, name), for the pages;
            default: labels.csv or dseg.tsv beside the list.
        **settings: any setting of the bundle's inference.json.
    Examples:
        `morphzoo evaluate list.json -o evaluated --jobs 4`
    Returns:
        The registration of each pair.
    Raises:
        RuntimeError: after the others are done, if a pair failed.
    """
    from ..data.label_names import find_label_names
    from ..evaluation.cohort import CohortReport
    from ..tasks import Workers
    from ..transforms.requests import request_of

    root, workers = find_bundle(bundle), Workers(jobs, scheduler)
    pairs = _items(data_list, section, dataset_dir, root)
    dimension, overlays = spatial_dims(pairs), [*as_list(overlay), overlay_path("evaluate")]
    table = find_label_names(label_names, data_list)
    settings |= {"output_dir": str(output), "window": window, "fill": fill, "label_names": table.path}
    configs, given = check_settings(root, overlays, settings, dimension)
    pairs = [{**pair, "request": request_of(pair, root, configs, given)} for pair in pairs]
    report = CohortReport(
        output, compare=as_list(compare), origin=origin_of(root, overlays, settings), label_names=table.names
    )
    registering = Registering(root, dimension, overlays, settings)
    return run_list(pairs, registering, report, workers, title="pairs", again=again, load=registering.load)


def _items(data_list: str, section: str, dataset_dir: str | None, bundle: Path) -> list[Entry]:
    """The items of a list, each with an id. Raises ValueError: if the bundle takes others."""
    from ..data.lists import is_pair, load_list
    from ..data.names import named

    items = named(load_list(data_list, section, dataset_dir))
    single = takes_scans(bundle)
    if any(is_pair(item) == single for item in items):
        kinds = ("single scans", "pairs of moving and fixed")
        raise ValueError(f"section {section!r} of {data_list} holds {kinds[single]}, expected {kinds[not single]}")
    if not single:
        check_takes_pairs(bundle)
    check_files(items)
    return items
