"""A bundle as one self-contained folder or zip: for MONAI's model zoo, a hub, or just another machine.

The package goes into the folder as `scripts`, and its name in the configs is replaced; the overlays that fit the bundle
and the weights that its configs name go along. Equal input gives equal bytes: nothing of the time, the machine or the
place gets in.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from monai.bundle import ConfigParser, ReferenceResolver

from ..results import aside, replacing
from ..vocabulary import Config
from ..weights import sidecar_path
from .bundles import PACKAGE
from .export_checks import NOT_VENDORED, WEIGHTS, check_config, check_metadata, frameworks, own_weights, weights_name
from .hub_card import hub_files
from .network_files import network_files
from .zoo_test import unit_test

_PAGES = (".md", ".txt", ".csv", ".json", ".png", ".jpg", ".gif", ".svg")

LABEL_OVERLAY = "monai_label.json"

_RENAMED = {"multi_gpu.json": "multi_gpu_train.json"}  # the names MONAI Label and the zoo know

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

_USAGE = """## Additional Usage Steps
This folder is complete. Run these commands in it; settings of a config can follow by their names.

    python -m monai.bundle run --config_file configs/inference.json --dataset#data "[{item}]" --output_dir out
    python -m monai.bundle run --config_file configs/train.json --dataset_dir DIR --data_list LIST --output_dir runs/x
    python -m monai.bundle run --config_file "['configs/train.json','configs/smoke.json']" --dataset_dir DIR

To run them from another folder, put this one on PYTHONPATH. On this page, `morphzoo` and everything in `bundles/`,
`data_lists/` and `benchmarks/` belong to the repository MorphZoo, from which this bundle was exported.

