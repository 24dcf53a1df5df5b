"""Build and run a bundle's inference workflow for given pairs."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from pydoc import locate
from typing import TYPE_CHECKING, Any

from ..checks import meant, writable_folder
from ..vocabulary import Config, Entry
from .bundles import (
    abilities,
    aligner_weights,
    error_map_of,
    find_bundle,
    instead_of_pairs,
    offered,
    overlay_path,
    registers,
    settings_of,
    takes_scans,
    words_offered,
)
from .origin import origin_of
from .settings import give, typed_settings

if TYPE_CHECKING:
    from monai.bundle import ConfigParser, ConfigWorkflow

    from ..evaluation.cohort import Cohort

QUALITIES = ("fast", "default", "best")

# Settings of the deformation alone.
_DEFORMING = ("quality", "optimize", "samples", "sweep", "hyper", "weights", "smoothness", "similarity", "robust")

_OFFERED = ("similarity", "affine")  # settings for which other bundles offer words

_FILE_KEYS = (
    *("moving", "fixed", "label_moving", "label_fixed", "mask_moving", "mask_fixed", "channels_moving"),
    *("channels_fixed", "image", "label", "mask", "guide_moving", "guide_fixed"),
)


def infer(bundle: str, pairs: list[Entry], overlays: str | Sequence[str], settings: Mapping[str, object]) -> Cohort:
    """Run a bundle's inference.json on pairs; what became of each.

    Arguments and errors as in `build_workflow`; `output_dir` must be among the settings. OSError: if it cannot be made,
    or holds the result of something else under an item's id.
    """
    workflow = build_workflow(bundle, pairs, overlays, settings)
    workflow.parser.get_parsed_content("evaluator")  # what components refuse, they refuse before anything is written
    with results_in(workflow.parser.get_parsed_content("output_dir"), pairs):
        workflow.run()
    return workflow.parser.get_parsed_content("cohort").cohort


@contextmanager
def results_in(output: str | os.PathLike[str], pairs: Sequence[Entry]) -> Iterator[None]:
    """A folder for the results of a block, which goes if the block fails and it was not there before.

    Raises:
        OSError: if it cannot be made, or holds the result of something else under an item's id.
    """
    from ..data.names import check_free

    is_new = not Path(output).exists()
    folder = writable_folder(output)
    try:
        check_free(folder, pairs)
        yield
    except BaseException:
        if is_new:
            with suppress(OSError):  # something is in it
                folder.rmdir()
        raise


def build_workflow(
    bundle: str, pairs: list[Entry], overlays: str | Sequence[str], settings: Mapping[str, object]
) -> ConfigWorkflow:
    """A bundle's inference.json, initialised for these pairs.

    Args:
        bundle: name of a bundle, or its folder.
        pairs: items with paths of files; scans for a bundle with a template.
        overlays: further config files, the last one wins.
        settings: by id; those that are None are left out.
    Raises:
        FileNotFoundError: if a file or the weights are missing.
        ValueError: if the bundle has no such setting, takes other items, or the weights are another network's.
    """
    check_files(pairs)
    root = find_bundle(bundle)
    if any("moving" in pair for pair in pairs):
        check_takes_pairs(root)
    return load_workflow(root, spatial_dims(pairs), overlays, settings, {"dataset#data": pairs})


def check_takes_pairs(bundle: Path) -> None:
    """Raises ValueError: if a bundle registers single scans to its template, or nothing."""
    does = instead_of_pairs(bundle)
    if does is not None:
        raise ValueError(f"{bundle.name} {does}")


def load_workflow(
    root: Path,
    spatial_dims: int,
    overlays: str | Sequence[str],
    settings: Mapping[str, object],
    more: Mapping[str, object],
) -> ConfigWorkflow:
    """A bundle's inference.json for images of a dimension, initialised, with its weights.

    Args:
        root: folder of the bundle.
        spatial_dims: of the images, 2 or 3.
        overlays, settings: as for `build_workflow`.
        more: further Python values by id.
    Raises: as `build_workflow`.
    """
    from monai.bundle import ConfigWorkflow

    logging.getLogger("monai.bundle.workflows").setLevel(logging.ERROR)  # it warns of the file that is False below
    configs, given = check_settings(root, overlays, settings, spatial_dims)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        workflow = ConfigWorkflow(
            config_file=configs,
            meta_file=str(root / "configs" / "metadata.json"),
            logging_file=False,
            workflow_type="infer",
        )
        # A spacing that was asked for is kept.
        given |= {"preprocessing#fit": False} if _fits_its_grid(root, given) else {}
        give(workflow.parser, {**given, **more, **_origins(workflow.parser, root, overlays, settings)})
        _fit_to_weights(workflow.parser, root, given)
        workflow.initialize()
        loader = workflow.parser.get_parsed_content("load_weights")
        if loader is not None:  # else there is no network
            loader.load()  # what cannot be loaded is refused before anything is written
    return workflow


def _origins(
    parser: ConfigParser, root: Path, overlays: str | Sequence[str], settings: Mapping[str, object]
) -> dict[str, object]:
    """Where the bundle is, and what its results are made with, for the components that say so on a page."""
    origin = origin_of(root, as_list(overlays), settings)
    places = [name for name in ("postprocessing", "cohort") if name in parser.config and "cohort" in parser.config]
    return {"bundle_root": str(root), **{f"{name}#origin": origin for name in places}}


def _fits_its_grid(root: Path, given: Mapping[str, object]) -> bool:
    """Whether a spacing was asked for of a bundle that may choose another one."""
    return "spacing" in given and registers(root) and not takes_scans(root)


def check_settings(
    bundle: Path, overlays: str | Sequence[str], settings: Mapping[str, object], spatial_dims: int
) -> tuple[list[str], dict[str, object]]:
    """The config files for images of a dimension, and the settings as their types; nothing is made of them yet.

    Raises:
        ValueError: if the bundle has no such setting, or the value is of another kind.
    """
    from monai.bundle import ConfigParser

    settings = dict(settings)
    quality = settings.pop("quality", None)
    error_map = settings.pop("error_map", None)
    configs, defaults = _configs(bundle, spatial_dims, settings.get("affine") == "learned")
    if quality is not None:
        configs += _quality(bundle, str(quality), spatial_dims, settings.get("optimize"))
        given = {name for path in as_list(overlays) for name in ConfigParser.load_config_file(path)}
        if {"refinement", "refinement#levels", "refinement#iterations", "optimize", "finest"} & given:
            raise ValueError("--quality sets the refinement, and so does --overlay: give one of them")
    if error_map in (True, "True"):
        overlay, weights = error_map_of(spatial_dims)
        configs.append(str(overlay))
        defaults["error_weights"] = str(weights)
    configs += as_list(overlays)
    files, paths = _offered_to(settings, spatial_dims)
    configs += files
    stages = settings.get("stages")
    if stages is not None and "stages" in settings_of(bundle) and _is_linear(stages):
        configs.append(overlay_path("linear"))
        idle = [name for name in _DEFORMING if settings.get(name) is not None or (name == "quality" and quality)]
        if idle:
            raise ValueError(f"--stages without deformable deforms nothing: --{idle[0]} has no meaning")
    typed = typed_settings(bundle.name, ConfigParser.load_config_files(configs), settings)
    _check_similarity(settings.get("similarity"))
    return configs, defaults | paths | typed


def _offered_to(settings: Mapping[str, object], spatial_dims: int) -> tuple[list[str], dict[str, object]]:
    """The config files that the words of settings stand for, and the paths that go with them: see `offered`."""
    found = [offered(name, settings.get(name), spatial_dims) for name in _OFFERED]
    return [file for files, _ in found for file in files], {k: v for _, paths in found for k, v in paths.items()}


def _check_similarity(word: object) -> None:
    """Raises ValueError: for a word that stands for no similarity, neither ours nor one that a bundle offers."""
    from ..inference.refiner import SIMILARITIES

    known = ["auto", *SIMILARITIES, *words_offered("similarity")]
    if isinstance(word, str) and word not in (*known, "mse"):  # which only some models of `optimize` follow
        raise ValueError(f"--similarity: expected {', '.join(known)}, got {word!r}{meant(word, known)}")


def _is_linear(stages: object) -> bool:
    """Whether stages hold no deformable one. Raises ValueError: for another word."""
    from ..transforms.alignment import linear_stage

    names = words_of(stages if isinstance(stages, list | tuple) else str(stages))
    linear_stage(names)
    return "deformable" not in names


def _quality(bundle: Path, quality: str, spatial_dims: int, iterations: object) -> list[str]:
    """The overlays of a quality.

    Raises:
        ValueError: if there is no such quality, the bundle has none, or a number of iterations is given, too.
    """
    if quality not in QUALITIES:
        raise ValueError(f"--quality: expected {' or '.join(QUALITIES)}, got {quality!r}")
    if "finest" not in settings_of(bundle):
        raise ValueError(f"{bundle.name} has no --quality; those have it whose configuration says `finest`")
    if iterations is not None:
        raise ValueError("--quality says how many iterations there are: give it or --optimize")
    forms = ("", "_2d") if spatial_dims == 2 else ("",)
    files = [Path(overlay_path(f"quality_{quality}{form}")) for form in forms]
    return [str(path) for path in files if path.is_file()]


def check_files(pairs: Sequence[Entry]) -> None:
    """Raises FileNotFoundError: if a file of an item is missing."""
    for pair in pairs:
        for key, value in pair.items():
            paths = (value if isinstance(value, list) else [value]) if key in _FILE_KEYS else []
            for path in paths:
                if isinstance(path, str | os.PathLike) and not Path(path).exists():  # A folder may hold a DICOM series.
                    raise FileNotFoundError(f"{path}: there is no such file ({key})")


def spatial_dims(pairs: Sequence[Entry]) -> int:
    """The dimension of a list's images, by the first fixed one that can be read."""
    from ..space.volumes import spatial_dims_of

    fixed = [pair["fixed"] for pair in pairs if "fixed" in pair]
    for path in fixed:
        try:
            return spatial_dims_of(path)
        except ValueError:
            if len(fixed) == 1:
                raise
    return 3


