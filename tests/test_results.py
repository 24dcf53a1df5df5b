"""Folders of results: the files of a run come together, those of two runs never mix, nobody else's file is touched."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from custom_components import results
from custom_components.results import aside, publishing, read_manifest, replacing, retract, told


def publish(folder, text, *names, part="pair", **options):
    with publishing(folder, part, **options) as scratch:
        for name in names:
            (scratch / name).write_text(text)


def texts(folder):
    return {path.name: path.read_text() for path in folder.iterdir() if path.name != "files.json"}


def test_files_of_an_earlier_run_go_and_the_manifest_tells_the_others(tmp_path):
    publish(tmp_path / "out", "old", "a", "b", of={"moving": "/m"})
    publish(tmp_path / "out", "new", "b", "c", of={"moving": "/m"})
    assert texts(tmp_path / "out") == {"b": "new", "c": "new"}
    assert read_manifest(tmp_path / "out") == {"pair": {"of": {"moving": "/m"}, "files": ["b", "c"]}}


def test_parts_of_a_folder_do_not_know_each_other(tmp_path):
    publish(tmp_path, "x", "a", part="one")
    publish(tmp_path, "x", "b", part="two")
    publish(tmp_path, "x", "c", part="one", add=True)
    assert read_manifest(tmp_path)["one"]["files"] == ["a", "c"]
    publish(tmp_path, "x", part="one")
    assert texts(tmp_path) == {"b": "x"}
    publish(tmp_path, "x", part="two")
    assert not list(tmp_path.iterdir())


def test_what_is_retracted_is_unfinished_until_it_is_published_again(tmp_path):
    retract(tmp_path, "cohort")
    assert not list(tmp_path.iterdir())
    publish(tmp_path, "x", "a", part="cohort")
    retract(tmp_path, "cohort")
    assert texts(tmp_path) == {}
    assert read_manifest(tmp_path)["cohort"]["unfinished"]
    publish(tmp_path, "x", "a", part="cohort")
    assert "unfinished" not in read_manifest(tmp_path)["cohort"]


def test_the_result_of_something_else_is_not_replaced(tmp_path):
    publish(tmp_path, "old", "a", of={"moving": "/m"})
    with pytest.raises(FileExistsError, match=r"holds the result of /m: take another output folder"):
        publish(tmp_path, "new", "a", of={"moving": "/n"})
    assert texts(tmp_path) == {"a": "old"}


def test_a_file_that_no_manifest_lists_is_not_replaced(tmp_path):
    (tmp_path / "a").write_text("mine")
    with pytest.raises(FileExistsError, match="a is there already, and no manifest says that it may be replaced"):
        publish(tmp_path, "new", "a", "b")
    assert texts(tmp_path) == {"a": "mine"}


@pytest.mark.parametrize(
    "manifest",
    [
        '["a"]',
        "no JSON",
        '{"pair": ["a"]}',
        '{"pair": {"of": {}, "files": ["../a"]}}',
        '{"pair": {"of": {}, "files": ["sub/a"]}}',
        '{"pair": {"of": {}, "files": ["..", "a"]}}',
        '{"pair": {"of": {}, "files": [""]}}',
        '{"pair": {"of": {}, "files": [1]}}',
        '{"pair": {"of": {}, "files": ["files.json"]}}',
    ],
)
def test_a_manifest_that_is_not_ours_deletes_and_writes_nothing(tmp_path, manifest):
    folder = tmp_path / "pair"
    (folder / "sub").mkdir(parents=True)
    for path in (tmp_path / "a", folder / "sub" / "a", folder / "a", folder / "files.json"):
        path.write_text(manifest)
    for change in (lambda: publish(folder, "new", "b"), lambda: retract(folder, "pair")):
        with pytest.raises(ValueError, match="this is no list of the files of a result"):
            change()
    assert {path.name for path in tmp_path.rglob("*")} == {"pair", "sub", "a", "files.json"}
    assert all(path.read_text() == manifest for path in tmp_path.rglob("*") if path.is_file())


def interrupted(writing, name, error):
    with writing as scratch:
        (scratch / name).write_text("half")
        raise error


def test_a_block_that_fails_changes_nothing(tmp_path):
    publish(tmp_path / "out", "old", "a")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    for error in (RuntimeError("stop"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            interrupted(publishing(tmp_path / "out", "pair"), "a", error)
        with pytest.raises(type(error)):
            interrupted(aside(tmp_path / "new"), "b", error)
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "new" / "b"):
        pass
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_run_that_is_cut_anywhere_leaves_the_old_result_or_the_new_one_or_says_unfinished(tmp_path, monkeypatch, cut):
    """Each call that changes the disk may be the last one."""
    publish(tmp_path, "old", "a", "b", "c")
    steps = iter(range(1, cut + 1))

    def counted(call):
        def wrapped(*args, **options):
            if next(steps, None) is None:
                raise KeyboardInterrupt
            return call(*args, **options)

        return wrapped

    with monkeypatch.context() as patched:
        patched.setattr(results.os, "replace", counted(os.replace))
        patched.setattr(results.Path, "unlink", counted(results.Path.unlink))
        with contextlib.suppress(KeyboardInterrupt):
            publish(tmp_path, "new", "b", "c", "d")
    found, part = texts(tmp_path), read_manifest(tmp_path)["pair"]
    assert len({*found.values()}) <= 1
    assert "unfinished" in part or set(found) == {*part["files"]} in ({"a", "b", "c"}, {"b", "c", "d"})
    publish(tmp_path, "newest", "b")
    assert texts(tmp_path) == {"b": "newest"}


_HOLD = """
import sys, time
from custom_components.results import publishing
with publishing(sys.argv[1], "pair") as scratch:
    (scratch / "a").write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""


