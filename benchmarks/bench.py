"""MorphZoo against MONAI and voxelmorph on the CPU.

    python -m benchmarks.bench [--quick] [--output FILE]

Every row is a race: the contestants take turns in one process and the fastest turn of each counts, so that the ratios
hold on a busy machine where the seconds do not. First the contestants are checked to compute the same.
docs/benchmarks.md says how to read the table.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench_agreement import agreement
from benchmarks.bench_cases import Row, bench_integration, bench_lncc, bench_network, bench_step, bench_warp, verdict

SMALL, LARGE = (96, 112, 96), (160, 192, 224)
HEADER = ["case", "size", "ours", "theirs", "ours s", "theirs s", "ratio", "CPU ratio", "target"]
NETWORK_HEADER = ["d network, no_grad", "size", "s", "CPU s", "<= 5 s", "peak GB", "before GB", "<= 3 GB"]


def find_voxelmorph(folder: str | None) -> str | None:
    """Version of voxelmorph, None (and a printed reason) if it cannot be imported."""
    if folder:
        # At the end: its dependencies must not replace those of this environment.
        sys.path.append(folder)
    os.environ.setdefault("NEURITE_BACKEND", "pytorch")
    try:
        import voxelmorph
    except ImportError as error:
        print(f"voxelmorph skipped: {error}; see docs/benchmarks.md for how to install it apart", file=sys.stderr)
        return None
    return str(voxelmorph.__version__)


def cores_obtained(seconds: float = 1.0) -> float:
    """CPU seconds per second that a threaded matrix product gets: less than the threads where other work runs."""
    matrix = torch.rand(1500, 1500)
    matrix @ matrix
    wall, cpu = time.perf_counter(), time.process_time()
    while time.perf_counter() - wall < seconds:
        matrix @ matrix
    return (time.process_time() - cpu) / (time.perf_counter() - wall)


def machine(threads: int, voxelmorph_version: str | None) -> dict[str, str]:
    cpu = platform.processor()
    if Path("/proc/cpuinfo").exists():
        models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        cpu = models[0].partition(":")[2].strip() if models else cpu
    return {
        "cpu": f"{cpu}, {os.cpu_count()} cores",
        "threads": f"{threads}, OMP_WAIT_POLICY {os.environ.get('OMP_WAIT_POLICY', 'not set')}",
        "cores obtained": f"{cores_obtained():.1f}",
        "load": " ".join(f"{load:.1f}" for load in os.getloadavg()),
        "torch": torch.__version__,
        "monai": importlib.metadata.version("monai"),
        "voxelmorph": voxelmorph_version or "absent",
    }


def network_cells(result: dict[str, Any]) -> list[str]:
    return [
        "half res." if result["half_resolution"] else "full res.",
        result["size"],
        f"{result['seconds']:.2f}",
        f"{result['cpu_seconds']:.2f}",
        verdict(result["seconds"] <= 5),
        f"{result['peak_gb']:.2f}",
        f"{result['peak_gb_before']:.2f}",
        verdict(result["peak_gb"] <= 3),
    ]


def as_table(header: list[str], rows: list[list[str]]) -> str:
    """A markdown table with aligned columns, which reads well on a terminal too."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    rule = ["-" * width for width in widths]
    lines = [
        " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [header, rule, *rows]
    ]
    return "\n".join(f"| {line} |" for line in lines)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small volumes and two turns only")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, help="turns of each contestant (default 5; 2 with --quick)")
    parser.add_argument("--only", default="abcde", help="letters of the parts to run, for example ab")
    parser.add_argument("--voxelmorph", metavar="FOLDER", help="where voxelmorph is, if not in this environment")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the results: .json or .md")
    return parser


def main() -> None:
    parser = arguments()
    options = parser.parse_args()
    if options.output and options.output.suffix not in (".json", ".md"):
        parser.error(f"expected an output ending in .json or .md, got {options.output}")
    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    version = find_voxelmorph(options.voxelmorph)
    about = machine(options.threads, version)
    checks = agreement(version is not None)
    few = max(2, (options.repeats or (2 if options.quick else 5)) - 2)
    networks = bench_network(SMALL if options.quick else LARGE, few) if "d" in options.only else []
    rows = run_races(options, with_voxelmorph=version is not None)
    about["cores obtained after"] = f"{cores_obtained():.1f}"
    about["load after"] = " ".join(f"{load:.1f}" for load in os.getloadavg())
    text = report(about, checks, rows, networks, options.threads)
    print(text)
    if options.output and options.output.suffix == ".md":
        options.output.write_text(text + "\n")
    elif options.output:
        records = [{**asdict(row), "ratio": row.ratio, "cpu_ratio": row.cpu_ratio} for row in rows]
        result = {"machine": about, "agreement": dict(checks), "rows": records, "network": networks}
        options.output.write_text(json.dumps(result, indent=2) + "\n")


def run_races(options: argparse.Namespace, with_voxelmorph: bool) -> list[Row]:
    repeats = options.repeats or (2 if options.quick else 5)
    few = max(2, repeats - 2)
    rows: list[Row] = []
    for size, large in ((SMALL, False),) if options.quick else ((SMALL, False), (LARGE, True)):
        turns = few if large else repeats
        if "a" in options.only:
            rows += bench_lncc(size, turns, target=5.0 if large else 2.0)
        if "b" in options.only:
            rows += bench_integration(size, turns)
        if "c" in options.only and not large:
            rows += bench_step(size, few, with_voxelmorph)
        if "e" in options.only:
            rows += bench_warp(size, turns)
    return sorted(rows, key=lambda row: row.case[0])


def report(
    about: dict[str, str], checks: list[tuple[str, str]], rows: list[Row], networks: list[dict[str, Any]], threads: int
) -> str:
    parts = [as_table(["machine", ""], [[key, value] for key, value in about.items()])]
    parts.append(as_table(["do they compute the same?", ""], [list(line) for line in checks]))
    if rows:
        parts.append(as_table(HEADER, [row.cells() for row in rows]))
    if networks:
        parts.append(as_table(NETWORK_HEADER, [network_cells(result) for result in networks]))
    if min(float(about["cores obtained"]), float(about["cores obtained after"])) < 0.8 * threads:
        parts.append(
            f"The {threads} threads did not have a core each: the ratios compare work, not parallel speed, and part e "
            "(slabs for threads) shows nothing. The seconds are too long. Run again on an idle machine."
        )
    return "\n\n".join(parts)


if __name__ == "__main__":
    main()
