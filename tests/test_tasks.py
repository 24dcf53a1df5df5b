"""The same is done for many items: in one process, in several, on a cluster; none stops the others, none is lost."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest
from workers import Counted, Loaded, doubled, page_faults

from custom_components.tasks import Problem, Workers, each


def test_an_item_that_fails_is_a_problem_and_stops_nothing():
    one, problem, two = each(doubled, [1, 3, 5])
    assert (one, two) == (2, 10)
    assert isinstance(problem, Problem)
    assert problem.item == 3
    assert problem.reason == "ValueError: three is no number"


def test_there_may_be_nothing_to_do(capfd):
    assert each(doubled, [], jobs=2) == []
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("jobs", [0, 1.5, "two"])
def test_jobs_are_a_whole_number(jobs):
    with pytest.raises(ValueError, match="expected jobs to be a whole number of at least 1"):
        Workers(jobs)


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_only_the_progress_bar_is_shown(jobs, capfd):
    assert each(doubled, [1, 2, 5], jobs=jobs, title="pairs") == [2, 4, 10]
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "pairs: 100%" in shown.err
    assert {line.partition(":")[0].strip() for line in shown.err.splitlines()} <= {"", "pairs"}


def test_a_scheduler_that_is_not_there_is_one_sentence(monkeypatch):
    from dask import config

    with config.set({"distributed.comm.timeouts.connect": "0.2s"}), pytest.raises(OSError, match="no Dask scheduler"):
        each(doubled, [1], scheduler="tcp://127.0.0.1:9")


@pytest.mark.slow
def test_what_a_function_keeps_is_there_for_the_next_item_of_its_process():
    with Workers(2) as workers:
        first = workers.each(Loaded(), range(6))
        second = workers.each(Loaded(), range(6))
    processes = {process for process, _ in first}
    assert len(processes) == 2
    assert {process for process, _ in second} <= processes
    counts = [max(count for one, count in first if one == process) for process in processes]
    assert sum(counts) == 6


@pytest.mark.slow
def test_a_process_that_dies_takes_only_its_own_item_along():
    results = each(doubled, [1, 3, 4, 5], jobs=2)
    assert [one for one in results if not isinstance(one, Problem)] == [2, 10]
    assert "its process died" in results[2].reason


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are those of glibc")
def test_a_process_keeps_the_memory_of_its_large_arrays():
    pages = 10_000_000 * 4 // 4096  # of one array
    assert max(each(page_faults, [1, 2], jobs=2)) < pages


@pytest.mark.slow
def test_of_two_processes_one_may_be_killed_half_way(tmp_path):
    items = range(60)
    assert each(Counted(tmp_path, fatal=30), items, jobs=2) == [2 * item for item in items]
    assert (tmp_path / "killed").read_text() == ".."
    times = sum(len((tmp_path / str(item)).read_text().splitlines()) for item in items)
    assert times < 65  # results that a process has not handed over yet die with it


@pytest.mark.slow
def test_a_cluster_that_others_run_does_the_work(tmp_path):
    from distributed import LocalCluster

    with LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=None) as cluster:
        assert each(doubled, [1, 3, 5], scheduler=cluster.scheduler_address)[::2] == [2, 10]
        assert cluster.workers  # it is not ours to end


_SAYS = """
import logging
from workers import doubled, page_faults
from custom_components.tasks import each
if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    each(doubled, [1, 2], jobs=2, title="pairs")
"""


@pytest.mark.slow
def test_what_dask_logs_is_not_shown_by_a_program_that_logs(tmp_path):
    (tmp_path / "run.py").write_text(_SAYS)
    done = subprocess.run([sys.executable, tmp_path / "run.py"], capture_output=True, text=True, env=_environment())
    assert done.returncode == 0
    assert {line.partition(":")[0].strip() for line in done.stderr.replace("\r", "\n").splitlines()} <= {"", "pairs"}


_RUN = """
from workers import Counted, page_faults
from custom_components.tasks import each
import pathlib, sys, time
class Slow(Counted):
    def __call__(self, item):
        result = super().__call__(item)
        time.sleep(0.2)
        return result
if __name__ == "__main__":
    each(Slow(pathlib.Path(sys.argv[1])), range(1000), jobs=2)
"""


@pytest.mark.slow
def test_no_process_outlives_a_run_that_is_killed(tmp_path):
    (tmp_path / "run.py").write_text(_RUN)
    (done := tmp_path / "done").mkdir()
    command = [sys.executable, tmp_path / "run.py", done]
    run = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=_environment())
    _until(lambda: len(list(done.iterdir())) > 3)
    run.kill()
    run.wait()
    processes = {Path("/proc", line) for path in done.iterdir() for line in path.read_text().split()}
    _until(lambda: not any(process.exists() for process in processes))


def _environment() -> dict[str, str]:
    tests = Path(__file__).parent
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests)])}


def _until(ready, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.1)
