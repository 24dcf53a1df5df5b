"""Lists of points in the formats that people have; what is wrong is named by row and column."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from custom_components.files import write_table
from custom_components.space.points import move_points, read_points

SHIFT = np.eye(4)
SHIFT[:3, 3] = [6, 0, -1]


def moved(folder: Path, name: str, content: str | bytes, steps: list | None = None, **options: str) -> str:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    move_points([SHIFT] if steps is None else steps, folder / name, folder / f"out{Path(name).suffix}", **options)
    return (folder / f"out{Path(name).suffix}").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("bom.csv", b"\xef\xbb\xbfx,y,z\r\n1,2,3\r\n", "x,y,z\n7.000000,2.000000,2.000000\n"),
        ("capitals.CSV", "X, Y, Z\n1, 2, 3\n", "X,Y,Z\n7.000000,2.000000,2.000000\n"),
        ("blank.csv", "\nx,y,z\n\n1,2,3\n,,\n", "x,y,z\n7.000000,2.000000,2.000000\n"),
        ("more.csv", "name,x,y,z,t\n=1+1,1,2,3,-4\n", "name,x,y,z,t\n'=1+1,7.000000,2.000000,2.000000,-4\n"),
        (
            "latin1.csv",
            "x,y,z,name\n1,2,3,\u00d6hr\n".encode("latin-1"),
            "x,y,z,name\n7.000000,2.000000,2.000000,\u00d6hr\n",
        ),
        ("decimal_commas.csv", "x;y;z\n1,5;2;-3,5\n", "x;y;z\n7,500000;2,000000;-4,500000\n"),
        ("tabs.tsv", "x\ty\tz\n1e0\t2\t3\n", "x\ty\tz\n7.000000\t2.000000\t2.000000\n"),
        ("blanks.txt", "x  y  z\n 1  2 3\n", "x y z\n7.000000 2.000000 2.000000\n"),
        (
            "slicer.fcsv",
            "# CoordinateSystem = LPS\n# columns = id,x,y,z,label\n1,1,2,3,F,\n",
            "# CoordinateSystem = LPS\n# columns = id,x,y,z,label\n1,-5.000000,2.000000,2.000000,F,\n",
        ),
        ("old.fcsv", "# CoordinateSystem = 0\n1,1,2,3\n", "# CoordinateSystem = 0\n1,7.000000,2.000000,2.000000\n"),
    ],
)
def test_tables_and_fiducials_are_read_and_keep_their_format(
    name: str, content: str | bytes, expected: str, tmp_path: Path
) -> None:
    assert moved(tmp_path, name, content) == expected


def test_markups_keep_all_that_is_no_position(tmp_path: Path) -> None:
    points = [{"id": "1", "label": "\u00e9", "position": [1, 2, 3]}, {"id": "2", "positionStatus": "undefined"}]
    content = {"@schema": "s", "markups": [{"type": "Line", "coordinateSystem": "RAS", "controlPoints": points}]}
    result = json.loads(moved(tmp_path, "a.mrk.json", json.dumps(content)))
    points[0]["position"] = [7.0, 2.0, 2.0]
    assert result == content


def test_two_dimensional_points_need_a_transform_of_two_dimensions(tmp_path: Path) -> None:
    shift = np.eye(3)
    shift[:2, 2] = [1, 2]
    assert moved(tmp_path, "a.csv", "x,y\n0,0\n", [shift], space="LPS") == "x,y\n-1.000000,-2.000000\n"
    with pytest.raises(ValueError, match=r"a\.csv: expected a transform of 2-D points, got one of 3-D points"):
        moved(tmp_path, "a.csv", "x,y\n0,0\n")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "", "the file is empty"),
        ("a.csv", "x,y,z\n", "the file has none"),
        ("a.csv", "1,2,3\n4,5,6\n", "row 1: expected the column names x, y"),
        ("a.txt", "1 2 3\n", "row 1: expected the column names x, y"),
        ("a.csv", "x,z\n1,2\n", "row 1: expected the column names x, y"),
        ("a.csv", "x,y,z\n1,2,3,9,9\n", "row 2: expected 3 cells as the header has, got 5"),
        ("a.csv", "x,y,z\n\n1,2\n", "row 3: expected 3 cells as the header has, got 2"),
        ("a.csv", "x,y,z\n1,2,3\nnan,2,3\n", "row 3, column x: expected a finite number, got 'nan'"),
        ("a.csv", "x,Y,z\n1,-inf,3\n", "row 2, column Y: expected a finite number, got '-inf'"),
        ("a.csv", "x,y,z\n1,2,\n", "row 2, column z: expected a number, got ''"),
        ("a.csv", "x,y,z\n1,2,3mm\n", "row 2, column z: expected a number, got '3mm'"),
        ("a.fcsv", "# CoordinateSystem = XYZ\n1,1,2,3\n", "expected the coordinate system RAS or LPS, got XYZ"),
        ("a.fcsv", "1,1\n", "row 1: expected id, x, y, z"),
        ("a.fcsv", "1,a,2,3\n", "row 1, column x: expected a number, got 'a'"),
        ("a.mrk.json", "{}", "expected 3D Slicer's markups"),
        ("a.mrk.json", "[1", "expected 3D Slicer's markups"),
        (
            "a.mrk.json",
            '{"markups": [{"controlPoints": [{"position": [1, 2]}]}]}',
            "control point 1: expected a position",
        ),
        (
            "a.mrk.json",
            '{"markups": [{"controlPoints": [{"position": [1, 2, NaN]}]}]}',
            "control point 1: expected a fin",
        ),
    ],
)
def test_what_is_wrong_is_named_in_one_line_and_nothing_is_written(
    name: str, content: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=said.replace("(", r"\(")) as error:
        moved(tmp_path, name, content)
    assert str(error.value).startswith(str(tmp_path / name))
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_file_knows_its_space(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the file says that its coordinates are LPS, not RAS"):
        moved(tmp_path, "a.fcsv", "# CoordinateSystem = LPS\n1,1,2,3\n", space="RAS")
    with pytest.raises(ValueError, match=r"expected a name that ends with \.csv"):
        move_points([SHIFT], tmp_path / "a.csv", tmp_path / "b.fcsv")
    assert read_points(tmp_path / "a.fcsv").space == "LPS"


def test_no_cell_of_a_table_is_a_formula(tmp_path: Path) -> None:
    row = {"=name": "=cmd|' /C calc'!A0", "minus": "-2.5", "number": -1.5, "at": "@SUM(1)", "plus": "+x", "fine": "a=b"}
    write_table(tmp_path / "t.csv", [row])
    header, cells = (tmp_path / "t.csv").read_text().splitlines()
    assert header == "'=name,minus,number,at,plus,fine"
    assert cells == "'=cmd|' /C calc'!A0,-2.5,-1.5,'@SUM(1),'+x,a=b"
