"""The help says of each option what it is, its default, and gives examples that could start."""

from __future__ import annotations

import inspect
import shlex

import pytest
from page_commands import check
from support import run

from custom_components.commands import discover
from custom_components.commands.manual import TOPICS, examples, overview, page

COMMANDS = discover()
each_command = pytest.mark.parametrize("name", COMMANDS)


def test_each_command_has_one_topic():
    assert sorted(name for names in TOPICS.values() for name in names) == sorted(COMMANDS)
    lines = overview(COMMANDS).splitlines()
    assert all(any(line.startswith(f"  {name} ") for line in lines) for name in COMMANDS)


@each_command
def test_each_argument_is_explained_with_its_default(name):
    text = " ".join(page(name, COMMANDS[name]).split())
    documented = inspect.getdoc(COMMANDS[name])
    for one in inspect.signature(COMMANDS[name]).parameters.values():
        if one.kind is inspect.Parameter.VAR_KEYWORD:
            continue
        assert {f"--{one.name}", one.name.upper(), f"{one.name.upper()}..."} & {*text.replace(",", "").split()}
        assert f"{one.name}: " in documented or f"{one.name}, " in documented, one.name
        if isinstance(one.default, str | int | float) and not isinstance(one.default, bool):
            assert f"default: {one.default}" in text, one.name


@each_command
def test_its_examples_could_start(name):
    assert examples(COMMANDS[name])
    for line in examples(COMMANDS[name]):
        assert line in page(name, COMMANDS[name])
        check(shlex.split(line))


@each_command
def test_no_line_of_it_is_wider_than_a_terminal(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = page(name, COMMANDS[name]).splitlines()
    assert [line for line in lines if len(line) > 80 and "morphzoo" not in line] == []


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",), ("help",)])
def test_help_tells_of_all_commands(words, capsys):
    assert run(*words) is None
    assert "Two scans\n  register" in capsys.readouterr().out


@pytest.mark.parametrize("words", [("register", "--help"), ("register", "-h"), ("help", "register")])
def test_help_tells_of_one_command(words, capsys):
    assert run(*words) is None
    assert capsys.readouterr().out.startswith("morphzoo register MOVING FIXED [OPTIONS]\n")
