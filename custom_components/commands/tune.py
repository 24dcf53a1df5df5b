"""`morphzoo tune`: choose hyper-parameters for a kind of scans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..checks import writable_folder
from .typed import convert
from .workflow import build_workflow


@dataclass(frozen=True)
class Tuned:
    """Hyper-parameters that suit a kind of scans: their values by name, and the folder of the tables."""

    values: Mapping[str, float]
    folder: Path

    def __str__(self) -> str:
        lines = [f"{name:12s} {value:.3f}" for name, value in self.values.items()]
        rounded = [round(value, 4) for value in self.values.values()]
        use = rounded[0] if len(rounded) == 1 else rounded
        return "\n".join([*lines, "", f"use it with --hyper {use}; results in {self.folder}"])


def tune(
    data_list: str,
    output: str = "tuned",
    *,
    bundle: str = "hypermorph",
    section: str = "validation_pairs",
    dataset_dir: str | None = None,
    labels: Sequence[int] | None = None,
    criterion: str = "auto",
    iterations: int = 30,
    sweep: int = 21,
    overlay: str | Sequence[str] = (),
    **settings: object,
) -> Tuned:
    """Choose a bundle's hyper-parameters for a kind of scans, by gradient descent on the pairs of a data list.

    OUTPUT gets tuned.json (the values), tuning.csv (the way there) and, where there are labels, sweep.csv (Dice of each
    structure over the range) and structures.csv (the value best for each).

    Args:
        data_list: JSON file, see data_lists/README.md.
        output: folder for the results.
        bundle: name of a bundle with hyper-parameters, or its folder.
        section: of the list; its items are pairs.
        dataset_dir: folder to which the list's paths are relative; default: the list's folder.
        labels: ids that count; default: all present, without the background.
        criterion: "labels" (Dice), "regularity" (the best match at a tolerable irregularity, see the bundle's
            `regularity_limit`), or "auto": labels if all pairs have them.
        iterations: of gradient descent, each on 8 pairs.
        sweep: number of values from 0 to 1 at which each structure's Dice is measured for the two tables; 0 for none.
        overlay: further config files, the last one wins.
        **settings: any setting of the bundle's inference.json; `--hyper` is where the search starts.
    Examples:
        `morphzoo tune list.json -o tuned`
    Returns:
        The value of each hyper-parameter.
    Raises:
        ValueError: if the section holds single scans, or a setting has no meaning for the network alone.
    """
    from ..data.lists import is_pair, load_list
    from ..methods.hypermorph.tuning import tune_bundle

    for name in ("optimize", "precision"):
        if name in settings:
            raise ValueError(f"tune looks at the network alone, in float32: --{name} has no meaning here")
    items = load_list(data_list, section, dataset_dir)
    if not all(is_pair(item) for item in items):
        raise ValueError(f"section {section!r} of {data_list} holds single scans, expected pairs of moving and fixed")
    start = convert("hyper", settings.pop("hyper", 0.3), "float | str")
    if not isinstance(start, float) or not 0 <= start <= 1:
        raise ValueError(f"--hyper is the value tuning starts from: expected a number in [0, 1], got {start!r}")
    parser = build_workflow(bundle, items, overlay, {"hyper": 0.5, **settings}).parser
    folder = writable_folder(output)
    tune_pairs = partial(tune_bundle, parser, items, folder, labels=labels, start=start)
    found = tune_pairs(criterion=criterion, iterations=iterations, sweep=sweep)
    return Tuned(found, folder)
