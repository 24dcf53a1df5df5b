"""Do the same for many items, in this process or in several, and let none of them stop the others."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from typing import Generic, TypeVar, cast

from tqdm import tqdm

from .runs import sentence

A = TypeVar("A")
B = TypeVar("B")

_DIED = "its process died, as happens when memory is short: try --jobs 1"

_function: Callable[..., object] | None = None  # what a process of the pool does with each item


class Problem(Generic[A]):
    """Why an item failed, one sentence."""

    def __init__(self, item: A, reason: str) -> None:
        self.item, self.reason = item, reason


def each(function: Callable[[A], B], items: Sequence[A], *, jobs: int = 1, title: str = "") -> list[B | Problem[A]]:
    """What a function gives for each item, in their order, or the problem that an item had.

    Args:
        function: with what it refers to, can be pickled if there are several jobs.
        jobs: processes, each of one thread; 1 works in this one, with its threads.
        title: of the progress bar, which tells the time that is left.
    """
    found: dict[int, B | Problem[A]] = {}
    # A process that dies takes its pool along: what is left then gets a process for each item.
    for k, result in tqdm(_results(function, items, jobs), total=len(items), desc=title, disable=not items):
        found[k] = result
    return [found[k] for k in range(len(items))]


def _results(function: Callable[[A], B], items: Sequence[A], jobs: int) -> Iterator[tuple[int, B | Problem[A]]]:
    if jobs <= 1 or len(items) < 2:
        yield from ((k, _tried(function, item)) for k, item in enumerate(items))
        return
    left = dict(enumerate(items))
    for k, result in _in_pool(function, left, min(jobs, len(items))):
        if result is not None:
            del left[k]
            yield k, result
    for k, item in left.items():
        ((_, again),) = _in_pool(function, {k: item}, 1)
        yield k, Problem(item, _DIED) if again is None else again


def _in_pool(function: Callable[[A], B], items: dict[int, A], jobs: int) -> Iterator[tuple[int, B | Problem[A] | None]]:
    """Results as they come; None for what was not finished when a process died."""
    # A forked process may inherit locks of torch and ITK; a server that has only imported them has none.
    served = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if served else "spawn")
    if served:
        context.set_forkserver_preload([type(function).__module__])
    with ProcessPoolExecutor(jobs, context, initializer=_start, initargs=(function,)) as pool:
        tasks = {pool.submit(_do, item): k for k, item in items.items()}
        for task in as_completed(tasks):
            try:
                yield tasks[task], cast("B | Problem[A]", task.result())
            except BrokenProcessPool:
                yield tasks[task], None


def _start(function: Callable[..., object]) -> None:
    global _function
    import torch

    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"
    torch.set_num_threads(1)
    _function = function
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    """A process of the pool does not outlive a run that was killed."""
    parent.join()
    os._exit(1)


def _do(item: object) -> object:
    assert _function is not None
    return _tried(_function, item)


def _tried(function: Callable[[A], B], item: A) -> B | Problem[A]:
    try:
        return function(item)
    except Exception as error:
        return Problem(item, sentence(error))
