"""Kill runs at random moments, and look whether any result is torn, mixed, or in the way of the next run.

    python -m benchmarks.faults --kills 120

A trial starts a run in a fork of this warm process and kills it (SIGKILL): every other time after a random share of the
run's usual time, else at a random call that changes a file of the output. Then each result folder must be

- old: whole, as the run before had left it,
- new: whole, of the run that was killed,
- unfinished: its manifest says so, or there is none; what is there is of one run alone.

Then the same run is started again. It must succeed, the result must be whole, and no leftover may remain. Runs of two
settings take turns, so each has the other's result to replace. One line for each kind of run, and exit code 1 if a
result was torn or mixed, or a next run failed.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import hashlib
import importlib
import json
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from custom_components.commands.evaluate import evaluate
from custom_components.commands.optimize import optimize
from custom_components.data.phantoms import write_phantom_scans
from custom_components.results import MANIFEST, read_manifest
from custom_components.space.dialects import read_transform

_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")

Known = dict[str, set[str]]  # fingerprints of the files that a run puts in place, by their paths


@dataclass(frozen=True)
class Kind:
    """A kind of run: called with the output folder and one of two settings."""

    name: str
    run: Callable[[Path, int], object]
    share: float


@dataclass
class Outcome:
    """What became of the trials of a kind."""

    killed: int = 0
    too_late: int = 0
    states: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0


def kinds(data: Path) -> list[Kind]:
    """The runs, on phantoms of 32 x 28 pixels."""
    images = sorted(data.glob("images/*"))
    labels = sorted(data.glob("labels/*"))
    pair = {"label_moving": str(labels[0]), "label_fixed": str(labels[1]), "affine": "none", "spacing": 2.0}

    def settings(setting: int) -> dict[str, object]:
        return {"iterations": [(3, 9)[setting]], "levels": [1]}

    def register(output: Path, setting: int) -> object:
        return optimize(str(images[0]), str(images[1]), str(output), **pair, **settings(setting))

    def cohort(output: Path, setting: int) -> object:
        overlays = [str(Path(__file__).parents[1] / "bundles" / "overlays" / "training_free.json")]
        given = {"affine": "none", "spacing": 2.0, "save#write": ["warped", "warped_label"], **settings(setting)}
        return evaluate(str(data / "datalist.json"), str(output), overlay=overlays, **given)

    return [Kind("register", register, 0.5), Kind("evaluate", cohort, 0.3), Kind("train", trainer(data), 0.2)]


def phantoms(folder: Path) -> Path:
    """Four people in two dimensions; the folder."""
    write_phantom_scans(folder, 4, (32, 28), spacing_mm=2.0)
    return folder


def trainer(data: Path) -> Callable[[Path, int], object]:
    """A training of two epochs of two pairs."""

    def train(output: Path, setting: int) -> object:
        from monai.bundle import ConfigWorkflow

        bundle = Path(__file__).parents[1] / "bundles" / "voxelmorph"
        configs = [bundle / "configs" / "train.json", bundle / "configs" / "train_2d.json"]
        configs += [bundle.parent / "overlays" / "smoke.json"]
        given = {"dataset_dir": str(data), "data_list": str(data / "datalist.json"), "seed": setting}
        given |= {
            "output_dir": str(output),
            "ckpt_dir": str(output),
            "size": [32, 32],
            "spacing": 2.0,
            "center": "image",
        }
        workflow = ConfigWorkflow(
            config_file=[str(path) for path in configs if path.is_file()],
            meta_file=str(bundle / "configs" / "metadata.json"),
            logging_file=False,
            workflow_type="train",
            bundle_root=str(bundle),
            device="$torch.device('cpu')",
            **given,
        )
        workflow.initialize()
        return workflow.run()

    return train


def fork(kind: Kind, output: Path, setting: int, *, after_s: float | None = None, watch: Watch | None = None) -> int:
    """Run in a fork, which may be watched, or killed after a time; the status it ends with."""
    child = os.fork()
    if child == 0:
        status = 1
        errors, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(null, 1)
            os.dup2(null, 2)
            torch.set_num_threads(1)  # renews torch's pool, which threads of a fork would race for
            time.perf_counter = time.process_time = lambda: 0.0  # or no two runs say the same
            if watch is not None:
                sys.addaudithook(watch)
            kind.run(output, setting)
            status = 0
        except BaseException as error:
            os.write(errors, f"{kind.name}: {error!r} from {error.__cause__!r}\n".encode())
        finally:
            os._exit(status)
    if after_s is not None:
        time.sleep(after_s)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


@dataclass
class Watch:
    """Sees each call that changes a file in a folder; kills its process at one of them, or keeps a log.

    Args:
        output: the folder.
        kill_at: number of the call at which the process is killed.
        log: file that gets a line for each call, with the fingerprint of what takes a place in a result.
    """

    output: Path
    kill_at: int | None = None
    log: Path | None = None
    number: int = 0

    def __call__(self, event: str, args: tuple[object, ...]) -> None:
        changes = event in _CHANGES or (event == "open" and str(args[1])[:1] in "wxa")
        if not changes or not str(args[0]).startswith(str(self.output)):
            return
        self.number += 1
        if self.number == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.log is not None:
            with open(self.log, "a") as file:
                file.write(self._line(event, args) + "\n")

    def _line(self, event: str, args: tuple[object, ...]) -> str:
        target = Path(str(args[1])) if event == "os.rename" else None
        if target is None or target.name == MANIFEST or any(part.startswith(".unfinished") for part in target.parts):
            return ""
        return f"{target.relative_to(self.output)}\t{fingerprint(Path(str(args[0])))}"


def fingerprint(path: Path) -> str:
    """A digest of what a file says, without the time it took."""
    digest = hashlib.sha256()
    for part in said(path):
        digest.update(part)
    return digest.hexdigest()[:16]


def said(path: Path) -> Iterator[bytes]:
    """What a file says, in parts."""
    if path.name.endswith(".gz"):
        yield gzip.decompress(path.read_bytes())
    elif path.suffix == ".h5":
        for step in read_transform(path):
            yield from plain(step if isinstance(step, np.ndarray) else (step.ddf, step.grid.affine))
    elif path.suffix == ".pt":
        yield from plain(torch.load(path, map_location="cpu", weights_only=True))
    elif path.suffix == ".json":
        yield from plain(json.loads(path.read_text()))
    else:
        yield path.read_bytes()


def plain(content: object) -> Iterator[bytes]:
    """The parts of nested values."""
    if isinstance(content, torch.Tensor | np.ndarray):
        yield np.ascontiguousarray(content).tobytes()
    elif isinstance(content, dict):
        for key, value in content.items():
            yield str(key).encode()
            yield from plain(value)
    elif isinstance(content, list | tuple):
        for value in content:
            yield from plain(value)
    else:
        yield repr(content).encode()


def folders(output: Path) -> list[Path]:
    """The folder of a run and those of its pairs, without scratch folders."""
    if not output.is_dir():
        return []
    own = [output] if any(p.is_file() for p in output.iterdir()) else []
    return own + sorted(p for p in output.iterdir() if p.is_dir() and not p.name.startswith("."))


def fingerprints(folder: Path, output: Path) -> dict[str, str]:
    """Those of the files of a result, by their paths in the output."""
    files = [p for p in folder.iterdir() if p.is_file() and p.name != MANIFEST and "tfevents" not in p.name]
    return {str(p.relative_to(output)): fingerprint(p) for p in files}


def states_of(output: Path, old: Known, new: Known) -> dict[str, str]:
    """The state of each folder: old, new, unfinished, or what is wrong."""
    states = {folder.name: state_of(folder, output, old, new) for folder in folders(output)}
    tables = states.get(output.name)
    others = {state for name, state in states.items() if name != output.name}
    if tables in ("old", "new") and others - {tables}:
        states[output.name] = f"mixed: tables of the {tables} run beside pairs that are {others}"
    return states


def state_of(folder: Path, output: Path, old: Known, new: Known) -> str:
    """The state of a folder by itself."""
    found = fingerprints(folder, output)
    is_old, is_new = ({name for name, value in found.items() if value in of.get(name, ())} for of in (old, new))
    if set(found) - is_old - is_new:
        return f"torn: {sorted(set(found) - is_old - is_new)}"
    if is_old - is_new and is_new - is_old:
        return f"mixed: old {sorted(is_old - is_new)}, new {sorted(is_new - is_old)}"
    parts = read_manifest(folder)
    if any(part.get("unfinished") for part in parts.values()) or not parts:
        return "unfinished"
    listed = {name for part in parts.values() for name in part["files"] if "tfevents" not in name}
    if listed != {Path(name).name for name in found}:
        return f"torn: the manifest tells of other files than {sorted(found)}"
    return "new" if is_new - is_old else "old"


def leftovers(output: Path) -> list[str]:
    return [str(p.relative_to(output)) for p in output.rglob(".*")]


def import_all(kind: Kind, output: Path) -> None:
    """Import what a run imports, so that each fork has it."""
    output.mkdir(exist_ok=True)
    run = replace(
        kind, run=lambda folder, setting: (kind.run(folder, setting), listed.write_text(" ".join(sys.modules)))
    )
    listed = output / "modules"
    if fork(run, output, 0) != 0:
        raise RuntimeError(f"{kind.name} fails undisturbed")
    for name in listed.read_text().split():
        if not name.startswith("__"):
            with contextlib.suppress(Exception):
                importlib.import_module(name)


def whole(kind: Kind, setting: int, output: Path) -> tuple[Known, float, int]:
    """What an undisturbed run puts in place, its seconds, and its number of changes of files."""
    log, start = output.with_name("log"), time.perf_counter()
    if fork(kind, output, setting, watch=Watch(output, log=log)) != 0:
        raise RuntimeError(f"{kind.name} fails undisturbed")
    seconds, lines = time.perf_counter() - start, log.read_text().splitlines()
    log.unlink()
    known: Known = {}
    for name, _, value in (line.partition("\t") for line in lines if line):
        known.setdefault(name, set()).add(value)
    return known, seconds, len(lines)


def trial(kind: Kind, output: Path, setting: int, known: list[Known], **how: Any) -> Outcome:
    """Kill one run, look at what is there, and run again; see `fork` for how it is killed."""
    result, (old, new) = Outcome(), (known[1 - setting], known[setting])
    status = fork(kind, output, setting, **how)
    result.killed, result.too_late = int(os.WIFSIGNALED(status)), int(not os.WIFSIGNALED(status))
    for name, state in states_of(output, old, new).items():
        result.states[state.partition(":")[0]] += 1
        if ":" in state:
            result.failures.append(f"{name}: {state}")
    if fork(kind, output, setting) != 0:
        result.failures.append("the next run failed")
    wrong = {name: state for name, state in states_of(output, old, new).items() if state != "new"}
    if wrong or leftovers(output):
        result.failures.append(f"after the next run: {wrong}, left over {leftovers(output)}")
    return result


def measure(kind: Kind, kills: int, place: Path, generator: random.Random) -> Outcome:
    """The trials of one kind of run."""
    start = sum(os.times()[:4])
    import_all(kind, place / "warm")
    output, total = place / kind.name, Outcome()
    found = [whole(kind, setting, output) for setting in (0, 1)]  # in place: tables name their folder
    while total.killed < kills:
        setting = (total.killed + total.too_late) % 2
        _, seconds, changes = found[setting]
        how: dict[str, Any] = {"after_s": generator.uniform(0, seconds)}
        if generator.random() < 0.5:
            how = {"watch": Watch(output, kill_at=generator.randint(1, changes))}
        one = trial(kind, output, setting, [known for known, _, _ in found], **how)
        total.killed, total.too_late = total.killed + one.killed, total.too_late + one.too_late
        total.states += one.states
        total.failures += [f"{kind.name}, setting {setting}, {how}: {text}" for text in one.failures]
    total.seconds = sum(os.times()[:4]) - start
    return total


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="register,evaluate,train", help="kinds of runs, separated by commas")
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)  # a fork has no other threads
    place, generator = Path(tempfile.mkdtemp(prefix="faults-")), random.Random(args.seed)
    failures = []
    try:
        data = phantoms(place / "data")
        print("| run | killed | ended before | old | new | unfinished | torn | mixed | next run failed | CPU s |")
        print("|---|---|---|---|---|---|---|---|---|---|")
        for kind in kinds(data):
            if kind.name in args.only.split(","):
                one = measure(kind, round(args.kills * kind.share), place, generator)
                cells = [one.states[name] for name in ("old", "new", "unfinished", "torn", "mixed")]
                after = sum("next run" in text for text in one.failures)
                print(f"| {kind.name} | {one.killed} | {one.too_late} | {' | '.join(map(str, cells))} ", end="")
                print(f"| {after} | {one.seconds:.0f} |", flush=True)
                failures += one.failures
    finally:
        shutil.rmtree(place, ignore_errors=True)
    print(*failures, sep="\n", file=sys.stderr)
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