"""

_SYSTEM = "## System Configuration\n"

_NEEDED = """Python 3.10 or newer; {versions}.
Without `itk` scans cannot be aligned by it and no whole transforms are written, without `matplotlib` no pictures;
`evaluate.json` needs `scipy`. No GPU is needed.
"""


def export_bundle(
    bundle: Path,
    output: str | os.PathLike[str],
    *,
    zipped: bool = False,
    formats: Sequence[str] = (),
    for_hub: bool = False,
) -> list[Path]:
    """Write OUTPUT/<bundle>, and with `zipped` OUTPUT/<bundle>_v<version>.zip and its SHA-256 beside it.

    Args:
        bundle: its folder; the folder `overlays` and other bundles whose weights it uses are its siblings.
        output: folder, made if needed.
        formats: further files of the network, see `network_files`.
        for_hub: in the form that the Hugging Face Hub takes, see `hub_files`.
    Returns:
        What was written.
    Raises:
        FileExistsError: if the folder is there and not empty, or the zip is there.
        FileNotFoundError: if there are no weights.
        ValueError: if the bundle is not fit to be shared: a config names something outside of it, a version is missing.
    """
    files = bundle_files(bundle) | network_files(bundle, formats)
    return write_bundle(hub_files(files) if for_hub else files, bundle.name, Path(output), zipped)


def bundle_files(bundle: Path, item: Mapping[str, object] | None = None) -> dict[str, bytes]:
    """The files of an exported bundle, by their paths in it. Arguments and errors as in `export_bundle`.

    Args:
        item: the one that the page's example of inference has; by default the bundle's own example, or a pair.
    """
    for name in ("metadata.json", "train.json", "inference.json"):
        _needed(bundle / "configs" / name)
    texts = {path.name: path.read_text(encoding="utf-8") for path in sorted((bundle / "configs").glob("*.json"))}
    configs = {name: _parsed(bundle / "configs" / name, text) for name, text in texts.items()}
    metadata, inference = configs["metadata.json"], configs["inference.json"]
    check_metadata(bundle.name, metadata, inference)
    texts |= _fitting_overlays(bundle, configs)
    files = {f"models/{name}": path.read_bytes() for name, path in _weights(bundle, texts).items()}
    files |= _atlases(bundle, metadata)
    for name, text in texts.items():
        check_config(bundle.name, name, text, metadata["required_packages_version"])
        files[f"configs/{_RENAMED.get(name, name)}"] = vendored(own_weights(text)).encode()
    files["configs/logging.conf"] = _LOGGING.encode()
    files["LICENSE"] = _needed(bundle.parents[1] / "LICENSE")
    files |= _scripts("\n".join(texts.values()))
    page = _needed(bundle / "docs" / "README.md").decode().replace("\r\n", "\n")
    for path in sorted((bundle / "docs").iterdir()):
        if path.is_file() and path.suffix in _PAGES:
            files[f"docs/{path.name}"] = path.read_bytes()
    item = item or metadata.get("abilities", {}).get("item") or {key: f"{key}.nii.gz" for key in ("moving", "fixed")}
    files["docs/README.md"] = _readme(page, metadata, item).encode()
    files[f"tests/test_{bundle.name}.py"] = unit_test(bundle.name, configs["train.json"], inference, metadata).encode()
    return files


def _scripts(configs: str) -> dict[str, bytes]:
    """The package without the commands, with those methods alone that the configs name, and with the viewer of volumes
    if they ask for it."""
    methods = set(re.findall(rf"\b{PACKAGE.name}\.methods\.(\w+)", configs))
    files = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE)
        room, method = place.with_suffix("").parts[0], place.parts[1] if len(place.parts) > 2 else None
        if room not in NOT_VENDORED and (room != "methods" or method is None or method in methods):
            files[f"scripts/{place.as_posix()}"] = vendored(path.read_text("utf-8")).encode()
    shows_volumes = re.search(r'page"\s*:\s*"volumes"', configs)
    for path in (path for kind in ("*.html", "*.css", "*.js", "LICENSE") for path in sorted(PACKAGE.rglob(kind))):
        if path.parent.name != "niivue" or shows_volumes:  # the viewer is large
            files[f"scripts/{path.relative_to(PACKAGE).as_posix()}"] = path.read_bytes()
    return files


def write_bundle(files: Mapping[str, bytes], name: str, output: Path, zipped: bool) -> list[Path]:
    """Write the files of a bundle into OUTPUT/<name>, and with `zipped` the archive and its SHA-256.

    Raises:
        FileExistsError: if the folder is there and not empty, or the zip is there.
    """
    folder = output / name
    archive = output / f"{name}_v{json.loads(files['configs/metadata.json'])['version']}.zip"
    checksum = archive.with_name(f"{archive.name}.sha256")
    written = [folder, archive, checksum] if zipped else [folder]
    for path in written:
        if path.is_file() or (path.is_dir() and (path != folder or any(path.iterdir()))):
            raise FileExistsError(f"{path}: is there already; remove it, or take another folder")
    # All are complete before the first gets its name.
    with ExitStack() as stack:
        whole = stack.enter_context(aside(output)) / name
        for file, content in files.items():
            (whole / file).parent.mkdir(parents=True, exist_ok=True)
            (whole / file).write_bytes(content)
        if zipped:
            partial, sums = (stack.enter_context(replacing(path)) for path in (archive, checksum))
            _write_zip(partial, name, files)
            sums.write_text(f"{hashlib.sha256(partial.read_bytes()).hexdigest()}  {archive.name}\n", encoding="utf-8")
        os.replace(whole, folder)
    return written


def _write_zip(path: Path, name: str, files: Mapping[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for file in sorted(files):
            entry = zipfile.ZipInfo(f"{name}/{file}", (1980, 1, 1, 0, 0, 0))
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            target.writestr(entry, files[file])


def _needed(path: Path) -> bytes:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file, and no bundle without it")
    return path.read_bytes()


def _parsed(path: Path, text: str) -> Config:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def vendored(text: str) -> str:
    """The text with the package's name in an exported bundle."""
    return re.sub(r"\bcustom_components\b", "scripts", text)


