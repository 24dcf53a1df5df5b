"""Register a pair with ANTs, greedy or FireANTs from a given affine; a program for an environment that has them.

Reads a job as JSON from the input: the paths "moving", "fixed", "label_moving", "affine" and "folder", the "dimension"
2 or 3 (a 2-D image may be a volume of one slice), "tool" ("ants", "greedy", "fireants") and its "settings", and for
FireANTs the "device". Writes into the folder on the fixed image's grid `labels.nii.gz` and, by the affine alone,
`aligned.nii.gz`, both made by the peer's own resampling, and `field.nii.gz`, the deformable part, an ITK displacement
field (LPS, mm) that comes before the affine. Prints JSON: version, seconds and CPU seconds of the registration alone.
Needs antspyx, or picsl_greedy and SimpleITK, or fireants.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

Job = dict[str, Any]


class Clock:
    """Seconds and CPU seconds (all threads of this process) since it was made."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        return {"seconds": time.perf_counter() - self.wall, "cpu_seconds": time.process_time() - self.cpu}


def with_ants(job: Job) -> dict[str, object]:
    """Settings: those of `ants.registration` by name."""
    import ants

    fixed, moving, labels = (
        ants.image_read(job[role], dimension=job["dimension"]) for role in ("fixed", "moving", "label_moving")
    )
    clock = Clock()
    prefix = str(Path(job["folder"]) / "ants_")
    start = {"initial_transform": job["affine"], "outprefix": prefix}
    field, *affine = ants.registration(fixed, moving, "SyNOnly", **start, **job["settings"])["fwdtransforms"]
    times = clock.read()
    for name, transforms in (("aligned", [job["affine"]]), ("labels", [field, *affine])):
        warped = ants.apply_transforms(fixed, labels, transforms, interpolator="nearestNeighbor")
        ants.image_write(warped, str(Path(job["folder"]) / f"{name}.nii.gz"))
    os.replace(field, Path(job["folder"]) / "field.nii.gz")
    return {"version": f"antspyx {ants.__version__}", **times}


def with_greedy(job: Job) -> dict[str, object]:
    """Settings: "radius" of the correlation's window; "smoothing" of the update and of the field, SDs in voxels."""
    import picsl_greedy

    d, folder = job["dimension"], Path(job["folder"])
    greedy = picsl_greedy.Greedy3D() if d == 3 else picsl_greedy.Greedy2D()
    affine, field = folder / "affine.mat", folder / "field.nii.gz"
    write_ras_matrix(job["affine"], affine)
    window = "x".join([str(job["settings"]["radius"])] * d)
    smoothing = " ".join(f"{sigma}vox" for sigma in job["settings"]["smoothing"])
    options = f"-m NCC {window} -n 100x50x10 -s {smoothing} -it {affine} -o {field}"
    clock = Clock()
    greedy.execute(f"-d {d} -threads 1 -i {job['fixed']} {job['moving']} {options}")
    times = clock.read()
    for name, transforms in (("aligned", affine), ("labels", f"{field} {affine}")):
        files = f"-rf {job['fixed']} -ri NN -rm {job['label_moving']} {folder / name}.nii.gz"
        greedy.execute(f"-d {d} -threads 1 {files} -r {transforms}")
    return {"version": f"picsl_greedy {importlib.metadata.version('picsl_greedy')}", **times}


def with_fireants(job: Job) -> dict[str, object]:
    """Settings: those of FireANTs' `GreedyRegistration` by name. The labels are resampled by SimpleITK."""
    import SimpleITK as sitk
    import torch
    from fireants.io import BatchedImages, Image
    from fireants.registration.greedy import GreedyRegistration

    torch.set_num_threads(1)
    d, folder = job["dimension"], Path(job["folder"])
    read = {role: sitk.ReadImage(job[role]) for role in ("fixed", "moving", "label_moving")}
    fixed, moving, labels = (image if d == 3 else image[:, :, 0] for image in read.values())
    matrix = world_matrix(job["affine"])
    device = job.get("device", "cpu")
    clock = Clock()
    pair = [BatchedImages([Image(sitk.Cast(image, sitk.sitkFloat32), device=device)]) for image in (fixed, moving)]
    start = torch.tensor(matrix[None], dtype=torch.float32, device=device)
    registration = GreedyRegistration([4, 2, 1], [200, 100, 50], *pair, init_affine=start, **job["settings"])
    registration.optimize()
    if device != "cpu":
        torch.cuda.synchronize()
    times = clock.read()
    # Its own writer refuses 2-D fields, and includes the affine part. The whole map, in LPS mm, and then the affine's
    # inverse is the deformable part, as the others write it.
    to_moving = pair[1].get_torch2phy()[0].double().cpu()
    found = (
        registration.get_warped_coordinates(*pair)[0].detach().double().cpu() @ to_moving[:d, :d].T + to_moving[:d, d]
    )
    back = torch.linalg.inv(torch.from_numpy(matrix))
    axes = [torch.arange(n, dtype=torch.float64) for n in found.shape[:d]]
    voxels = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], -1)  # SimpleITK's arrays count the last axis first
    at = torch.tensor(fixed.GetDirection()).view(d, d).double() * torch.tensor(fixed.GetSpacing()).double()
    points = voxels @ at.T + torch.tensor(fixed.GetOrigin()).double()
    field = sitk.GetImageFromArray((found @ back[:d, :d].T + back[:d, d] - points).numpy(), isVector=True)
    field.CopyInformation(fixed)
    sitk.WriteImage(sitk.Cast(field, sitk.sitkVectorFloat32), str(folder / "field.nii.gz"))
    affine = sitk.AffineTransform(matrix[:d, :d].ravel().tolist(), matrix[:d, d].tolist())
    whole = sitk.CompositeTransform([affine, sitk.DisplacementFieldTransform(field)])  # the last one goes first
    for name, transform in (("aligned", affine), ("labels", whole)):
        warped = sitk.Resample(labels, fixed, transform, sitk.sitkNearestNeighbor)
        sitk.WriteImage(warped, str(folder / f"{name}.nii.gz"))
    return {"version": f"fireants {importlib.metadata.version('fireants')}", **times}


def world_matrix(transform: str) -> Any:
    """The matrix (D + 1, D + 1) of an ITK affine file, LPS mm, fixed to moving points."""
    import numpy as np
    import SimpleITK

    read = SimpleITK.ReadTransform(transform)
    d = read.GetDimension()
    matrix = np.eye(d + 1)
    matrix[:d, d] = offset = np.array(read.TransformPoint((0.0,) * d))
    matrix[:d, :d] = np.stack([np.array(read.TransformPoint(axis.tolist())) - offset for axis in np.eye(d)], 1)
    return matrix


def write_ras_matrix(transform: str, path: Path) -> None:
    """An ITK affine file as greedy reads it: a matrix, RAS, fixed to moving points."""
    import numpy as np

    matrix = world_matrix(transform)
    flip = np.diag([-1.0, -1.0, *[1.0] * (len(matrix) - 2)])
    np.savetxt(path, flip @ matrix @ flip, fmt="%.17g")


TOOLS = {"ants": with_ants, "greedy": with_greedy, "fireants": with_fireants}


def main() -> None:
    job = json.load(sys.stdin)
    with contextlib.redirect_stdout(sys.stderr):
        found = TOOLS[job["tool"]](job)
    print("\n" + json.dumps(found))


if __name__ == "__main__":
    main()
