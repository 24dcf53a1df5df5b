"""Find what there is to prepare: sessions of a BIDS data set, of a plain folder, or of folders with DICOM series."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..data.names import file_stem
from ..data.tables import pattern_to_regex, walk
from ..space.readers import dicom_texts
from ..space.writers import image_ending

CONTRASTS = ("T1w", "T2w", "FLAIR")

_WORDS = {"FLAIR": r"flair|dark.?fluid", "T2w": r"t2w?(?![a-z0-9*])", "T1w": r"t1w?(?![a-z0-9*])|mp.?rage|bravo|spgr"}

_OURS = re.compile(r"_(desc|space)-|(^|/)derivatives/")  # what is prepared already

_SERIES_DESCRIPTION = "0008|103e"


@dataclass(frozen=True)
class Session:
    """What was scanned of a person at one time.

    Args:
        subject, session: labels as BIDS has them, letters and digits; the session may be empty.
        images: a path for each contrast, a file or a folder with a DICOM series. The first one is the reference.
        mask: of the brain, on the grid of the reference.
        problem: why it cannot be prepared, one sentence; else empty.
    """

    subject: str
    session: str
    images: Mapping[str, str]
    mask: str | None = None
    problem: str = ""

    @property
    def id(self) -> str:
        """Its name in files."""
        return "_".join([f"sub-{self.subject}", *([f"ses-{self.session}"] if self.session else [])])


@dataclass
class _Found:
    """The files of a session, as they are found."""

    fields: dict[str, str]
    images: dict[str, list[str]] = field(default_factory=dict)


def find_sessions(
    folder: str | os.PathLike[str],
    *,
    pattern: str | None = None,
    contrasts: Sequence[str] = CONTRASTS,
    masks: str | None = None,
    run: int | None = None,
) -> list[Session]:
    """The sessions in a folder.

    With a pattern they are the files, or DICOM folders, that fit it. Else they are those of BIDS
    (`sub-*/[ses-*]/anat/*_T1w.nii.gz`), if there are some; else folders with DICOM series, `PERSON/[SESSION/]SERIES`,
    whose path or series description names the contrast; else all images, whose names are person and contrast
    (`anna_t1.nii.gz`, `anna/flair.nii.gz`); a name without a contrast is of the first one.

    Args:
        pattern: a path relative to the folder, with the fields {subject}, {session}, {contrast}; `*` matches all but /.
        contrasts: those that are wanted, as BIDS names them, the reference first.
        masks: pattern of brain masks with the same fields.
        run: which run to take where a session has several of one contrast.
    Raises:
        FileNotFoundError: if there is no such folder, or nothing in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: there is no such folder")
    names = [name for name in walk(root) if not _OURS.search(name)]
    for found in _ways(root, names, pattern, contrasts):
        sessions = [_session(root, one, contrasts, masks, run) for one in _grouped(found, contrasts).values()]
        if sessions:
            return sessions
    wanted = pattern or "BIDS (sub-*/anat/*_T1w.nii.gz), other images, or folders with DICOM series"
    raise FileNotFoundError(f"{root}: no images found here, expected {wanted}")


def contrast_of(text: str) -> str | None:
    """The contrast that a name or a description speaks of, or None."""
    for contrast, words in _WORDS.items():
        if re.search(rf"(?<![a-z0-9])({words})", text.lower()):
            return contrast
    return None


def _ways(
    root: Path, names: Sequence[str], pattern: str | None, contrasts: Sequence[str]
) -> Iterator[Iterator[dict[str, str]]]:
    """Ways to read a folder; each gives the fields of images, with their "path"."""
    if pattern is not None:
        yield _matching(pattern_to_regex(pattern), [*names, *_dicom_folders(root, names)])
        return
    kinds = "|".join(map(re.escape, contrasts))
    labels = r"sub-(?P<subject>[A-Za-z0-9]+)/(?:ses-(?P<session>[A-Za-z0-9]+)/)?"
    yield _matching(re.compile(rf"{labels}anat/[^/]*_(?P<contrast>{kinds})\.nii(\.gz)?"), names)
    yield _series(root, names)
    yield (_by_name(name, contrasts[0]) for name in names if image_ending(name))


