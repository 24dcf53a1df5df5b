"""A queue of trainings in the background: one after another, one thread, lowest priority, resumed after a stop.

    python -m benchmarks.campaign FOLDER QUEUE.json --data labelmaps=ALIGNED    # start it
    python -m benchmarks.campaign FOLDER                                        # let it go on
    python -m benchmarks.campaign FOLDER --status
    python -m benchmarks.campaign FOLDER --stop

FOLDER, outside of the repository, keeps everything: `state.json`, `log.txt`, and for each job a folder with its
checkpoints, its curve, its `log.txt` and `figures.csv`, the scores and the gate's figures over the CPU seconds.
QUEUE.json lists the jobs (see `campaign_jobs`) and is read anew before each of them; the default is
`benchmarks/campaign.json`.

A bundle's trainer saves in every epoch, and a resumed one continues as if it had never stopped: whatever ends a
campaign, an epoch is lost at most. The first two epochs say what one costs; then the budget says how many there are,
and the cosine of the learning rate ends with the last. More minutes for a finished job extend it.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.campaign_jobs import Job, Queue, newest_weights, read_queue
from benchmarks.campaign_state import (
    EMPTY,
    holder,
    holding,
    last_line,
    log_figures,
    log_gate,
    read_curve,
    read_state,
    status,
)
from benchmarks.experiments import REPOSITORY, record_settings
from custom_components.files import write_metrics

QUEUE = Path(__file__).with_name("campaign.json")
FIRST_EPOCHS = 2  # show what an epoch costs
OVER = 1.2  # budgets, after which a training is ended
SAVED_SECONDS = 10.0
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
_C = ctypes.CDLL(None) if sys.platform == "linux" else None


class Campaign:
    """The trainings of a queue in a folder, where they leave their state.

    Args:
        folder: of the campaign.
        queue, places: as for `read_queue`.
        look: seconds between two looks at a training.
    """

    def __init__(self, folder: Path, queue: Path, places: Mapping[str, str], look: float = 1.0) -> None:
        self.folder, self.queue, self.places, self.look = folder, queue, places, look
        self.stopping = False
        self.state = read_state(folder)

    def run(self) -> None:
        """Run all jobs that are not done, each of them once."""
        tried = set[str]()
        while not self.stopping:
            queue = read_queue(self.queue, self.places)
            job = next((job for job in queue.jobs if job.name not in tried and not self._is_done(job)), None)
            if job is None:
                return
            tried.add(job.name)
            self._do(job, queue)

    def _is_done(self, job: Job) -> bool:
        record = self.state.get(job.name, EMPTY)
        return record["state"] == "done" and record["minutes"] >= job.minutes

    def _do(self, job: Job, queue: Queue) -> None:
        record = self.state[job.name] = {**EMPTY, **self.state.get(job.name, EMPTY)}
        record |= {"state": "running", "message": ""}
        folder = self.folder / job.name
        folder.mkdir(exist_ok=True)
        try:
            record_settings(folder / "settings.json", job.identity())
            self._train(job, queue)
            self._judge(job, queue)
            record["state"] = "stopped" if self.stopping else "done"
        except (OSError, ValueError, RuntimeError) as error:
            record |= {"state": "failed", "message": str(error)}
        record["minutes"] = job.minutes
        self._save()

    def _train(self, job: Job, queue: Queue) -> None:
        """Train until the budget is used, or the campaign is stopped.

        Raises:
            RuntimeError: with the last line of its log, if the training fails.
        """
        record, folder = self.state[job.name], self.folder / job.name
        while not self.stopping:
            epochs = 0 if job.module else self._plan(job)
            command = job.command(folder, epochs, job.minutes - record["cpu_seconds"] / 60)
            with running(command, folder / "log.txt") as process:
                self._follow(process, job, queue)
                code = process.poll()
            log_figures(folder, record["cpu_seconds"])
            if code:
                raise RuntimeError(last_line(folder / "log.txt"))
            if code is None or epochs in (0, record["epochs"]):
                return

    def _plan(self, job: Job) -> int:
        """The epoch to train to: the last one, with a validation, which is set as soon as two are there."""
        record, rows = self.state[job.name], read_curve(self.folder / job.name)
        if len(rows) < FIRST_EPOCHS:
            return FIRST_EPOCHS
        if not record["epochs"] or record["minutes"] != job.minutes:
            times = [float(row["cpu_seconds"]) for row in rows]
            cost = statistics.mean(b - a for a, b in itertools.pairwise(times) if b > a)  # resumed, they begin at 0
            left = 60 * job.minutes - record["cpu_seconds"]
            epochs, interval = len(rows) + max(0, int(left / cost)), job.interval()
            record["epochs"] = max(epochs // interval, -(-len(rows) // interval)) * interval
            record["minutes"] = job.minutes
        return record["epochs"]

    def _follow(self, process: subprocess.Popen[bytes], job: Job, queue: Queue) -> None:
        """Count a training's time, log its scores and judge its weights, until it ends or has to."""
        record, folder = self.state[job.name], self.folder / job.name
        cpu, seconds, begin = record["cpu_seconds"], record["seconds"], time.monotonic()
        saved = begin - SAVED_SECONDS
        while process.poll() is None and not self.stopping and record["cpu_seconds"] < 60 * OVER * job.minutes:
            record["cpu_seconds"] = max(record["cpu_seconds"], cpu + cpu_seconds_of(process.pid))
            if time.monotonic() - saved >= SAVED_SECONDS:
                saved = time.monotonic()
                self._save()
                log_figures(folder, record["cpu_seconds"])
            if record["cpu_seconds"] - record["judged"] >= 60 * queue.gate_minutes:
                process.send_signal(signal.SIGSTOP)
                self._judge(job, queue)
                process.send_signal(signal.SIGCONT)
            time.sleep(self.look)
            record["seconds"] = seconds + time.monotonic() - begin

    def _judge(self, job: Job, queue: Queue) -> None:
        """Put the newest weights through the gate, and log its figures."""
        record, folder = self.state[job.name], self.folder / job.name
        weights = newest_weights(folder)
        if not queue.gate or weights is None or self.stopping:
            return
        record["judged"] = record["cpu_seconds"]
        words = ["--bundle", job.bundle, "--output", str(folder / "gate"), *queue.gate, str(weights)]
        with running([sys.executable, "-m", "benchmarks.weights", *words], folder / "gate.txt") as process:
            while process.poll() is None and not self.stopping:
                time.sleep(self.look)
            code = process.poll()
        if code in (0, 1):
            log_gate(folder, record["cpu_seconds"], folder / "gate" / job.bundle / "rows.csv", weights, code == 0)
        elif code is not None:
            record["message"] = f"gate: {last_line(folder / 'gate.txt')}"

    def _save(self) -> None:
        write_metrics(self.folder / "state.json", self.state)


