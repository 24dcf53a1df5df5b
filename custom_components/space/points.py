"""Read and write lists of points: CSV and its relatives, and the fiducials of 3D Slicer.

Convention: millimetres; the world is RAS unless the file or the caller says LPS. A file is written in its own format,
with everything in it that is no coordinate, as UTF-8.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..files import safe_cell
from ..results import replacing
from .resampling import Step, transform_points_world

_TABLES, _FIDUCIALS, _MARKUPS = (".csv", ".tsv", ".txt"), ".fcsv", ".json"

_VOXELS = "voxels"

# Slicer's older files number the coordinate systems.
_SPACES = {"ras": "RAS", "lps": "LPS", "0": "RAS", "1": "LPS"}


@dataclass(frozen=True)
class Points:
    """Points of a file.

    Args:
        points: (N, D), mm, or voxel indices if `space` says so.
        space: "RAS", "LPS" or "voxels" (zero-based, of the image they belong to) if the file says it.
        text: the content of such a file for other points (N, D).
    """

    points: np.ndarray
    space: str | None
    text: Callable[[np.ndarray], str]


def is_points_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file of this name holds points."""
    return str(path).lower().endswith((*_TABLES, _FIDUCIALS, _MARKUPS))


def move_points(
    steps: Sequence[Step], source: str | os.PathLike[str], output: str | os.PathLike[str], space: str | None = None
) -> tuple[int, str]:
    """Write the points of a file, moved by a transform, in the same format; how many there are, and their space.

    Args:
        steps: the transform, applied in this order.
        source, output: paths of the files.
        space: "RAS" or "LPS"; None takes what the file says, else RAS.
    Raises:
        FileNotFoundError, ValueError: names row and column of what is wrong; also if the space is not the file's, or
            the output's ending is another format's.
    """
    if space not in (None, "RAS", "LPS"):
        raise ValueError(f"expected space RAS or LPS, got {space!r}")
    if _format(source) != _format(output):
        raise ValueError(f"{output}: expected a name that ends with {Path(source).suffix}, the format of {source}")
    found = read_points(source)
    if found.space == _VOXELS:
        raise ValueError(f"{source}: expected the columns x, y[, z] in mm, got voxel indices i, j[, k]")
    if space and found.space and space != found.space:
        raise ValueError(f"{source}: the file says that its coordinates are {found.space}, not {space}")
    space = space or found.space or "RAS"
    d = found.points.shape[1]
    flip = np.array([-1.0, -1.0, 1.0][:d]) if space == "LPS" else np.ones(d)
    try:
        moved = transform_points_world(found.points * flip, steps) * flip
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    text = found.text(moved)
    with replacing(output) as path:
        path.write_text(text, encoding="utf-8", newline="")
    return len(found.points), space


def read_points(path: str | os.PathLike[str]) -> Points:
    """Read points from CSV, TSV, fcsv or mrk.json. Errors as `move_points`."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such file of points")
    raw = Path(path).read_bytes()
    try:
        text = raw.decode("utf-16" if raw.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    reader = {_FIDUCIALS: _read_fiducials, _MARKUPS: _read_markups}.get(_format(path), _read_table)
    points = reader(text, str(path))
    if not len(points.points):
        raise ValueError(f"{path}: expected points, the file has none")
    return points


def _format(path: str | os.PathLike[str]) -> str:
    return Path(path).suffix.lower()


def _read_table(text: str, path: str) -> Points:
    header = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = next((mark for mark in "\t;," if mark in header), " ")
    numbered = _rows(text, delimiter, path)
    if not numbered:
        raise ValueError(f"{path}: expected a table of points with the columns x, y[, z], the file is empty")
    (first, titles), *rows = numbered
    columns = _columns(titles, f"{path}, row {first}")
    comma = delimiter == ";"
    points = np.empty((len(rows), len(columns)))
    for point, (number, row) in zip(points, rows, strict=True):
        where = f"{path}, row {number}"
        if len(row) != len(titles):
            raise ValueError(f"{where}: expected {len(titles)} cells as the header has, got {len(row)}")
        point[:] = [_number(row[i], f"{where}, column {titles[i]}", comma=comma) for i in columns]

    def written(moved: np.ndarray) -> str:
        table = io.StringIO()
        writer = csv.writer(table, delimiter=delimiter, lineterminator="\n")
        writer.writerow(map(safe_cell, titles))
        for (_, row), point in zip(rows, moved, strict=True):
            cells = [safe_cell(cell) for cell in row]
            for column, value in zip(columns, point, strict=True):
                cells[column] = f"{value:.6f}".replace(".", "," if comma else ".")
            writer.writerow(cells)
        return table.getvalue()

    return Points(points, _VOXELS if titles[columns[0]].lower() == "i" else None, written)


def _rows(text: str, delimiter: str, path: str) -> list[tuple[int, list[str]]]:
    """The rows of a table that are not empty, each with its number; the titles' cells without blanks around them."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    try:
        rows = [(reader.line_num, [cell for cell in row if cell or delimiter != " "]) for row in reader]
    except csv.Error as error:
        raise ValueError(f"{path}, row {reader.line_num}: cannot be read as a table ({error})") from error
    rows = [(number, row) for number, row in rows if any(cell.strip() for cell in row)]
    return [(number, [cell.strip() for cell in row] if i == 0 else row) for i, (number, row) in enumerate(rows)]


