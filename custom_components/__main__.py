"""The `morphzoo` command: register, optimize, evaluate, atlas, tune, apply, export, demo; thin, over the bundles."""

from __future__ import annotations

import csv
import json
import logging
import os
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent
DEFAULT_BUNDLE = "synthmorph"


def register(
    moving: str,
    fixed: str,
    output: str = "registered",
    *,
    bundle: str = DEFAULT_BUNDLE,
    optimize: int | None = None,
    affine: str | bool | None = None,
    label_moving: str | None = None,
    label_fixed: str | None = None,
    mask_moving: str | None = None,
    mask_fixed: str | None = None,
    spacing: float | None = None,
    samples: int | None = None,
    hyper: float | Sequence[float] | str | None = None,
    sweep: int | None = None,
    weights: str | None = None,
    device: str | None = None,
    overlay: str | Sequence[str] = (),
    **settings: Any,
) -> dict[str, Any]:
    """Register one image to another with a bundle's network, and save everything under OUTPUT/<fixed>__<moving>.

    Args:
        moving: image that is deformed (NIfTI or MGZ; NRRD, MHA and others with `itk`).
        fixed: image whose space the result lives in.
        output: folder for the results.
        bundle: name of a bundle, or its folder.
        optimize: iterations of pairwise refinement after the network; default: the bundle's.
        affine: "itk" (also "affine", or --affine alone) or "rigid" aligns with ITK first, "learned" with the network of
            the bundle avsm, "none" trusts the headers; or the path of an affine transform file. Default: the bundle's,
            for synthmorph "itk".
        label_moving, label_fixed: label maps, warped along and compared.
        mask_moving, mask_fixed: where the images count during refinement.
        spacing: of the model grid, mm; default: the bundle's, for which its weights were trained.
        samples: of a probabilistic bundle (voxelmorph_probabilistic): draw so many deformations, write them, and maps
            of their standard deviation and of the warped labels' entropy; `--seed` draws others.
        hyper: of a bundle with hyper-parameters (hypermorph): how smooth, from 0 (alike at any price) to 1 (no motion),
            or "auto" for what suits the pair.
        sweep: of such a bundle: also try so many values from 0 to 1 (of its first hyper-parameter), without refinement,
            and write a 4-D image, a table and a picture.
        weights: another checkpoint.
        device: "cpu", "cuda:0", ...; default: the GPU if there is one.
        overlay: further config files, the last one wins.
        **settings: any other setting of the bundle's inference.json.
    """
    files = {"moving": moving, "fixed": fixed, "label_moving": label_moving, "label_fixed": label_fixed}
    files |= {"mask_moving": mask_moving, "mask_fixed": mask_fixed}
    settings |= {"optimize": optimize, "affine": "affine" if affine is True else affine, "spacing": spacing}
    settings |= {"samples": samples, "hyper": hyper, "sweep": sweep, "weights": weights, "device": device}
    settings["output_dir"] = str(output)
    for name, value in (("samples", samples), ("hyper", hyper), ("sweep", sweep)):
        if isinstance(value, bool):
            raise ValueError(f"--{name} needs a number, for instance --{name} {0.3 if name == 'hyper' else 20}")
    pair = {key: str(Path(path).absolute()) for key, path in files.items() if path is not None}
    rows = _infer(bundle, [pair], _check_writable(output), overlay, settings)
    print(_summary(rows[0]))
    print(f"\nresults in {Path(rows[0]['folder'])}")
    return {}


# Overlays that exchange the deformation of a training-free registration.
MODELS = {"svf": ["svf"], "lddmm": ["lddmm"], "vsvf": ["lddmm", "vsvf"], "ddf": ["ddf"]}


