"""`morphzoo train`: train a bundle's network on scans of one's own, and compare it with the shipped one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..vocabulary import Entry
from .bundles import find_bundle, registers, takes_scans
from .heads import images_in
from .settings import give, typed_settings
from .workflow import as_list

if TYPE_CHECKING:
    from monai.bundle import ConfigParser

_LIST, _REQUEST = "datalist.json", "request.json"
_OWN_TO_A_RUN = {"device", "max_epochs", "val_interval", "resume", "cache"}  # what may change when a training goes on
_SET_HERE = ("data_list", "output_dir", "initial_weights", "bundle_root", "resume")  # by other words of the command
_COMPARED = 12  # validation pairs at the end
_FINER = 0.3  # times the learning rate, where weights are trained on


@dataclass(frozen=True)
class Trained:
    """A finished training.

    Args:
        folder: with `model.pt`, its sidecar, `last.pt`, `curve.csv` and the data list.
        weights: the best network by validation.
        bundle: that it is for.
        spacing: mm, of the grid that it was trained on, if the bundle's own is another.
        rows: mean measures of the validation pairs by what was compared; empty for a bundle that registers no pairs.
    """

    folder: Path
    weights: Path
    bundle: str
    spacing: object
    rows: Mapping[str, Mapping[str, float]]

    def __str__(self) -> str:
        names = list(dict.fromkeys(name for row in self.rows.values() for name in row))
        lines = [f"{'validation pairs, mean':34s}" + "".join(f"{name:>18s}" for name in names)] if names else []
        for what, row in self.rows.items():
            lines.append(
                f"{what:34s}" + "".join(f"{row[name]:18.4f}" if name in row else f"{'':18s}" for name in names)
            )
        use = "register MOVING FIXED -o out" if self.rows else "evaluate LIST -o out"
        use += f" --bundle {self.bundle} --weights {self.weights}"
        use += "" if self.spacing is None else f" --spacing {self.spacing}".replace(", ", ",")
        return "\n".join([*lines, "", f"use it: morphzoo {use}"])


def train(
    scans: str,
    output: str = "trained",
    *,
    bundle: str = "voxelmorph",
    initial: str = "shipped",
    image: str | None = None,
    label: str | None = None,
    dataset_dir: str | None = None,
    again: bool = False,
    overlay: str | Sequence[str] = (),
    **settings: object,
) -> Trained:
    """Train a bundle's network on scans, beginning from the shipped weights; the best one is OUTPUT/model.pt.

    A fifth of the people validate; a list with a section `validation` is taken as it is. Size and spacing of the
    training's grid follow from the weights and the scans. The same call goes on with a training that was stopped; with
    more --max_epochs it extends one that was finished. At the end validation pairs are registered by the weights it
    began from and by the new ones.

    Args:
        scans: a data list (data_lists/README.md), a folder that holds one (`morphzoo prepare` writes it), or a folder
            of images, in which each file is a person.
        output: folder for the training.
        bundle: name of a bundle, or its folder.
        initial: weights to begin from: "shipped", "none" (random ones), or a file of weights.
        image, label: patterns of the files in a folder, with {subject}: "{subject}_t1.nii.gz", "{subject}_seg.nii.gz".
        dataset_dir: folder to which the list's paths are relative; default: the list's folder.
        again: begin anew.
        overlay: further config files, the last one wins.
        **settings: any setting of the bundle's train.json: --max_epochs, --num_pairs, --spacing, --size, --labels, ...
    Examples:
        `morphzoo train prepared -o trained --bundle voxelmorph`
    Returns:
        Where the weights are, and how they compare.
    Raises:
        FileNotFoundError: if there are no scans.
        ValueError: if there are too few people, the bundle has no such setting, or OUTPUT holds another training.
    """
    from ..data.lists import make_pairs
    from ..runs import unwrapped

    taken = [name for name in _SET_HERE if name in settings]
    if taken:
        raise ValueError(f"train sets {taken[0]} itself: SCANS, --output, --initial and --again say what it is")
    root, folder = find_bundle(bundle), Path(output)
    sections = _sections(scans, output, image, label, dataset_dir)
    dims = _spatial_dims(sections["training"])
    begin = _initial(root, initial, dims)
    parser, given = _parser(root, dims, as_list(overlay), settings)
    given |= _from_data(parser, given, sections["training"], begin)
    _start(folder, _request(root, begin, sections, given), sections, again)
    spacing = given.get("spacing")
    given |= {"dataset_dir": str(folder), "data_list": str(folder / _LIST), "output_dir": str(folder)}
    given |= {"initial_weights": None if begin is None else str(begin), "bundle_root": str(root)}
    give(parser, {**given, "resume": not again and (folder / "last.pt").is_file()})
    with unwrapped():
        for step in ("initialize", "run"):
            parser.get_parsed_content(step)
    spacing = None if spacing == _own_spacing(root, dims) else spacing
    pairs = [] if takes_scans(root) or not registers(root) else make_pairs(sections["validation"], limit=_COMPARED)
    rows = _compared(root, folder, pairs, begin, spacing) if pairs else {}
    return Trained(folder, folder / "model.pt", root.name, spacing, rows)


def _sections(
    scans: str, output: str, image: str | None, label: str | None, dataset_dir: str | None
) -> dict[str, list[Entry]]:
    """The scans for training and for validation, with whole paths."""
    from ..data.lists import load_list, split_by_person, subject_of

    path = Path(scans)
    path = path.absolute() if path.exists() else path  # the list that the training reads lies in another folder
    dataset_dir = None if dataset_dir is None else str(Path(dataset_dir).absolute())
    if path.is_dir() and image is None and label is None and (path / _LIST).is_file():
        path = path / _LIST
    if path.is_dir():
        found = _in_folder(path, output, image, label)
    else:
        found = load_list(path, "training", dataset_dir)
        if json.loads(path.read_text(encoding="utf-8-sig")).get("validation"):
            return {"training": found, "validation": load_list(path, "validation", dataset_dir)}
    people = {subject_of(scan) for scan in found}
    if len(people) < 4:
        raise ValueError(f"{scans}: a training needs at least 4 people, 2 of them for validation; found {len(people)}")
    share = max(0.2, 2 / len(people))
    return split_by_person(found, {"training": 1 - share, "validation": share})


def _in_folder(folder: Path, output: str, image: str | None, label: str | None) -> list[Entry]:
    """The scans of a folder: by patterns, or each image a person."""
    from ..data.tables import scans_from_folder

    if image is None and label is None:
        return [{"image": path} for path in images_in([str(folder)], output)]
    found = scans_from_folder(folder, image=image, label=label)
    return [scan | {key: str(folder / scan[key]) for key in ("image", "label") if key in scan} for scan in found]


def _spatial_dims(scans: Sequence[Entry]) -> int:
    from ..space.volumes import spatial_dims_of

    return spatial_dims_of(str(scans[0].get("image", scans[0].get("label"))))


def _initial(root: Path, initial: str, dims: int) -> Path | None:
    """The weights to begin from."""
    if initial == "none":
        return None
    if initial != "shipped":
        if not Path(initial).is_file():
            raise FileNotFoundError(f"{initial}: there are no such weights; --initial takes shipped, none, or a file")
        return Path(initial)
    shipped = root / "models" / f"model{'_2d' * (dims == 2)}.pt"
    if not shipped.is_file():
        raise ValueError(f"{root.name} ships no weights for {dims}-D images: give --initial none")
    return shipped


def _parser(
    root: Path, dims: int, overlays: Sequence[str], settings: Mapping[str, object]
) -> tuple[ConfigParser, dict[str, object]]:
    """The bundle's train.json for images of this dimension, and the settings as their types."""
    from monai.bundle import ConfigParser

    files = [root / "configs" / f"train{form}.json" for form in ("", "_2d")[: 2 if dims == 2 else 1]]
    if not all(path.is_file() for path in files):
        raise ValueError(f"{root.name} cannot be trained on {dims}-D images")
    config = ConfigParser.load_config_files([*map(str, files), *overlays])
    return ConfigParser(config), typed_settings(root.name, config, settings)


