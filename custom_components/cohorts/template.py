"""The template of a group: people are registered to their average, which moves to the middle of them, round by round.

The idea is that of Guimond et al. (2000) and of ANTs' template construction (Avants et al., 2010). The mean is taken of
velocities, and each person's image is interpolated once. OUTPUT/rounds/NN keeps what a killed run goes on from.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from torch import Tensor

from ..evaluation.report.cohort import cohort_page
from ..files import write_metrics, write_table
from ..results import aside, check_place, publishing
from ..space.affine import register_affine
from ..space.resampling import resample
from ..space.volumes import Volume, load_channels
from ..tasks import Problem, Workers
from ..transforms.intensities import scale_intensity
from ..vocabulary import Row
from .averages import averaged, majority, sharpened, voted
from .maps import PersonsMap
from .measures import agreement, label_volumes, round_measures
from .middle import half_rigid, middle_of
from .people import MIDDLE, VIEWS, Answer, Carry, MatchAffine, MatchDeformable, Register, WritePerson
from .place import Place
from .plan import Plan, TemplateResult
from .subjects import Subject

_PART = "template"
_ROUND = "round.json"

B = TypeVar("B")


@dataclass
class _State:
    """Between rounds: the template's images, where it lies, those who are left, and the rounds that count."""

    images: tuple[str, ...]
    place: Place
    people: list[Subject]
    request: str
    affine: Answer | None = None
    last: Answer | None = None
    rows: list[Row] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)


