"""Write a data list (see README.md beside this file) from a data set that was downloaded.

    python -m data_lists.build folder DIR --image "t1/{subject}.nii.gz" --label "seg/{subject}.nii.gz" -o list.json
    python -m data_lists.build folder DIR --image "{subject}.nii.gz" --pair_kind atlas --atlas FILE -o list.json
    python -m data_lists.build labelmaps DIR --label "{subject}_seg.nii.gz" -o list.json
    python -m data_lists.build bids DIR --derivatives derivatives/fs --label_suffix desc-aseg_dseg -o list.json
    python -m data_lists.build neurite_oasis DIR -o list.json
    python -m data_lists.build learn2reg DIR/OASIS_dataset.json -o list.json
    python -m data_lists.build slices list.json SLICES -o SLICES/datalist.json
    python -m data_lists.build attributes list.json participants.tsv -o list.json
    python -m data_lists.build share list.json ventricles --labels "[4,43]" -o list.json

Paths in the list are relative to the data folder, whichever place the list is written to.
"""

from __future__ import annotations

import glob
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from custom_components.data.lists import number_or_text
from custom_components.data.names import distinct_names, file_stem
from custom_components.data.tables import MISSING, PERSON, make_list, read_people, scans_from_folder, walk, write_list
from custom_components.vocabulary import Entry


def scans_from_bids(
    folder: str | os.PathLike,
    *,
    suffix: str = "T1w",
    derivatives: str | None = None,
    label_suffix: str | None = None,
    mask_suffix: str | None = None,
) -> list[Entry]:
    """Find the anatomical scans of a BIDS data set: `sub-*/[ses-*]/anat/*_<suffix>.nii.gz`.

    Label maps and masks are looked for in `<folder>/<derivatives>` under the same sub-folders: files that begin with
    the image's name up to its suffix and end with `_<label_suffix>.nii.gz`, for instance `desc-aseg_dseg`.

    Args:
        folder: the data set.
        suffix: which images.
        derivatives: folder of the derivatives relative to `folder`; by default the labels lie beside the images.
        label_suffix, mask_suffix: ends of their names; None for none.
    Returns:
        Scan items with `subject` and, if the folder has them, `session`; paths relative to the folder.
    Raises:
        FileNotFoundError: if there is no such image, or a scan has no label or mask.
        ValueError: if several label maps or masks fit one image.
    """
    root = Path(folder)
    pattern = re.compile(
        rf"(?P<subject>sub-[^/]+)/(?:(?P<session>ses-[^/]+)/)?anat/[^/]*_{re.escape(suffix)}\.nii(\.gz)?"
    )
    scans = []
    for name in walk(root):
        match = pattern.fullmatch(name)
        if match is None:
            continue
        scan = {"image": name, **{k: v for k, v in match.groupdict().items() if v is not None}}
        stem = str(Path(derivatives or "") / re.split(rf"_{re.escape(suffix)}\.nii", name)[0])
        for key, ending in (("label", label_suffix), ("mask", mask_suffix)):
            if ending is not None:
                scan[key] = _find_derivative(root, stem, ending)
        scans.append(scan)
    if not scans:
        raise FileNotFoundError(f"no sub-*/[ses-*]/anat/*_{suffix}.nii.gz in {root}")
    return scans


def scans_from_neurite_oasis(folder: str | os.PathLike, *, labels: int | None = 35) -> list[Entry]:
    """Find the scans of the neurite-OASIS data set: `OASIS_OAS1_xxxx_MR1/aligned_norm.nii.gz` with `aligned_seg35`.

    Args:
        folder: the unpacked data set. If it holds `subjects.txt`, only the folders named there are taken.
        labels: 35 or 4 (structures or tissues), or None for images alone.
    Returns:
        Scan items; `subject` is OAS1_xxxx, `session` the number after MR.
    Raises:
        FileNotFoundError: if no scan is found, or label maps or scans of subjects.txt are missing.
        ValueError: if `labels` is another number.
    """
    if labels not in (None, 4, 35):
        raise ValueError(f"neurite-OASIS has label maps of 4 and of 35 classes, got {labels}")
    name = None if labels is None else f"OASIS_{{subject}}_MR{{session}}/aligned_seg{labels}.nii.gz"
    scans = scans_from_folder(folder, image="OASIS_{subject}_MR{session}/aligned_norm.nii.gz", label=name)
    subjects = Path(folder) / "subjects.txt"
    if not subjects.is_file():
        return scans
    wanted = subjects.read_text(encoding="utf-8").split()
    found = {os.path.dirname(scan["image"]): scan for scan in scans}
    missing = [name for name in wanted if name not in found]
    if missing:
        raise FileNotFoundError(f"{len(missing)} scans of {subjects} are missing, the first is {missing[0]}")
    return [found[name] for name in wanted]


