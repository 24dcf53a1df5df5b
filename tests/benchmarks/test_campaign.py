"""A campaign: its queue, its trainings, what it leaves, and how it ends and goes on."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks import campaign, campaign_state
from benchmarks.campaign import Campaign
from benchmarks.campaign_jobs import Job, read_queue
from benchmarks.experiments import bundle_config
from custom_components.commands.bundles import all_bundles, registers
from custom_components.data.phantoms import write_phantom_scans

# It counts up to a number, a step in 20 ms, and goes on from where it was.
COUNTING = """
import sys, time
from pathlib import Path
folder, steps, initial = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[4]
weights = folder / "weights.pt"
step = int(Path(initial).read_text()) if initial != "none" else 0
while step < steps:
    time.sleep(0.02)
    step += 1
    with open(folder / "curve.csv", "a") as curve:
        curve.write(("" if curve.tell() else "iteration,score\\n") + f"{step},{step / 100}\\n")
    weights.with_suffix(".new").write_text(str(step))
    weights.with_suffix(".new").replace(weights)  # it may be killed at any moment
"""
WORDS = ["{output}", "{steps}", "{minutes}", "{initial}"]


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes a queue of trainings that count up to a number, or fail; gives its file."""
    for name, text in {"counting": COUNTING, "failing": "raise SystemExit('no such scan')"}.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def write(*jobs: tuple[str, str], minutes: float = 1) -> Path:
        entries = [
            {
                "name": name,
                "bundle": "voxelmorph",
                "module": "counting" if steps else "failing",
                "minutes": minutes,
                "initial_weights": "none",
                "arguments": [word.replace("{steps}", steps) for word in WORDS],
            }
            for name, steps in jobs
        ]
        (tmp_path / "queue.json").write_text(json.dumps({"jobs": entries}))
        return tmp_path / "queue.json"

    return write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "campaign").mkdir()
    return tmp_path / "campaign"


def states(folder: Path) -> dict[str, str]:
    return {name: record["state"] for name, record in campaign_state.read_state(folder).items()}


def wait_for(what: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


def stopped_after(one: Campaign, training: Path, rows: int) -> None:
    """Run a campaign that is stopped when a training's curve has so many rows."""

    def stop() -> None:
        wait_for(lambda: len(campaign_state.read_curve(training)) >= rows)
        one.stopping = True

    thread = threading.Thread(target=stop)
    thread.start()
    one.run()
    thread.join()


def test_a_queue_runs_in_order_and_logs_its_scores(queue, folder):
    Campaign(folder, queue(("one", "3"), ("two", "2")), {}, look=0.02).run()
    assert states(folder) == {"one": "done", "two": "done"}
    assert (folder / "one" / "weights.pt").stat().st_mtime < (folder / "two" / "weights.pt").stat().st_mtime
    figures = campaign_state.read_rows(folder / "one" / "figures.csv")
    assert [(row["steps"], row["score"]) for row in figures] == [("1", "0.01"), ("2", "0.02"), ("3", "0.03")]


def test_a_training_that_fails_says_why_and_the_next_one_runs(queue, folder):
    Campaign(folder, queue(("bad", ""), ("good", "1")), {}, look=0.02).run()
    assert states(folder) == {"bad": "failed", "good": "done"}
    assert campaign_state.read_state(folder)["bad"]["message"] == "no such scan"


def test_a_stopped_campaign_goes_on_where_it_was(queue, folder):
    path = queue(("one", "30"), ("two", "1"))
    stopped_after(Campaign(folder, path, {}, look=0.02), folder / "one", rows=1)
    assert states(folder) == {"one": "stopped"}
    assert 0 < len(campaign_state.read_curve(folder / "one")) < 30
    Campaign(folder, path, {}, look=0.02).run()
    assert states(folder) == {"one": "done", "two": "done"}
    assert [int(row["iteration"]) for row in campaign_state.read_curve(folder / "one")] == list(range(1, 31))
    assert campaign_state.read_state(folder)["one"]["seconds"] > 0.5


def test_jobs_may_be_added_and_done_ones_are_not_repeated(queue, folder):
    Campaign(folder, queue(("one", "1")), {}, look=0.02).run()
    before = (folder / "one" / "log.txt").stat().st_mtime
    Campaign(folder, queue(("one", "1"), ("two", "1")), {}, look=0.02).run()
    assert states(folder) == {"one": "done", "two": "done"}
    assert (folder / "one" / "log.txt").stat().st_mtime == before


def test_a_job_of_that_name_with_other_settings_is_refused(queue, folder):
    Campaign(folder, queue(("one", "1"), minutes=1), {}, look=0.02).run()
    Campaign(folder, queue(("one", "2"), minutes=2), {}, look=0.02).run()
    assert states(folder) == {"one": "failed"}
    assert "holds a training with other settings" in campaign_state.read_state(folder)["one"]["message"]


def test_a_training_ends_when_its_budget_is_used(queue, folder):
    Campaign(folder, queue(("one", "100000"), minutes=1e-4), {}, look=0.02).run()
    assert states(folder) == {"one": "done"}
    assert len(campaign_state.read_curve(folder / "one")) < 1000


def test_status_shows_every_job(queue, folder):
    path = queue(("one", "3"), ("bad", ""), ("later", "5"))
    jobs = read_queue(path, {}).jobs
    Campaign(folder, path, {}, look=0.02).run()
    state = campaign_state.read_state(folder)
    state["one"] |= {"cpu_seconds": 30.0, "seconds": 60.0}
    state["later"]["state"] = "running"  # and nothing runs
    (folder / "state.json").write_text(json.dumps(state))
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in campaign.status(folder, jobs).splitlines()]
    table = {line[0]: dict(zip(lines[0], line, strict=True)) for line in lines[2:]}
    assert [table["one"][key] for key in ("state", "CPU min", "steps", "best score")] == [
        "done",
        "0.5 / 1",
        "3",
        "0.030",
    ]
    assert (table["bad"]["state"], table["bad"][""]) == ("failed", "no such scan")
    assert table["later"]["state"] == "cut"
    assert table["later"]["ETA"].endswith(" h")


