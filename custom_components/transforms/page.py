"""The page of a registered pair, as a file of its result."""

from __future__ import annotations

import importlib.util
import json
import platform
import shlex
from collections.abc import Callable, Mapping
from functools import cache, partial
from importlib import metadata
from pathlib import Path

from torch import Tensor

from ..evaluation.report.pair import pair_page
from ..evaluation.report.views import Views, make_views
from ..evaluation.report.volumes import Volumes, check_viewer, make_volumes
from ..fields import warp
from ..vocabulary import Metrics
from .registered import RegisteredPair

KINDS = ("none", "views", "volumes")

_PACKAGES = ("morphzoo", "torch", "monai", "itk", "nibabel", "numpy")

Writer = Callable[[Path], None]


class PairPage:
    """What a browser shows of a pair: report.html, and its views for the page of a cohort, views.json.

    Args:
        kind: "none"; "views", slices to blink; or "volumes", an interactive viewer in the page, too, for some MB.
        origin: what made the result, by heading; "options" are those of `morphzoo register`.
        label_names: names of labels by id.
    Raises:
        ValueError: for another kind.
        FileNotFoundError: if there is no viewer for volumes.
    """

    def __init__(
        self, kind: str = "views", origin: Mapping[str, str] | None = None, label_names: Mapping[int, str] | None = None
    ) -> None:
        check_page(kind)
        self.kind, self.origin, self.label_names = kind, dict(origin or {}), dict(label_names or {})

    def files(
        self,
        pair: RegisteredPair,
        folder: Path,
        metrics: Metrics,
        captions: Mapping[str, str],
        files: Mapping[str, str],
    ) -> dict[str, tuple[str, Writer]]:
        """Names and writers of the files by kind, for a result in a folder that has these other files by kind."""
        if self.kind == "none":
            return {}
        drawn = importlib.util.find_spec("PIL") is not None
        views = cache(partial(_views, pair))  # both files show them

        def write_page(path: Path) -> None:
            pair_page(
                path,
                title=str(metrics.get("id", pair.name)),
                inputs={role: volume.path for role, volume in pair.volumes.items()},
                metrics=metrics,
                captions=captions,
                files=files,
                commands=self._commands(pair, folder, files),
                origin=self._origin(),
                views=views() if drawn else None,
                volumes=_volumes(pair) if self.kind == "volumes" else None,
                label_names=self.label_names,
            )

        def write_views(path: Path) -> None:
            path.write_text(json.dumps(views()), encoding="utf-8")

        found: dict[str, tuple[str, Writer]] = {"page": ("report.html", write_page)}
        return found | ({"views": ("views.json", write_views)} if drawn else {})

    def _commands(self, pair: RegisteredPair, folder: Path, files: Mapping[str, str]) -> dict[str, str]:
        paths = {role: volume.path for role, volume in pair.volumes.items()}
        found = {}
        if "options" in self.origin and all(Path(path).exists() for path in paths.values()):
            labels = [word for role in paths if "label" in role for word in (f"--{role}", paths[role])]
            words = ["morphzoo", "register", paths["moving"], paths["fixed"], *labels]
            found["Register this pair again"] = f"{shlex.join(words)} {self.origin['options']} -o again"
        if "transform" in files:
            transform = str(folder / files["transform"])
            carry = ["morphzoo", "apply", transform, "other.nii.gz", "moved.nii.gz", "--reference", paths["fixed"]]
            found["Carry another image of the moving space to the fixed one"] = shlex.join(carry)
            points = ["morphzoo", "apply", transform, "points.csv", "moved.csv"]
            found["Carry points from the fixed to the moving image"] = shlex.join(points)
        return found

    def _origin(self) -> dict[str, str]:
        found = {name: text for name, text in self.origin.items() if name != "options"}
        return found | versions()


def check_page(kind: str) -> None:
    """Raises ValueError: for another kind of page; FileNotFoundError: if there is no viewer for volumes."""
    if kind not in KINDS:
        raise ValueError(f"--page: expected {', '.join(KINDS)}, got {kind!r}")
    if kind == "volumes":
        check_viewer()


def versions() -> dict[str, str]:
    """Versions of what makes a result, as far as it is installed."""
    found = {}
    for name in _PACKAGES:
        if importlib.util.find_spec(name) is not None or name == "morphzoo":
            try:
                found[name] = metadata.version(name)
            except metadata.PackageNotFoundError:  # a copy that pip has not installed
                continue
    return found | {"Python": f"{platform.python_version()}, {platform.system()} {platform.machine()}"}


def _views(pair: RegisteredPair) -> Views:
    images = {key: pair.images[key].float() for key in ("moving", "fixed")}
    labels = {key: pair.images[key] for key in ("label_moving", "label_fixed") if key in pair.images}
    ddf = pair.pred["ddf"].float()
    return make_views(**images, warped=_warped(pair), ddf=ddf, spacing_mm=pair.spacing_mm, **labels)


def _warped(pair: RegisteredPair) -> Tensor:
    """The moving image after registration, on the model grid."""
    if "warped" in pair.pred:
        return pair.pred["warped"].float()
    return warp(pair.images["moving"][None].float(), pair.pred["ddf"][None].float())[0]


def _volumes(pair: RegisteredPair) -> Volumes:
    images = {"fixed": pair.images["fixed"], "aligned": pair.images["moving"], "registered": _warped(pair)}
    labels = {f"{role} labels": pair.images[f"label_{role}"] for role in ("fixed", "moving")
              if f"label_{role}" in pair.images}  # fmt: skip
    return make_volumes(images, pair.pred["ddf"], pair.grid, labels)