def _from_data(
    parser: ConfigParser, given: Mapping[str, object], scans: Sequence[Entry], begin: Path | None
) -> dict[str, object]:
    """Settings that follow from the weights and the scans, unless they are given."""
    from ..space.extent import size_for
    from ..weights import read_sidecar

    found: dict[str, object] = {}
    spacing = given.get("spacing", parser["spacing"])
    if begin is not None:
        if "learning_rate" in parser and "learning_rate" not in given:
            found["learning_rate"] = _FINER * float(parser["learning_rate"])
        told = read_sidecar(begin).get("spacing")
        if told is not None and "spacing" not in given:
            found["spacing"] = spacing = told
    if "size" in parser and "size" not in given and not any("affine" in scan for scan in scans):
        files = [str(scan.get("image", scan.get("label"))) for scan in scans]
        found["size"] = size_for(files, spacing, given.get("center", parser["center"]))
    epochs = int(str(given.get("max_epochs", parser["max_epochs"])))
    if "val_interval" not in given:
        found["val_interval"] = min(int(parser["val_interval"]), epochs)
    return found


def _own_spacing(root: Path, dims: int) -> object:
    """The spacing of the bundle's inference for images of this dimension."""
    from monai.bundle import ConfigParser

    files = [root / "configs" / f"inference{form}.json" for form in ("", "_2d")[: 2 if dims == 2 else 1]]
    return ConfigParser.load_config_files([str(path) for path in files if path.is_file()]).get("spacing")


