"""Move points by transforms as other tools read them; a program of its own, for an environment that has these tools.

Reads cases as JSON from the input: paths of the fixed and moving image, of the transforms by dialect, and of voxels of
the fixed image. Prints for each case and reader the points in the moving image's world, RAS mm, or why there are none.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable

import numpy as np

FLIP = np.array([-1.0, -1.0, 1.0])


def itk_points(path: str, points: np.ndarray) -> np.ndarray:
    import itk

    if path.endswith(".nii.gz"):
        transform = itk.DisplacementFieldTransform[itk.F, 3].New()
        transform.SetDisplacementField(itk.imread(path, itk.Vector[itk.F, 3]))
    else:
        transform = itk.transformread(path)[0]
    return np.array([list(transform.TransformPoint(point.tolist())) for point in points * FLIP]) * FLIP


def ants_points(paths: list[str], points: np.ndarray) -> np.ndarray:
    import ants
    import pandas

    table = pandas.DataFrame(points * FLIP, columns=list("xyz"))
    return ants.apply_transforms_to_points(3, table, paths)[list("xyz")].to_numpy() * FLIP


def by_matrix(kind: str) -> Callable[[dict, np.ndarray], np.ndarray]:
    def move(case: dict, points: np.ndarray) -> np.ndarray:
        import nibabel
        from nitransforms.linear import Affine

        moving, fixed = (nibabel.load(case[role]) for role in ("moving", "fixed"))
        return Affine.from_filename(case["files"][kind], fmt=FORMATS[kind], moving=moving, reference=fixed).map(points)

    return move


FORMATS = {"itk.tfm": "itk", "fsl.mat": "fsl", "freesurfer.lta": "lta", "afni.aff12.1D": "afni"}


def nitransforms_field(case: dict, points: np.ndarray) -> np.ndarray:
    from nitransforms.nonlinear import DenseFieldTransform

    return DenseFieldTransform.from_filename(case["files"]["itk.nii.gz"], fmt="itk").map(points)


def nitransforms_chain(case: dict, points: np.ndarray) -> np.ndarray:
    from nitransforms.manip import TransformChain

    return TransformChain.from_filename(case["files"]["x5.x5"], fmt="X5").map(points)


def surfa_matrix(case: dict, points: np.ndarray) -> np.ndarray:
    import surfa

    matrix = np.linalg.inv(surfa.load_affine(case["files"]["freesurfer.lta"]).convert(space="world").matrix)
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def surfa_warp(case: dict, points: np.ndarray) -> np.ndarray:
    import surfa

    np.fromstring = np.frombuffer  # surfa 0.6.3 reads bytes by it, which newer numpy refuses
    warp = surfa.load_warp(case["files"]["freesurfer.mgz"])
    voxels = np.load(case["voxels"])
    return np.asarray(warp.convert(format=2).data)[tuple(voxels.T)]


def fslpy_matrix(case: dict, points: np.ndarray) -> np.ndarray:
    from fsl.data.image import Image
    from fsl.transform import flirt

    images = Image(case["moving"]), Image(case["fixed"])
    matrix = np.linalg.inv(flirt.fromFlirt(flirt.readFlirt(case["files"]["fsl.mat"]), *images, "world", "world"))
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def fslpy_warp(case: dict, points: np.ndarray) -> np.ndarray:
    from fsl.data.image import Image
    from fsl.transform import fnirt

    field = fnirt.readFnirt(case["files"]["fsl.nii.gz"], Image(case["moving"]), Image(case["fixed"]))
    return field.transform(points, "world", "world")


# By the file that is read and the tool that reads it.
READERS: dict[tuple[str, str], Callable[[dict, np.ndarray], np.ndarray]] = {
    ("itk.tfm", "ITK"): lambda case, points: itk_points(case["files"]["itk.tfm"], points),
    ("itk.h5", "ITK"): lambda case, points: itk_points(case["files"]["itk.h5"], points),
    ("itk.nii.gz", "ITK"): lambda case, points: itk_points(case["files"]["itk.nii.gz"], points),
    ("itk.tfm", "ANTs"): lambda case, points: ants_points([case["files"]["itk.tfm"]], points),
    ("itk.h5", "ANTs"): lambda case, points: ants_points([case["files"]["itk.h5"]], points),
    ("itk.nii.gz", "ANTs"): lambda case, points: ants_points([case["files"]["itk.nii.gz"]], points),
    ("ants", "ANTs"): lambda case, points: ants_points(case["files"]["ants"], points),
    ("itk.nii.gz", "nitransforms"): nitransforms_field,
    ("x5.x5", "nitransforms"): nitransforms_chain,
    **{(kind, "nitransforms"): by_matrix(kind) for kind in FORMATS},
    ("freesurfer.lta", "surfa"): surfa_matrix,
    ("freesurfer.mgz", "surfa"): surfa_warp,
    ("fsl.mat", "fslpy"): fslpy_matrix,
    ("fsl.nii.gz", "fslpy"): fslpy_warp,
}


def read_all(case: dict) -> list[dict]:
    points = np.load(case["points"])
    found = []
    for (kind, tool), move in READERS.items():
        answer: dict = {"kind": kind, "tool": tool}
        try:
            answer["points"] = np.asarray(move(case, points), dtype=np.float64).tolist()
        except Exception as error:  # a reader that is not there, or cannot, is a result, too
            answer["error"] = repr(error)
        found.append(answer)
    return found


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        everything = [read_all(case) for case in json.load(sys.stdin)]
    print(json.dumps(everything))
