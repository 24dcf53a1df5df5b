"""`morphzoo evaluate`: register and measure all pairs of a data list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .bundles import DEFAULT_BUNDLE, find_bundle, overlay_path, takes_scans
from .workflow import as_list, check_settings, infer, spatial_dims

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
    overlay: str | Sequence[str] = (),
    window: Sequence[float] | None = None,
    fill: float | None = None,
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
        overlay: further config files, the last one wins.
        window, fill: intensities that are compared, and the value outside the moving image, as in `register`.
        **settings: any setting of the bundle's inference.json.
    Returns:
        The registration of each pair.
    Raises:
        RuntimeError: after the others are done, if a pair failed.
    """
    from ..data.lists import is_pair, load_list
    from ..data.names import named
    from ..evaluation.cohort import CohortReport
    from ..transforms.requests import finished, request_of

    pairs = named(load_list(data_list, section, dataset_dir))
    single = takes_scans(find_bundle(bundle))
    if any(is_pair(pair) == single for pair in pairs):
        kinds = ("single scans", "pairs of moving and fixed")
        raise ValueError(f"section {section!r} of {data_list} holds {kinds[single]}, expected {kinds[not single]}")
    overlays = [*as_list(overlay), overlay_path("evaluate")]
    settings |= {"output_dir": str(output), "window": window, "fill": fill}
    root = find_bundle(bundle)
    configs, given = check_settings(root, overlays, settings, spatial_dims(pairs))
    pairs = [{**pair, "request": request_of(pair, root, configs, given)} for pair in pairs]
    results = {} if again else {pair["id"]: finished(str(output), pair, pair["request"]) for pair in pairs}
    earlier = [result for result in results.values() if result]
    if earlier:
        print(f"{len(earlier)} of {len(pairs)} pairs are done already (--again does them again)", flush=True)
    missing = [pair for pair in pairs if not results.get(pair["id"])]
    if missing:
        return infer(bundle, missing, overlays, settings, earlier=earlier)
    report = CohortReport(output, earlier)
    report.write()
    return report.cohort
