"""Label maps of a data list as one file for `device_training`.

    python -m benchmarks.device_maps ALIGNED/datalist.json MAPS.npz

Each map is read through its affine transform onto a grid of 1 mm, twice the resolution of the bundles' 2 mm grid, whose
blocks of 2 voxels along each axis are that grid's voxels. Ids become positions in a sorted table, one byte each.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from custom_components.data.lists import load_list
from custom_components.fields import plain
from custom_components.transforms.scan import LoadScand

SIZE, SPACING = (80, 112, 96), 2.0  # of the bundles' networks
PARTS = ("training", "validation")


def collect(data_list: Path, size: Sequence[int] = SIZE, spacing: float = SPACING) -> dict[str, np.ndarray]:
    """`maps` (N, *2S) of positions in `ids`, uint8, and `split` (N,), the list's section of each."""
    load = LoadScand(spacing / 2, [2 * n for n in size], "world")
    items = [(part, item) for part in PARTS for item in load_list(data_list, part)]
    maps = [plain(torch.as_tensor(load(item)["label"]))[0].numpy() for _, item in tqdm(items, desc="maps")]
    ids = np.unique(np.concatenate([np.unique(values) for values in maps]))
    if len(ids) > 256:
        raise ValueError(f"{data_list}: expected at most 256 label ids, got {len(ids)}")
    positions = np.stack([np.searchsorted(ids, values) for values in maps]).astype(np.uint8)
    return {"maps": positions, "ids": ids, "split": np.array([part for part, _ in items])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_list", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    np.savez_compressed(options.output, **collect(options.data_list))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