def json_bytes(content: object) -> bytes:
    """The content as the text of a JSON file."""
    return (json.dumps(content, indent=4) + "\n").encode()


def _fitting_overlays(bundle: Path, own: Mapping[str, Config]) -> dict[str, str]:
    """The overlays that go with the bundle's train.json or inference.json.

    All ids that they change or use are there; so are the configs that their `_desc_` names ("for inference_2d.json
    after linear.json"), and none of the ids that it rules out ("without `synthesis`").

    Args:
        own: the bundle's configs, by name.
    """
    paths = sorted((bundle.parent / "overlays").glob("*.json"))
    texts = {path.name: path.read_text(encoding="utf-8") for path in paths if path.name != LABEL_OVERLAY}
    bases = [own["train.json"], own["inference.json"]]

    def fits(name: str) -> bool:
        overlay = json.loads(texts[name])
        text = overlay["_desc_"] if isinstance(overlay["_desc_"], str) else " ".join(overlay["_desc_"])
        before = set(re.findall(r"\b(?:for|after) (?:a )?(\w+\.json)", text)) - own.keys()
        excluded = re.findall(r"\bwithout `(\w+)`", text)
        has_it = f"/../{bundle.name}/" in texts[name]  # what it would add is the bundle's own
        fitting = any(_fits(overlay, base) and not any(id in base for id in excluded) for base in bases)
        return not has_it and fitting and all(other in texts and fits(other) for other in before)

    return {name: text for name, text in texts.items() if fits(name)}


def _fits(overlay: Config, config: Config) -> bool:
    overlay = {key.removeprefix("+"): value for key, value in overlay.items()}
    parser = ConfigParser(dict(config))
    try:
        parser.update(overlay)
    except KeyError:  # it changes a part that is not there
        return False
    return all(name in parser for name in ReferenceResolver.find_refs_in_config(overlay, ""))


def _weights(bundle: Path, configs: Mapping[str, str]) -> dict[str, Path]:
    """The files of weights that configs name, and their sidecars; the weights of inference.json must be there, those of
    variants may lack."""
    found = {}
    for config, text in configs.items():
        for sibling, name in WEIGHTS.findall(text):
            path = (bundle.parent / sibling if sibling else bundle) / "models" / name
            if path.is_file():
                found[weights_name(sibling, name)] = path
                if sidecar_path(path).is_file():
                    found[sidecar_path(weights_name(sibling, name)).name] = sidecar_path(path)
            elif config == "inference.json" or sibling:
                raise FileNotFoundError(f"{path}: {bundle.name} has no weights to export; train it")
    return dict(sorted(found.items()))


def _atlases(bundle: Path, metadata: Config) -> dict[str, bytes]:
    """The files of the bundle's atlases, if it has any: the label maps, and those of the same name beside them."""
    name = metadata.get("abilities", {}).get("atlases")
    if not name:
        return {}
    path = bundle / "models" / name
    _needed(path)
    return {f"models/{one.name}": one.read_bytes() for one in sorted(path.parent.glob(f"{name.split('.')[0]}.*"))}


def _readme(text: str, metadata: Config, item: Mapping[str, object]) -> str:
    """The bundle's page with the sections of the zoo's template that are the same for all bundles."""
    pinned = {**frameworks(metadata), **metadata["required_packages_version"]}
    versions = ", ".join(f"{name} {version}" for name, version in pinned.items())
    if _SYSTEM not in text:
        text = text.replace("## Limitations\n", f"{_SYSTEM}\n## Limitations\n")
    before, heading, after = text.partition(_SYSTEM)
    if not heading:
        raise ValueError("docs/README.md: expected a section '## Limitations', as the zoo's template has it")
    sections = [before, _USAGE.format(item=item), heading, _NEEDED.format(versions=versions), after.rstrip()]
    return "".join(sections) + "\n\n## License\nApache License 2.0 (`LICENSE`).\n"