def optimize(
    moving: str, fixed: str, output: str = "registered", *, model: str | None = None, **settings: Any
) -> dict[str, Any]:
    """Register without a network: optimise a deformation from zero, coarse to fine. Other settings as `register`.

    Args:
        moving, fixed, output: as in `register`.
        model: "svf" (stationary velocity), "lddmm" (geodesic shooting from an initial momentum), "vsvf" (stationary
            velocity of a momentum) or "ddf" (displacement, may fold). Default: the bundle's own deformation and
            objective, for synthmorph svf.
        **settings: as in `register`; with a model, --weight is that of its regularisation.
    """
    if model is not None and model not in MODELS:
        raise ValueError(f"there is no model {model!r}; there are {', '.join(MODELS)}")
    network = ["optimize", "weights", "samples", "sweep", "correction"]
    for name in network if model is None else [*network, "hyper"]:
        if settings.get(name) is not None:
            raise ValueError(f"optimize uses no network: --{name} has no meaning here (--iterations has)")
    if settings.get("hyper") == "auto":
        raise ValueError("optimize uses no network, which --hyper auto needs: give a number")
    names = ["training_free", *(MODELS[model] if model else [])]
    overlays = [str(_bundles_folder() / "overlays" / f"{name}.json") for name in names]
    overlays += _as_list(settings.pop("overlay", ()))
    return register(moving, fixed, output, overlay=overlays, **settings)


def evaluate(
    data_list: str,
    output: str = "evaluated",
    *,
    bundle: str = DEFAULT_BUNDLE,
    section: str = "validation_pairs",
    dataset_dir: str | None = None,
    overlay: str | Sequence[str] = (),
    **settings: Any,
) -> dict[str, Any]:
    """Register all pairs of a data list and measure them: OUTPUT/metrics.csv, metrics.json and index.html.

    Each pair's folder has its measures and its warped labels; other files need `--postprocessing#transforms#0#write`,
    pictures `--pictures True`.

    Args:
        data_list: JSON file, see data_lists/README.md.
        output: folder for the results.
        bundle: name of a bundle, or its folder.
        section: of the list; its items are pairs.
        dataset_dir: folder to which the list's paths are relative; default: the list's folder.
        overlay: further config files, the last one wins.
        **settings: any setting of the bundle's inference.json.
    """
    from .data.lists import is_pair, load_list
    from .metrics import summarize

    pairs = load_list(data_list, section, dataset_dir)
    single = _has_template(bundle)
    if any(is_pair(pair) == single for pair in pairs):
        kinds = ("single scans", "pairs of moving and fixed")
        raise ValueError(f"section {section!r} of {data_list} holds {kinds[single]}, expected {kinds[not single]}")
    overlays = [*_as_list(overlay), str(_bundles_folder() / "overlays" / "evaluate.json")]
    settings["output_dir"] = str(output)
    rows = _infer(bundle, pairs, _check_writable(output), overlays, settings)
    for name, column in summarize(rows).items():
        if column["n"] > 0:
            print(f"{name:32s} {column['mean']:10.4f} +- {column['sd']:.4f}  (n = {column['n']})")
    print(f"\nresults in {output}")
    return {}


def tune(
    data_list: str,
    output: str = "tuned",
    *,
    bundle: str = "hypermorph",
    section: str = "validation_pairs",
    dataset_dir: str | None = None,
    labels: Sequence[int] | None = None,
    criterion: str = "auto",
    iterations: int = 30,
    sweep: int = 21,
    overlay: str | Sequence[str] = (),
    **settings: Any,
) -> None:
    """Choose a bundle's hyper-parameters for a kind of scans, by gradient descent on the pairs of a data list.

    OUTPUT gets tuned.json (the values), tuning.csv (the way there) and, where there are labels, sweep.csv (Dice of each
    structure over the range) and structures.csv (the value best for each).

    Args:
        data_list: JSON file, see data_lists/README.md.
        output: folder for the results.
        bundle: name of a bundle with hyper-parameters, or its folder.
        section: of the list; its items are pairs.
        dataset_dir: folder to which the list's paths are relative; default: the list's folder.
        labels: ids that count; default: all present, without the background.
        criterion: "labels" (Dice), "regularity" (the most alike at a tolerable irregularity, see the bundle's
            `regularity_limit`), or "auto": labels if all pairs have them.
        iterations: of gradient descent, each on 8 pairs.
        sweep: number of values from 0 to 1 in the table of structures, 0 for none.
        overlay: further config files, the last one wins.
        **settings: any setting of the bundle's inference.json; `--hyper` is where the search starts.
    """
    from .data.lists import is_pair, load_list
    from .tuning import tune_bundle

    for name in ("optimize", "precision"):
        if name in settings:
            raise ValueError(f"tune looks at the network alone, in float32: --{name} has no meaning here")
    items = load_list(data_list, section, dataset_dir)
    if not all(is_pair(item) for item in items):
        raise ValueError(f"section {section!r} of {data_list} holds single scans, expected pairs of moving and fixed")
    start = settings.pop("hyper", 0.3)
    if isinstance(start, bool) or not isinstance(start, int | float) or not 0 <= start <= 1:
        raise ValueError(f"--hyper is the value tuning starts from: expected a number in [0, 1], got {start!r}")
    labels = [labels] if isinstance(labels, int) else labels
    folder = _check_writable(output)
    parser = _workflow(bundle, items, overlay, {"hyper": 0.5, **settings}).parser
    options: dict[str, Any] = {"labels": labels, "criterion": criterion, "iterations": iterations, "sweep": sweep}
    found = tune_bundle(parser, items, folder, start=start, **options)
    for name, value in found.items():
        print(f"{name:12s} {value:.3f}")
    values = [round(value, 4) for value in found.values()]
    print(f"\nuse it with --hyper {values[0] if len(values) == 1 else values}; results in {folder}")


