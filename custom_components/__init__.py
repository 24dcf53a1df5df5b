"""Components shared by the MorphZoo bundles: learned deformable registration in MONAI.

Conventions, valid in every module:

- **Fields.** A displacement field `ddf` has shape (B, D, *S) with D = 2 or 3 spatial axes. Channel i moves along tensor
  axis i, in voxels of the field's own grid, with voxel centres at integer coordinates and grids aligned at their
  corners. It pulls back: `warped(x) = moving(x + ddf(x))`, so phi = id + ddf maps points of the fixed space to points
  of the moving space, and a *point* of the fixed image moves along `ddf` while a point of the moving image needs the
  inverse field. A velocity `svf` is a field per unit time whose integral over [0, 1] is `ddf`.
- **Compositions.** `compose(outer, inner)` is phi_outer o phi_inner: the inner map is applied first.
- **Borders.** Fields are continued by their border value, images by zero, unless an argument says otherwise.
- **Precision.** Fields, integrations and similarities are float32 (or float64 if given so), also under autocast.
- **Space.** Only `space` knows millimetres, orientations and affines. Everything it writes follows ITK:
  LPS millimetres.
- **Data flow.** pair (B, 2C, *S) -> network -> parameters -> deformation -> {"ddf", "svf", ...} -> inferer adds
  "warped" -> loss(pred, batch). Keys of a pair: moving, fixed, label_moving, label_fixed, mask_moving, mask_fixed.

In Python everything that the command `morphzoo` does is a function, and its result a value::

    import custom_components as mz

    result = mz.register("moving.nii.gz", "fixed.nii.gz")  # or images of nibabel, ITK, MONAI, or arrays with affines
    result.warped, result.transform.points(points), result.metrics["ncc_after"], result.save("out")
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_COMMANDS = (
    *("apply", "atlas", "cite", "convert", "demo", "evaluate", "export", "info", "longitudinal", "optimize"),
    *("prepare", "propagate", "register", "segment", "strip", "subtract", "template", "train", "tune"),
)
_FIELDS = ("compose", "integrate_velocity", "invert", "jacobian_determinant", "resize_field", "warp")

# Imported when they are first asked for: torch and monai take seconds.
_PLACES = {name: f"commands.{name}" for name in _COMMANDS}
_PLACES |= dict.fromkeys(_FIELDS, "fields") | {"Cohort": "evaluation.cohort", "Registration": "evaluation.result"}
_PLACES |= {"Registrar": "commands.registrar", "Transform": "space.transform"}
_PLACES |= dict.fromkeys(("ApplyTransformd", "PairwiseRegistrationd", "Registerd"), "commands.monai_transforms")

__all__ = sorted([*_PLACES, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f".{_PLACES[name]}", __name__), name)
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}.commands":
            raise
        # An exported bundle carries the components, but not the commands.
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}: the commands are not here") from error


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
