"""Register a pair with ANTs or greedy from a given affine; a program of its own, for an environment that has them.

Reads the paths as JSON from the input ("peer", "moving", "fixed", "label_moving", "affine", "folder"), writes into the
folder on the fixed image's grid `labels.nii.gz` and, by the affine alone, `before.nii.gz`, both made by the peer's own
resampling, and `field.nii.gz`, the deformable part, an ITK displacement field (LPS, mm) that comes before the affine.
Prints JSON: version, seconds and CPU seconds of the registration alone. Needs antspyx, or picsl_greedy and SimpleITK.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

ANTS: dict[str, dict[str, Any]] = {
    "SyN": {"syn_metric": "mattes", "syn_sampling": 32, "reg_iterations": (40, 20, 0), "grad_step": 0.2},
    "SyN long": {"syn_metric": "mattes", "syn_sampling": 32, "reg_iterations": (100, 70, 50, 20), "grad_step": 0.1},
    "SyN-CC 4": {"syn_metric": "CC", "syn_sampling": 4, "reg_iterations": (40, 20, 0), "grad_step": 0.2},
    "SyN-CC 2": {"syn_metric": "CC", "syn_sampling": 2, "reg_iterations": (40, 20, 0), "grad_step": 0.2},
    "SyN-CC 4 long": {"syn_metric": "CC", "syn_sampling": 4, "reg_iterations": (100, 70, 50, 0), "grad_step": 0.1},
    "SyN-CC 4 full": {"syn_metric": "CC", "syn_sampling": 4, "reg_iterations": (100, 70, 50, 20), "grad_step": 0.1},
}
GREEDY = {
    "greedy 2": "-m NCC 2x2x2 -n 100x50x10",
    "greedy 4": "-m NCC 4x4x4 -n 100x50x10",
}
PEERS = (*ANTS, *GREEDY)


class Clock:
    """Seconds and CPU seconds (all threads of this process) since it was made."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        return {"seconds": time.perf_counter() - self.wall, "cpu_seconds": time.process_time() - self.cpu}


def with_ants(job: dict[str, str], settings: dict[str, Any]) -> dict[str, object]:
    import ants

    fixed, moving = (ants.image_read(job[role]) for role in ("fixed", "moving"))
    clock = Clock()
    prefix = str(Path(job["folder"]) / "ants_")
    start = {"initial_transform": job["affine"], "outprefix": prefix}
    field, *affine = ants.registration(fixed, moving, "SyNOnly", **start, **settings)["fwdtransforms"]
    times = clock.read()
    labels = ants.image_read(job["label_moving"])
    for name, transforms in (("before", [job["affine"]]), ("labels", [field, *affine])):
        warped = ants.apply_transforms(fixed, labels, transforms, interpolator="nearestNeighbor")
        ants.image_write(warped, str(Path(job["folder"]) / f"{name}.nii.gz"))
    os.replace(field, Path(job["folder"]) / "field.nii.gz")
    return {"version": f"antspyx {ants.__version__}", **times}


def with_greedy(job: dict[str, str], settings: str) -> dict[str, object]:
    import importlib.metadata

    from picsl_greedy import Greedy3D

    folder, greedy = Path(job["folder"]), Greedy3D()
    affine, field = folder / "affine.mat", folder / "field.nii.gz"
    write_ras_matrix(job["affine"], affine)
    clock = Clock()
    greedy.execute(f"-d 3 -threads 1 -i {job['fixed']} {job['moving']} -it {affine} -o {field} {settings}")
    times = clock.read()
    for name, transforms in (("before", affine), ("labels", f"{field} {affine}")):
        files = f"-rf {job['fixed']} -ri NN -rm {job['label_moving']} {folder / name}.nii.gz"
        greedy.execute(f"-d 3 -threads 1 {files} -r {transforms}")
    return {"version": f"picsl_greedy {importlib.metadata.version('picsl_greedy')}", **times}


def write_ras_matrix(transform: str, path: Path) -> None:
    """An ITK affine file as greedy reads it: a 4 x 4 matrix, RAS, fixed to moving points."""
    import numpy as np
    import SimpleITK

    read = SimpleITK.ReadTransform(transform)
    offset = np.array(read.TransformPoint((0.0, 0.0, 0.0)))
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack([np.array(read.TransformPoint(axis.tolist())) - offset for axis in np.eye(3)], 1)
    matrix[:3, 3] = offset
    flip = np.diag([-1.0, -1.0, 1.0, 1.0])
    np.savetxt(path, flip @ matrix @ flip, fmt="%.17g")


def main() -> None:
    job = json.load(sys.stdin)
    with contextlib.redirect_stdout(sys.stderr):
        peer = job["peer"]
        found = with_ants(job, ANTS[peer]) if peer in ANTS else with_greedy(job, GREEDY[peer])
    print("\n" + json.dumps(found))


if __name__ == "__main__":
    main()
