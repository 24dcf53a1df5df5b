"""Time and peak memory of `morphzoo register` over the size of the images and the quality.

    python -m benchmarks.sizes MOVING.nii.gz FIXED.nii.gz sizes.csv [--sizes 64,128,512x512x300] [--qualities default]

Both images are stretched to each size, with voxels of 1 mm, and registered by the command that the row holds, in a
process of its own. Its seconds, CPU seconds and peak of resident memory (VmHWM) are those of the whole command, with
the affine stage, all files and the picture. A row that the table has is not measured again. Prints the table.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.experiments import markdown
from custom_components.files import write_table
from custom_components.space import load_image, write_image
from custom_components.space.grids import Grid
from custom_components.space.resampling import resample

SIZES = "64,96,128,160,192,224,256,512x512x300"
COLUMNS = {"size": "size", "quality": "quality", "seconds": "s", "cpu_seconds": "CPU s", "peak_gb": "peak GB"}
COLUMNS |= {"model_mm": "model grid, mm", "ncc_after": "NCC", "outcome": "outcome"}


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("moving", type=Path)
    parser.add_argument("fixed", type=Path)
    parser.add_argument("table", type=Path, help="CSV file of the rows; finished ones are kept")
    parser.add_argument("--sizes", default=SIZES)
    parser.add_argument("--qualities", default="fast,default,best")
    parser.add_argument("--more", default="", help="further options of the command, for instance '--affine none'")
    options = parser.parse_args(words)
    rows: list[dict[str, Any]] = []
    if options.table.exists():
        with open(options.table, newline="") as file:
            rows = list(csv.DictReader(file))
    for size in options.sizes.split(","):
        for quality in options.qualities.split(","):
            command = f"morphzoo register MOVING FIXED --quality {quality} {options.more}".strip()
            if any((row["size"], row["command"]) == (size, command) for row in rows):
                continue
            with tempfile.TemporaryDirectory() as folder:
                images = [stretched(path, size, Path(folder)) for path in (options.moving, options.fixed)]
                row = {"size": size, "quality": quality, "command": command}
                rows.append(row | measured(command, images, Path(folder)))
            write_table(options.table, rows)
            print({name: rows[-1].get(key) for key, name in COLUMNS.items()}, flush=True)
    print(markdown(list(COLUMNS.values()), [[row.get(key, "") for key in COLUMNS] for row in rows]))


def stretched(path: Path, size: str, folder: Path) -> Path:
    """An image with as many voxels as `size` says ("64" or "512x512x300"), each of 1 mm, as a file of its type."""
    image = load_image(path)
    counts = [int(n) for n in size.split("x")]
    counts = counts if len(counts) > 1 else counts * len(image.grid.size)
    ratio = (np.array(image.grid.size) - 1) / (np.array(counts) - 1)
    grid = Grid(image.affine @ np.diag([*ratio, 1.0]), tuple(counts))
    data = resample(image.data.float(), image.affine, grid, antialias=True)
    affine = image.affine.copy()
    affine[:-1, :-1] /= image.grid.spacing
    write_image(folder / path.name, data, affine, dtype=image.file_dtype)
    return folder / path.name


def measured(command: str, images: Sequence[Path], folder: Path) -> dict[str, Any]:
    """What the command took, and what it said: its last line if it failed, else "done"."""
    paths = {name: str(path) for name, path in zip(("MOVING", "FIXED"), images, strict=True)}
    words = [paths.get(word, word) for word in shlex.split(command)[1:]]
    words = [sys.executable, "-m", "custom_components", *words, "--output", str(folder / "out"), "--id", "pair"]
    start = time.perf_counter()
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    cost = {"seconds": time.perf_counter() - start, "cpu_seconds": usage.ru_utime + usage.ru_stime}
    cost["peak_gb"] = usage.ru_maxrss / 2**20  # the kernel counts kB
    lines = (folder / "log").read_text().strip().splitlines()
    if os.waitstatus_to_exitcode(status):
        return {**cost, "outcome": f"failed: {lines[-1] if lines else ''}"[:300]}
    metrics = json.loads((folder / "out" / "pair" / "metrics.json").read_text())
    notes = "; ".join(line for line in lines if "grid" in line) or "done"
    spacing = "x".join(f"{mm:.3g}" for mm in metrics["model_spacing_mm"])
    return {**cost, "model_mm": spacing, "ncc_after": metrics["image_ncc_after"], "outcome": notes}


if __name__ == "__main__":
    main()
