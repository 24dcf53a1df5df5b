"""Write files so that a cut run leaves the old one or the new one whole; tables, JSON, and states of networks."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .results import replacing
from .vocabulary import Metrics


def write_metrics(path: str | os.PathLike[str], metrics: Metrics) -> None:
    """Write metrics as JSON (numbers that are not finite become null); an existing file is replaced in one step."""
    text = json.dumps(_jsonable(metrics), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_table(path: str | os.PathLike[str], rows: Sequence[Metrics]) -> None:
    """Write rows as CSV, a column for every key, empty where a row lacks it; a file there is replaced in one step.

    A list of texts becomes one cell, joined by semicolons.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = io.StringIO()
    writer = csv.DictWriter(table, columns, restval="", lineterminator="\n")
    writer.writerow({column: safe_cell(column) for column in columns})
    writer.writerows({k: safe_cell(_plain_number(v)) for k, v in row.items()} for row in rows)
    with replacing(path) as temporary:
        temporary.write_text(table.getvalue(), encoding="utf-8")


def safe_cell(value: object) -> object:
    """The value of a table's cell; a text that a spreadsheet would take for a formula gets an apostrophe in front."""
    if not isinstance(value, str) or not value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def _plain_number(value: object) -> object:
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return "; ".join(value)
    return f"{value:.6g}" if isinstance(value, float) else value


def _jsonable(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(k): _jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def save_tensors(path: str | os.PathLike[str], content: Mapping[str, object]) -> None:
    """Write what `torch.load(..., weights_only=True)` reads: tensors, numbers and text; a file there is replaced in one
    step."""
    with replacing(path) as partial:
        torch.save(content, partial)


def read_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What `save_tensors` wrote, on the CPU: data only, no code.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, holds other objects than tensors, numbers and text, or is no dictionary of them.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: there is no such file of weights")
    try:
        _check_sums(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many classes: pickle's, zipfile's, torch's own
        raise ValueError(f"{path}: this is no file of weights, or a damaged one ({type(error).__name__})") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path}: expected a file of named weights, got a {type(state).__name__}")
    return state


def _check_sums(path: str | os.PathLike[str]) -> None:
    """Compare the checksums that torch writes, and does not read: one wrong bit can move a deformation unnoticed."""
    if zipfile.is_zipfile(path):  # files of torch before 1.6 have none
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(damaged)