def atlas(
    scan: str | None = None,
    output: str = "atlas",
    *,
    attributes: str | Mapping[str, Any] | None = None,
    sweep: str | None = None,
    label: str | None = None,
    mask: str | None = None,
    optimize: int | None = None,
    affine: str | bool | None = None,
    bundle: str = "conditional_atlas",
    weights: str | None = None,
    device: str | None = None,
    overlay: str | Sequence[str] = (),
    **settings: Any,
) -> dict[str, Any]:
    """Render the template (atlas) for given attributes, and register a scan to it and back.

    OUTPUT gets template_<attributes>.nii.gz with its affine, a picture, and the template's label map if it has one.
    With a scan, OUTPUT/<scan> gets the scan on the template's grid (warped.nii.gz), the template and its labels on the
    scan's own grid (warped_fixed.nii.gz, warped_fixed_label.nii.gz), and the transforms: the template is the fixed
    image.

    Args:
        scan: image to register; none to render only.
        output: folder for the results.
        attributes: for instance age=40,sex=F; what is not given is taken at the training data's mean (numbers) or must
            be given (categories).
        sweep: an attribute's range, for instance age=20:80:13 (13 values from 20 to 80) or sex=F:M: a 4-D image and an
            animated picture.
        label, mask: of the scan; labels are compared with the template's, which must have the same ids (those of the
            shipped weights are in the bundle's docs).
        optimize: iterations of refinement after the network; default: the bundle's.
        affine: "itk" (or --affine alone), "rigid", "none" or a transform file, template to scan, as for `register`.
            Default: the bundle's, "itk".
        bundle: name of a bundle with a template, or its folder.
        weights: another checkpoint; its size, attributes and labels are read from it.
        device: "cpu", "cuda:0", ...; default: the GPU if there is one.
        overlay: further config files, the last one wins.
        **settings: any other setting of the bundle's inference.json.
    """
    from .transforms.atlas import write_sweep, write_template

    if not _has_template(bundle):
        raise ValueError(f"{bundle} has no template; --bundle conditional_atlas has")
    settings |= {"weights": weights, "device": device, "optimize": optimize, "output_dir": str(output)}
    settings["affine"] = "affine" if affine is True else affine
    files = {"image": scan, "label": label, "mask": mask}
    item = {key: str(Path(path).absolute()) for key, path in files.items() if path is not None}
    folder = _check_writable(output)
    workflow = _workflow(bundle, [item], overlay, settings)
    parser = workflow.parser
    network = parser.get_parsed_content("network")
    network.load_state_dict(_load_weights(parser.get_parsed_content("weights")))
    encoder = network.template.encoder
    given = _parse_attributes(attributes)
    swept, values = _parse_sweep(sweep, encoder) if sweep else ("", [])
    if set(given) - set(encoder.names):
        encoder.values(given)  # says which there are
    for name, categories, mean in zip(encoder.names, encoder.categories, encoder.mean.tolist(), strict=True):
        if name not in given and not categories:
            given[name] = float(f"{mean:.4g}")
            if name != swept or scan is not None:
                print(f"{name}: not given, the training data's mean {given[name]:g} is taken")
        elif name not in given and name == swept and scan is None:
            given[name] = values[0]
    given = {name: given[name] for name in encoder.names if name in given}  # in the template's order
    written = write_template(folder, network, given)
    if sweep:
        written |= write_sweep(folder, network, given, swept, values)
    for path in written.values():
        print(path)
    if scan is not None:
        item |= given
        workflow.run()
        row = parser.get_parsed_content("handlers")[-1].rows[0]
        print(_summary(row))
        print(f"\nresults in {folder / row['id']}")
    return {}


