"""Shared by the tests of the experiments."""

import subprocess

import pytest


@pytest.fixture
def commands(monkeypatch):
    """The commands that would have been run."""
    seen = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: seen.append(command))
    return seen
