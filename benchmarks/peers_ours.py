"""Register a pair with `morphzoo` as `peers_others` does it with other tools, for the same table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from custom_components.space import (
    DisplacementField,
    load_grid,
    load_labels,
    read_affine_transform,
    read_transform,
    write_displacement_field,
    write_image,
)
from custom_components.space.resampling import dense_field
from custom_components.space.warping import warp_to_grid


def with_morphzoo(job: dict[str, Any]) -> dict[str, object]:
    """Register with a command of ours and write what `peers_others` writes.

    The field is the deformable part of the written composite transform at the voxels of the fixed image.

    Args:
        job: as in `peers_others`; its settings are "words", the command and its options.
    Returns:
        Version, seconds of network, fields and refinement, and CPU seconds of the whole command.
    """
    folder = Path(job["folder"])
    words = [*job["settings"]["words"], "--label_moving", job["label_moving"], "--output", str(folder), "--id", "pair"]
    if job["dimension"] == 3:
        words += ["--affine", job["affine"]]
    command, *options = words
    program = [sys.executable, "-m", "custom_components", command, job["moving"], job["fixed"], *options]
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=log)
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise RuntimeError(f"morphzoo {' '.join(words)} failed: {(folder / 'log').read_text()[-500:]}")
    found, fixed = folder / "pair", load_grid(job["fixed"])
    dense = [step for step in read_transform(found / "transform.h5") if isinstance(step, DisplacementField)]
    ddf, grid = dense_field(dense, fixed.grid_in_file).ddf, fixed.grid_in_file
    if job["dimension"] == 2:
        ddf, grid = ddf[:2].squeeze(-1), fixed.grid
    write_displacement_field(folder / "field.nii.gz", ddf, grid)
    labels, affine = load_labels(job["label_moving"]), read_affine_transform(job["affine"])
    aligned = warp_to_grid(labels.data, labels.affine, fixed.grid, [affine], mode="nearest")
    write_image(folder / "aligned.nii.gz", aligned, fixed.affine, like=fixed)
    os.replace(found / "warped_label.nii.gz", folder / "labels.nii.gz")
    seconds = json.loads((found / "metrics.json").read_text())["seconds"]
    return {"version": "morphzoo", "seconds": seconds, "cpu_seconds": usage.ru_utime + usage.ru_stime}