def test_two_campaigns_in_one_folder_are_refused(queue, folder, capsys):
    path = queue(("one", "1"))
    with campaign_state.holding(folder):
        assert campaign_state.holder(folder) == os.getpid()
        with (
            pytest.raises(ValueError, match=f"runs here already, process {os.getpid()}"),
            campaign_state.holding(folder),
        ):
            pass
        assert campaign.main([str(folder), str(path)]) == 1
        assert "runs here already" in capsys.readouterr().err
    assert campaign_state.holder(folder) is None
    assert campaign.main([str(folder), "--stop"]) == 1
    assert "no campaign runs here" in capsys.readouterr().err


def test_a_folder_in_the_repository_is_refused(capsys):
    assert campaign.main([str(Path(campaign.__file__).parent / "runs")]) == 1
    assert "outside of the repository" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"jobs": [{"name": "a", "minutes": 1, "bundle": "x", "data": "{maps}"}]}', "give --data maps=FOLDER"),
        ('{"jobs": [{"name": "a/b", "minutes": 1, "bundle": "x"}]}', "got 'a/b' and 1"),
        ('{"jobs": [{"name": "a", "minutes": 0, "bundle": "x"}]}', "got 'a' and 0"),
        ('{"jobs": [{"name": "a", "minutes": 1, "bundel": "x"}]}', "bundel"),
        ('{"jobs": [{"name": "a", "minutes": 1, "bundle": "x"}, {"name": "a", "minutes": 2, "bundle": "x"}]}', "a, a"),
        ("[]", "this is no queue"),
    ],
)
def test_what_is_no_queue_is_said_in_a_sentence(text, reason, tmp_path):
    (tmp_path / "queue.json").write_text(text)
    with pytest.raises(ValueError, match=reason):
        read_queue(tmp_path / "queue.json", {})


def test_the_first_epochs_say_how_many_the_budget_pays_for(folder):
    one = Campaign(folder, folder / "queue.json", {})
    job = Job("one", minutes=10, bundle="voxelmorph")
    one.state["one"] = {**campaign_state.EMPTY, "cpu_seconds": 100.0}
    (folder / "one").mkdir()
    assert one._plan(job) == campaign.FIRST_EPOCHS
    (folder / "one" / "curve.csv").write_text("epoch,iteration,cpu_seconds\n1,10,60\n2,20,80\n")
    assert one._plan(job) == 25  # it pays for 27; the 25th has a validation
    one.state["one"]["cpu_seconds"] = 500.0  # later, the end stays where it is
    assert one._plan(job) == 25
    assert one._plan(Job("one", minutes=20, bundle="voxelmorph")) == 35  # 2 + 700 / 20, back to a validation
    assert one._plan(Job("one", minutes=8, bundle="voxelmorph")) == 5  # nothing is left: to the first validation