def _request(
    root: Path, begin: Path | None, sections: Mapping[str, list[Entry]], given: Mapping[str, object]
) -> dict[str, object]:
    """What makes a training this one and no other."""
    from ..weights import digest

    found = {name: value for name, value in given.items() if name not in _OWN_TO_A_RUN}
    found |= {"bundle": root.name, "initial": None if begin is None else digest(begin), "scans": sections}
    return dict(json.loads(json.dumps(found, default=str)))


def _start(folder: Path, request: dict[str, object], sections: Mapping[str, list[Entry]], again: bool) -> None:
    """Make the folder, with the data list. Raises ValueError: if it holds another training."""
    from ..data.tables import write_list
    from ..files import write_metrics

    path = folder / _REQUEST
    if path.is_file() and (folder / "last.pt").is_file() and not again:
        before = json.loads(path.read_text(encoding="utf-8"))
        other = [name for name in request.keys() | before.keys() if request.get(name) != before.get(name)]
        if other:
            what = f"{folder} holds a training with another {sorted(other)[0]}"
            raise ValueError(f"{what}: give another --output, or --again to begin anew")
    folder.mkdir(parents=True, exist_ok=True)
    write_list(folder / _LIST, sections)
    write_metrics(path, request)


def _compared(
    root: Path, folder: Path, pairs: list[Entry], begin: Path | None, spacing: object
) -> dict[str, dict[str, float]]:
    """Mean measures of validation pairs: before, by the weights it began from, by the new ones, and refined."""
    from .workflow import infer

    rows: dict[str, dict[str, float]] = {}
    settings: dict[str, object]
    kinds = {"network before the training": (begin, 0), "network after the training": (folder / "model.pt", 0)}
    for name, (weights, optimize) in {**kinds, "the same, refined": (folder / "model.pt", None)}.items():
        if weights is None:
            continue
        place = folder / "compared" / name.replace(", ", " ").replace(" ", "_")
        settings = {"output_dir": str(place), "weights": str(weights), "affine": "none"}
        settings |= {"optimize": optimize, "spacing": spacing}
        cohort = infer(str(root), pairs, [], settings)
        means = [dict(one.metrics) for one in cohort.registrations]
        rows.setdefault("no registration", _means(means, "before", "aligned"))  # `affine` is none: they are the same
        rows[name] = _means(means, "after")
    return rows


def _means(measures: Sequence[Mapping[str, object]], *stages: str) -> dict[str, float]:
    """Mean of each measure at the first of the stages at which it was taken."""
    found: dict[str, float] = {}
    for kind in ("dice", "ncc", "nmi"):
        for stage in stages:
            values = [float(str(one[name])) for one in measures if one.get(name := f"{kind}_{stage}") is not None]
            if values:
                found.setdefault(kind, sum(values) / len(values))
    return found
