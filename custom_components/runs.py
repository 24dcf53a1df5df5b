"""How the run of a bundle starts, and how it ends on an error: with one sentence."""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from .memory import ask_for_large_pages

PACKAGE = Path(__file__).resolve().parent

# What MONAI says when a component, or an expression, of a config fails.
_COMPONENT = re.compile(r"Failed to instantiate component '([^']+)'")
_EXPRESSION = re.compile(r'Failed to evaluate \w+:\s*"\$(.+)"', re.DOTALL)


def sentence(error: BaseException) -> str:
    """One line for an error: the outermost one of its chain that our own code raised, else the innermost one.

    The latter comes with its class and, where MONAI says so, the component or expression of the config that failed.
    """
    chain = _chain(error)
    own = next(filter(_is_ours, chain), None)
    if own is not None:
        return _one_line(own)
    return f"{_place(chain)}{type(chain[-1]).__name__}: {_one_line(chain[-1])[:300]}"


@contextmanager
def unwrapped() -> Iterator[None]:
    """Let an error that our own code raised come out of the block as it is, without what MONAI raised about it."""
    try:
        yield
    except Exception as error:
        own = next(filter(_is_ours, _chain(error)), error)
        if own is error:
            raise
        raise own from None


def _chain(error: BaseException) -> list[BaseException]:
    """An error, and those that led to it."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    return chain


def start(seed: int | None = 0, *, deterministic: bool | None = None) -> None:
    """What `initialize` of every bundle does: errors become one sentence, and MONAI's random numbers get their seed.

    A process of `python -m monai.bundle` also takes large pages of memory (`memory.ask_for_large_pages`).

    Args:
        seed: a whole number, or None for other numbers in each run.
        deterministic: what a GPU may do in another way in each run. None: with a seed, cuDNN takes the same kernels.
            True: so does every other operation, those of `repeatable` in a way of their own; torch warns of one that
            has none. False: cuDNN tries which kernels are the fastest for each size, and sums are added in any order:
            last digits differ from run to run.
    Raises:
        ValueError: if the seed is neither, or `deterministic` none of them.
    """
    import torch
    from monai.utils import set_determinism  # the command line has no time for monai before it knows the command

    if _runs_a_bundle():
        ask_for_large_pages()
        _end_with_a_sentence()
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise ValueError(f"expected a seed that is a whole number, got {seed!r}")
    if deterministic is not None and not isinstance(deterministic, bool):
        raise ValueError(f"expected deterministic true or false, got {deterministic!r}")
    set_determinism(seed=seed)
    if deterministic is False:
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = False, True
    if torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # of fixed size, which torch asks for
        torch.use_deterministic_algorithms(deterministic is True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _runs_a_bundle() -> bool:
    """Whether this is `python -m monai.bundle ...`, and no notebook, server or test."""
    program = getattr(sys.modules.get("__main__"), "__spec__", None)
    return getattr(program, "name", "").startswith("monai.bundle")


def _end_with_a_sentence() -> None:
    """Let the program end with one line and exit code 1 on an error, not with a traceback.

    Errors stay as they are where the environment variable MORPHZOO_DEBUG is set.
    """
    if os.environ.get("MORPHZOO_DEBUG"):
        return
    # The engines log an error on its way out, once each.
    logging.getLogger("ignite").setLevel(logging.CRITICAL)
    sys.excepthook = _print_sentence


def _print_sentence(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.stdout.flush()
    words = "interrupted" if issubclass(kind, KeyboardInterrupt) else f"error: {sentence(error)}"
    # A progress bar may have left its line open.
    print(f"\nmorphzoo: {words}", file=sys.stderr, flush=True)


def _is_ours(error: BaseException) -> bool:
    """Whether a `raise` in our own code made the error; an operation that failed there does not count."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames or not Path(frames[-1].filename).resolve().is_relative_to(PACKAGE):
        return False
    return not frames[-1].line or frames[-1].line.startswith("raise")  # there may be no source to read


def _one_line(error: BaseException) -> str:
    # A KeyError's text is the repr of what it was given.
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return " ".join(str(text).split())


def _arguments(error: BaseException) -> str:
    """The numbers and texts that MONAI gave the component that failed, as they are written in a call."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__) if frame.f_code.co_name == "instantiate"]
    given = frames[-1].f_locals.get("kwargs", {}) if frames else {}
    plain = {name: value for name, value in given.items() if isinstance(value, bool | int | float | str)}
    return "(" + ", ".join(f"{name}={value!r}" for name, value in plain.items()) + ")" if plain else ""


def _place(chain: list[BaseException]) -> str:
    """The innermost component or expression of a config that failed, as the beginning of a sentence."""
    for one in reversed(chain):
        for pattern in (_COMPONENT, _EXPRESSION):
            found = pattern.match(str(one))
            if found and not found[1].endswith(".run()"):  # which says nothing
                words = re.sub(r"__local_refs\['([^']+)'\]", r"@\1", " ".join(found[1].split()))
                return f"{words}{_arguments(one)}: "
    return ""
