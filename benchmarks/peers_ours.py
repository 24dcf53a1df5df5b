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


def words_of(job: dict[str, Any]) -> list[str]:
    """The command of a job, which writes into the pair "pair" of the job's folder.

    Args:
        job: as in `peers_others`; its settings are "words", the command and its options.
    """
    command, *options = job["settings"]["words"]
    words = [command, job["moving"], job["fixed"], *options]
    words += ["--label_moving", job["label_moving"], "--output", job["folder"], "--id", "pair"]
    return [*words, "--affine", job["affine"]] if job["dimension"] == 3 else words


def with_morphzoo(job: dict[str, Any]) -> dict[str, object]:
    """Register with a command of ours and write what `peers_others` writes.

    Args:
        job: as for `words_of`.
    Returns:
        Version, seconds of network, fields and refinement, and CPU seconds of the whole command.
    """
    folder = Path(job["folder"])
    with open(folder / "log", "w") as log:
        program = [sys.executable, "-m", "custom_components", *words_of(job)]
        process = subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=log)
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise RuntimeError(f"morphzoo {' '.join(words_of(job))} failed: {(folder / 'log').read_text()[-500:]}")
    return {**collected(job), "cpu_seconds": usage.ru_utime + usage.ru_stime}


def collected(job: dict[str, Any]) -> dict[str, object]:
    """Write what `peers_others` writes, from what the command wrote.

    The field is the deformable part of the written transform at the voxels of the fixed image.

    Returns:
        Version, and seconds of network, fields and refinement.
    """
    folder, fixed = Path(job["folder"]), load_grid(job["fixed"])
    found = folder / "pair"
    written = found / "transform.h5"  # not without itk
    steps = read_transform(written if written.exists() else found / "forward_field.nii.gz")
    dense = [step for step in steps if isinstance(step, DisplacementField)]
    ddf, grid = dense_field(dense, fixed.grid_in_file).ddf, fixed.grid_in_file
    if job["dimension"] == 2:
        ddf, grid = ddf[:2].squeeze(-1), fixed.grid
    write_displacement_field(folder / "field.nii.gz", ddf, grid)
    labels, affine = load_labels(job["label_moving"]), read_affine_transform(job["affine"])
    aligned = warp_to_grid(labels.data, labels.affine, fixed.grid, [affine], mode="nearest")
    write_image(folder / "aligned.nii.gz", aligned, fixed.affine, like=fixed)
    os.replace(found / "warped_label.nii.gz", folder / "labels.nii.gz")
    seconds = json.loads((found / "metrics.json").read_text())["seconds"]
    return {"version": "morphzoo", "seconds": seconds}