@dataclass
class TemplateBuilder:
    """Make a template; rounds that are done, and maps of a round that was cut short, stay.

    Args:
        people: at least two.
        register: what registers a pair, for the deformable rounds.
        output: folder of the results.
        plan: how.
        contrasts: names of the contrasts but the first.
        contrast_weights: how much each contrast counts in the registration, the first one first; None: all the same.
        request: changes with how `register` answers.
        workers: who does what is done for each person.
    """

    people: Sequence[Subject]
    register: Register
    output: Path
    plan: Plan = field(default_factory=Plan)
    contrasts: Sequence[str] = ()
    contrast_weights: tuple[float, ...] | None = None
    request: str = ""
    workers: Workers = field(default_factory=Workers)

    def run(self, label_names: Mapping[int, str] | None = None) -> TemplateResult:
        """Do what is missing.

        Args:
            label_names: names of the labels by id, for the tables.
        Raises:
            ValueError: if fewer than two people are left.
            RuntimeError: at the end, if people failed.
        """
        check_place(self.output, _PART, [*self._names, "deviation.nii.gz", "rounds.csv", "people.csv", "volumes.csv"])
        if len({subject.id for subject in self.people}) < max(2, len(self.people)):
            raise ValueError(f"expected at least two people, each with an id of its own, got {len(self.people)}")
        with self.workers:
            state = self._start()
            for number, kind in enumerate(self.plan.kinds, start=1):
                self._round(state, number, kind)
            result = self._finish(state, label_names or {})
        if state.failures:
            print(result, flush=True)
            name, reason = next(iter(state.failures.items()))
            raise RuntimeError(
                f"{len(state.failures)} of {len(self.people)} people failed, the template is that of the others; "
                f"{name}: {reason}"
            )
        return result

    @property
    def _names(self) -> list[str]:
        return ["template.nii.gz", *(f"template_{name}.nii.gz" for name in self.contrasts)]

    def _folder(self, number: int) -> Path:
        return self.output / "rounds" / f"{number:02d}"

    def _start(self) -> _State:
        """With the first template."""
        initial = self.plan.initial
        if initial and len(initial) != len(self._names):
            raise ValueError(
                f"--initial: expected {len(self._names)} images, one for each contrast, got {len(initial)}"
            )
        first = load_channels(initial or self.people[0].images)
        request = _digest(
            [self.plan.request, self.contrast_weights, self.request, [one.request for one in self.people]]
        )
        folder, place = self._folder(0), Place.of(first, self.plan.resolution)
        images = tuple(str(folder / name) for name in self._names)
        state = _State(images, place, list(self.people), request)
        if _done(folder, request) is None:
            with publishing(folder, _PART) as scratch:
                if initial or self.plan.affine != "none":
                    image = self._posed(first, place)
                else:
                    with aside(self.output) as carried:
                        self._each(state, Carry(place, None, carried), "headers")
                        image = self._average(state, carried)[0]
                self._write(scratch, state, image, {"request": request, "failures": state.failures})
        self._known(state, _done(folder, request) or {})
        return state

    def _posed(self, first: Volume, place: Place) -> Tensor:
        """A scan on the template's grid; of a symmetric template with its middle in that of the grid."""
        scaled = replace(first, data=scale_intensity(first.data))

        def on_grid(matrix: np.ndarray | None = None) -> Tensor:
            return resample(scaled.data, first.affine, place.grid, world_matrix=matrix, fill=0.0, antialias=True)

        image = on_grid()
        if not self.plan.symmetric or self.plan.affine == "none":
            return image
        here, mirror = (replace(first, data=one, affine=place.grid.affine) for one in (image[:1], image[:1].flip(1)))
        # The mirror image is as far on the other side of the middle.
        turn = register_affine(here, mirror, stage="rigid", engine=self.plan.affine)
        return on_grid(np.linalg.inv(half_rigid(turn)))

    def _round(self, state: _State, number: int, kind: str) -> None:
        """Let the people's average take the template's place."""
        state.request = _digest([state.request, kind])
        folder, start = self._folder(number), time.perf_counter()
        answer, title = Answer(folder, state.request), f"round {number} of {len(self.plan.kinds)}, {kind}"
        if _done(folder, state.request) is None:
            (folder / "maps").mkdir(parents=True, exist_ok=True)
            if kind == "affine":
                self._each(state, MatchAffine(state.images[0], answer, self.plan.affine), title)
            else:
                match = MatchDeformable(state.images, answer, self.register, state.affine, self.contrast_weights)
                self._each(state, match, title)
            middle, moved = self._middle(state, answer)
            middle.save(folder / MIDDLE, answer.request)
            with publishing(folder, _PART) as scratch, aside(self.output) as carried:
                energies = self._each(state, Carry(state.place, answer, carried), "average")
                image, _ = self._average(state, carried)
                row = round_measures(state.images, image, self._arrays(state, carried), state.place.grid, middle)
                row |= {"sharpness": row["sharpness"] / float(np.mean(energies)), **moved}
                row = {"round": number, "kind": kind, **row, "seconds": time.perf_counter() - start}
                self._write(scratch, state, image, {"request": state.request, "failures": state.failures, "row": row})
        self._known(state, _done(folder, state.request) or {})
        state.images = tuple(str(folder / name) for name in self._names)
        if state.last is not None and state.last != state.affine:
            shutil.rmtree(state.last.folder / "maps", ignore_errors=True)  # they are large, and nobody needs them
        state.last = answer
        state.affine = answer if kind == "affine" else state.affine

    def _known(self, state: _State, done: Row) -> None:
        """Take over what a round says about itself."""
        state.failures = {**state.failures, **done["failures"]}
        state.people = [one for one in self.people if one.id not in state.failures]
        if "row" in done:
            state.rows.append(done["row"])
            print(_line(done["row"]), flush=True)

    def _each(self, state: _State, function: Callable[[Subject], B], title: str) -> list[B]:
        """Results for the people who are left; those who fail are left out from now on."""
        found = self.workers.each(function, state.people, title)
        problems = [one for one in found if isinstance(one, Problem)]
        state.failures |= {one.item.id: one.reason for one in problems}
        state.people = [one for one in state.people if one.id not in state.failures]
        if len(state.people) < 2:
            first = f"; {problems[0].item.id}: {problems[0].reason}" if problems else ""
            raise ValueError(f"fewer than two of {len(self.people)} people are left{first}")
        return [one for one in found if not isinstance(one, Problem)]

    def _middle(self, state: _State, answer: Answer) -> tuple[PersonsMap, Row]:
        weights = [one.weight for one in state.people]
        maps = (answer.of(one) for one in state.people)
        return middle_of(maps, weights, state.place.grid, symmetric=self.plan.symmetric)

    def _arrays(self, state: _State, carried: Path) -> list[Path]:
        return [carried / f"{one.id}.npy" for one in state.people]

    def _average(self, state: _State, carried: Path) -> tuple[Tensor, Tensor]:
        """Of the carried images, and the deviation about it."""
        weights = [one.weight for one in state.people]
        found = averaged(self._arrays(state, carried), weights, self.plan.average, symmetric=self.plan.symmetric)
        return sharpened(found.image, self.plan.sharpen), found.deviation

    def _write(self, scratch: Path, state: _State, image: Tensor, log: Row) -> None:
        for name, channel in zip(self._names, image.split(1), strict=True):
            state.place.write(scratch / name, channel)
        write_metrics(scratch / _ROUND, log)

    def _finish(self, state: _State, label_names: Mapping[int, str]) -> TemplateResult:
        """The results, beside the rounds."""
        rows: dict[str, Row] = {one.id: {"id": one.id, "weight": one.weight} for one in self.people}
        with publishing(self.output, _PART) as scratch, aside(self.output) as carried:
            self._each(state, Carry(state.place, state.last, carried, labels=True), "labels")
            for name, path in zip(self._names, state.images, strict=True):
                shutil.copyfile(path, scratch / name)
            _, deviation = self._average(state, carried)
            state.place.write(scratch / "deviation.nii.gz", deviation[:1])
            votes = self._vote(state, carried, scratch, label_names)
            for one, measures in zip(
                state.people, agreement(state.images[0], carried, state.people, votes), strict=True
            ):
                rows[one.id] |= measures
            for name, reason in state.failures.items():
                rows[name]["failure"] = reason
            write_table(scratch / "rounds.csv", state.rows)
            write_table(scratch / "people.csv", list(rows.values()))
        people = self.output / "people"
        if state.last is not None:
            self._each(state, WritePerson(state.images[0], state.place, state.last, people), "people")
        self._page(list(rows.values()), people)
        return TemplateResult(self.output, state.rows, list(rows.values()))

    def _page(self, rows: list[Row], people: Path) -> None:
        """index.html: people, those who fit worst first."""
        views = {row["id"]: (people / row["id"] / VIEWS).absolute() for row in rows}
        shown = [{**row, "views": str(views[row["id"]])} if views[row["id"]].is_file() else row for row in rows]
        with publishing(self.output, "page") as scratch:
            page, nouns = scratch / "index.html", ("person", "people")
            cohort_page(self.output, shown, title="People on their template", path=page, nouns=nouns)

    def _vote(self, state: _State, carried: Path, scratch: Path, names: Mapping[int, str]) -> Tensor | None:
        """Write the shares of labels, if people have labels, and the most frequent ones, which are returned, with their
        volumes."""
        with_labels = [one for one in state.people if one.label is not None]
        if not with_labels:
            return None
        paths = [carried / f"{one.id}_label.npy" for one in with_labels]
        labels, shares = voted(paths, [one.weight for one in with_labels])
        found = majority(labels, shares)
        state.place.write(scratch / "labels.nii.gz", found)
        state.place.write(scratch / "label_shares.nii.gz", shares)
        named = {"names": [names.get(label, "") for label in labels]} if names else {}
        write_metrics(scratch / "label_shares.json", {"labels": labels, **named})
        write_table(scratch / "volumes.csv", label_volumes(found, state.place, names))
        return found


def _done(folder: Path, request: str) -> Row | None:
    """What a round says about itself, if it is done and answers this request."""
    try:
        found: Row = json.loads((folder / _ROUND).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if found.get("request") == request else None


def _digest(values: object) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _line(row: Row) -> str:
    moved = "" if row.get("moved_mm") is None else f", people moved {row['moved_mm']:.2f} mm"
    return (
        f"round {row['round']:2d} {row['kind']:10s} change {100 * row['change']:5.2f} %, off centre "
        f"{row['off_centre_mm']:.3f} mm, sharpness {row['sharpness']:.3f}, correlation {row['ncc']:.4f}{moved}"
    )
