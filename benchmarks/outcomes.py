"""Plugin of pytest: the outcome of each test as a line of the file $MORPHZOO_OUTCOMES, as soon as it is known.

    MORPHZOO_OUTCOMES=FILE python -m pytest -p benchmarks.outcomes ...

Tests that the file says have passed are passed over.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Outcomes(Path(os.environ["MORPHZOO_OUTCOMES"]), config))


class Outcomes:
    """Reads the file at the start, and adds to it."""

    def __init__(self, path: Path, config: pytest.Config) -> None:
        self.path, self.writes = path, not hasattr(config, "workerinput")  # one of several processes writes
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        known = [json.loads(line) for line in lines if line.endswith("}")]  # the last one may have been cut
        self.passed = {one["test"] for one in known if one["outcome"] == "passed"}

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        done = [item for item in items if item.nodeid in self.passed]
        config.hook.pytest_deselected(items=done)
        items[:] = [item for item in items if item.nodeid not in self.passed]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if self.writes and (report.when == "call" or report.failed or report.skipped):
            line = {"test": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 2)}
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and self.passed:
            session.exitstatus = pytest.ExitCode.OK