def test_leftovers_of_a_dead_process_go_and_those_of_a_living_one_stay(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", _HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"ready\n"
        publish(tmp_path, "new", "b")
        assert len(list(tmp_path.glob(".unfinished-*"))) == 1
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert len(list(tmp_path.glob(".unfinished-*"))) == 1
    publish(tmp_path, "new", "b")
    assert texts(tmp_path) == {"b": "new"}


def test_folders_of_other_machines_and_of_other_people_are_not_leftovers(tmp_path):
    other, old = (tmp_path / f".unfinished-other-{digit * 12}" for digit in "01")
    mine = tmp_path / ".unfinished-notes"
    for path in (other, old, mine):
        path.mkdir()
    os.utime(old, (time.time() - 2 * 86400,) * 2)
    with aside(tmp_path):
        assert not old.exists()
    assert {path.name for path in tmp_path.iterdir()} == {other.name, mine.name}


def test_no_space_is_one_sentence_that_names_the_folder(tmp_path):
    for error, text in (
        (OSError(28, "No space left on device"), "out: cannot write the results here (No space left on device)"),
        (FileExistsError("ours"), "ours"),
    ):
        with pytest.raises(OSError) as raised:  # noqa: PT011
            interrupted(publishing(tmp_path / "out", "pair"), "a", error)
        assert str(raised.value).removeprefix(f"{tmp_path}/") == text
    assert not list(tmp_path.iterdir())


def test_what_a_file_is_of_is_kept_as_text(tmp_path):
    publish(tmp_path, "x", "ä.txt", of={"moving": "/m/ö #%$.nii"})
    assert json.loads((tmp_path / "files.json").read_text(encoding="utf-8"))["pair"]["of"]["moving"] == "/m/ö #%$.nii"


def test_a_summary_names_the_page_that_shows_the_results_if_it_is_there(tmp_path):
    assert told(tmp_path, "report.html") == f"results in {tmp_path}"
    (tmp_path / "report.html").touch()
    assert told(tmp_path, "report.html") == f"results in {tmp_path}; look at {tmp_path / 'report.html'}"
