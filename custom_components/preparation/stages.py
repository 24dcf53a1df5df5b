"""One session through the steps of a stage, and its files, named as BIDS derivatives.

There are two stages. The first one cleans images on their own grids; the second brings them to the template's grid.
What a session was asked for with stands in its log, so that a later run knows what is done.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose

from ..files import write_metrics
from ..notices import collecting
from ..results import publishing, read_manifest
from ..space.dialects.itk import write_composite_transform
from ..space.files import write_voxels
from ..space.memory_images import read_meta_tensor
from ..vocabulary import Item, Row
from .sessions import Session
from .steps import MASK, present
from .template import Template

NATIVE, STANDARD = "native", "standard"  # the stages, and the parts of a folder's manifest

_PACKAGE = __name__.partition(".")[0]

LOGS = {NATIVE: "log_native.json", STANDARD: "log.json"}


def folder_of(output: str | Path, session: Session) -> Path:
    """Where the files of a session are."""
    parts = [f"sub-{session.subject}", *([f"ses-{session.session}"] if session.session else []), "anat"]
    return Path(output).joinpath(*parts)


@dataclass(frozen=True)
class Stage:
    """What is done with each session.

    Args:
        part: NATIVE or STANDARD.
        steps: the transforms.
        contrasts: all there may be, the reference first.
        output: folder of the derivatives.
        given: what the steps look for in an item beside the images: the template, the scales.
    """

    part: str
    steps: Compose
    contrasts: Sequence[str]
    output: str
    given: Mapping[Hashable, object] = field(default_factory=dict)

    def request(self, session: Session) -> str:
        """A short text that changes with the files, or what was made of them, and with the settings."""
        if self.part == NATIVE:
            paths = [*session.images.values(), *([session.mask] if session.mask else [])]
            before: list[object] = [_state(Path(path)) for path in paths]
        else:
            before = [read_log(folder_of(self.output, session), NATIVE).get("request")]
        given = {str(key): str(value) for key, value in self.given.items()}
        text = json.dumps(
            [before, given, [[type(step).__name__, parameters_of(step)] for step in self.steps.transforms]]
        )
        return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]

    def is_done(self, session: Session) -> bool:
        """Whether the files of a session are there, complete, and what is asked for now."""
        folder = folder_of(self.output, session)
        try:
            part = read_manifest(folder).get(self.part, {})
        except ValueError:
            return False
        complete = not part.get("unfinished") and all((folder / name).is_file() for name in part.get("files", ()))
        return complete and read_log(folder, self.part).get("request") == self.request(session)

    def __call__(self, session: Session) -> str:
        """Do the steps and write the files; errors as the steps raise them."""
        folder, request = folder_of(self.output, session), self.request(session)
        item: Item = {**self.given, **(_of(session) if self.part == NATIVE else read_native(folder))}
        with collecting() as warnings:
            item, log = run_steps(self.steps, item)
        record: Row = {"id": session.id, "request": request, "images": dict(session.images), "mask": session.mask}
        record |= {"warnings": warnings, "steps": log}
        with publishing(folder, self.part) as scratch:
            if self.part == NATIVE:
                record |= _write_native(scratch, session.id, item, self.contrasts)
            else:
                from .looks import describe

                earlier = read_log(folder, NATIVE)
                record["steps"] = [*earlier["steps"], *log]
                record["warnings"] = list(dict.fromkeys([*earlier["warnings"], *warnings]))
                record |= _write_standard(scratch, session.id, item, self.contrasts)
                record |= describe(scratch / f"{session.id}_qc.png", item, self.contrasts, record["steps"])
            write_metrics(scratch / LOGS[self.part], record)
        return session.id


def _of(session: Session) -> Item:
    return {"images": dict(session.images), "mask": session.mask}


def run_steps(steps: Compose, item: Item) -> tuple[Item, list[Row]]:
    """The item after all steps, and for each its name, parameters, seconds and what it found."""
    log: list[Row] = []
    for step in steps.transforms:
        start = time.perf_counter()
        item = dict(step(item))
        seconds = round(time.perf_counter() - start, 2)
        found = item.pop("found", {})
        log.append({"step": type(step).__name__, "parameters": parameters_of(step), "seconds": seconds, **found})
    return item, log


def parameters_of(step: object) -> Row:
    """The settings of a transform and its parts that are numbers, texts, or lists of them; of files their state."""
    found: Row = {}
    for key, value in vars(step).items():
        if _is_plain(value):
            found[key.lstrip("_")] = value
            if isinstance(value, str) and Path(value).is_file():
                found[f"{key.lstrip('_')}_file"] = _state(Path(value))
        elif type(value).__module__.startswith(_PACKAGE) and not isinstance(value, torch.nn.Module):
            found[key.lstrip("_")] = parameters_of(value)
    return found


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(one) for one in value)
    return value is None or isinstance(value, bool | int | float | str)


def _state(path: Path) -> list[object]:
    """Name, size and last change of a file, or of the files in a folder of DICOM."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    states = [file.stat() for file in files if file.exists()]
    return [str(path), sum(one.st_size for one in states), max((one.st_mtime_ns for one in states), default=0)]