def test_a_module_begins_from_its_newest_weights(folder):
    job = Job("one", minutes=1, bundle="voxelmorph", module="m", arguments=["{output}", "--initial={initial}"])
    assert job.command(folder, 0, 0.5)[2:] == ["m", str(folder)]
    (folder / "last.pt").write_text("a checkpoint")
    (folder / "model.pt").write_text("weights")
    assert job.command(folder, 0, 0.5)[2:] == ["m", str(folder), f"--initial={folder / 'model.pt'}"]


def test_the_gates_figures_stand_beside_the_scores(folder):
    (folder / "curve.csv").write_text("iteration,score\n5,0.5\n")
    campaign_state.log_figures(folder, 60)
    table = "part,weights,iterations,dice_after\nheads,shipped,0,0.6\nheads,m.pt,0,0.7\nheads,m.pt,0,0.8\n"
    (folder / "rows.txt").write_text(table)
    campaign_state.log_gate(folder, 90, folder / "rows.txt", Path("m.pt"), True)
    campaign_state.log_figures(folder, 95)
    scores, gate = campaign_state.read_rows(folder / "figures.csv")
    assert (scores["cpu_seconds"], scores["steps"], scores["score"]) == ("60", "5", "0.5")
    assert (gate["cpu_seconds"], gate["heads, 0 iterations"], gate["beats_shipped"]) == ("90", "0.75", "1")


def test_the_default_queue_names_configs_settings_and_weights_that_exist():
    places = dict.fromkeys(("labelmaps", "shares", "maps", "prostates", "test_data"), "/")
    queue = read_queue(campaign.QUEUE, places)
    for job in queue.jobs:
        config = bundle_config(job.bundle, job.configs)
        assert set(job.settings) <= set(config.config), job.name
        assert all(Path(path).is_file() for path in [*job.overlays, *filter(None, [job.initial_weights])])
    bundles = {bundle.name for bundle in all_bundles() if registers(bundle)}
    assert {job.bundle for job in queue.jobs} == bundles


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_a_killed_campaign_takes_its_training_with_it_and_goes_on(queue, folder, capsys):
    path = queue(("one", "200"), ("two", "1"))
    assert campaign.main([str(folder), str(path)]) == 0
    pid = campaign_state.holder(folder)
    wait_for(lambda: len(campaign_state.read_curve(folder / "one")) > 20)
    (training,) = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not alive(training))
    capsys.readouterr()
    assert campaign.main([str(folder), "--status"]) == 0
    assert "| one | cut |" in capsys.readouterr().out
    assert campaign.main([str(folder)]) == 0
    assert campaign.main([str(folder)]) == 1  # it runs already
    wait_for(lambda: campaign_state.holder(folder) is None)
    assert states(folder) == {"one": "done", "two": "done"}
    assert len(campaign_state.read_curve(folder / "one")) == 200


@pytest.mark.slow
def test_a_stopped_campaign_says_so(queue, folder):
    assert campaign.main([str(folder), str(queue(("one", "100000")))]) == 0
    wait_for(lambda: campaign_state.read_curve(folder / "one"))
    assert campaign.main([str(folder), "--stop"]) == 0
    assert states(folder) == {"one": "stopped"}


@pytest.mark.slow
def test_a_stopped_training_of_a_bundle_becomes_what_it_would_have_been(tmp_path):
    """To the last digit."""
    scans = Path(write_phantom_scans(tmp_path / "scans", 4, (32, 32))).parent
    settings = {"size": [32, 32], "num_pairs": 4, "num_val_pairs": 2, "batch_size": 2, "precision": "float32"}
    entry = {"bundle": "voxelmorph", "configs": ["train", "train_2d"], "data": str(scans), "settings": settings}
    jobs = [{"name": name, "minutes": 0.5, **entry} for name in ("whole", "cut")]
    folder = tmp_path / "campaign"
    folder.mkdir()

    def campaign_of(job: dict[str, object]) -> Campaign:
        (tmp_path / "queue.json").write_text(json.dumps({"jobs": [job]}))
        one = Campaign(folder, tmp_path / "queue.json", {}, look=0.02)
        one._plan = lambda job: one.state[job.name].update(epochs=20) or 20  # type: ignore[method-assign]
        return one

    campaign_of(jobs[0]).run()
    stopped_after(campaign_of(jobs[1]), folder / "cut", rows=2)
    assert states(folder) == {"whole": "done", "cut": "stopped"}
    assert 1 < len(campaign_state.read_curve(folder / "cut")) < 20
    campaign_of(jobs[1]).run()
    whole, cut = (torch.load(folder / name / "last.pt", weights_only=True) for name in ("whole", "cut"))
    assert whole["epoch"] == cut["epoch"] == 20
    for part in ("network", "average"):
        assert all(torch.equal(value, cut[part][name]) for name, value in whole[part].items())