def _columns(titles: Sequence[str], where: str) -> list[int]:
    """Where x, y[, z] stand; or i, j[, k]."""
    names = [title.lower() for title in titles]
    kind = next((kind for kind in ("xyz", "ijk") if {*kind[:2]} <= set(names)), None)
    if kind is None:
        raise ValueError(f"{where}: expected the column names x, y[, z] (mm), got {', '.join(titles)}")
    return [names.index(name) for name in kind if name in names]


def _read_fiducials(text: str, path: str) -> Points:
    """Slicer's fcsv: lines of comments, then id, x, y, z, and more."""
    lines, space, rows = text.splitlines(), None, []
    for number, line in enumerate(lines, 1):
        if line.startswith("#"):
            name, _, value = line.lstrip("# ").partition("=")
            space = _space(value, path) if name.strip().lower() == "coordinatesystem" else space
        elif line.strip():
            rows.append((number - 1, line.split(",")))
    points = np.empty((len(rows), 3))
    for point, (index, cells) in zip(points, rows, strict=True):
        if len(cells) < 4:
            raise ValueError(f"{path}, row {index + 1}: expected id, x, y, z, got {len(cells)} cells")
        point[:] = [_number(cells[i], f"{path}, row {index + 1}, column {'xyz'[i - 1]}") for i in (1, 2, 3)]

    def written(moved: np.ndarray) -> str:
        result = list(lines)
        for (index, cells), point in zip(rows, moved, strict=True):
            rest = [str(safe_cell(cell)) for cell in cells[4:]]
            result[index] = ",".join([cells[0], *[f"{value:.6f}" for value in point], *rest])
        return "\n".join(result) + "\n"

    return Points(points, space or "RAS", written)  # Slicer's first versions wrote RAS and did not say it


def _read_markups(text: str, path: str) -> Points:
    """Slicer's mrk.json: control points of every list in it."""
    try:
        content = json.loads(text)
        markups = content["markups"]
        lists = [(one.get("coordinateSystem", "LPS"), one["controlPoints"]) for one in markups]
        placed = [point for _, points in lists for point in points if "position" in point]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: expected 3D Slicer's markups with controlPoints, got another JSON file") from error
    spaces = {_space(str(name), path) for name, _ in lists}
    if len(spaces) > 1:
        raise ValueError(f"{path}: expected one coordinate system, got {' and '.join(sorted(spaces))}")
    points = np.empty((len(placed), 3))
    for number, (point, entry) in enumerate(zip(points, placed, strict=True), 1):
        position = entry["position"]
        if not isinstance(position, list) or len(position) != 3:
            raise ValueError(f"{path}, control point {number}: expected a position of 3 numbers, got {position}")
        point[:] = [_number(str(value), f"{path}, control point {number}") for value in position]

    def written(moved: np.ndarray) -> str:
        for entry, point in zip(placed, moved, strict=True):
            entry["position"] = [round(float(value), 6) for value in point]
        return json.dumps(content, indent=1, ensure_ascii=False) + "\n"

    return Points(points, next(iter(spaces), None), written)


def _space(value: str, path: str) -> str:
    try:
        return _SPACES[value.strip().lower()]
    except KeyError as error:
        raise ValueError(f"{path}: expected the coordinate system RAS or LPS, got {value.strip()}") from error


def _number(cell: str, where: str, *, comma: bool = False) -> float:
    """A finite number; with `comma`, one may stand for the decimal point."""
    text = cell.strip()
    try:
        value = float(text.replace(",", ".") if comma else text)
    except ValueError as error:
        raise ValueError(f"{where}: expected a number, got {text!r}") from error
    if not math.isfinite(value):
        raise ValueError(f"{where}: expected a finite number, got {text!r}")
    return value
