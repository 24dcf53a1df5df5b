"""`morphzoo register` and `morphzoo optimize`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .workflow import DEFAULT_BUNDLE, as_list, bundles_folder, infer, summary, writable_folder


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
    rows = infer(bundle, [pair], writable_folder(output), overlay, settings)
    print(summary(rows[0]))
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
    overlays = [str(bundles_folder() / "overlays" / f"{name}.json") for name in names]
    overlays += as_list(settings.pop("overlay", ()))
    return register(moving, fixed, output, overlay=overlays, **settings)
