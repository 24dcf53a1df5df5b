"""The one command for a GPU: rehearsed on the CPU, cut and gone on with."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from benchmarks import gpu, gpu_queue, gpu_speed
from benchmarks.gpu_queue import LANES, Job, Queue

REPOSITORY = Path(gpu.__file__).resolve().parents[1]
IDS = [0, 2, 3, 24, 507]


def make_maps(folder: Path) -> list[str]:
    """Words for `gpu`: four small heads, balls in balls, and their table."""
    axes = np.stack(np.meshgrid(*[np.arange(32) - 15.5] * 3, indexing="ij"))
    radius = np.sqrt((axes**2).sum(0))
    maps = np.zeros((4, 32, 32, 32), np.uint8)
    for person in range(4):
        for position, limit in ((4, 15), (3, 13), (2, 11), (1, 7)):
            maps[person][radius < limit - 0.5 * person] = position
    np.savez(folder / "maps.npz", maps=maps, ids=IDS, split=["training"] * 2 + ["validation"] * 2)
    rows = [f"{number},{40 * (i + 1)},5" for i, number in enumerate(IDS)]
    (folder / "labels.csv").write_text("\n".join(["id,t1_prior_mean,t1_prior_mean_spread", *rows]) + "\n")
    return ["--maps", str(folder / "maps.npz"), "--table", str(folder / "labels.csv")]


def make_wheel(folder: Path) -> Path:
    """A wheel of one module, that requires what is nowhere."""
    folder.mkdir()
    with zipfile.ZipFile(folder / "carried-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carried.py", "ANSWER = 42\n")
        wheel.writestr("carried-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(
            "carried-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: carried\nVersion: 1.0\nRequires-Dist: no\n"
        )
        wheel.writestr("carried-1.0.dist-info/RECORD", "")
    return folder


def run(output: Path, *words: str) -> dict[str, str]:
    """The command in a process of its own; the state of each stage."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--output", str(output), *words]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, timeout=300)
    return {name: stage["state"] for name, stage in json.loads((output / "stages.json").read_text()).items()}


@pytest.mark.slow
def test_a_minute_on_the_cpu_rehearses_every_stage_and_a_second_call_has_nothing_left_to_do(tmp_path):
    words = [
        *make_maps(tmp_path),
        "--wheels",
        str(make_wheel(tmp_path / "wheels")),
        "--minutes",
        "4",
        "--training_minutes",
        "0.2",
    ]
    output = tmp_path / "out"
    expected = dict.fromkeys(gpu.SHARES, "done") | {"heads": "left out: no --heads"}
    assert run(output, *words) == expected
    assert json.loads((output / "environment.json").read_text())["packages"]["torch"]
    tests = [json.loads(line) for line in (output / "correctness.jsonl").read_text().splitlines()]
    assert [test["outcome"] for test in tests] == ["passed"]
    for name in ("speed", "memory"):
        rows = json.loads((output / f"{name}.json").read_text())
        assert len(rows) > 5
        assert not any("error" in row for row in rows)
    assert (output / "training" / "voxelmorph.pt").exists()
    assert "42" in subprocess.check_output(
        [sys.executable, "-c", "import carried; print(carried.ANSWER)"], cwd=output / "packages", text=True
    )
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}
    assert run(output, *words) == expected
    after = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}
    assert {path for path in before if after[path] != before[path]} <= {output / "stages.json"}
    assert after.keys() == before.keys()


def start(tmp_path: Path, **options) -> gpu.Run:
    given = {"output": tmp_path, "device": "cpu", "minutes": 1.0, "maps": None, "table": None, "wheels": None}
    given |= {"stages": list(gpu.SHARES)}
    return gpu.Run(gpu.argparse.Namespace(**{**given, **options}))


def test_a_stage_that_is_cut_or_fails_is_done_again_and_one_that_is_done_is_not(tmp_path):
    states = iter(["cut", "failed", "done"])
    for expected in ("cut", "failed", "done", "done"):
        start(tmp_path).stage("speed", lambda limit: next(states))
        assert json.loads((tmp_path / "stages.json").read_text())["speed"]["state"] == expected
    assert next(states, None) is None


def test_stages_get_their_share_of_the_time_and_nothing_without_time(tmp_path):
    limits = []
    start(tmp_path).stage("speed", lambda limit: limits.append(limit) or "done")
    assert limits == [pytest.approx(0.3 * 60)]
    over = start(tmp_path, minutes=0.0)
    over.stage("memory", lambda limit: "done")
    assert over.stages["memory"]["state"] == "no time left"


def test_stages_that_are_asked_for_share_the_time_and_others_do_not_run(tmp_path):
    limits = {}
    some = start(tmp_path, stages=["speed", "memory"])
    for name in gpu.SHARES:
        some.stage(name, lambda limit, name=name: limits.update({name: limit}) or "done")
    assert limits == {"speed": pytest.approx(40, abs=1), "memory": pytest.approx(20, abs=1)}


