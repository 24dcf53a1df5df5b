"""Build and run a bundle's inference workflow for given pairs."""

from __future__ import annotations

import json
import logging
import os
import sysconfig
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1]


DEFAULT_BUNDLE = "synthmorph"


def infer(
    bundle: str, pairs: list[dict[str, Any]], output: Path, overlays: str | Sequence[str], settings: dict[str, Any]
) -> list[dict[str, Any]]:
    """Run a bundle's inference.json on pairs; one row of measures for each, with the folder of its files."""
    workflow = build_workflow(bundle, pairs, overlays, settings)
    workflow.run()
    rows = workflow.parser.get_parsed_content("handlers")[-1].rows
    return [{**row, "folder": str(output / row["id"])} for row in rows]


def build_workflow(
    bundle: str, pairs: list[dict[str, Any]], overlays: str | Sequence[str], settings: dict[str, Any]
) -> Any:
    """A bundle's inference.json, initialised for these pairs; files, settings and weights are checked."""
    for pair in pairs:
        for key, path in pair.items():
            if key in _FILE_KEYS and not Path(path).is_file():
                raise FileNotFoundError(f"{path}: there is no such file ({key})")
    from monai.bundle import ConfigWorkflow

    from ..space.volumes import load_image

    logging.getLogger("monai.bundle.workflows").setLevel(logging.ERROR)  # it warns of the file that is False below
    root = find_bundle(bundle)
    flat = "moving" in pairs[0] and load_image(pairs[0]["fixed"]).data.ndim == 3
    forms = ("", "_2d") if flat else ("",)
    files = [root / "configs" / f"inference{form}.json" for form in forms]
    settings = {key: value for key, value in settings.items() if value is not None}
    if settings.get("affine") == "learned" and "aligner" not in json.loads(files[0].read_text()):
        files += [bundles_folder() / "overlays" / f"learned_affine{form}.json" for form in forms]
        settings.setdefault("affine_weights", str(bundles_folder() / "avsm" / "models" / f"affine{forms[-1]}.pt"))
    configs = [str(path) for path in files if path.is_file()] + as_list(overlays)
    if isinstance(settings.get("device"), str):
        settings["device"] = f"$torch.device({settings['device']!r})"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        workflow = ConfigWorkflow(
            config_file=configs,
            meta_file=str(root / "configs" / "metadata.json"),
            logging_file=False,
            workflow_type="infer",
            bundle_root=str(root),
        )
        known = set(workflow.parser.get())
        if "conditions" in known and any("moving" in pair for pair in pairs):
            raise ValueError(f"{root.name} registers single scans to its template, not pairs: morphzoo atlas SCAN")
        if settings.get("samples") and "samples" not in known:
            raise ValueError(f"{root.name} has no uncertainty to sample; --bundle voxelmorph_probabilistic has")
        if {"hyper", "sweep"} & set(settings) and "hyper" not in known:
            raise ValueError(f"{root.name} has no hyper-parameter; --bundle hypermorph has")
        for name in settings:
            if name.split("#")[0] not in known:
                raise ValueError(
                    f"{root.name} has no setting {name!r}; there are {', '.join(sorted(known - _PRIVATE))}"
                )
        workflow.parser.update(settings)
        workflow.parser["dataset#data"] = pairs
        needs_weights = not workflow.parser.config["handlers"][0].get("_disabled_", False)
        weights = workflow.parser.get_parsed_content("weights")
        if needs_weights and not Path(weights).is_file():
            raise FileNotFoundError(f"{weights}: bundle {root.name} has no weights there; train it or give --weights")
        if "conditions" in known:
            workflow.parser.update({**_template_settings(weights), **settings})
        if needs_weights:
            _check_architecture(weights, workflow.parser.get_parsed_content("network_def"))
        workflow.initialize()
    return workflow