def list_from_learn2reg(path: str | os.PathLike) -> dict[str, list[Entry]]:
    """Convert the JSON file of a Learn2Reg data set.

    Scans or pairs of `training`, pairs of `training_paired_images`, `registration_val` and `registration_test` become
    the sections `training`, `training_pairs`, `validation_pairs` and `test_pairs`. Label maps, masks and key points are
    the files of the same name in the folders labelsTr, masksTr, keypointsTr (Ts) beside imagesTr, taken as far as they
    exist. Training scans of people who are in a validation or test pair are left out.

    Args:
        path: the data set's JSON, in the data set's folder.
    Returns:
        Sections; paths relative to the folder of the JSON file.
    Raises:
        FileNotFoundError: if the file or an image that it names is missing.
        ValueError: if it has none of these sections.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no Learn2Reg data set file at {path}")
    source = json.loads(path.read_text(encoding="utf-8"))
    names = {
        "training": "training",
        "training_paired_images": "training_pairs",
        "registration_val": "validation_pairs",
        "registration_test": "test_pairs",
    }
    sections = {
        ours: [_learn2reg_item(item, path.parent) for item in source[theirs]]
        for theirs, ours in names.items()
        if source.get(theirs)
    }
    if not sections:
        raise ValueError(f"{path} has none of the sections {', '.join(names)}")
    held_out = {
        item[f"subject_{side}"]
        for s in ("validation_pairs", "test_pairs")
        for item in sections.get(s, ())
        for side in ("moving", "fixed")
    }
    for section in ("training", "training_pairs"):
        if section in sections:
            sections[section] = [
                item for item in sections[section] if not held_out & {item[k] for k in item if k.startswith("subject")}
            ]
    missing = [
        item[key]
        for items in sections.values()
        for item in items
        for key in ("image", "moving", "fixed")
        if key in item and not (path.parent / item[key]).is_file()
    ]
    if missing:
        raise FileNotFoundError(f"{len(missing)} images of {path} are missing, the first is {missing[0]}")
    return {name: items for name, items in sections.items() if items}


def cut_slices(
    data_list: str | os.PathLike,
    output: str | os.PathLike,
    *,
    axis: str = "S",
    pairs: str | os.PathLike | None = None,
    pairs_section: str = "between_people",
) -> dict[str, list[Entry]]:
    """Cut every volume of a list of scans in a common space into 2-D slices, files with their own place in the world.

    The slices of one level form a `group`: pairs for training are only drawn within it.

    Args:
        data_list: list of scans with `subject`; all sections named training, validation and test are cut.
        output: folder for `images/` and `labels/`.
        axis: world axis to cut across, R, A or S.
        pairs: a JSON file of pairs of these scans; each becomes one pair per level in `validation_pairs`.
        pairs_section: section of that file.
    Returns:
        Sections of the new list, paths relative to `output`.
    Raises:
        ValueError: if a path of the list leads out of its folder: its slices would lie outside of `output`.
    """
    import nibabel as nib
    import numpy as np

    source, target = Path(data_list), Path(output)
    along = "RAS".index(axis)
    lists = json.loads(source.read_text(encoding="utf-8"))
    sections: dict[str, list[Entry]] = {}
    levels = 0
    for section in ("training", "validation", "test"):
        for scan in lists.get(section, []):
            volumes = {key: nib.load(source.parent / scan[key]) for key in ("image", "label") if key in scan}
            volumes = {key: nib.as_closest_canonical(volume) for key, volume in volumes.items()}
            levels = next(iter(volumes.values())).shape[along]
            for level in range(levels):
                item: Entry = {"subject": scan["subject"], "group": level}
                for key, volume in volumes.items():
                    item[key] = _slice_name(scan[key], level)
                    affine = volume.affine.copy()
                    affine[:3, 3] += level * affine[:3, along]
                    (target / item[key]).parent.mkdir(parents=True, exist_ok=True)
                    nib.save(nib.Nifti1Image(np.take(volume.dataobj, [level], axis=along), affine), target / item[key])
                sections.setdefault(section, []).append(item)
    if pairs is not None:
        drawn = json.loads(Path(pairs).read_text(encoding="utf-8"))[pairs_section]
        names = distinct_names([pair[f"{side}_image"] for pair in drawn for side in ("moving", "fixed")])
        sections["validation_pairs"] = [
            {key: _slice_name(value, level) if "." in value else value for key, value in pair.items()}
            | {"id": f"{names[pair['moving_image']]}-to-{names[pair['fixed_image']]}_slice-{level}"}
            for pair in drawn
            for level in range(levels)
        ]
    return sections


def add_attributes(
    data_list: str | os.PathLike, table: str | os.PathLike, columns: Sequence[str] | None = None
) -> dict[str, Any]:
    """A list whose scans have the columns of a table (CSV, or TSV as BIDS has it) as attributes, matched by person.

    Args:
        data_list: list of scans with `subject`.
        table: has a column `subject` or `participant_id` (with or without "sub-"), and a row for each person.
        columns: that are wanted; all by default.
    Raises:
        ValueError: if a column or a person is missing, or a cell is empty.
    """
    people = read_people(table)
    known = list(next(iter(people.values())))
    wanted = [name for name in known if name not in PERSON] if columns is None else _list_of(columns)
    if not set(wanted) <= set(known):
        raise ValueError(f"{table}: expected the columns {', '.join(wanted)}, got {', '.join(known)}")

    def attributes(item: Entry) -> Entry:
        if "subject" not in item:
            raise ValueError(f"{data_list}: {item.get('image', item.get('label'))} has no subject to look up")
        row = people.get(str(item["subject"]).removeprefix("sub-"))
        if row is None or any((row[name] or "").lower() in MISSING for name in wanted):
            raise ValueError(f"{table}: no complete row for {item['subject']}")
        return {name: number_or_text(row[name]) for name in wanted}

    return _extend(data_list, attributes)


def add_share(
    data_list: str | os.PathLike,
    name: str,
    labels: Sequence[int],
    of: Sequence[int] | None = None,
    dataset_dir: str | os.PathLike | None = None,
) -> dict[str, Any]:
    """A list whose scans have as an attribute what percentage of the voxels of `of` (default: all but 0) has these
    labels. The list's paths are relative to `dataset_dir`, by default the list's folder.

    Raises:
        ValueError: if a scan has no label map, or none of the voxels counts.
    """
    import nibabel as nib
    import numpy as np

    folder = Path(data_list).parent if dataset_dir is None else Path(dataset_dir)

    def share(item: Entry) -> Entry:
        if "label" not in item:
            raise ValueError(f"{data_list}: {item.get('image')} has no label map")
        values = np.asarray(nib.load(folder / item["label"]).dataobj)
        whole = np.isin(values, _list_of(of)) if of is not None else values != 0
        if not whole.any():
            raise ValueError(f"{item['label']}: no voxel has one of the labels {of}")
        return {name: round(100 * float(np.isin(values, _list_of(labels)).sum() / whole.sum()), 4)}

    return _extend(data_list, share)


def _extend(data_list: str | os.PathLike, entries: Callable[[Entry], Entry]) -> dict[str, Any]:
    """A list with further entries for each of its scans; all else stays."""
    lists = json.loads(Path(data_list).read_text(encoding="utf-8"))
    for section in ("training", "validation", "test"):
        if section in lists:
            lists[section] = [{**item, **entries(item)} for item in lists[section]]
    return lists


def _list_of(value: Any) -> list[Any]:
    """A list of what the command line gives, where one element may stand alone."""
    return [value] if isinstance(value, str | int) else list(value)


def _relative_to(path: str, folder: str) -> str:
    """A file as a list of this folder names it: relative where it lies in there, else whole."""
    whole, root = Path(path).absolute(), Path(folder).absolute()
    if not whole.exists():
        raise FileNotFoundError(f"{path}: there is no such atlas")
    return whole.relative_to(root).as_posix() if whole.is_relative_to(root) else str(whole)


def _slice_name(name: str, level: int) -> str:
    if os.path.isabs(name) or os.path.normpath(name).startswith(".."):
        raise ValueError(f"expected paths inside of the list's folder, got {name}")
    return str(Path(name).with_name(f"{file_stem(name)}_slice-{level}.nii.gz"))


def _find_derivative(root: Path, stem: str, ending: str) -> str:
    exact = f"{stem}_{ending}.nii.gz"
    if (root / exact).is_file():
        return exact
    found = sorted(Path(name) for name in glob.glob(f"{glob.escape(str(root / stem))}_*_{ending}.nii*"))
    if not found:
        raise FileNotFoundError(f"no file {stem}*_{ending}.nii.gz in {root}")
    if len(found) > 1:
        raise ValueError(f"{len(found)} files fit {stem}*_{ending}.nii.gz in {root}: give a longer suffix")
    return found[0].relative_to(root).as_posix()


def _learn2reg_item(item: Any, root: Path) -> Entry:
    if isinstance(item, str):
        item = {"image": item}
    converted: Entry = {}
    for key, side in (("image", ""), ("moving", "_moving"), ("fixed", "_fixed")):
        if key not in item:
            continue
        name = os.path.normpath(item[key]).replace(os.sep, "/")
        converted[key] = name
        # X_0001_0000.nii.gz: the first number is the case, the last the modality.
        converted[f"subject{side}"] = re.sub(r"(_\d{4})?\.nii(\.gz)?$", "", os.path.basename(name))
        for ours, theirs, ending in (
            ("label", "labels", None),
            ("mask", "masks", None),
            ("landmarks", "keypoints", ".csv"),
        ):
            companion = re.sub(r"(^|/)images(Tr|Ts)/", rf"\1{theirs}\2/", name)
            if ending is not None:
                companion = re.sub(r"\.nii(\.gz)?$", ending, companion)
            if companion != name and (root / companion).is_file():
                converted[f"{ours}{side}"] = companion
    return converted


class Commands:
    """Write a data list to `output` and say what is in it.

    Args:
        output: the list.
        validation, test: shares of the people.
        seed: of the split and of the choice of pairs.
        pair_kind: between_people, all, neighbours, same_person, or atlas: each scan to one image.
        atlas, atlas_label: that image and its label map; they may lie anywhere.
        max_pairs: at most this many pairs in a section.
    """

    def __init__(
        self,
        *,
        output: str,
        validation: float = 0.2,
        test: float = 0.0,
        seed: int = 0,
        pair_kind: str = "between_people",
        atlas: str | None = None,
        atlas_label: str | None = None,
        max_pairs: int = 100,
    ) -> None:
        self._output = str(output)
        self._atlas = {"image": atlas, "label": atlas_label}
        self._split: dict[str, Any] = {"validation": validation, "test": test, "seed": seed}
        self._split |= {"pair_kind": pair_kind, "max_pairs": max_pairs}

    def folder(self, folder: str, image: str, label: str | None = None, mask: str | None = None) -> str:
        """Images of a plain folder by patterns with {subject}."""
        return self._write_split(folder, scans_from_folder(folder, image=image, label=label, mask=mask))

    def labelmaps(self, folder: str, label: str) -> str:
        """Label maps without images, by a pattern with {subject}."""
        return self._write_split(folder, scans_from_folder(folder, label=label))

    def bids(
        self,
        folder: str,
        suffix: str = "T1w",
        derivatives: str | None = None,
        label_suffix: str | None = None,
        mask_suffix: str | None = None,
    ) -> str:
        """Anatomical scans of a BIDS data set."""
        scans = scans_from_bids(
            folder, suffix=suffix, derivatives=derivatives, label_suffix=label_suffix, mask_suffix=mask_suffix
        )
        return self._write_split(folder, scans)

    def neurite_oasis(self, folder: str, labels: int | None = 35) -> str:
        """The neurite-OASIS data set."""
        return self._write_split(folder, scans_from_neurite_oasis(folder, labels=labels))

    def learn2reg(self, path: str) -> str:
        """A Learn2Reg data set by its JSON file; the split is the challenge's own."""
        return self._write(list_from_learn2reg(path))

    def slices(self, data_list: str, folder: str, axis: str = "S", pairs: str | None = None) -> str:
        """2-D slices of a list of scans in a common space, written to a folder; see `cut_slices`."""
        return self._write(cut_slices(data_list, folder, axis=axis, pairs=pairs))

    def attributes(self, data_list: str, table: str, columns: Sequence[str] | None = None) -> str:
        """Columns of a table of people (CSV, TSV) as attributes of the scans of a list, see `add_attributes`."""
        return self._write(add_attributes(data_list, table, columns))

    def share(
        self,
        data_list: str,
        name: str,
        labels: Sequence[int],
        of: Sequence[int] | None = None,
        dataset_dir: str | None = None,
    ) -> str:
        """A structure's share (%) of the labelled voxels as an attribute of the scans of a list, see `add_share`."""
        return self._write(add_share(data_list, name, labels, of, dataset_dir))

    def _write_split(self, folder: str, scans: Sequence[Entry]) -> str:
        atlas = {key: _relative_to(path, folder) for key, path in self._atlas.items() if path is not None}
        return self._write(make_list(scans, **self._split, atlas=atlas or None))

    def _write(self, sections: Mapping[str, Any]) -> str:
        write_list(self._output, sections)
        counts = [f"{len(items)} {name}" for name, items in sections.items() if isinstance(items, list)]
        return f"{self._output}: " + ", ".join(counts)


if __name__ == "__main__":
    import fire

    try:
        fire.Fire(Commands)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
