"""The template of a preparation: one that is there, or the average of the group itself.

Convention: as in `template`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..files import write_metrics
from ..results import aside, publishing
from ..space.files import write_image
from ..space.resampling import resample
from ..tasks import Problem, Workers
from ..vocabulary import Item
from .sessions import Session
from .stages import NATIVE, folder_of, read_log, read_native
from .steps import ToTemplated, mask_of, present, volume_of
from .template import GROUP, Template, averaged, first_template, named_template, template_of

_AVERAGE = "average"  # the part of the manifest
_IMAGE, _MASK, _LOG = (f"tpl-{GROUP}_{name}" for name in ("T1w.nii.gz", "desc-brain_mask.nii.gz", "log.json"))


@dataclass(frozen=True)
class Target:
    """What scans are aligned with.

    Args:
        template: "mni152", "group", "none", or the path of an image.
        mask: of the brain of such an image.
        rounds: averages of the group, one after the other; the first one is of scans aligned with one of them.
    """

    template: str = "mni152"
    mask: str | None = None
    rounds: int = 3

    @property
    def is_group(self) -> bool:
        """Whether it is the average of the scans themselves."""
        return self.template == GROUP

    def known(self) -> Template | None:
        """The template, unless it is to be made.

        Raises:
            ValueError: if the file is missing or damaged, or nilearn is not installed.
        """
        try:
            return named_template(self.template, self.mask)
        except (FileNotFoundError, ImportError, ValueError) as error:
            raise ValueError(f"--template: {error}") from error

    def average(
        self, output: str, contrasts: Sequence[str], sessions: Sequence[Session], *, workers: Workers, again: bool
    ) -> Template | None:
        """The average of sessions that the first stage has prepared, one of each person; None without sessions.

        Raises:
            ValueError: if none can be aligned.
        """
        firsts = list({one.subject: one for one in reversed(sessions)}.values())[::-1]
        if not firsts:
            return None
        folder = Path(output) / "template"
        requests = [read_log(folder_of(output, one), NATIVE).get("request") for one in firsts]
        wanted = {"sessions": requests, "rounds": self.rounds}
        if again or not _is_there(folder, wanted):
            template = self._average(output, contrasts, firsts, workers)
            with publishing(folder, _AVERAGE) as scratch:
                write_image(scratch / _IMAGE, template.image.data, template.image.affine)
                if template.mask is not None:
                    write_image(scratch / _MASK, template.mask.data, template.mask.affine)
                write_metrics(scratch / _LOG, wanted)
        return template_of(folder / _IMAGE, folder / _MASK if (folder / _MASK).is_file() else None)

    def _average(
        self, output: str, contrasts: Sequence[str], sessions: Sequence[Session], workers: Workers
    ) -> Template:
        item = read_native(folder_of(output, sessions[0]))
        template = first_template(volume_of(item, present(item, contrasts)[0]), mask_of(item))
        for k in range(self.rounds):
            title = f"average {k + 1} of {self.rounds}"
            with aside(Path(output) / "template") as carried:
                align = _Aligned(output, contrasts, template, carried)
                good = [one for one in workers.each(align, sessions, title) if not isinstance(one, Problem)]
                if not good:
                    raise ValueError("no session could be aligned with the group's average")
                images, masks, maps = zip(*good, strict=True)
                template = averaged(template, images, [one for one in masks if one is not None], maps)
        return template


def _is_there(folder: Path, wanted: dict[str, object]) -> bool:
    try:
        return json.loads((folder / _LOG).read_text(encoding="utf-8")) == wanted
    except (OSError, ValueError):
        return False


@dataclass(frozen=True)
class _Aligned:
    """A session's reference and mask on a template's grid, its brightness about 1, as arrays in files of a folder, and
    the map to it."""

    output: str
    contrasts: Sequence[str]
    template: Template
    carried: Path

    def __call__(self, session: Session) -> tuple[Path, Path | None, np.ndarray]:
        item: Item = read_native(folder_of(self.output, session))
        item = ToTemplated(self.contrasts)({**item, "template": self.template})
        image, mask = volume_of(item, present(item, self.contrasts)[0]), mask_of(item)
        matrix, grid = item["to_template"], self.template.image.grid
        data = image.data if mask is None else image.data * (mask.data > 0)
        shown = data[mask.data > 0] if mask is not None else data[data > 0]
        moved = resample(data, image.affine, grid, world_matrix=matrix, fill=0.0, antialias=True)
        moved = moved / float(torch.quantile(shown.flatten()[:: max(1, shown.numel() // 100_000)], 0.99))
        path, inside = self.carried / f"{session.id}.npy", None
        np.save(path, moved.numpy())
        if mask is not None:
            found = resample((mask.data > 0).float(), mask.affine, grid, world_matrix=matrix, fill=0.0) > 0.5
            inside = self.carried / f"{session.id}_mask.npy"
            np.save(inside, found.float().numpy())
        return path, inside, matrix