@contextlib.contextmanager
def running(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process of one thread, which is ended with the block, or with this process."""
    with open(log, "ab") as file:
        options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": file}
        process = subprocess.Popen(command, env=environment(**ONE_THREAD), preexec_fn=_bound, **options)
    try:
        yield process
    finally:
        process.terminate()
        process.send_signal(signal.SIGCONT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _bound() -> None:
    if _C is not None:
        _C.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: nothing goes on that nobody counts


def come_last(nice: int) -> None:
    """Give way to all other processes (19), to some, or to none (0); those that this one starts do, too."""
    os.setpriority(os.PRIO_PROCESS, 0, nice)
    with contextlib.suppress(OSError):  # Linux shares time among sessions first, then within each
        Path("/proc/self/autogroup").write_text(str(nice))


def environment(**changes: str) -> dict[str, str]:
    """The environment of a process that imports this repository."""
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, **changes}


def cpu_seconds_of(pid: int) -> float:
    """CPU seconds that a process has used, 0 if it is gone."""
    try:
        numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, numbers[11:15])) / os.sysconf("SC_CLK_TCK")


def start(folder: Path, nice: int = 19) -> int:
    """Start a folder's campaign in the background, as nice as said; its process number.

    Raises:
        ValueError: with what it says, if it fails at once, or another one runs.
    """
    if pid := holder(folder):
        raise ValueError(f"{folder}: a campaign runs here already, process {pid}")
    with open(folder / "log.txt", "ab") as log:
        options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
        words = [str(folder), "--foreground", "--nice", str(nice)]
        command = [sys.executable, "-m", "benchmarks.campaign", *words]
        process = subprocess.Popen(command, env=environment(), start_new_session=True, **options)
    while holder(folder) is None and process.poll() is None:
        time.sleep(0.1)
    if process.poll():
        raise ValueError(last_line(folder / "log.txt"))
    return process.pid


def stop(folder: Path, seconds: float = 60) -> None:
    """End a folder's campaign, and wait until it has ended.

    Raises:
        ValueError: if none runs, or it does not end.
    """
    pid = holder(folder)
    if pid is None:
        raise ValueError(f"{folder}: no campaign runs here")
    os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + seconds
    while holder(folder) is not None:
        if time.monotonic() > end:
            raise ValueError(f"{folder}: process {pid} has not ended within {seconds:g} s")
        time.sleep(0.1)


def read_call(folder: Path) -> tuple[Path, dict[str, str]]:
    """The queue's file and the places that a folder's campaign was started with.

    Raises:
        ValueError: if none was.
    """
    path = folder / "campaign.json"
    if not path.exists():
        raise ValueError(f"{folder}: there is no campaign yet; give its queue and --data")
    call = json.loads(path.read_text())
    return Path(call["queue"]), call["places"]


def main(words: Sequence[str] | None = None) -> int:
    """Exit code 1, and one sentence, for what does not work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("queue", type=Path, nargs="?", help="JSON file; default: benchmarks/campaign.json")
    parser.add_argument("--data", action="append", default=[], metavar="NAME=PLACE", help="what {NAME} stands for")
    parser.add_argument("--nice", type=int, default=19, help="0 to 19, the higher, the more it gives way; default 19")
    actions = parser.add_mutually_exclusive_group()
    for action in ("status", "stop", "foreground"):
        actions.add_argument(f"--{action}", action="store_true")
    options = parser.parse_args(words)
    try:
        _act(options, options.folder.resolve())
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _act(options: argparse.Namespace, folder: Path) -> None:
    if folder.is_relative_to(REPOSITORY):
        raise ValueError(f"{folder}: choose a folder outside of the repository")
    if options.stop:
        stop(folder)
        return
    folder.mkdir(parents=True, exist_ok=True)
    if options.queue or options.data:
        queue = (options.queue or QUEUE).resolve()
        places = {name: str(Path(place).resolve()) for name, _, place in (one.partition("=") for one in options.data)}
        read_queue(queue, places)
        write_metrics(folder / "campaign.json", {"queue": str(queue), "places": places})
    queue, places = read_call(folder)
    if options.status:
        print(status(folder, read_queue(queue, places).jobs))
    elif options.foreground:
        campaign = Campaign(folder, queue, places)
        signal.signal(signal.SIGTERM, lambda *_: setattr(campaign, "stopping", True))
        come_last(options.nice)
        with holding(folder):
            campaign.run()
    else:
        print(f"process {start(folder, options.nice)}; python -m benchmarks.campaign {options.folder} --status")


if __name__ == "__main__":
    sys.exit(main())