def _parse_attributes(text: str | Mapping[str, Any] | None) -> dict[str, Any]:
    """Of "age=40,sex=F": names to numbers, or to words where it is no number."""
    from .data.lists import number_or_text

    if isinstance(text, Mapping):
        return dict(text)
    parts = [part.partition("=") for part in str(text or "").split(",") if part]
    if text is True or any(not name or not value for name, _, value in parts):
        raise ValueError(f"--attributes: expected name=value, several separated by commas, got {text!r}")
    return {name.strip(): number_or_text(value.strip()) for name, _, value in parts}


def _parse_sweep(text: str, encoder: Any) -> tuple[str, list[Any]]:
    """Of "age=20:80:13" the name and 13 numbers, of "sex=F:M" the name and the two words."""
    from .data.lists import number_or_text

    name, _, rest = str(text).partition("=")
    values = [number_or_text(value) for value in rest.split(":")]
    if name not in encoder.names:
        raise ValueError(f"--sweep: the template's attributes are {', '.join(encoder.names) or 'none'}, got {text!r}")
    if encoder.categories[encoder.names.index(name)]:
        return name, values
    if len(values) != 3 or not all(isinstance(v, float) for v in values) or values[2] not in range(2, 10_000):
        raise ValueError(f"--sweep: expected name=first:last:number with a whole number of at least 2, got {text!r}")
    first, last, number = float(values[0]), float(values[1]), int(values[2])
    return name, [float(f"{first + (last - first) * i / (number - 1):.6g}") for i in range(number)]


def apply(
    transform: str | Sequence[str],
    source: str,
    output: str,
    *,
    reference: str | None = None,
    interpolation: str = "auto",
    space: str = "RAS",
) -> None:
    """Apply a saved transform to an image, a label map or a list of points.

    Images are resampled onto the reference; for that give the transform from reference to image (`transform.h5` brings
    the moving image into the fixed space, `inverse_transform.h5` the fixed one into the moving space). Points move the
    other way: `transform.h5` takes points of the fixed space to the moving space.

    Args:
        transform: ITK transform file or displacement field; several, separated by commas, are applied to points in
            the order given.
        source: image, label map, or CSV file with the columns x, y[, z] in mm.
        output: NIfTI or CSV file to write.
        reference: image whose grid the result takes; needed for images.
        interpolation: "linear", "nearest", or "auto": nearest for integer files of few values (label maps).
        space: world of the CSV's coordinates, RAS or LPS.
    """
    from .transforms.physical import load_image, load_labels, read_transform, resample, write_image

    steps = [step for path in _as_list(transform) for step in read_transform(path)]
    if str(source).endswith(".csv"):
        _apply_to_points(steps, source, output, space)
        return
    if reference is None:
        raise ValueError("an image needs --reference: the image whose grid the result takes")
    target = load_image(reference)
    is_label = interpolation == "nearest" or (interpolation == "auto" and _looks_like_labels(source))
    volume = load_labels(source) if is_label else load_image(source)
    result = resample(volume.data, volume.affine, target.grid, steps=steps, mode="nearest" if is_label else "linear")
    extra = {"dtype": volume.file_dtype} if is_label else {}
    write_image(output, result, target.affine, like=target, **extra)
    print(f"wrote {output} ({'nearest' if is_label else 'linear'})")


