"""`morphzoo evaluate`: register and measure all pairs of a data list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .workflow import DEFAULT_BUNDLE, as_list, bundles_folder, has_template, infer, writable_folder


def evaluate(
    data_list: str,
    output: str = "evaluated",
    *,
    bundle: str = DEFAULT_BUNDLE,
    section: str = "validation_pairs",
    dataset_dir: str | None = None,
    overlay: str | Sequence[str] = (),
    **settings: Any,
) -> dict[str, Any]:
    """Register all pairs of a data list and measure them: OUTPUT/metrics.csv, metrics.json and index.html.

    Each pair's folder has its measures and its warped labels; other files need `--postprocessing#transforms#0#write`,
    pictures `--pictures True`.

    Args:
        data_list: JSON file, see data_lists/README.md.
        output: folder for the results.
        bundle: name of a bundle, or its folder.
        section: of the list; its items are pairs.
        dataset_dir: folder to which the list's paths are relative; default: the list's folder.
        overlay: further config files, the last one wins.
        **settings: any setting of the bundle's inference.json.
    """
    from ..data.lists import is_pair, load_list
    from ..evaluation.cohort import summarize

    pairs = load_list(data_list, section, dataset_dir)
    single = has_template(bundle)
    if any(is_pair(pair) == single for pair in pairs):
        kinds = ("single scans", "pairs of moving and fixed")
        raise ValueError(f"section {section!r} of {data_list} holds {kinds[single]}, expected {kinds[not single]}")
    overlays = [*as_list(overlay), str(bundles_folder() / "overlays" / "evaluate.json")]
    settings["output_dir"] = str(output)
    rows = infer(bundle, pairs, writable_folder(output), overlays, settings)
    for name, column in summarize(rows).items():
        if column["n"] > 0:
            print(f"{name:32s} {column['mean']:10.4f} +- {column['sd']:.4f}  (n = {column['n']})")
    print(f"\nresults in {output}")
    return {}
