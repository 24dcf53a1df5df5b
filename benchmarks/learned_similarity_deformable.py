"""Learned similarities and features in the refinement that every bundle offers, beside classical ones.

    python -m benchmarks.learned_similarity_deformable MAPS --table labels.csv --weights DIR --output CSV

Pairs of different validation people of MAPS (see `device_maps`), T1-like to T1-like and T1-like to T2-like: axial
slices of 1 mm in 2-D, heads of 2 mm in 3-D. A velocity is optimised from zero (`inference.refiner`). CSV receives mean
hard Dice of the structures before and after, the share of voxels that fold and CPU seconds, of each similarity.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.device_similarity import Amounts, read_course
from benchmarks.device_training import hard_dice
from benchmarks.learned_similarity import learned
from custom_components.deformations.velocity import StationaryVelocity
from custom_components.fields import jacobian_determinant, warp
from custom_components.files import write_table
from custom_components.inference.refiner import refiner

CLASSICAL = ("lncc", "mind", "ngf", "nmi")
CONTRASTS = {"t1 to t1": (0, 0), "t1 to t2": (0, 1)}


def pairs_of(
    maps: Path, table: Path, d: int, number: int, kinds: tuple[int, int]
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Moving and fixed image (1, 1, *S), and their structures' shares (1, K, *S)."""
    pairs = read_course(maps, table, d, Amounts(1, 1, 32), torch.device("cpu")).held_out.pairs
    people = 4
    each = len(pairs.maps) // people
    place = each // 8 if d == 2 else 0  # the middle of the first of four runs of slices
    ordered = [(k, (k + step) % people) for step in range(1, people) for k in range(people)]
    for moving, fixed in ordered[:number]:
        torch.manual_seed(moving + 10 * fixed)
        labels = pairs.given(torch.tensor([moving * each + place]), torch.tensor([fixed * each + place]))
        image = pairs.render(labels, pairs.means(2, torch.tensor(kinds)), torch.tensor([16.0, 16.0]))
        shares = pairs.shares(labels)
        yield image[:1], image[1:], shares[:1], shares[1:]


def row_of(name: str, similarity: str | nn.Module, contrast: str, pairs: list[tuple[Tensor, ...]]) -> dict[str, object]:
    """One similarity on all pairs."""
    find = refiner(StationaryVelocity(), similarity=similarity, levels=(4, 2, 1), iterations=(30, 30, 20))
    before, after, folds, begin = [], [], [], time.process_time()
    for moving, fixed, shares, target in pairs:
        size = fixed.shape[2:]
        ddf = StationaryVelocity()(find(moving, fixed), size)["ddf"].detach()
        before.append(hard_dice(shares, target))
        after.append(hard_dice(warp(shares, ddf), target))
        folds.append(100 * (jacobian_determinant(ddf) <= 0).float().mean())
    row: dict[str, object] = {"similarity": name, "contrast": contrast, "pairs": len(pairs)}
    row |= {k: round(float(torch.stack(v).mean()), 4) for k, v in (("before", before), ("after", after))}
    row["folds_percent"] = round(float(torch.stack(folds).mean()), 4)
    return {**row, "cpu_seconds": round((time.process_time() - begin) / len(pairs), 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("maps", type=Path)
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--spatial_dims", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--contrasts", nargs="*", help="names of pairs of contrasts")
    parser.add_argument("--only", nargs="*", help="names of similarities")
    options = parser.parse_args()
    similarities: dict[str, str | nn.Module] = {name: name for name in CLASSICAL}
    found = learned(options.weights, options.spatial_dims)
    similarities |= {k: found[k].stages[0][0] for k in ("patches", "features", "brain_features") if k in found}
    rows: list[dict[str, object]] = []
    contrasts = {name: kinds for name, kinds in CONTRASTS.items() if not options.contrasts or name in options.contrasts}
    for contrast, kinds in contrasts.items():
        pairs = list(pairs_of(options.maps, options.table, options.spatial_dims, options.pairs, kinds))
        for name, similarity in similarities.items():
            if not options.only or name in options.only:
                rows.append(row_of(name, similarity, contrast, pairs))
                write_table(options.output, rows)
                print(rows[-1], flush=True)


if __name__ == "__main__":
    main()