def _configs(root: Path, spatial_dims: int, learned_affine: bool) -> tuple[list[str], dict[str, object]]:
    """The config files for such images, and the settings that go with them."""
    forms = ("", "_2d") if spatial_dims == 2 else ("",)
    files = [root / "configs" / f"inference{form}.json" for form in forms]
    defaults: dict[str, object] = {}
    if learned_affine and "aligner" not in settings_of(root):
        files += [Path(overlay_path(f"learned_affine{form}")) for form in forms]
        defaults["affine_weights"] = str(aligner_weights(spatial_dims))
    return [str(path) for path in files if path.is_file()], defaults


def _fit_to_weights(parser: ConfigParser, root: Path, settings: Mapping[str, object]) -> None:
    """Give the parser what follows from the weights, which must be there."""
    weights = str(parser.get_parsed_content("weights"))
    if parser.config["load_weights"].get("_disabled_", False):
        return
    if not Path(weights).is_file():
        raise FileNotFoundError(f"{weights}: bundle {root.name} has no weights there; train it or give --weights")
    source = abilities(root).get("settings_from_weights")
    if source is not None:
        found = _settings_from_weights(source, weights)
        give(parser, {name: value for name, value in found.items() if name not in settings})


def _settings_from_weights(source: str, weights: str) -> Config:
    function: Any = locate(source)
    if function is None:
        raise ValueError(f"metadata.json: there is no function {source} (settings_from_weights)")
    from ..files import read_state

    state = read_state(weights)
    try:
        return function(state)
    except ValueError as error:
        raise ValueError(f"{weights}: {error}") from error


def as_list(value: str | os.PathLike[str] | Sequence[str]) -> list[str]:
    """The parts of a text with commas, a path, or the items of a sequence as texts. A file's name may have commas."""
    if isinstance(value, os.PathLike) or (isinstance(value, str) and Path(value).exists()):
        return [str(value)]
    return words_of(value)


def words_of(value: str | Sequence[str]) -> list[str]:
    """As `as_list`, of what can be no files."""
    return [part for part in value.split(",") if part] if isinstance(value, str) else [str(item) for item in value]
