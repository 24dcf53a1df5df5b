"""How a template is to be made, and what it is when it is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..checks import check_number
from ..results import told
from ..vocabulary import Row


@dataclass(frozen=True)
class Plan:
    """How a template is made.

    Args:
        affine: "torch" or "itk", what aligns people; "none", the headers are right.
        affine_rounds, rounds: averages after affine maps, and then after deformations.
        average: "mean" or "median".
        sharpen: share of the sharpened average, see `sharpened`.
        symmetric: the template is its own mirror image across the middle of the first axis (left and right).
        resolution: voxel size, mm; None takes that of the first scan, or of `initial`.
        initial: images that the first round starts from, one for each contrast; none: the first scan, or if the headers
            are right the mean of all.
    Raises:
        ValueError: for another word, or a number out of range.
    """

    affine: str = "torch"
    affine_rounds: int = 2
    rounds: int = 4
    average: str = "mean"
    sharpen: float = 0.0
    symmetric: bool = False
    resolution: float | None = None
    initial: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, known in (("affine", ("torch", "itk", "none")), ("average", ("mean", "median"))):
            if getattr(self, name) not in known:
                raise ValueError(f"--{name}: expected {', '.join(known)}, got {getattr(self, name)!r}")
        check_number("affine_rounds", self.affine_rounds, least=0 if self.affine == "none" else 1, whole=True)
        check_number("rounds", self.rounds, least=0, whole=True)
        check_number("sharpen", self.sharpen, least=0, most=1)

    @property
    def kinds(self) -> list[str]:
        """What each round does."""
        affine = 0 if self.affine == "none" else self.affine_rounds
        return ["affine"] * affine + ["deformable"] * self.rounds

    @property
    def request(self) -> dict[str, object]:
        """Changes with what any round depends on; the number of deformable rounds is none of it."""
        return {name: value for name, value in vars(self).items() if name != "rounds"}


@dataclass(frozen=True)
class TemplateResult:
    """A template in files: the rounds that led to it, a row for each person, and where it is."""

    folder: Path
    rounds: Sequence[Row]
    people: Sequence[Row]

    def __str__(self) -> str:
        failed = sum("failure" in row for row in self.people)
        return f"template of {len(self.people) - failed} people; {told(self.folder, 'index.html')}"