def is_running(pid: int) -> bool:
    try:
        return "zombie" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks for the process in /proc")
def test_a_process_is_ended_at_its_limit_with_what_it_started(tmp_path):
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "endless.py").write_text(
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(child.pid, flush=True)\ntime.sleep(60)\n"
    )
    assert start(tmp_path).call("endless", limit=8) == "cut"
    pid = int((tmp_path / "endless.log").read_text())
    deadline = time.monotonic() + 20
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_running(pid)


def test_without_wheels_in_the_folder_nothing_starts(tmp_path):
    (tmp_path / "wheels").mkdir()
    with pytest.raises(SystemExit, match="0 wheels"):
        start(tmp_path / "out", wheels=tmp_path / "wheels").install()


def test_tests_that_passed_are_passed_over(tmp_path):
    (tmp_path / "test_it.py").write_text("def test_good(): pass\ndef test_bad(): assert not True\n")
    outcomes, words = tmp_path / "outcomes.jsonl", ["-p", "benchmarks.outcomes", "-c", "/dev/null", tmp_path]
    for _ in range(2):
        state = start(tmp_path).call("pytest", *words, limit=60, MORPHZOO_OUTCOMES=str(outcomes))
        assert state == "failed"
    lines = [json.loads(line) for line in outcomes.read_text().splitlines()]
    seen = [(line["test"].rpartition("::")[2], line["outcome"]) for line in lines]
    assert seen == [("test_good", "passed"), ("test_bad", "failed"), ("test_bad", "failed")]


def test_a_case_that_the_file_has_is_not_measured_again(tmp_path):
    calls = []
    for _ in range(2):
        bench = gpu_speed.Bench(gpu_speed.torch.device("cpu"), tmp_path / "speed.json")
        bench.row("case", lambda: calls.append(1), repeats=1)
    assert len(calls) == 2  # the first does not count
    assert [row["case"] for row in json.loads((tmp_path / "speed.json").read_text())] == ["case"]


class TestQueue:
    JOBS = (
        Job("first", 0.5, "voxelmorph", ["voxelmorph/model.pt"]),
        Job("second", 0.5, "hypermorph", ["first.pt", "voxelmorph/model.pt"], "--pairs 3"),
    )

    @pytest.fixture
    def trained(self, monkeypatch):
        """The words of each training that would have run; it leaves weights, and a curve of as many minutes."""
        seen = []

        def train(command, **_):
            words = dict(zip(command[6::2], command[7::2], strict=False))
            seen.append(words)
            stem = Path(words["--output"]) / words["--name"]
            stem.with_suffix(".pt").write_bytes(b"weights")
            stem.with_suffix(".csv").write_text(f"seconds,steps\n{60 * float(words['--minutes'])},1\n")
            return subprocess.CompletedProcess(command, 0)

        monkeypatch.setattr(gpu_queue.subprocess, "run", train)
        return seen

    def test_each_has_its_share_and_begins_from_what_is_there(self, tmp_path, trained):
        Queue(tmp_path, ["maps.npz"], 4.0).lane(self.JOBS)
        assert [(w["--name"], float(w["--minutes"])) for w in trained] == [("first", 2.0), ("second", 2.0)]
        assert trained[1]["--initial"] == str(tmp_path / "first.pt")
        assert Path(trained[0]["--initial"]).parts[-3:] == ("voxelmorph", "models", "model.pt")
        assert trained[1]["--pairs"] == "3"

    def test_a_cut_one_goes_on_from_its_own_weights_for_the_rest(self, tmp_path, trained):
        Queue(tmp_path, ["maps.npz"], 4.0)
        (tmp_path / "first.pt").write_bytes(b"weights")
        (tmp_path / "first.csv").write_text("seconds,steps\n30,1\n")
        for minutes in (1.75, 1.75, 9.0):
            Queue(tmp_path, ["maps.npz"], minutes).lane(self.JOBS)
        given = [(w["--name"], round(float(w["--minutes"]), 3)) for w in trained]
        assert given == [("first", 0.75), ("second", 1.0), ("first", 0.75), ("second", 1.0)]
        assert trained[0]["--initial"] == str(tmp_path / "first.pt")
        assert trained[3]["--initial"] == str(tmp_path / "second.pt")
        with open(tmp_path / "first.1.csv", newline="") as file:
            assert next(csv.DictReader(file))["seconds"] == "30"

    def test_lanes_are_full_and_begin_from_weights_that_exist(self, tmp_path):
        assert [sum(job.share for job in lane) for lane in LANES] == pytest.approx([1.0] * len(LANES))
        first = [job for lane in LANES for job in lane if "voxelmorph_probabilistic.pt" not in job.initial]
        assert all(job.weights(tmp_path).exists() for job in first)
