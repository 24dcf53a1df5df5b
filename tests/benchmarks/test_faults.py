"""The states that the killing of runs tells apart."""

import pytest

from benchmarks.faults import fingerprint, leftovers, states_of
from custom_components.results import list_files, publishing


@pytest.fixture
def output(tmp_path):
    """A pair's folder and the cohort's table, of run "old"."""
    write(tmp_path / "pair", "old", "a.txt", "b.txt")
    write(tmp_path, "old", "metrics.txt", part="cohort")
    return tmp_path


def write(folder, text, *names, part="pair"):
    with publishing(folder, part) as scratch:
        for name in names:
            (scratch / name).write_text(text)


def states(output):
    known = []
    for text in ("old", "new"):
        (output.parent / "text").write_text(text)
        value = fingerprint(output.parent / "text")
        known.append({name: {value} for name in ("pair/a.txt", "pair/b.txt", "metrics.txt")})
    found = {name: state.partition(":")[0] for name, state in states_of(output, *known).items()}
    return found["pair"], found[output.name]


def test_a_whole_result_is_old_or_new(output):
    assert states(output) == ("old", "old")
    write(output / "pair", "new", "a.txt", "b.txt")
    write(output, "new", "metrics.txt", part="cohort")
    assert states(output) == ("new", "new")


def test_a_result_that_says_so_is_unfinished(output):
    (output / "pair" / "a.txt").unlink()
    list_files(output / "pair", "pair", [], unfinished=True)
    assert states(output)[0] == "unfinished"


@pytest.mark.parametrize(("text", "state"), [("new", "mixed"), ("half", "torn"), (None, "torn")])
def test_files_of_two_runs_and_half_files_are_found(output, text, state):
    if text is None:
        (output / "pair" / "a.txt").unlink()
    else:
        (output / "pair" / "a.txt").write_text(text)
    assert states(output)[0] == state


def test_tables_of_another_run_than_the_pairs_are_mixed(output):
    write(output / "pair", "new", "a.txt", "b.txt")
    assert states(output) == ("new", "mixed")


def test_leftovers_are_found_anywhere(output):
    assert leftovers(output) == []
    (output / "pair" / ".unfinished-x").mkdir()
    assert leftovers(output) == ["pair/.unfinished-x"]
