"""Register labelled pairs on a GPU with ours and with FireANTs, from the same affine, and measure them alike.

    python -m benchmarks.gpu_heads LIST.json TABLE.csv [--device cuda:0] [--repeats 2]

LIST.json is as for `peers`. Everything runs in this process, which needs `fireants` and SimpleITK; a peer that cannot
be imported is left out. The first registration of a peer pays for what a GPU does once (libraries, kernels, trials), so
all pairs are registered `repeats` times, and the table has the last ones; all are printed. Seconds are those
of `peers`: the registration with its images in memory; for ours network, fields and refinement, and `whole_seconds`
those of the command, files and pages included. Measures are computed at the end, in several processes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.gpu_peers import installed
from benchmarks.peers import Row, measured, summary
from benchmarks.peers_others import Clock, with_fireants
from benchmarks.peers_ours import collected, words_of
from benchmarks.peers_settings import PEERS, Peer
from custom_components import __main__ as command
from custom_components.data.lists import load_list
from custom_components.data.names import item_name
from custom_components.files import write_table

_OURS = {
    "voxelmorph, network alone": ["--optimize", "0"],
    "voxelmorph --quality fast": ["--quality", "fast"],
    "voxelmorph": [],
    "voxelmorph --quality best": ["--quality", "best"],
}
METHODS = {"FireANTs": PEERS["FireANTs"]} | {
    name: Peer("morphzoo", {"words": ["register", "--bundle", "voxelmorph", *words]}) for name, words in _OURS.items()
}


def with_morphzoo(job: dict[str, Any]) -> dict[str, object]:
    """Register in this process; see `peers_ours.with_morphzoo`."""
    words = [*words_of(job), "--device", job["device"], "--quiet"]
    clock = Clock()
    with patch.object(sys, "argv", ["morphzoo", *words]):
        command.main()
    whole = clock.read()
    return {**collected(job), "cpu_seconds": whole["cpu_seconds"], "whole_seconds": whole["seconds"]}


def register(name: str, pair: dict[str, Any], device: str, folder: Path) -> Row:
    """What a registration cost; it writes into the folder."""
    folder.mkdir(parents=True)
    job = {key: str(pair[key]) for key in ("moving", "fixed", "label_moving", "affine")}
    job |= {"dimension": 3, "folder": str(folder), "device": device, **asdict(METHODS[name])}
    cost = with_fireants(job) if job["tool"] == "fireants" else with_morphzoo(job)
    return {"pair": item_name(pair), "peer": name, **cost}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_list", type=Path)
    parser.add_argument("table", type=Path)
    parser.add_argument("--section", default="pairs")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS))
    options = parser.parse_args()
    names = [name for name in options.only if METHODS[name].tool != "fireants" or installed("fireants")]
    pairs, rows, waiting = load_list(options.data_list, options.section), list[Row](), []
    with tempfile.TemporaryDirectory() as place, ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for name, repeat, (number, pair) in product(names, range(options.repeats), enumerate(pairs)):
            folder = Path(place) / name.replace(" ", "_") / f"{repeat}_{number}"
            row = register(name, pair, options.device, folder) | {"repeat": repeat}
            print(name, row["pair"], repeat, f"{row['seconds']:.3f} s", flush=True)
            if repeat == options.repeats - 1:
                waiting.append((row, folder, pair))
        for (row, _, _), found in zip(waiting, pool.map(of_folder, waiting), strict=True):
            rows.append({**row, **found})
            write_table(options.table, rows)
    print(summary(rows))


def of_folder(registered: tuple[Row, Path, dict[str, Any]]) -> dict[str, float]:
    """Measures of what is in a folder; a process of its own computes them."""
    torch.set_num_threads(1)
    return measured(*registered[1:])


if __name__ == "__main__":
    main()
