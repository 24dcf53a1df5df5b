"""Warnings that belong to a result: it can be used, but somebody should look at it first.

Any code that works on a scan or a pair calls `warn(sentence)`. Nothing is passed along for that: while a pair is loaded
and while its reporters work, `collecting` collects what was said, and the publisher keeps it with the result. There it
stands in `Registration.warnings`, in the printed summary, in metrics.json and the tables under `warnings`, and on the
cohort's page. Elsewhere (`morphzoo apply`, training) the sentence is only logged.

A warning is one line. It names the file, what was found, what was done about it, and, if there is something, what to
do. What makes a result useless is no warning: raise ValueError.
"""

from __future__ import annotations

import contextvars
import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)

_collecting: contextvars.ContextVar[list[str] | None] = contextvars.ContextVar("collecting", default=None)


def warn(sentence: str) -> None:
    """Log a warning, once in a process, and add it to the result that is being made.

    Args:
        sentence: one line; it names the file.
    """
    sentence = " ".join(sentence.split())
    _log_once(sentence)
    found = _collecting.get()
    if found is not None and sentence not in found:
        found.append(sentence)


@contextmanager
def collecting() -> Iterator[list[str]]:
    """A list of the warnings that the block gives rise to, each once.

    Those of an inner block stand in the outer one's list, too. Other threads do not add to it.
    """
    found: list[str] = []
    token = _collecting.set(found)
    try:
        yield found
    finally:
        _collecting.reset(token)
        outer = _collecting.get()
        if outer is not None:
            outer += [sentence for sentence in found if sentence not in outer]


@functools.cache
def _log_once(sentence: str) -> None:
    logger.warning("%s", sentence)
