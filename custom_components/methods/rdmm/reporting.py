"""The map of the regulariser as a file, a picture and a measure."""

from __future__ import annotations

from ...evaluation.pictures import maps_picture
from ...fields import resize_map
from ...transforms.publish import OutputFile, Report, model_image_file
from ...transforms.registered import RegisteredPair


class SigmaReport:
    """A reporter: the regulariser of a pair that was registered in a spatially varying metric.

    Expects `sigma` (1, *S') in the prediction: the equivalent standard deviation of the metric's Gaussians in mm, on
    the moving image on the model grid. The files are sigma.nii.gz on that grid if an earlier reporter has
    the warped image, and sigma.png if one has a picture. The metrics are `sigma_mm` and `sigma_sd_mm`, mean and
    standard deviation within the foreground. Without such a metric (`morphzoo optimize --model`) it reports nothing.
    """

    def __call__(self, pair: RegisteredPair, earlier: Report) -> Report:
        if "sigma" not in pair.pred:
            return Report()
        moving, spacing = pair.images["moving"].float(), pair.spacing_mm
        sigma = resize_map(pair.pred["sigma"][None].float(), moving.shape[1:])[0]
        inside = sigma[pair.foreground]
        metrics = {"sigma_mm": float(inside.mean()), "sigma_sd_mm": float(inside.std(correction=0))}
        files = {}
        if "warped" in earlier.files:
            files["sigma"] = model_image_file("sigma.nii.gz", sigma, pair)
        if "picture" in earlier.files:
            files["sigma_picture"] = OutputFile(
                "sigma.png",
                lambda path: maps_picture(path, moving, {"sigma": sigma[0]}, spacing_mm=spacing, name="moving"),
            )
        return Report(metrics, files)
