"""The estimated error of a registered pair: a map, its measures, and a warning if it is large."""

from __future__ import annotations

import os

import torch

from ...checks import check_number
from ...notices import warn
from ...space.resampling import rows_on_grid
from ...transforms.publish import Report, image_file
from ...transforms.registered import RegisteredPair
from .estimator import ErrorEstimator

_CAPTIONS = {
    "estimated_error_median_mm": "median of the error that a network estimates, mm",
    "estimated_error_95_mm": "95 % of the voxels err by less than this, by the same estimate, mm",
}


class ErrorReport:
    """A reporter: error_mm.nii.gz, the estimated error at each voxel of the fixed image, mm, 0 outside the foreground.

    The metrics are `estimated_error_median_mm` and `estimated_error_95_mm`, of the foreground. The network sees what
    the registration compared: the fixed image, the warped one, and the dense displacement on the model grid.

    Args:
        weights: file of the network's weights; or an `ErrorEstimator`.
        device: where the network runs.
        limit: median in mm above which the result gets a warning.
    Raises:
        ValueError: without weights, or if the limit is none.
    """

    def __init__(
        self,
        weights: str | os.PathLike[str] | ErrorEstimator | None,
        *,
        device: str | torch.device = "cpu",
        limit: float = 4.0,
    ) -> None:
        check_number("limit", limit, above=0)
        if weights is None:
            raise ValueError("error_weights: expected the path of the weights of error_estimation")
        self.estimate = weights if isinstance(weights, ErrorEstimator) else ErrorEstimator(weights, device=device)
        self.limit = limit

    def __call__(self, pair: RegisteredPair, earlier: Report) -> Report:
        """Raises ValueError: if the pair is not 3-D, or the weights are another network's."""
        error = self.estimate(pair.images["fixed"], pair.pred["warped"], pair.pred["ddf"], pair.grid)
        fixed = pair.volumes["fixed"]
        there, inside = rows_on_grid(error, pair.grid, fixed.grid, 0, fixed.grid.size[0]), pair.foreground_in_fixed
        metrics = error_metrics(there, inside)
        median = metrics["estimated_error_median_mm"]
        if median > self.limit:
            warn(
                f"{pair.volumes['moving'].path}: half of the voxels are estimated to err by more than {median:.1f} mm; "
                "look at error_mm.nii.gz"
            )
        files = {"error": image_file("error_mm.nii.gz", there * inside, fixed.affine, like=fixed)}
        return Report(metrics, files, _CAPTIONS)


def error_metrics(error: torch.Tensor, inside: torch.Tensor) -> dict[str, float]:
    """Median and 95 % quantile of errors (1, *S), mm, where a mask says; NaN if that is nowhere."""
    values = error[inside].sort().values
    if not len(values):
        return dict.fromkeys(_CAPTIONS, float("nan"))
    places = [(len(values) - 1) // 2, round(0.95 * (len(values) - 1))]
    return {name: float(values[place]) for name, place in zip(_CAPTIONS, places, strict=True)}
