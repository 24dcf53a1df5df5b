"""A bundle as a segmentation model for MONAI Label: an atlas is registered to each study."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from monai.bundle import ConfigParser

from ..data.label_names import read_label_names
from ..evaluation.overlap import present_labels
from ..space.resampling import resample
from ..space.volumes import load_image
from ..transforms.labels import load_labels_for
from ..vocabulary import Config
from .bundles import registers, segments, takes_scans
from .exporting import LABEL_OVERLAY, bundle_files, json_bytes, vendored, write_bundle

_ALIGNMENTS = ["itk", "torch", "learned", "none"]

_IMAGES = (".nii", ".nii.gz", ".nrrd", ".mha")  # that are one file each


def export_for_monai_label(
    bundle: Path,
    output: str | os.PathLike[str],
    *,
    atlas: str,
    atlas_labels: str,
    label_names: str | None = None,
    zipped: bool = False,
) -> list[Path]:
    """Write OUTPUT/<bundle>_atlas, a segmentation model for MONAI Label: an atlas is registered to each study.

    Args:
        bundle, output, zipped: as in `export_bundle`.
        atlas, atlas_labels: 3-D image and its label map.
        label_names: table of names, see `read_label_names`; without it a label is called by its id.
    Returns, Raises: as `export_bundle`; ValueError also if the atlas is not 3-D, its labels are empty, negative or
        above 32767, the names are no names of them, or the bundle registers to a template of its own.
    """
    if segments(bundle):
        raise ValueError(f"{bundle.name} is a segmentation model already: export it without --for monai-label")
    if not registers(bundle):
        raise ValueError(f"{bundle.name} registers nothing: export another bundle")
    if takes_scans(bundle):
        raise ValueError(f"{bundle.name} registers to its own template: export another bundle with that as --atlas")
    endings = {key: _ending(path) for key, path in (("atlas", atlas), ("atlas_labels", atlas_labels))}
    ids = _checked_ids(atlas, atlas_labels)
    names = {"0": "background", **_label_names(label_names, ids)}
    files = bundle_files(bundle, {"image": "study.nii.gz"})
    files = {path: content for path, content in files.items() if not path.startswith("tests/")}  # of the bundle alone
    config = json.loads(files["configs/inference.json"])
    settings = {key: config[key] for key in ("affine", "optimize", "hyper") if key in config}
    if settings.get("affine") == "none":
        settings["affine"] = "itk"  # a study may lie anywhere
    parser = ConfigParser(config)
    learned = files.get("configs/learned_affine.json")  # so that "affine" can be "learned"
    parser.update(json.loads(learned) if learned else {})
    parser.update(json.loads(vendored((bundle.parent / "overlays" / LABEL_OVERLAY).read_text(encoding="utf-8"))))
    parser.update(_asked(settings, learned is not None or "aligner" in config["preprocessing"]))
    for key, path in (("atlas", atlas), ("atlas_labels", atlas_labels)):
        files[f"atlas/{key}{endings[key]}"] = Path(path).read_bytes()
        parser.update({key: f"$@bundle_root + '/atlas/{key}{endings[key]}'"})
    # MONAI Label takes a list of transforms.
    parser.update({"preprocessing": {"_target_": "Compose", "transforms": [parser.get("preprocessing")]}})
    files["configs/inference.json"] = json_bytes(parser.get())
    files["configs/metadata.json"] = json_bytes(_label_metadata(json.loads(files["configs/metadata.json"]), names))
    files["configs/train.json"] = json_bytes(_label_training(json.loads(files["configs/train.json"])))
    return write_bundle(_for_monai_label(files), f"{bundle.name}_atlas", Path(output), zipped)


def _asked(settings: Mapping[str, object], learned: bool) -> Config:
    """The settings that clients see, as parts of the configuration that take nothing of a request into it."""
    room = "scripts.transforms.asked"
    return {
        "displayable_configs": {"_target_": f"{room}.Offered", **settings},
        "asked": {
            "_target_": f"{room}.Asked",
            "offered": "@displayable_configs",
            "affine": [name for name in _ALIGNMENTS if learned or name != "learned"],
        },
        "preprocessing#asked": "@asked",
        **{name: f"$@asked.value('{name}')" for name in settings},
    }


def _label_training(config: Config) -> Config:
    """A training that MONAI Label can start: it validates after each epoch, and the best network is what is served.

    MONAI Label looks into each handler's config, and cannot follow the macros ("%record") that MONAI's parser expands.
    It hands over its items as `train#dataset#data` and `validate#dataset#data`, so the data sets have to be components.
    """
    train, validate = dict(config["train"]), dict(config["validate"])
    train["handlers"] = [config[entry[1:]] if isinstance(entry, str) else entry for entry in train["handlers"]]
    for part in (train, validate):
        call = re.fullmatch(r"\$(@pairs\.\w+)\((@\w+)\)", str(part["dataset"]))
        if call:
            part["dataset"] = {"_target_": f"${call[1]}", "num_pairs": call[2]}
    place = "$@bundle_root + '/models'"
    return {**config, "ckpt_dir": place, "val_interval": 1, "train": train, "validate": validate}


def _checked_ids(atlas: str, atlas_labels: str) -> list[int]:
    """The ids of an atlas' labels; raises ValueError if it is not 3-D, or they are none that MONAI Label takes."""
    image = load_image(atlas)
    labels = load_labels_for(atlas_labels, image)
    ids = present_labels(labels.data)
    if image.data.ndim != 4 or not ids or not 0 < min(ids) <= max(ids) < 2**15:
        span = f"{min(ids)} to {max(ids)}" if ids else "none"
        raise ValueError(
            f"{atlas}: expected a 3-D atlas with labels from 1 to 32767, got {image.file_shape} and labels {span}"
        )
    if not resample(labels.data, labels.affine, image.grid, mode="nearest").any():
        raise ValueError(f"{atlas_labels}: expected labels where the atlas is, got none of them there")
    return ids