def export(
    bundle: str,
    output: str = "exported",
    *,
    zip: bool = False,
    atlas: str | None = None,
    atlas_labels: str | None = None,
    label_names: str | None = None,
    **options: Any,
) -> None:
    """Write a bundle as a self-contained folder, OUTPUT/<bundle>, that works without this package.

    `--for monai-label` makes OUTPUT/<bundle>_atlas instead, a segmentation model for MONAI Label (docs/monai_label.md).

    Args:
        bundle: name of a bundle, or its folder beside others.
        output: folder for the results.
        zip: also write OUTPUT/<bundle>_v<version>.zip and its SHA-256.
        atlas, atlas_labels: for MONAI Label: the image that is registered to each study, and its label map.
        label_names: for MONAI Label: CSV file with the columns id and name.
        **options: for: "monai-label".
    """
    from .export import export_bundle, export_for_monai_label

    purpose = options.pop("for", None)
    if options or purpose not in (None, "monai-label"):
        raise ValueError(f"export takes --for monai-label, and no {', '.join(options) or purpose!r}")
    if not isinstance(zip, bool) or isinstance(label_names, bool):
        raise ValueError("--zip takes no value, and --label_names the path of a CSV file")
    folder, output = find_bundle(str(bundle)).resolve(), str(output)
    if purpose is None:
        if atlas or atlas_labels or label_names:
            raise ValueError("an atlas is for --for monai-label")
        written = export_bundle(folder, output, zipped=zip)
    else:
        if not (atlas and atlas_labels):
            raise ValueError("--for monai-label needs --atlas IMAGE and --atlas-labels LABELS")
        files = {"atlas": str(atlas), "atlas_labels": str(atlas_labels)}
        written = export_for_monai_label(folder, output, **files, label_names=label_names, zipped=zip)
    for path in written:
        print(path)


def demo(output: str = "demo_output", **settings: Any) -> None:
    """Make two subjects with a known deformation, register them and compare with the truth; needs `morphzoo[demo]`."""
    from .demo import run_demo

    run_demo(_check_writable(output), settings)


def _infer(
    bundle: str, pairs: list[dict[str, Any]], output: Path, overlays: str | Sequence[str], settings: dict[str, Any]
) -> list[dict[str, Any]]:
    """Run a bundle's inference.json on pairs; one row of measures for each, with the folder of its files."""
    workflow = _workflow(bundle, pairs, overlays, settings)
    workflow.run()
    rows = workflow.parser.get_parsed_content("handlers")[-1].rows
    return [{**row, "folder": str(output / row["id"])} for row in rows]


def _workflow(bundle: str, pairs: list[dict[str, Any]], overlays: str | Sequence[str], settings: dict[str, Any]) -> Any:
    """A bundle's inference.json, initialised for these pairs; files, settings and weights are checked."""
    for pair in pairs:
        for key, path in pair.items():
            if key in _FILE_KEYS and not Path(path).is_file():
                raise FileNotFoundError(f"{path}: there is no such file ({key})")
    from monai.bundle import ConfigWorkflow

    from .transforms.physical import load_image

    logging.getLogger("monai.bundle.workflows").setLevel(logging.ERROR)  # it warns of the file that is False below
    root = find_bundle(bundle)
    flat = "moving" in pairs[0] and load_image(pairs[0]["fixed"]).data.ndim == 3
    forms = ("", "_2d") if flat else ("",)
    files = [root / "configs" / f"inference{form}.json" for form in forms]
    settings = {key: value for key, value in settings.items() if value is not None}
    if settings.get("affine") == "learned" and "aligner" not in json.loads(files[0].read_text()):
        files += [_bundles_folder() / "overlays" / f"learned_affine{form}.json" for form in forms]
        settings.setdefault("affine_weights", str(_bundles_folder() / "avsm" / "models" / f"affine{forms[-1]}.pt"))
    configs = [str(path) for path in files if path.is_file()] + _as_list(overlays)
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
    from .networks.conditional_template import template_settings

    try:
        made = template_settings(_load_weights(weights))
    except ValueError as error:
        raise ValueError(f"{weights}: {error}") from error
    made["conditions"] = made.pop("attributes")
    labels = made.pop("labels")
    made["template_labels"] = "$None" if labels is None else labels  # MONAI leaves out what is None
    own = ("features", "hidden", "paper")
    return {f"network_def#template#{key}" if key in own else key: value for key, value in made.items()}


def _load_weights(path: str) -> dict[str, Any]:
    import torch

    return torch.load(path, map_location="cpu", weights_only=True)


