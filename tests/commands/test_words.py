"""The words of a command line mean what they say, or are refused before anything happens."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import run

from custom_components.commands import discover
from custom_components.commands.words import checked, from_text

COMMANDS = discover()


def test_flags_get_their_full_names_and_values():
    words = ["register", "a", "b", "-o", "out", "-b", "avsm", "--optimize", "-5", "--affine", "--weights=--odd"]
    flags = ["--output='out'", "--bundle='avsm'", "--optimize='-5'", "--affine='True'", "--weights='--odd'"]
    assert checked(words, COMMANDS) == ["register", "'a'", "'b'", *flags]


@pytest.mark.parametrize(
    "command", [name for name in COMMANDS if name not in ("apply", "cite", "convert", "export", "info")]
)
def test_o_is_the_output_and_b_the_bundle_of_every_command(command):
    words = (
        ["x", "y"]
        if command in ("register", "optimize", "longitudinal")
        else ["x"]
        if command in ("evaluate", "tune", "prepare", "subtract", "template", "train")
        else []
    )
    if command not in ("optimize", "prepare", "subtract"):
        assert checked([command, *words, "-o", "1_0", "-b=c"], COMMANDS)[-2:] == ["--output='1_0'", "--bundle='c'"]
    assert checked([command, *words, "-o", "1_0"], COMMANDS)[-1] == "--output='1_0'"


@pytest.mark.parametrize(
    "text", ["a#b", "2024_01_01", "1e5", "$x", "@x", "%x", "a,b", "None", "True", "[1]", "~x", "-", "a\nb", "''", ""]
)
@pytest.mark.parametrize("flag", [True, False])
def test_a_path_reaches_the_command_as_it_was_typed(text, flag, monkeypatch):
    taken = {}

    def apply(transform: str, source: str, output: str, *, reference: str | None = None, **settings: object) -> None:
        taken.update(transform=transform, source=source, output=output, reference=reference, **settings)

    monkeypatch.setattr("custom_components.__main__.discover", lambda: {"apply": apply})
    assert run("apply", text, "b", *(["-o", text] if flag else [text]), "--reference", text, "--other", text) is None
    assert taken == {"transform": text, "source": "b", "output": text, "reference": text, "other": text}


def test_the_home_folder_is_meant_by_a_tilde_unless_there_is_such_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert checked(["atlas", "~/x"], COMMANDS) == ["atlas", repr(str(Path.home() / "x"))]
    (tmp_path / "~").mkdir()
    (tmp_path / "~" / "x").touch()
    assert checked(["atlas", "~/x"], COMMANDS) == ["atlas", repr("~/x")]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["apply", "t", "i", "o", "--foo", "3"], "apply has no --foo; it has --transform, --source, --output"),
        (["apply", "t", "i", "o", "more"], "apply takes TRANSFORM and SOURCE and OUTPUT, not also 'more'"),
        (["apply", "t", "i"], "apply needs OUTPUT: morphzoo apply --help"),
        (["apply", "t", "i", "o", "--transform", "u"], "--transform is given twice"),
        (["apply", "t", "i", "o", "--reference"], "--reference needs a value, --reference=VALUE"),
        (["register", "a", "b", "-o", "-odd"], "--output needs a value, --output=-odd"),
        (["register", "-odd.nii.gz", "b"], "a path that begins with - is ./-odd.nii.gz"),
        (["register", "a", "b", "--optimize", "1.5"], "--optimize: expected a whole number or 'auto', got '1.5'"),
        (["register", "a", "b", "--optimize"], "--optimize needs a number, for instance --optimize 20"),
        (["register", "a", "b", "--spacing", "wide"], "--spacing: expected a number, got 'wide'"),
        (["register", "a", "b", "-m", "c"], "-m can be --moving or --mask_moving or --mask_fixed"),
        (["registre", "a", "b"], "there is no command 'registre'; there are apply, atlas"),
        (["registre", "a", "b"], "; did you mean register?"),
    ],
)
def test_words_that_mean_nothing_are_refused_before_anything_happens(words, part, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = run(*words)
    assert message.startswith("morphzoo: error: ")
    assert part in message
    assert "\n" not in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--device", "cuda:99"], "--device: there is no 'cuda:99' on this machine"),
        (["--device", "toaster"], "--device: there is no 'toaster' on this machine"),
        (["--nothing", "3"], "synthmorph has no setting 'nothing'; there are affine, average"),
        (["--simlarity", "mi"], "synthmorph has no setting 'simlarity'; did you mean --similarity?"),
        (["--bundel", "avsm"], "synthmorph has no setting 'bundel'; did you mean --bundle?"),
        (["--bundle", "synthmorf"], "; did you mean synthmorph?"),
        (["--optimize", "-5"], "expected iterations of at least 0"),
        (["--spacing", "0"], "one positive number"),
        (["--affine", "nowhere.tfm"], "nowhere.tfm"),
        (["--labels", "3,x"], "--labels: expected whole numbers with commas between them or 'all', got '3,x'"),
        (["--report#surface", "3"], "synthmorph has no setting 'report#surface'; there are labels, picture, surfaces"),
    ],
)
def test_settings_that_mean_nothing_are_refused_before_anything_is_written(words, part, scans, tmp_path):
    message = run("register", scans[0][0], scans[1][0], "-o", tmp_path / "out", *words)
    assert part in message
    assert not (tmp_path / "out").exists()


def test_the_demo_refuses_settings_before_it_makes_subjects(tmp_path):
    assert "synthmorph has no setting 'nothing'" in run("demo", "-o", tmp_path / "out", "--nothing", "3")
    assert not (tmp_path / "out").exists()


def test_a_command_in_python_takes_python_values():
    def command(count: int, *, names: list[str] | None = None) -> object:
        return count, names

    assert from_text(command)("3") == (3, None)


def test_a_command_that_need_not_write_writes_on_the_command_line():
    def command(moving: str, output: str | None = None) -> tuple[str, str | None]:
        return moving, output

    assert command("a") == ("a", None)
    assert from_text(command)("a") == ("a", "registered")
    assert from_text(command)("a", output="b") == ("a", "b")
