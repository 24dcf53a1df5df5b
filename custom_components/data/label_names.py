"""Names of labels by id, from a table: `labels.csv` beside a data list, or `dseg.tsv` as BIDS has it."""

from __future__ import annotations

import csv
import os
import re
from pathlib import Path
from typing import NamedTuple

from ..notices import warn

BESIDE = ("labels.csv", "dseg.tsv")

_IDS = ("id", "index")


def read_label_names(path: str | os.PathLike[str]) -> dict[int, str]:
    """The names of a table, CSV, or TSV if it is called so, with the columns id or index, and name.

    Labels without a name are left out. Blanks within a name become one.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no such table.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: there is no such table of label names")
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, delimiter="\t" if str(path).endswith(".tsv") else ","))
        if any(None in row for row in rows):
            raise ValueError("more cells than columns")
        key = next(name for name in _IDS if rows and name in rows[0])
        names = {int(row[key]): " ".join(row["name"].split()) for row in rows}
    except (KeyError, StopIteration, TypeError, ValueError, AttributeError, csv.Error) as error:
        wanted = "expected a CSV file (or .tsv) in UTF-8 with the columns id or index (integers) and name"
        raise ValueError(f"{path}: {wanted}") from error
    return {label: name for label, name in names.items() if name}


class LabelNames(NamedTuple):
    """A table of names: its absolute path, and names by id; None and no names if there is none."""

    path: str | None
    names: dict[int, str]


def find_label_names(given: str | None, *lists: str) -> LabelNames:
    """The table of names that is given, or the first that lies beside data lists.

    Beside a list, a table without those columns is another one, as that of intensities; one that is damaged is passed
    over with a warning.

    Args:
        given: path of a table.
        lists: paths of data lists; others than .json do not count.
    Raises:
        FileNotFoundError, ValueError: as `read_label_names`, of the one that is given.
    """
    if given is not None:
        return LabelNames(os.path.abspath(given), read_label_names(given))
    folders = [Path(path).parent for path in lists if Path(path).suffix == ".json"]
    for path in (folder / name for folder in folders for name in BESIDE):
        if not path.is_file():
            continue
        try:
            return LabelNames(os.path.abspath(path), read_label_names(path))
        except ValueError as error:
            if _names_labels(path):
                warn(f"{error}; its labels have no names")
    return LabelNames(None, {})


def _names_labels(path: Path) -> bool:
    first = re.split(r"[,\t]", path.read_bytes().partition(b"\n")[0].decode("utf-8-sig", "replace").strip())
    return "name" in first and any(key in first for key in _IDS)
