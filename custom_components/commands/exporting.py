"""A bundle as one self-contained folder or zip: for MONAI's model zoo, a hub, MONAI Label, or just another machine.

The package goes into the folder as `scripts`, and its name in the configs is replaced; the overlays that fit the bundle
and the weights that its configs name go along. Equal input gives equal bytes: nothing of the time, the machine or the
place gets in.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from pydoc import locate
from typing import Any

from monai.bundle import ConfigParser, ReferenceResolver

from ..evaluation.overlap import present_labels
from ..files import replacing
from ..space.files import publish_together
from ..space.resampling import resample
from ..space.volumes import load_image
from ..transforms.load import load_labels_for

PACKAGE = Path(__file__).resolve().parents[1]


# Parts of the command, which works on a folder of bundles.
_NOT_VENDORED = ("__main__", "commands")


_PAGES = (".md", ".txt", ".csv", ".json", ".png", ".jpg", ".gif", ".svg")


_IMAGES = (".nii", ".nii.gz", ".nrrd", ".mha")  # that are one file each


_LABEL_OVERLAY = "monai_label.json"


_RENAMED = {"multi_gpu.json": "multi_gpu_train.json"}  # the names MONAI Label and the zoo know


_DEPENDENCIES = {"torch", "monai", "numpy", "ignite", *sys.stdlib_module_names}


_LOGGING = """[loggers]
keys=root

[handlers]
keys=console

[formatters]
keys=line

[logger_root]
level=INFO
handlers=console

[handler_console]
class=StreamHandler
level=INFO
formatter=line
args=(sys.stdout,)

[formatter_line]
format=%(asctime)s %(levelname)s %(name)s: %(message)s
"""


def export_bundle(bundle: Path, output: str | os.PathLike, *, zipped: bool = False) -> list[Path]:
    """Write OUTPUT/<bundle>, and with `zipped` OUTPUT/<bundle>_v<version>.zip and its SHA-256 beside it.

    Args:
        bundle: its folder; the folder `overlays` and other bundles whose weights it uses are its siblings.
        output: folder, made if needed.
    Returns:
        What was written.
    Raises:
        FileExistsError: if the folder is there and not empty, or the zip is there.
        FileNotFoundError: if there are no weights.
        ValueError: if the bundle is not fit to be shared: a config names something outside of it, a version is missing.
    """
    return _write(bundle_files(bundle), bundle.name, Path(output), zipped)


def export_for_monai_label(
    bundle: Path,
    output: str | os.PathLike,
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
        label_names: CSV file with the columns id and name; without it a label is called by its id.
    Returns, Raises: as `export_bundle`; ValueError also if the atlas is not 3-D, its labels are empty, negative or
        above 32767, the names are no names of them, or the bundle registers to a template of its own.
    """
    endings = {key: _ending(path) for key, path in (("atlas", atlas), ("atlas_labels", atlas_labels))}
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
    names = {"0": "background", **_label_names(label_names, ids)}
    files = bundle_files(bundle, {"image": "study.nii.gz"})
    config = json.loads(files["configs/inference.json"])
    if "conditions" in config:
        raise ValueError(f"{bundle.name} registers to its own template: export another bundle with that as --atlas")
    settings = {key: config[key] for key in ("affine", "optimize", "hyper") if key in config}
    if settings.get("affine") == "none":
        settings["affine"] = "itk"  # a study may lie anywhere
    parser = ConfigParser(config)
    learned = files.get("configs/learned_affine.json")  # so that "affine" can be "learned"
    parser.update(json.loads(learned) if learned else {})
    parser.update(json.loads(_vendored((bundle.parent / "overlays" / _LABEL_OVERLAY).read_text(encoding="utf-8"))))
    parser.update({"displayable_configs": settings, **{key: f"@displayable_configs#{key}" for key in settings}})
    for key, path in (("atlas", atlas), ("atlas_labels", atlas_labels)):
        files[f"atlas/{key}{endings[key]}"] = Path(path).read_bytes()
        parser.update({key: f"$@bundle_root + '/atlas/{key}{endings[key]}'"})
    # MONAI Label takes a list of transforms.
    parser.update({"preprocessing": {"_target_": "Compose", "transforms": [parser.get("preprocessing")]}})
    files["configs/inference.json"] = _json(parser.get())
    files["configs/metadata.json"] = _json(_label_metadata(json.loads(files["configs/metadata.json"]), names))
    files["configs/train.json"] = _json(json.loads(files["configs/train.json"]) | {"val_interval": 1})
    return _write(_for_monai_label(files), f"{bundle.name}_atlas", Path(output), zipped)


