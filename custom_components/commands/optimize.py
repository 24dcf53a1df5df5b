"""`morphzoo optimize`: register without a network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .bundles import overlay_path
from .register import register
from .typed import converted
from .workflow import as_list

if TYPE_CHECKING:
    from ..evaluation.result import Registration
    from ..space.memory_images import Image

# Overlays that exchange the deformation of a training-free registration.
MODELS = {"svf": ["svf"], "lddmm": ["lddmm"], "vsvf": ["lddmm", "vsvf"], "ddf": ["ddf"]}
MODELS |= {name: [name] for name in ("bspline", "demons", "flow")}


def optimize(
    moving: str | Image,
    fixed: str | Image,
    output: str | None = None,
    *,
    model: str | None = None,
    relaxation: bool = False,
    **settings: Any,
) -> Registration:
    """Register without a network: optimise a deformation from zero, coarse to fine. Other settings as `register`.

    Args:
        moving, fixed, output: as in `register`.
        model: "svf" (stationary velocity), "lddmm" (geodesic shooting from an initial momentum), "vsvf" (stationary
            velocity of a momentum), "ddf" (displacement, may fold), "bspline" (free-form deformation, may fold);
            by intensities, for images of one contrast: "demons" (symmetric, in the log domain) or "flow" (Horn-Schunck,
            may fold). Default: the bundle's own deformation and objective, for synthmorph svf.
        relaxation: of lddmm: search the velocities at all times, by their gradient, in place of the initial momentum.
        **settings: as in `register`; --smoothness is a factor of the regularisation.
    Examples:
        `morphzoo optimize moving.nii.gz fixed.nii.gz -o out --model lddmm`
    Returns:
        As `register`.
    Raises:
        ValueError: for a setting that only a network has, or `relaxation` of another model.
    """
    if relaxation and model != "lddmm":
        raise ValueError(f"--relaxation is another way to find the velocities of --model lddmm, not of {model}")
    overlays = training_free(model) + ([overlay_path("relaxation")] if relaxation else [])
    network = ["optimize", "quality", "weights", "samples", "sweep", "correction"]
    for name in network if model is None else [*network, "hyper"]:
        if settings.get(name) is not None:
            raise ValueError(f"optimize uses no network: --{name} has no meaning here (--iterations has)")
    settings = converted(register, settings)
    if settings.get("hyper") == "auto":
        raise ValueError("optimize uses no network, which --hyper auto needs: give a number")
    overlays += as_list(settings.pop("overlay", ()))
    return register(moving, fixed, output, overlay=overlays, **settings)


def training_free(model: str | None) -> list[str]:
    """The overlays that optimise a model, or a bundle's own deformation, without a network.

    Raises:
        ValueError: if there is no such model.
    """
    if model is not None and model not in MODELS:
        raise ValueError(f"there is no model {model!r}; there are {', '.join(MODELS)}")
    return [overlay_path(name) for name in ["training_free", *(MODELS[model] if model else [])]]
