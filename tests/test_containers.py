"""The recipes of containers install what the package says, as `make wheel` does."""

from __future__ import annotations

import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def test_containers_leave_out_nothing_that_the_package_needs():
    left_out = (REPOSITORY / ".dockerignore").read_text().split()
    assert not {"bundles", "custom_components", "data_lists", "setup.py", "LICENSE", "constraints-cpu.txt"} & set(
        left_out
    )
    assert {".git", "tests", "benchmarks"} <= set(left_out)


def test_both_recipes_have_the_same_steps():
    docker, apptainer = ((REPOSITORY / name).read_text() for name in ("Dockerfile", "apptainer.def"))
    assert re.search(r"^FROM (\S+)", docker, re.MULTILINE)[1] == re.search(r"^From: (\S+)", apptainer, re.MULTILINE)[1]
    for step in ('"/source[demo]"', "--no-cache-dir", "morphzoo info", "constraints-cpu.txt"):
        assert step in docker
        assert step in apptainer
    assert 'ENTRYPOINT ["morphzoo"]' in docker