def read_log(folder: Path, part: str) -> Row:
    """The log of a session's stage; empty if there is none."""
    try:
        return json.loads((folder / LOGS[part]).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def read_native(folder: Path) -> Item:
    """The images, mask and maps that the first stage wrote."""
    log = read_log(folder, NATIVE)
    item: Item = {name: read_meta_tensor(folder / file) for name, file in log["files"].items()}
    for name, file in log["files"].items():
        item[name].meta["filename_or_obj"] = str(folder / file)
    item["maps"] = {name: np.array(matrix) for name, matrix in log["maps"].items()}
    return item


def _write_native(folder: Path, name: str, item: Item, contrasts: Sequence[str]) -> Row:
    files, (first, *others) = {}, present(item, contrasts)
    for contrast in (first, *others):
        files[contrast] = f"{name}_desc-preproc_{contrast}.nii.gz"
        _write(folder / files[contrast], item[contrast])
    if MASK in item:
        files[MASK] = f"{name}_desc-brain_mask.nii.gz"
        _write(folder / files[MASK], item[MASK])
    maps = item.get("maps", {})
    for contrast, matrix in maps.items():
        write_composite_transform(folder / f"{name}_from-{contrast}_to-{first}_mode-image_xfm.h5", [matrix])
    return {"files": files, "maps": {contrast: matrix.tolist() for contrast, matrix in maps.items()}}


def space_of(item: Item, contrasts: Sequence[str]) -> str:
    """The name of the space that a session is in at last: the template's, or that of its own reference."""
    template: Template | None = item["template"]
    return present(item, contrasts)[0] if template is None else template.space


def _write_standard(folder: Path, name: str, item: Item, contrasts: Sequence[str]) -> Row:
    names, space = present(item, contrasts), space_of(item, contrasts)
    files = {contrast: f"{name}_space-{space}_desc-preproc_{contrast}.nii.gz" for contrast in names}
    stripped = MASK in item and all(float(item[one][item[MASK] == 0].std()) == 0 for one in names)
    for contrast, file in files.items():
        _write(folder / file, item[contrast])
        write_metrics(folder / file.replace(".nii.gz", ".json"), {"SkullStripped": stripped})
    if MASK in item:
        files[MASK] = f"{name}_space-{space}_desc-brain_mask.nii.gz"
        _write(folder / files[MASK], item[MASK])
    matrix = item.get("to_template")
    if matrix is not None:
        for contrast in names:
            whole = item.get("maps", {}).get(contrast, np.eye(len(matrix))) @ matrix
            write_composite_transform(folder / f"{name}_from-{contrast}_to-{space}_mode-image_xfm.h5", [whole])
        back = folder / f"{name}_from-{space}_to-{names[0]}_mode-image_xfm.h5"
        write_composite_transform(back, [np.linalg.inv(matrix)])
    return {"space": space, "files": files, "to_template": None if matrix is None else matrix.tolist()}


def _write(path: Path, image: MetaTensor) -> None:
    array = image.as_tensor()[0]
    write_voxels(path, (array if array.is_floating_point() else array.to(torch.uint8)).numpy(), image.affine.numpy())
