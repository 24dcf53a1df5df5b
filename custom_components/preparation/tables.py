"""What is written about all sessions: the data list for a training, BIDS's description, people, and a table."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from ..checks import check_number
from ..data.lists import number_or_text
from ..data.tables import MISSING, PERSON, make_list, read_people, write_list
from ..files import write_metrics, write_table
from ..notices import warn
from ..vocabulary import Entry, Row
from .sessions import Session
from .stages import STANDARD, folder_of, read_log

ROOT_FILES = ("dataset_description.json", "datalist.json", "participants.tsv", "prepared.csv", "qc.html", ".bidsignore")

_IGNORED = "files.json\n*_qc.png\nlog*.json\nqc.html\nprepared.csv\ndatalist.json\ntemplate/\n"


def rows_of(output: Path, sessions: Sequence[Session], failures: dict[str, str]) -> list[Row]:
    """A row for each session: failures first, then what is doubtful."""
    rows: list[Row] = []
    for one in sessions:
        folder = folder_of(output, one)
        folders = [str(folder), *(str(Path(path).parent) for path in one.images.values())]
        if one.id in failures:
            reason = _bare(failures[one.id], folders)
            row: Row = {"status": "failed", "reason": reason, "note": reason, "flags": []}
            rows.append({"id": one.id, **row, "measures": {}, "picture": None})
            continue
        log = read_log(folder, STANDARD)
        flags = [_bare(text, folders) for text in (*log["flags"], *log["warnings"])]
        row = {"status": "doubtful" if flags else "good", "flags": flags, "note": "; ".join(flags)}
        rows.append({"id": one.id, **row, "measures": log["measures"], "picture": folder / f"{one.id}_qc.png"})
    return sorted(rows, key=lambda row: ("failed", "doubtful", "good").index(row["status"]))


def _bare(text: str, folders: Sequence[str]) -> str:
    """A sentence with the names of files instead of their paths."""
    for folder in folders:
        text = text.replace(f"{folder}{os.sep}", "")
    return text


@dataclass(frozen=True)
class Lists:
    """What is written about people.

    Args:
        people: table whose columns become attributes; None or no file if there is none.
        validation, test: shares of the people for these sections of the data list.
        seed: of the split.
    """

    people: str | None = None
    validation: float = 0.2
    test: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, share in (("validation_share", self.validation), ("test_share", self.test)):
            check_number(name, share, least=0, below=1)

    def table(self) -> dict[str, dict[str, str]]:
        """The rows of the table by person; none without one."""
        return read_people(self.people) if self.people is not None and os.path.isfile(self.people) else {}


def datalist_of(output: Path, sessions: Sequence[Session], contrasts: Sequence[str], lists: Lists) -> list[Entry]:
    """Scans as a training reads them: `image` is the reference, `contrast` the next one, and people's attributes.

    A path for each contrast stands under its name, too, relative to the output.
    """
    table, scans = lists.table(), []
    for one in sessions:
        folder = folder_of(output, one)
        files = read_log(folder, STANDARD)["files"]
        paths = [Path(os.path.relpath(folder / files[name], output)).as_posix() for name in contrasts if name in files]
        scan: Entry = dict(zip(("image", "contrast"), paths, strict=False))
        scan |= {"subject": f"sub-{one.subject}"} | ({"session": f"ses-{one.session}"} if one.session else {})
        known = table.get(one.subject, {})
        said = {k: v for k, v in known.items() if k not in PERSON and (v or "").lower() not in MISSING}
        scans.append({**{k: number_or_text(v) for k, v in said.items()}, **scan})
    return scans


def write_tables(folder: Path, rows: Sequence[Row], scans: Sequence[Entry], lists: Lists) -> None:
    """Write the files of `ROOT_FILES` but the page; the list is split by person, with pairs for validation."""
    generated = {"Name": "morphzoo prepare", "Version": version("morphzoo")}
    description = {"Name": "Prepared scans", "BIDSVersion": "1.9.0", "DatasetType": "derivative"}
    write_metrics(folder / "dataset_description.json", {**description, "GeneratedBy": [generated]})
    (folder / ".bidsignore").write_text(_IGNORED, encoding="utf-8")
    plain = [{"id": row["id"], "status": row["status"], **row["measures"], "note": row["note"]} for row in rows]
    write_table(folder / "prepared.csv", plain)
    if scans:
        write_list(folder / "datalist.json", _sections(scans, lists))
    subjects = dict.fromkeys(scan["subject"] for scan in scans)
    table = lists.table()
    columns = [name for name in next(iter(table.values()), {}) if name not in PERSON]
    with open(folder / "participants.tsv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(["participant_id", *columns])
        for subject in subjects:
            row = table.get(subject.removeprefix("sub-"), {})
            writer.writerow([subject, *(row.get(name) or "n/a" for name in columns)])


def _sections(scans: Sequence[Entry], lists: Lists) -> dict[str, list[Entry]]:
    """The sections of the list, each of two people at least, so that there are pairs; else all is for training."""
    people = len({scan["subject"] for scan in scans})
    validation, test = (max(share, 2 / people) if share > 0 else 0.0 for share in (lists.validation, lists.test))
    if people < 4 or 1 - validation - test < 2 / people:
        warn(f"datalist.json: {people} people are too few for a split, all are for training")
        return {"training": list(scans)}
    return make_list(scans, validation=validation, test=test, seed=lists.seed)