def _check_architecture(weights: str, network: Any) -> None:
    # What is no weight (a description) has no fixed length; loading compares it.
    found, wanted = (
        {name: tuple(getattr(value, "shape", ())) for name, value in state.items() if not name.endswith("_extra_state")}
        for state in (_load_weights(weights), network.state_dict())
    )
    if found != wanted:
        raise ValueError(f"{weights}: these are not weights of this bundle's network ({len(wanted)} tensors expected)")


_FILE_KEYS = ("moving", "fixed", "label_moving", "label_fixed", "mask_moving", "mask_fixed", "image", "label", "mask")
_PRIVATE = {"_desc_", "_meta_", "imports", "initialize", "run"}


def _bundles_folder() -> Path:
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
    folder = _bundles_folder()
    names = sorted(path.parent.parent.name for path in folder.glob("*/configs/inference.json"))
    if name not in names:
        raise ValueError(f"there is no bundle {name!r}; there are {', '.join(names)}")
    return folder / name


def _has_template(bundle: str) -> bool:
    """Whether a bundle registers single scans, each to its own template."""
    return "conditions" in json.loads((find_bundle(bundle) / "configs" / "inference.json").read_text())


def _as_list(value: str | Sequence[str]) -> list[str]:
    return value.split(",") if isinstance(value, str) else [str(item) for item in value]


def _check_writable(output: str | os.PathLike) -> Path:
    """Make the output folder, or say at once why that is impossible."""
    folder = Path(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"{folder}: cannot make the output folder ({error.strerror})") from error
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder}: no permission to write there")
    return folder


def _summary(row: dict[str, Any]) -> str:
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


def _looks_like_labels(path: str) -> bool:
    from .transforms.physical import load_labels

    try:
        volume = load_labels(path)
    except ValueError:
        return False
    return not str(volume.file_dtype).startswith("float") and len(volume.data.unique()) <= 128


def _apply_to_points(steps: list[Any], source: str, output: str, space: str) -> None:
    import numpy as np

    from .metrics import replacing
    from .transforms.physical import transform_points_world

    if space not in ("RAS", "LPS"):
        raise ValueError(f"expected space RAS or LPS, got {space!r}")
    with open(source, newline="") as file:
        rows = list(csv.DictReader(file))
    columns = [name for name in ("x", "y", "z") if rows and name in rows[0]]
    if len(columns) < 2:
        raise ValueError(f"{source}: expected a CSV file with the columns x, y and z in mm")
    try:
        points = np.array([[float(row[name]) for name in columns] for row in rows])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source}: a coordinate is no number ({error})") from error
    flip = np.array([-1.0, -1.0, 1.0][: len(columns)]) if space == "LPS" else np.ones(len(columns))
    moved = transform_points_world(points * flip, steps) * flip
    with replacing(output) as path, open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        for row, point in zip(rows, moved, strict=True):
            writer.writerow({**row, **{name: f"{value:.6f}" for name, value in zip(columns, point, strict=True)}})
    print(f"wrote {output} ({len(rows)} points, {space} mm)")


def _reason(error: BaseException) -> str:
    """One line: the outermost error in the chain that our own code raised, else the innermost one."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    for one in chain:
        frames = traceback.extract_tb(one.__traceback__)
        if frames and Path(frames[-1].filename).resolve().is_relative_to(PACKAGE):
            return " ".join(str(one).split())
    return f"{type(chain[-1]).__name__}: {' '.join(str(chain[-1]).split())[:300]}"


def main() -> None:
    """Entry point of the console script."""
    import fire

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for noisy in ("ignite", "monai", "py.warnings", "nibabel", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")
    # fire takes one letter only where it is unambiguous; -o is what everybody types.
    sys.argv = ["--output" if word == "-o" else word for word in sys.argv]
    commands = {"register": register, "optimize": optimize, "evaluate": evaluate, "tune": tune}
    commands |= {"atlas": atlas, "apply": apply, "export": export, "demo": demo}
    try:
        fire.Fire(commands, name="morphzoo", serialize=lambda result: None if result == {} else result)
    except KeyboardInterrupt:
        sys.exit("morphzoo: interrupted")
    except Exception as error:
        if os.environ.get("MORPHZOO_DEBUG"):
            raise
        sys.exit(f"morphzoo: error: {_reason(error)}")


if __name__ == "__main__":
    main()