def _for_monai_label(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Without the configs that register pairs, and with model.pt and its sidecar alone in `models`: MONAI Label loads
    whatever weights are there with the shortest name, also those of another network."""
    kept = {}
    for path, content in files.items():
        folder, _, name = path.rpartition("/")
        if folder == "configs" and name.endswith(".json"):
            if not re.fullmatch(r"(metadata|inference|train\w*|smoke|multi_gpu_train)\.json", name):
                continue
            content = re.sub(r"'/models/(?!model\.pt')", "'/models/parts/", content.decode()).encode()
        elif path == "scripts/training/record.py":
            content = content.replace(b'"last.pt"', b'"last.ckpt"')
        elif folder == "models" and name not in ("model.pt", "model.json"):
            path = f"models/parts/{name}"
        kept[path] = content
    return kept


def _label_names(path: str | None, ids: list[int]) -> dict[str, str]:
    """For each label above 0, in order, its name."""
    names = {label: f"label {label}" for label in ids if label > 0}
    if path is not None:
        given = read_label_names(path)
        if not set(given) & set(names):
            raise ValueError(f"{path}: expected names of labels among {sorted(names)}, got {sorted(given)}")
        names |= {label: given[label] for label in names if label in given}
    _check_names(path, [*names.values()])
    return {str(label): name for label, name in names.items()}


def _check_names(path: str | None, names: list[str]) -> None:
    evaluated = [name for name in names if name.startswith(("$", "@", "%"))]
    if evaluated:
        raise ValueError(f"{path}: the name of a label cannot begin with $, @ or %, got {evaluated[0]!r}")
    if len({"background", *(name.lower() for name in names)}) <= len(names):
        raise ValueError(f"{path}: expected another name for each label, got {sorted(names)}")


def _label_metadata(metadata: Config, names: dict[str, str]) -> Config:
    """Metadata of what MONAI Label sees: a study goes in, labels come out."""
    pred = {"type": "image", "format": "segmentation", "num_channels": 1, "spatial_shape": ["*", "*", "*"]}
    pred |= {"dtype": "int16", "value_range": [0, max(map(int, names))], "is_patch_data": False, "channel_def": names}
    image = {**metadata["network_data_format"]["inputs"]["image"], "num_channels": 1, "spatial_shape": ["*", "*", "*"]}
    image["channel_def"] = {"0": "image"}
    description = f"Labels of an atlas, registered to the study by {metadata['name']}"
    return metadata | {
        "name": f"{metadata['name']} of an atlas",
        "task": "Segmentation by registration of an atlas",
        "description": description,
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": pred}},
    }


def _ending(path: str) -> str:
    match = re.search(r"(\.nii)?\.\w+$", Path(path).name.lower())
    if match is None or match[0] not in _IMAGES:
        raise ValueError(f"{path}: expected a file that ends in {', '.join(_IMAGES)}")
    return match[0]