def _for_monai_label(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Without the configs that register pairs, and with model.pt alone in `models`: MONAI Label loads whatever file is
    there with the shortest name, also one that belongs to another network."""
    kept = {}
    for path, content in files.items():
        folder, _, name = path.rpartition("/")
        if folder == "configs" and name.endswith(".json"):
            if not re.fullmatch(r"(metadata|inference|train\w*|smoke|multi_gpu_train)\.json", name):
                continue
            text = re.sub(r"'/models/(?!model\.pt')", "'/models/parts/", content.decode())
            content = text.replace("'/last.pt'", "'/last.ckpt'").encode()
        elif folder == "models" and name != "model.pt":
            path = f"models/parts/{name}"
        kept[path] = content
    return kept


def bundle_files(bundle: Path, item: Mapping[str, Any] | None = None) -> dict[str, bytes]:
    """The files of an exported bundle, by their paths in it. Arguments and errors as in `export_bundle`.

    Args:
        item: the one that the page's example of inference has; by default a pair, or a scan where there is a template.
    """
    for name in ("metadata.json", "train.json", "inference.json"):
        _needed(bundle / "configs" / name)
    texts = {path.name: path.read_text(encoding="utf-8") for path in sorted((bundle / "configs").glob("*.json"))}
    configs = {name: _parsed(bundle / "configs" / name, text) for name, text in texts.items()}
    metadata, inference = configs["metadata.json"], configs["inference.json"]
    _check_metadata(bundle.name, metadata, inference)
    texts |= _fitting_overlays(bundle, configs["train.json"], inference)
    files = {f"models/{name}": path.read_bytes() for name, path in _weights(bundle, texts).items()}
    for name, text in texts.items():
        _check_config(bundle.name, name, text, metadata["required_packages_version"])
        files[f"configs/{_RENAMED.get(name, name)}"] = _vendored(_own_weights(text)).encode()
    files["configs/logging.conf"] = _LOGGING.encode()
    files["LICENSE"] = _needed(bundle.parents[1] / "LICENSE")
    methods = set(re.findall(rf"\b{PACKAGE.name}\.methods\.(\w+)", "\n".join(texts.values())))
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE)
        room, method = place.with_suffix("").parts[0], place.parts[1] if len(place.parts) > 2 else None
        if room not in _NOT_VENDORED and (room != "methods" or method is None or method in methods):
            files[f"scripts/{place.as_posix()}"] = _vendored(path.read_text("utf-8")).encode()
    page = _needed(bundle / "docs" / "README.md").decode().replace("\r\n", "\n")
    for path in sorted((bundle / "docs").iterdir()):
        if path.is_file() and path.suffix in _PAGES:
            files[f"docs/{path.name}"] = path.read_bytes()
    if item is None:
        item = {key: f"{key}.nii.gz" for key in ("moving", "fixed")}
        if "conditions" in inference:
            item = {"image": "image.nii.gz", **dict.fromkeys(inference["conditions"], 1)}
    files["docs/README.md"] = _readme(page, metadata, item).encode()
    return files


def _write(files: Mapping[str, bytes], name: str, output: Path, zipped: bool) -> list[Path]:
    folder = output / name
    archive = output / f"{name}_v{json.loads(files['configs/metadata.json'])['version']}.zip"
    checksum = archive.with_name(f"{archive.name}.sha256")
    written = [folder, archive, checksum] if zipped else [folder]
    for path in written:
        if path.is_file() or (path.is_dir() and (path != folder or any(path.iterdir()))):
            raise FileExistsError(f"{path}: is there already; remove it, or take another folder")
    # All are complete before the first gets its name.
    with ExitStack() as stack:
        scratch = stack.enter_context(publish_together(folder))
        for file, content in files.items():
            (scratch / file).parent.mkdir(parents=True, exist_ok=True)
            (scratch / file).write_bytes(content)
        if zipped:
            partial, sums = (stack.enter_context(replacing(path)) for path in (archive, checksum))
            with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as target:
                for file in sorted(files):
                    entry = zipfile.ZipInfo(f"{name}/{file}", (1980, 1, 1, 0, 0, 0))
                    entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
                    target.writestr(entry, files[file])
            sums.write_text(f"{hashlib.sha256(partial.read_bytes()).hexdigest()}  {archive.name}\n")
    return written


def _needed(path: Path) -> bytes:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file, and no bundle without it")
    return path.read_bytes()


def _parsed(path: Path, text: str) -> dict[str, Any]:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _vendored(text: str) -> str:
    return re.sub(r"\bcustom_components\b", "scripts", text)


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=4) + "\n").encode()


def _check_metadata(bundle: str, metadata: Mapping[str, Any], inference: Mapping[str, Any]) -> None:
    """Raises ValueError: if the version is not in the changelog, or what the bundle needs is not named exactly."""
    keys = ["name", "version", "changelog", "required_packages_version", "network_data_format"]
    absent = [key for key in (*keys, "monai_version", "pytorch_version", "numpy_version") if key not in metadata]
    if absent:
        raise ValueError(f"{bundle}: metadata.json lacks {', '.join(absent)}")
    if metadata["version"] not in metadata["changelog"]:
        raise ValueError(f"{bundle}: version {metadata['version']} is not in the changelog of metadata.json")
    packages = metadata["required_packages_version"]
    for name, version in {**_frameworks(metadata), **packages}.items():
        if not re.fullmatch(r"\d+(\.\d+)*", str(version)):
            raise ValueError(f"{bundle}: metadata.json must name one released version of {name}, got {version!r}")
    if not _WEIGHTS.search(str(inference.get("weights"))):
        raise ValueError(
            f"{bundle}/configs/inference.json: expected weights \"$@bundle_root + '/models/NAME'\", "
            f"got {inference.get('weights')!r}"
        )


def _frameworks(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Versions by the names of the packages."""
    names = {"monai": "monai", "pytorch": "torch", "numpy": "numpy"}
    return {name: metadata[f"{key}_version"] for key, name in names.items()}


def _fitting_overlays(bundle: Path, *bases: Mapping[str, Any]) -> dict[str, str]:
    """The overlays that go with the bundle's train.json or inference.json: all ids they change or use are there."""
    paths = sorted((bundle.parent / "overlays").glob("*.json"))
    texts = {path.name: path.read_text(encoding="utf-8") for path in paths if path.name != _LABEL_OVERLAY}

    def fits(name: str) -> bool:
        overlay = json.loads(texts[name])
        before = re.findall(r"after (\w+\.json)", overlay["_desc_"])
        has_it = f"/../{bundle.name}/" in texts[name]  # what it would add is the bundle's own
        return not has_it and any(_fits(overlay, base) for base in bases) and all(map(fits, before))

    return {name: text for name, text in texts.items() if fits(name)}


def _fits(overlay: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    overlay = {key.removeprefix("+"): value for key, value in overlay.items()}
    parser = ConfigParser(dict(config))
    try:
        parser.update(overlay)
    except KeyError:  # it changes a part that is not there
        return False
    return all(id in parser for id in ReferenceResolver.find_refs_in_config(overlay, ""))


# A file of weights in a config: of the bundle itself, or of a sibling.
_WEIGHTS = re.compile(r"@bundle_root \+ '(?:/\.\./(\w+))?/models/([\w.]+)'")


def _own_weights(text: str) -> str:
    """The config with weights of siblings replaced by copies of them in the bundle."""
    return _WEIGHTS.sub(lambda match: f"@bundle_root + '/models/{_weights_name(*match.groups())}'", text)


def _weights_name(sibling: str | None, name: str) -> str:
    return f"{sibling}_{name}" if sibling else name


def _weights(bundle: Path, configs: Mapping[str, str]) -> dict[str, Path]:
    """The files of weights that configs name; those of inference.json must be there, those of variants may lack."""
    found = {}
    for config, text in configs.items():
        for sibling, name in _WEIGHTS.findall(text):
            path = (bundle.parent / sibling if sibling else bundle) / "models" / name
            if path.is_file():
                found[_weights_name(sibling, name)] = path
            elif config == "inference.json" or sibling:
                raise FileNotFoundError(f"{path}: {bundle.name} has no weights to export; train it")
    return dict(sorted(found.items()))


def _check_config(bundle: str, name: str, text: str, packages: Mapping[str, str]) -> None:
    """Raises ValueError: if a config names a path of this machine, or code that does not travel with the bundle."""
    for key, value in _strings(json.loads(text)):
        if re.search(r"^[/~]|^\w:[/\\]|file:/|(?<!\+ )['\"][/~]\w|expanduser|__import__", value):
            raise ValueError(f"{bundle}/configs/{name}: expected paths relative to the bundle, got {value!r}")
        if "/../" in _own_weights(value):
            raise ValueError(f"{bundle}/configs/{name}: {value!r} is outside of the bundle")
        imported = re.match(r"\$(?:from ([\w.]+) )?import (.+)", value)
        targets = [value] if key == "_target_" else []
        if imported:
            words = [word.split()[0] for word in imported[2].split(",")]  # without "as name"
            targets = [".".join(filter(None, (imported[1], word))) for word in words]
        for target in targets:
            root, _, inner = target.partition(".")
            if root == PACKAGE.name and (locate(target) is None or inner.partition(".")[0] in _NOT_VENDORED):
                raise ValueError(f"{bundle}/configs/{name}: there is no {target} in an exported bundle")
            if ("." in target or imported) and root not in {PACKAGE.name, *_DEPENDENCIES, *packages}:
                raise ValueError(
                    f"{bundle}/configs/{name} names {target}, which is neither in the package nor required"
                )


def _strings(config: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """All strings of a config, with the nearest key above each."""
    if isinstance(config, str):
        yield key, config
    elif isinstance(config, list):
        yield from (item for value in config for item in _strings(value, key))
    elif isinstance(config, dict):
        yield from (item for name, value in config.items() for item in _strings(value, name))


_USAGE = """## Additional Usage Steps
This folder is complete. Run these commands in it; settings of a config can follow by their names.

    python -m monai.bundle run --config_file configs/inference.json --dataset#data "[{item}]" --output_dir out
    python -m monai.bundle run --config_file configs/train.json --dataset_dir DIR --data_list LIST --ckpt_dir runs/x
    python -m monai.bundle run --config_file "['configs/train.json','configs/smoke.json']" --dataset_dir DIR

To run them from another folder, put this one on PYTHONPATH. On this page, `morphzoo` and everything in `bundles/`,
`data_lists/` and `benchmarks/` belong to the repository MorphZoo, from which this bundle was exported.

"""


_SYSTEM = "## System Configuration\n"


_NEEDED = """Python 3.10 or newer; {versions}.
Without `itk` scans cannot be aligned by it and no whole transforms are written, without `matplotlib` no pictures;
`evaluate.json` needs `scipy`. No GPU is needed.
"""


def _readme(text: str, metadata: Mapping[str, Any], item: Mapping[str, Any]) -> str:
    """The bundle's page with the sections of the zoo's template that are the same for all bundles."""
    pinned = {**_frameworks(metadata), **metadata["required_packages_version"]}
    versions = ", ".join(f"{name} {version}" for name, version in pinned.items())
    if _SYSTEM not in text:
        text = text.replace("## Limitations\n", f"{_SYSTEM}\n## Limitations\n")
    before, heading, after = text.partition(_SYSTEM)
    if not heading:
        raise ValueError("docs/README.md: expected a section '## Limitations', as the zoo's template has it")
    sections = [before, _USAGE.format(item=item), heading, _NEEDED.format(versions=versions), after.rstrip()]
    return "".join(sections) + "\n\n## License\nApache License 2.0 (`LICENSE`).\n"


def _label_names(path: str | None, ids: list[int]) -> dict[str, str]:
    """For each label above 0, in order, its name."""
    names = {id: f"label {id}" for id in ids if id > 0}
    if path is not None:
        try:
            with open(path, newline="", encoding="utf-8-sig") as file:
                rows = list(csv.DictReader(file))
            given = {int(row["id"]): row["name"].strip() for row in rows}
            if any(None in row for row in rows):
                raise ValueError("more cells than columns")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{path}: expected a CSV file in UTF-8 with the columns id (integers) and name") from error
        if not set(given) & set(names):
            raise ValueError(f"{path}: expected names of labels among {sorted(names)}, got {sorted(given)}")
        names |= {id: given[id] for id in names if given.get(id)}
    if len({"background", *(name.lower() for name in names.values())}) <= len(names):
        raise ValueError(f"{path}: expected another name for each label, got {sorted(names.values())}")
    return {str(id): name for id, name in names.items()}


def _label_metadata(metadata: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
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