def _template_settings(weights: str) -> dict[str, Any]:
    """Settings that follow from the weights of a template."""
    from ..methods.conditional_atlas.template import template_settings

    try:
        made = template_settings(read_weights(weights))
    except ValueError as error:
        raise ValueError(f"{weights}: {error}") from error
    made["conditions"] = made.pop("attributes")
    labels = made.pop("labels")
    made["template_labels"] = "$None" if labels is None else labels  # MONAI leaves out what is None
    own = ("features", "hidden", "paper")
    return {f"network_def#template#{key}" if key in own else key: value for key, value in made.items()}


def read_weights(path: str) -> dict[str, Any]:
    import torch

    return torch.load(path, map_location="cpu", weights_only=True)


def _check_architecture(weights: str, network: Any) -> None:
    # What is no weight (a description) has no fixed length; loading compares it.
    found, wanted = (
        {name: tuple(getattr(value, "shape", ())) for name, value in state.items() if not name.endswith("_extra_state")}
        for state in (read_weights(weights), network.state_dict())
    )
    if found != wanted:
        raise ValueError(f"{weights}: these are not weights of this bundle's network ({len(wanted)} tensors expected)")


_FILE_KEYS = ("moving", "fixed", "label_moving", "label_fixed", "mask_moving", "mask_fixed", "image", "label", "mask")


_PRIVATE = {"_desc_", "_meta_", "imports", "initialize", "run"}


def bundles_folder() -> Path:
    """The folder `bundles`: of the clone, of an installed wheel, or named by MORPHZOO_BUNDLES."""
    places = [os.environ.get("MORPHZOO_BUNDLES"), PACKAGE.parent / "bundles"]
    places.append(Path(sysconfig.get_path("data")) / "share" / "morphzoo" / "bundles")
    for place in places:
        if place and (Path(place) / "overlays").is_dir():
            return Path(place)
    raise FileNotFoundError(f"no folder of bundles in {', '.join(str(p) for p in places if p)}; set MORPHZOO_BUNDLES")


def find_bundle(name: str) -> Path:
    """Folder of a bundle, by name or by path.

    Raises:
        ValueError: if there is none of that name; the message lists those there are.
    """
    if (Path(name) / "configs" / "inference.json").is_file():
        return Path(name)
    folder = bundles_folder()
    names = sorted(path.parent.parent.name for path in folder.glob("*/configs/inference.json"))
    if name not in names:
        raise ValueError(f"there is no bundle {name!r}; there are {', '.join(names)}")
    return folder / name


def has_template(bundle: str) -> bool:
    """Whether a bundle registers single scans, each to its own template."""
    return "conditions" in json.loads((find_bundle(bundle) / "configs" / "inference.json").read_text())


def as_list(value: str | Sequence[str]) -> list[str]:
    return value.split(",") if isinstance(value, str) else [str(item) for item in value]


def writable_folder(output: str | os.PathLike) -> Path:
    """Make the output folder, or say at once why that is impossible."""
    folder = Path(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"{folder}: cannot make the output folder ({error.strerror})") from error
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder}: no permission to write there")
    return folder


def summary(row: dict[str, Any]) -> str:
    wanted = {
        "ncc": "correlation with the fixed image",
        "dice": "mean Dice of the labels",
        "lambda": "lambda (weight of the regularisation)",
        "folding_percent": "folding (det J <= 0), % of the foreground",
        "sd_log_jacobian": "SD of log det J",
        "displacement_mean_mm": "mean displacement, mm",
        "inverse_consistency_mm": "mean inverse-consistency error, mm",
        "displacement_sd_mm": "mean uncertainty (SD of the displacement), mm",
        "sample_folding_percent": "folding of the samples, %",
        "seconds": "seconds (network, fields, refinement)",
    }
    lines = []
    for key, text in wanted.items():
        if f"{key}_before" in row:
            lines.append(f"{text:44s} {row[f'{key}_before']:8.4f} -> {row[f'{key}_after']:.4f}")
        elif key in row:
            lines.append(f"{text:44s} {row[key]:8.4f}")
    return "\n".join(lines)
