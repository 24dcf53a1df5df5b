"""What `strip` and `segment` share: images of heads one after another through the bundle that finds brains."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..checks import check_number, writable_folder
from ..vocabulary import Row
from .bundles import find_bundle, segments
from .labelling import Labelling
from .workflow import load_workflow

if TYPE_CHECKING:
    from monai.bundle import ConfigParser


@dataclass(frozen=True)
class Head:
    """What was found in an image: its files by kind, measures by name, and what is doubtful about it.

    Args:
        path: of the image.
        failure: why there is nothing, if there is not.
    """

    path: str
    files: Mapping[str, Path] = field(default_factory=dict)
    measures: Mapping[str, object] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    failure: str | None = None

    def __str__(self) -> str:
        if self.failure is not None:
            return f"{self.path}: failed: {self.failure}"
        lines = [f"{self.path}: brain {self.measures['brain_ml']:.0f} mL -> {', '.join(map(str, self.files.values()))}"]
        return "\n".join([*lines, *(f"  warning: {sentence}" for sentence in self.warnings)])


@dataclass(frozen=True)
class Heads:
    """What was found in several images, and the folder of the results."""

    heads: Sequence[Head]
    folder: Path

    def __str__(self) -> str:
        return f"{len(self.heads)} image{'s' * (len(self.heads) > 1)} done; results in {self.folder}"


def find_heads(
    images: Sequence[str],
    output: str,
    write: Sequence[str],
    settings: Mapping[str, object],
    *,
    bundle: str = "brain_extraction",
    overlay: str | Sequence[str] = (),
    atlases: int = 0,
) -> Iterator[Head]:
    """What is found in each image, one after another; an image that fails is passed over.

    Args:
        images: files, and folders of which all images are taken.
        output: folder of the results.
        write: kinds of files, see `SaveHeadd`.
        settings: of the bundle's inference.json, by id; those that are None are left out.
        bundle: its name or folder. overlay: further config files, the last one wins.
        atlases: how many of the bundle's atlases make the label map, see `Labelling`; 0: the network does.
    Raises:
        ValueError, FileNotFoundError: before the first image, if there is none, or a setting is wrong.
    """
    from ..data.names import distinct_names

    paths = images_in(images, output)
    root = find_bundle(bundle)
    if not segments(root):
        raise ValueError(f"{root.name} registers images and finds no brain in them")
    check_number("atlases", atlases, least=0, whole=True)
    device = settings.get("device")
    labelling = Labelling(root, atlases, None if device is None else str(device)) if atlases else None
    more = {"dataset#data": [], "write": list(write), "maps#labels": "labels" in write and not atlases}
    parser = load_workflow(root, 3, overlay, {**settings, "output_dir": output}, more).parser
    parser.get_parsed_content("evaluator")  # what components refuse, they refuse before anything is written
    if labelling:
        labelling.atlases  # noqa: B018  # so do too many of them
    writable_folder(output)
    names = distinct_names(paths)
    return (_found(parser, path, names[path], labelling) for path in paths)


def _found(parser: ConfigParser, path: str, name: str, labelling: Labelling | None) -> Head:
    import torch

    from ..notices import collecting
    from ..runs import sentence

    preprocessing, network, postprocessing, save = (
        parser.get_parsed_content(key) for key in ("preprocessing", "network", "postprocessing", "save")
    )
    try:
        with collecting() as warnings, torch.no_grad():
            item = preprocessing({"image": path, "id": name})
            image = item["image"]
            item["pred"] = network.eval()(image[None].to(parser.get_parsed_content("device")))[0]
            item = postprocessing(item)
            item = save(labelling(item) if labelling else item)
    except Exception as error:
        return Head(path, failure=sentence(error))
    return Head(path, item.get("files", {}), item["measures"], tuple(warnings))


def images_in(given: Sequence[str], output: str | os.PathLike[str]) -> list[str]:
    """Files, and the image files of folders and of those in them, but for `output`; a folder of DICOM counts as one.

    Raises:
        FileNotFoundError: if something is not there.
        ValueError: if a folder holds no images, or nothing is given.
    """
    from ..data.tables import walk
    from ..space.writers import image_ending

    found: list[str] = []
    results = os.path.realpath(output)
    for one in given:
        if not os.path.exists(one):
            raise FileNotFoundError(f"{one}: there is no such file or folder")
        if not os.path.isdir(one):
            found.append(one)
            continue
        inside = [Path(one, name) for name in walk(Path(one))]
        inside = [path for path in inside if not os.path.realpath(path).startswith(results + os.sep)]
        images = [str(path) for path in inside if image_ending(path)]
        if not images and not any(path.suffix.lower() in ("", ".dcm", ".ima") for path in inside):
            raise ValueError(f"{one}: there are no images in this folder")
        found += images or [one]
    if not found:
        raise ValueError("expected images, or folders of images")
    return list(dict.fromkeys(found))


def finish(heads: Iterator[Head], output: str) -> Heads:
    """Print each head as it comes, and write its row of volumes.csv.

    Rows of images that were done earlier stay, as their files do; of one image what `strip` and `segment` found stands
    in one row.

    Raises:
        RuntimeError: at the end, if images failed; the results of the others are there.
    """
    from ..files import write_table

    done, path = [], Path(output) / "volumes.csv"
    rows = _rows(path)
    for head in heads:
        print(head, flush=True)
        done.append(head)
        earlier = {
            name: value for name, value in rows.get(head.path, {}).items() if name not in ("warnings", "failure")
        }
        if head.failure is None:
            rows[head.path] = {**earlier, **head.measures, "warnings": list(head.warnings)}
        else:
            rows[head.path] = {"image": head.path, **earlier, "failure": head.failure}
        write_table(path, sorted(rows.values(), key=lambda row: "failure" in row))
    failed = [head for head in done if head.failure is not None]
    if failed:
        others = ", the others are done" if len(done) > len(failed) else ""
        raise RuntimeError(f"{len(failed)} of {len(done)} images failed{others}; {failed[0].failure}")
    return Heads(done, Path(output))


def _rows(path: Path) -> dict[str, Row]:
    """The rows of a table by their image, without empty cells; none if there is no table."""
    if not path.is_file():
        return {}
    with open(path, newline="", encoding="utf-8") as file:
        rows: list[Row] = [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]
    return {str(row["image"]): row for row in rows if row.get("image")}
