"""What is done with each person in a round of a template: register, and carry images to the template's grid.

Each is a function of a person that several processes can call; what it found lies in files.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from ..evaluation.metrics import gradient_energy
from ..evaluation.report.views import Views, make_views
from ..evaluation.result import Registration
from ..files import write_metrics
from ..results import publishing, replacing
from ..space.affine import register_affine
from ..space.dialects.itk import write_affine_transform
from ..space.grids import Grid
from ..space.memory_images import Image
from ..space.resampling import DisplacementField, dense_field
from ..space.volumes import Volume, load_channels, load_image, load_labels, load_mask
from ..space.warping import warp_image, warp_to_grid
from ..transforms.intensities import scale_intensity
from .maps import PersonsMap, kept
from .place import Place
from .subjects import Subject

VIEWS = "views.json"

MIDDLE = "middle.pt"  # of a round: from the new template's points to those of the one before


class Register(Protocol):
    """Registers a pair in memory, as a bundle does it; `affine` is the path of a map, or "none"."""

    def __call__(
        self,
        moving: Image,
        fixed: Image,
        *,
        mask_moving: Image | None = None,
        mask_fixed: Image | None = None,
        channel_weights: Sequence[float] | None = None,
        affine: str | None = None,
    ) -> Registration:
        """The registration of the pair."""


@dataclass(frozen=True)
class Answer:
    """The folder of a round's maps, and what they answer."""

    folder: Path
    request: str

    def of(self, subject: Subject) -> PersonsMap:
        """A person's map from the points of the template before."""
        return kept(self.folder / "maps" / f"{subject.id}.pt", self.request)

    @property
    def middle(self) -> PersonsMap:
        """From the new template's points to those of the one before."""
        return kept(self.folder / MIDDLE, self.request)


@dataclass(frozen=True)
class MatchAffine:
    """Find people's affine maps from the template's points; those that are known stay.

    Args:
        template: image. engine: "torch" or "itk".
        answer: the round, in whose folder the maps are kept.
    """

    template: str
    answer: Answer
    engine: str

    def __call__(self, subject: Subject) -> None:
        """Raises ValueError: if the person's image is none, or nothing overlaps."""
        path = self.answer.folder / "maps" / f"{subject.id}.pt"
        if PersonsMap.read(path, self.answer.request) is not None:
            return
        mask = None if subject.mask is None else load_mask(subject.mask)
        fixed, moving = load_image(self.template), load_image(subject.images[0])
        matrix = register_affine(fixed, moving, engine=self.engine, mask_moving=mask)
        PersonsMap(matrix).save(path, self.answer.request)


@dataclass(frozen=True)
class MatchDeformable:
    """Find people's deformations from the template's points; those that are known stay.

    Args:
        template: its images, one for each contrast.
        answer: the round, in whose folder the maps are kept.
        register: registers a pair in memory.
        before: the last affine round; None: the headers are right.
        channel_weights: of the contrasts.
    """

    template: tuple[str, ...]
    answer: Answer
    register: Register
    before: Answer | None = None
    channel_weights: tuple[float, ...] | None = None

    def __call__(self, subject: Subject) -> None:
        """Raises ValueError: if the person's images are none, or do not go together with the template."""
        path = self.answer.folder / "maps" / f"{subject.id}.pt"
        if PersonsMap.read(path, self.answer.request) is not None:
            return
        matrix, affine = None, "none"
        if self.before is not None:
            matrix = self.before.of(subject).matrix @ self.before.middle.matrix
            affine = str(path.with_suffix(".tfm"))
            with replacing(affine) as temporary:
                write_affine_transform(temporary, matrix)
        found = self.register(
            list(subject.images),
            list(self.template),
            mask_moving=subject.mask,
            channel_weights=self.channel_weights,
            affine=affine,
        )
        dense_map(found, matrix).save(path, self.answer.request)


def dense_map(found: Registration, matrix: np.ndarray | None = None) -> PersonsMap:
    """The map of a registration in memory, whose affine part is known.

    Raises:
        ValueError: if the bundle does not say what the inverse map is.
    """
    ddf, inverse = found.arrays["ddf"], found.arrays.get("inverse_ddf")
    if inverse is None:
        raise ValueError(f"{found.id}: this bundle gives no inverse map, which a cohort needs")
    grid = Grid(ddf.affine.numpy().astype(np.float64), tuple(ddf.shape[1:]))
    there, back = (DisplacementField(one.as_tensor().float(), grid) for one in (ddf, inverse))
    return PersonsMap(np.eye(len(grid.size) + 1) if matrix is None else matrix, (there, back))


@dataclass(frozen=True)
class Carry:
    """Bring people's images, and labels if wanted, onto the template's grid, with one interpolation of the originals.

    Files in `output`: <id>.npy, contrasts (C, *S) from 0 to 1, and <id>_label.npy, (1, *S).

    Args:
        place: of the template.
        answer: of the round; None: the headers say where people are.
    """

    place: Place
    answer: Answer | None
    output: Path
    labels: bool = False

    def __call__(self, subject: Subject) -> float:
        """The gradient energy of the reference on the grid."""
        maps = () if self.answer is None else (self.answer.middle, self.answer.of(subject))
        steps = [step for one in maps for step in one.forth] or [np.eye(len(self.place.grid.size) + 1)]
        image = load_channels(subject.images)
        carried = warp_image(replace(image, data=scale_intensity(image.data)), self.place.grid, steps)
        np.save(self.output / f"{subject.id}.npy", carried.numpy())
        if self.labels and subject.label is not None:
            label = load_labels(subject.label)
            found = warp_to_grid(label.data, label.affine, self.place.grid, steps, mode="nearest")
            np.save(self.output / f"{subject.id}_label.npy", found.numpy())
        return float(gradient_energy(carried[None, :1], spacing_mm=list(self.place.grid.spacing)).mean())


@dataclass(frozen=True)
class WritePerson:
    """Write what a person has of their own into FOLDER/<id>: transform.h5, from the template's points, its inverse, and
    views.json, for the page, if Pillow is there.

    Args:
        template: image.
        place: of the template.
        answer: the last round.
        folder: FOLDER.
    """

    template: str
    place: Place
    answer: Answer
    folder: Path

    def __call__(self, subject: Subject) -> None:
        middle, own = self.answer.middle, self.answer.of(subject)
        volume = load_image(subject.images[0])
        with publishing(self.folder / subject.id, "template") as scratch:
            names = [scratch / "transform.h5", scratch / "inverse_transform.h5"]
            self.place.write_transforms(names, volume, [*middle.forth, *own.forth], [*own.back, *middle.back])
            if importlib.util.find_spec("PIL") is not None:
                write_metrics(scratch / VIEWS, self._views(volume, middle, own))

    def _views(self, volume: Volume, middle: PersonsMap, own: PersonsMap) -> Views:
        """The template, the person as aligned and as deformed."""
        grid, fixed = self.place.grid, load_image(self.template).data
        scaled = replace(volume, data=scale_intensity(volume.data))
        dense = [*middle.forth, *own.forth[:-1]]
        aligned, after = (warp_image(scaled, grid, [*steps, own.matrix]) for steps in ((), dense))
        ddf = dense_field(dense, grid).ddf
        return make_views(aligned, fixed, after, ddf, spacing_mm=list(grid.spacing))
