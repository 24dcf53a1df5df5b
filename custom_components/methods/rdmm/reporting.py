"""The map of the regulariser as a file, a picture and a measure."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Transform

from ...evaluation.pictures import maps_picture
from ...fields import resize_map
from ...files import write_metrics
from ...space.files import publish_together, write_image
from ...space.grids import voxel_spacing
from ...transforms.report import batched


class ReportSigmad(Transform):
    """Write the regulariser of a pair that was registered in a spatially varying metric, into its folder.

    Expects an item as `SavePaird` and `ReportPaird` left it, whose `pred` holds `sigma` (1, *S'), the equivalent
    standard deviation of the metric's Gaussians in mm, on the moving image as it came to the model grid. Writes
    sigma.nii.gz on that grid if `SavePaird` wrote the warped image, and sigma.png if `ReportPaird` drew a picture. The
    metrics get `sigma_mm` and `sigma_sd_mm`, mean and standard deviation within the foreground. A deformation without
    such a metric has nothing to report (`morphzoo optimize --model`).
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        if "sigma" not in data["pred"]:
            return dict(data)
        moving = torch.as_tensor(data["moving"]).float().cpu()
        sigma = resize_map(batched(data["pred"]["sigma"]).float(), moving.shape[1:])[0, 0]
        inside = sigma[torch.as_tensor(data["foreground"])[0].cpu() > 0]
        metrics = {**data["metrics"], "sigma_mm": float(inside.mean()), "sigma_sd_mm": float(inside.std(correction=0))}
        folder, affine = Path(data["output_dir"]), np.asarray(data["grid_affine"], dtype=np.float64)
        with publish_together(folder) as scratch:
            if "warped" in data["output_files"]:
                write_image(scratch / "sigma.nii.gz", sigma, affine)
            if "picture" in data["output_files"]:
                spacing = [float(s) for s in voxel_spacing(affine)]
                maps_picture(scratch / "sigma.png", moving, {"sigma": sigma}, spacing_mm=spacing, name="moving")
            files = {f"sigma_{path.suffix[1:]}": str(folder / path.name) for path in sorted(scratch.iterdir())}
            write_metrics(
                scratch / "metrics.json", {name: value for name, value in metrics.items() if name != "picture"}
            )
        return {**data, "metrics": metrics, "output_files": {**data["output_files"], **files}}