def _matching(expression: re.Pattern[str], names: Sequence[str]) -> Iterator[dict[str, str]]:
    for name in names:
        match = expression.fullmatch(name)
        if match:
            yield {**{k: v for k, v in match.groupdict().items() if v is not None}, "path": name}


def _by_name(name: str, default: str) -> dict[str, str]:
    stem = file_stem(name)
    contrast = contrast_of(stem.replace("_", " "))
    rest = re.sub(rf"(?i)(^|[_\W])({_WORDS[contrast]})", "", stem.replace("_", " ")) if contrast else stem
    parent = Path(name).parent.name
    person = rest if re.search(r"[A-Za-z0-9]", rest) else parent
    return {"subject": person, "contrast": contrast or default, "path": name}


def _dicom_folders(root: Path, names: Sequence[str]) -> dict[str, str]:
    """Folders that hold DICOM files directly, and one file of each."""
    firsts: dict[str, str] = {}
    for name in names:
        if not image_ending(name):
            firsts.setdefault(str(Path(name).parent.as_posix()), name)
    return {folder: name for folder, name in firsts.items() if _is_dicom(root / name)}


def _is_dicom(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def _series(root: Path, names: Sequence[str]) -> Iterator[dict[str, str]]:
    for folder, first in _dicom_folders(root, names).items():
        contrast = contrast_of(Path(folder).name.replace("_", " "))
        contrast = contrast or contrast_of(dicom_texts(str(root / first), _SERIES_DESCRIPTION)[0].replace("_", " "))
        if contrast is not None:
            parts = Path(folder).parts or (root.name,)
            yield {"subject": parts[0], "session": "".join(parts[1:-1]), "contrast": contrast, "path": folder}


def _grouped(found: Iterator[dict[str, str]], contrasts: Sequence[str]) -> dict[tuple[str, str], _Found]:
    groups: dict[tuple[str, str], _Found] = {}
    for fields in found:
        named = fields.get("contrast", contrasts[0])
        contrast = named if named in contrasts else contrast_of(named.replace("_", " "))
        if contrast in contrasts:
            key = _label(fields.get("subject", "")), _label(fields.get("session", ""))
            groups.setdefault(key, _Found(fields)).images.setdefault(str(contrast), []).append(fields["path"])
    return dict(sorted(groups.items()))


def _label(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]", "", text.removeprefix("sub-").removeprefix("ses-"))


def _session(root: Path, found: _Found, contrasts: Sequence[str], masks: str | None, run: int | None) -> Session:
    images, problems = {}, []
    for contrast in contrasts:
        if contrast in found.images:
            paths = _of_run(found.images[contrast], run)
            images[contrast] = str(root / (paths or found.images[contrast])[0])
            if len(paths) != 1:
                listed = ", ".join(Path(path).name for path in found.images[contrast])
                advice = "give --run 1, or --pattern" if run is None else f"and --run {run} does not single one out"
                problems.append(f"expected one {contrast} of a session, found {listed}: {advice}")
    mask = None if masks is None else _mask(root, masks, found)
    if mask is not None and not Path(mask).exists():
        problems.append(f"{mask}: there is no such mask")
    subject, session = (_label(found.fields.get(name, "")) for name in ("subject", "session"))
    if not subject:
        problems.insert(0, f"{next(iter(images.values()))}: the name says no person, give --pattern with {{subject}}")
    return Session(subject or "unknown", session, images, mask, problems[0] if problems else "")


def _of_run(paths: Sequence[str], run: int | None) -> list[str]:
    """Of several files of one contrast those of a run."""
    if run is None or len(paths) == 1:
        return list(paths)
    return [path for path in paths if re.search(rf"_run-0*{run}_", path)]


def _mask(root: Path, masks: str, found: _Found) -> str:
    try:
        return str(root / masks.format(**found.fields))
    except KeyError as error:
        raise ValueError(f"--masks {masks}: nothing is known of {{{error.args[0]}}}") from error
