"""Apply transforms with ANTs and nitransforms; a program of its own, for an environment that has these two.

Reads the paths as JSON from the input, writes what the tools made as `<tool>_<name>.npy` beside the points, and prints
which names each tool has.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import numpy as np


def save(folder: Path, tool: str, results: dict[str, np.ndarray]) -> list[str]:
    for name, array in results.items():
        np.save(folder / f"{tool}_{name}.npy", array)
    return list(results)


def with_ants(files: dict[str, str]) -> dict[str, np.ndarray]:
    import ants
    import pandas

    d = int(files["dims"])
    read = {key: ants.image_read(files[key], dimension=d) for key in ("moving", "fixed", "label_moving")}
    pairs = {
        "image": ("moving", "fixed", "transform", "linear"),
        "inverse": ("fixed", "moving", "inverse_transform", "linear"),
        "labels": ("label_moving", "fixed", "transform", "nearestNeighbor"),
    }
    results = {
        name: ants.apply_transforms(read[like], read[moved], [files[transform]], interpolator=how).numpy()
        for name, (moved, like, transform, how) in pairs.items()
    }
    points = pandas.DataFrame(np.loadtxt(files["points"]), columns=list("xyz")[:d])
    for name, transform in (("points", "transform"), ("back", "inverse_transform")):
        moved = ants.apply_transforms_to_points(d, points, [files[transform]])
        results[name] = moved[list("xyz")[:d]].to_numpy()
    return results


def with_nitransforms(files: dict[str, str]) -> dict[str, np.ndarray]:
    import nibabel
    import nitransforms
    from nitransforms.resampling import apply

    dense = nitransforms.nonlinear.DenseFieldTransform.from_filename(files["forward"], fmt="itk")
    linear = nitransforms.linear.Affine.from_filename(files["affine"], fmt="itk")
    chain = nitransforms.manip.TransformChain([dense, linear])
    lps = np.loadtxt(files["points"])
    flip = np.array([-1, -1, 1])
    # It reads fields by cubic splines, ITK linearly. They agree on the field's voxels; the way back begins elsewhere.
    results = {"points": chain.map(lps * flip) * flip}
    images = {key: nibabel.load(files[key]) for key in ("moving", "fixed", "label_moving")}
    options = {"mode": "constant", "cval": 0.0, "output_dtype": "float64"}
    for name, moved, order in (("image", "moving", 1), ("labels", "label_moving", 0)):
        done = apply(chain, images[moved], reference=images["fixed"], order=order, **options)
        results[name] = np.asarray(done.dataobj)
    return results


def run_all(files: dict[str, str]) -> dict[str, list[str]]:
    found = {}
    for tool, run in (("ANTs", with_ants), ("nitransforms", with_nitransforms)):
        try:
            found[tool] = save(Path(files["points"]).parent, tool, run(files))
        except Exception as error:  # a format or dimension that the tool does not know is a result, too
            print(files["fixed"], tool, repr(error), file=sys.stderr)
            found[tool] = []
    return found


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        all_found = [run_all(files) for files in json.load(sys.stdin)]
    print(json.dumps(all_found))
