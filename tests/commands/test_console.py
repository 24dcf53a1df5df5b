"""What every command of the command line has in common, and the commands that tell about the installation."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from support import run

import custom_components as mz
from custom_components.commands import discover
from custom_components.commands.bundles import abilities, all_bundles
from custom_components.commands.console import FLAGS, Console, completion, plain, split

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch):
    """Logs and environment are those of before."""
    for name in ("TQDM_DISABLE", "MORPHZOO_DEBUG"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)


def morphzoo(*words: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "custom_components", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_no_command_has_a_setting_that_is_called_as_one_of_all():
    import inspect

    for name, command in discover().items():
        assert not set(FLAGS) & set(inspect.signature(command).parameters), name


def test_flags_of_all_commands_stand_anywhere():
    assert split(["register", "a", "--json", "b"]) == (Console(json=True), ["register", "a", "b"])
    assert split(["--quiet", "strip", "a"]) == (Console(quiet=True), ["strip", "a"])
    assert run("info", "--quiet", "--json") == "morphzoo: error: --quiet and --json exclude each other"


def test_version(capsys):
    assert run("--version") is None
    assert capsys.readouterr().out == f"morphzoo {mz.__version__}\n"


def test_info_tells_every_bundle_and_what_its_weights_are_for(capsys):
    assert run("info") is None
    text = capsys.readouterr().out
    assert f"morphzoo {mz.__version__}" in text
    assert "cpu: " in text
    for bundle in all_bundles():
        assert bundle.name in text
        for path in (bundle / "models").glob("*.pt"):
            assert f"{bundle.name}/{path.name}" in text


def test_info_tells_millimetres_of_weights_that_know_them(capsys):
    assert run("info") is None
    told = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if ".pt " in line}
    for bundle in all_bundles():
        for path in (bundle / "models").glob("*.pt"):
            in_pixels = abilities(bundle).get("input") == "series"
            assert (" mm" in told[f"{bundle.name}/{path.name}"]) is not in_pixels


def test_json_is_the_only_thing_on_the_standard_output(capsys):
    assert run("info", "voxelmorph", "--json") is None
    told = json.loads(capsys.readouterr().out)
    assert told["bundles"] == {"voxelmorph": "0.1.0"}
    assert {one["sidecar"]["spatial_dims"] for one in told["weights"]} <= {2, 3}


def test_quiet_prints_errors_alone(capsys):
    assert run("info", "--quiet") is None
    assert capsys.readouterr().out == ""
    assert os.environ["TQDM_DISABLE"] == "1"
    assert "there is no bundle" in run("info", "nothing", "--quiet")


@pytest.mark.parametrize(
    ("flag", "out", "err"), [((), "working\n", ""), (("json",), "", "working\n"), (("quiet",), "", "")]
)
def test_what_a_command_says_while_it_works_stands_aside(flag, out, err, capsys):
    with Console(**dict.fromkeys(flag, True)).aside():
        print("working")
    assert capsys.readouterr() == (out, err)


def test_verbose_shows_where_an_error_comes_from():
    with pytest.raises(ValueError, match="there is no bundle"):
        run("info", "nothing", "--verbose")


@pytest.mark.parametrize("bundle", [path.name for path in all_bundles()])
def test_cite_names_the_papers_of_a_bundle(bundle, capsys):
    assert run("cite", bundle) is None
    metadata = json.loads((REPOSITORY / "bundles" / bundle / "configs" / "metadata.json").read_text())
    text = capsys.readouterr().out
    assert all(reference in text for reference in metadata["references"])
    assert "MorphZoo" in text


def test_a_result_as_json_has_what_its_repr_shows():
    @dataclass
    class Result:
        path: Path
        numbers: dict[str, object]
        hidden: object = field(default=None, repr=False)

    value = [Result(Path("a"), {"x": np.float32(0.5), "y": float("nan"), "z": (1, True, None)})]
    assert plain(value) == [{"path": "a", "numbers": {"x": 0.5, "y": None, "z": [1, True, None]}}]


def test_completion_is_for_three_shells():
    commands = discover()
    assert "-o default" in completion("bash", commands)
    assert completion("zsh", commands).startswith("autoload")
    assert "complete -c morphzoo" in completion("fish", commands)
    with pytest.raises(ValueError, match="tcsh"):
        completion("tcsh", commands)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_commands_and_flags():
    script = completion("bash", discover())
    asked = 'COMP_WORDS=(morphzoo {}); COMP_CWORD={}; _complete-morphzoo; echo "${{COMPREPLY[@]}}"'
    for words, position, expected in (("reg", 1, "register"), ("register --aff", 2, "--affine")):
        text = f"{script}\n{asked.format(words, position)}"
        done = subprocess.run(["bash", "-c", text], capture_output=True, text=True)
        assert expected in done.stdout.split()


@pytest.mark.slow
def test_exit_codes_and_streams_of_a_process(tmp_path):
    done = morphzoo("info", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["version"] == mz.__version__
    failed = morphzoo("register", tmp_path / "none.nii.gz", tmp_path / "other.nii.gz", "--json")
    assert failed.returncode == 1
    assert failed.stdout == ""
    assert len(failed.stderr.splitlines()) == 1
    words = f"{sys.executable} -m custom_components info | head -1"
    piped = subprocess.run(["bash", "-c", words], capture_output=True, text=True, cwd=REPOSITORY)
    assert piped.stderr == ""
