"""What changed between two time points, in files: images, transforms, tables, and a page."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..evaluation.drawing import percentile
from ..evaluation.metrics import foreground_mask, normalized_cross_correlation
from ..evaluation.report.pair import pair_page
from ..evaluation.report.views import change_views
from ..evaluation.report.volumes import Volumes, pack_volumes
from ..files import write_metrics, write_table
from ..results import publishing, told
from ..space.resampling import Step
from ..space.volumes import Volume, load_labels
from ..space.warping import warp_image
from ..transforms.page import check_page, versions
from ..vocabulary import Row
from .longitudinal import SCANS, Change

_PART = "longitudinal"

_CAPTIONS = {
    "ncc": "correlation of the scans in the middle",
    "moved_mm": "mean length of the velocity, mm",
    "percent_mean": "mean change of volume in the head, %",
    "percent_sd": "its standard deviation, %",
    "folding_percent": "folding, % of the head",
}

_LIMITS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)  # of colours, percent


@dataclass(frozen=True)
class Labels:
    """Label maps of both scans, as far as there are some, and names of labels by id."""

    maps: tuple[Volume | None, ...] = (None, None)
    names: Mapping[int, str] = field(default_factory=dict)

    @classmethod
    def of(cls, paths: Sequence[str | None], names: Mapping[int, str]) -> Labels:
        """In files. Errors as `load_labels`."""
        return cls(tuple(None if path is None else load_labels(path) for path in paths), names)


@dataclass(frozen=True)
class LongitudinalResult:
    """What changed, in files."""

    folder: Path
    measures: Row
    volumes: Sequence[Row]

    def __str__(self) -> str:
        lines = [f"label {row['label']:4d}: {row['percent']:+7.2f} % {row.get('name', '')}" for row in self.volumes]
        lines += [f"warning: {warning}" for warning in self.measures["warnings"]]
        return "\n".join([*map(str.rstrip, lines), told(self.folder, "report.html")])


@dataclass(frozen=True)
class ChangePage:
    """What a browser shows of a change: report.html.

    Args:
        kind: as of `PairPage`.
        origin: what made the result, by heading; "options" are those of `morphzoo longitudinal`.
    Raises:
        ValueError, FileNotFoundError: as `PairPage`.
    """

    kind: str = "views"
    origin: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_page(self.kind)

    def write(self, path: Path, shown: _Shown, measures: Row, rows: Sequence[Row], output: Path) -> None:
        """Write the page of a result whose other files lie beside it, and will lie in OUTPUT; nothing if the kind is
        "none"."""
        if self.kind == "none":
            return
        names = sorted(one.name for one in path.parent.iterdir())
        unit = "mL" if len(shown.found.halfway.place.grid.size) == 3 else "cm2"
        pair_page(
            path,
            kind="time",
            title=f"Change from {Path(shown.inputs['first']).name} to {Path(shown.inputs['second']).name}",
            inputs=shown.inputs,
            metrics=measures,
            captions=_CAPTIONS,
            files={name: name for name in names},
            commands=self._commands(shown.inputs, names, output),
            origin={name: text for name, text in self.origin.items() if name != "options"} | versions(),
            views=shown.views() if importlib.util.find_spec("PIL") is not None else None,
            volumes=shown.volumes() if self.kind == "volumes" else None,
            tables={f"Volumes of each label, {unit}": [_named(row) for row in rows]},
            limit=shown.limit,
        )

    def _commands(self, inputs: Mapping[str, str], names: Sequence[str], output: Path) -> dict[str, str]:
        found = {}
        if "options" in self.origin and all(Path(one).exists() for one in inputs.values()):
            labels = [word for role, one in inputs.items() if role not in SCANS for word in (f"--{role}", one)]
            words = ["morphzoo", "longitudinal", inputs["first"], inputs["second"], *labels]
            found["Compare these scans again"] = f"{shlex.join(words)} {self.origin['options']} -o again"
        if "middle_to_first.h5" in names:
            ours = ["morphzoo", "apply", str(output / "middle_to_first.h5"), "other.nii.gz", "moved.nii.gz"]
            grid = ["--reference", str(output / "average.nii.gz")]
            found["Bring another image of the first scan into the middle"] = shlex.join([*ours, *grid])
            maps = ",".join(str(output / name) for name in ("first_to_middle.h5", "middle_to_second.h5"))
            points = ["morphzoo", "apply", maps, "points.csv", "moved.csv"]
            found["Carry points from the first scan to the second"] = shlex.join(points)
        return found


@dataclass(frozen=True)
class _Shown:
    """What a page shows: images of both time points by name, their labels in the middle, the paths that were given."""

    found: Change
    images: Mapping[str, Tensor]
    percent: Tensor
    labels: Mapping[str, Tensor]
    inputs: Mapping[str, str]

    @property
    def limit(self) -> float:
        """A round number of percent that 99 % of the changes stay below."""
        largest = percentile(self.percent[self.percent != 0].abs(), 0.99)
        return next((limit for limit in _LIMITS if limit >= largest), _LIMITS[-1])

    def views(self) -> dict[str, object]:
        spacing = list(self.found.halfway.place.grid.spacing)
        return change_views(self.images, self.percent, limit=self.limit, spacing_mm=spacing, labels=self.labels)

    def volumes(self) -> Volumes:
        groups = [
            {f"{name} before deformation": self.images[f"{name}_aligned"], f"{name} after": self.images[name]}
            for name in SCANS
        ]
        labels = {f"{name} labels": label for name, label in self.labels.items()}
        return pack_volumes(
            groups, self.found.halfway.place.grid, {"percent change": (self.percent, self.limit)}, labels
        )


def write_change(
    output: Path, found: Change, labels: Labels, *, page: ChangePage | None = None, warnings: Sequence[str] = ()
) -> LongitudinalResult:
    """Write OUTPUT: both scans and their average in the middle, the map of percent change, transforms, tables, a page.

    Args:
        output: folder of the result.
        found: what changed.
        labels: of both scans.
        page: what a browser shows.
        warnings: of the scans, one sentence each; may grow until all is written.
    """
    halfway, place = found.halfway, found.halfway.place
    volumes = (halfway.a, halfway.b)
    images = dict(zip(SCANS, found.images(), strict=True))
    for name, volume, matrix in zip(SCANS, volumes, halfway.rigid, strict=True):
        images[f"{name}_aligned"] = warp_image(volume, place.grid, [matrix])
    measures, carried = _measures(found, images), found.carried(labels.maps)
    rows, percent = found.volumes(list(carried.values()), labels.names), found.percent * (halfway.seen > 0)
    with publishing(output, _PART, dict(zip(SCANS, (one.origin for one in volumes), strict=True))) as scratch:
        average = (images["first"] + images["second"]) / 2
        written = {**{name: images[name] for name in SCANS}, "average": average, "percent_change": percent}
        for name, image in written.items():
            place.write(scratch / f"{name}.nii.gz", image)
        for name, volume, matrix, time in zip(SCANS, volumes, halfway.rigid, (-0.5, 0.5), strict=True):
            forth: list[Step] = [found.part(time), matrix]
            home: list[Step] = [np.linalg.inv(matrix), found.part(-time)]
            names = [scratch / f"middle_to_{name}.h5", scratch / f"{name}_to_middle.h5"]
            place.write_transforms(names, volume, forth, home)
        measures["warnings"] = list(dict.fromkeys(warnings))
        write_metrics(scratch / "metrics.json", {**measures, "volumes": rows})
        write_table(scratch / "volumes.csv", rows)
        named = zip((*SCANS, *(f"label_{name}" for name in SCANS)), (*volumes, *labels.maps), strict=True)
        inputs = {name: volume.path for name, volume in named if volume is not None}
        shown = _Shown(found, images, percent, carried, inputs)
        (page or ChangePage()).write(scratch / "report.html", shown, measures, rows, output)
    return LongitudinalResult(output, measures, rows)


def _measures(found: Change, images: Mapping[str, Tensor]) -> Row:
    a, b = (images[name] for name in SCANS)
    inside = foreground_mask({"fixed": (a + b)[None]}) & (found.halfway.seen > 0)[None]
    spacing = torch.tensor(found.velocity.grid.spacing).float().view(-1, *[1] * (a.ndim - 1))
    before = [images[f"{name}_aligned"] for name in SCANS]
    return {
        "ncc_aligned": float(normalized_cross_correlation(before[0][None], before[1][None], inside)),
        "ncc_after": float(normalized_cross_correlation(a[None], b[None], inside)),
        "moved_mm": float((found.velocity.ddf * spacing).norm(dim=0).mean()),
        "percent_mean": float(found.percent[inside[0]].mean()),
        "percent_sd": float(found.percent[inside[0]].std()),
        "folding_percent": 100 * float((torch.minimum(*found.sizes)[inside[0]] <= 0).float().mean()),
    }


def _named(row: Row) -> Row:
    """A row whose label has its name."""
    others = {key: value for key, value in row.items() if key not in ("label", "name")}
    return {"label": f"{row['label']} {row.get('name', '')}".rstrip(), **others}
