"""Do the same for many items, in this process or on a Dask cluster, and let none of them stop the others.

Dask distributed (https://distributed.dask.org) starts the processes, hands out the items, and does again what a process
that died had not finished. Nothing of that is done here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

from tqdm import tqdm

from .checks import check_number
from .runs import sentence

if TYPE_CHECKING:
    from distributed import Client

A = TypeVar("A")
B = TypeVar("B")

_BATCH = 1000  # items that are sent at once

_KEPT = 2**32  # bytes: what is freed stays with a process, as it takes as much for the next large array at once

# Of Dask. A process has one item at a time, else it would take those along that wait for it when it dies. Others hold
# Python's lock for minutes: that is no sign of death, and the end of a process is seen at once. Without the last three,
# Linux hands out the memory of each large array of a thread anew, filled with zeros, which takes half of all time.
_SETTINGS = {
    "distributed.scheduler.worker-saturation": 1.0,
    "distributed.scheduler.worker-ttl": None,
    "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": _KEPT,
    "distributed.nanny.pre-spawn-environ.MALLOC_MMAP_THRESHOLD_": _KEPT,
    "distributed.nanny.pre-spawn-environ.MALLOC_ARENA_MAX": 1,
}

# Threads of one process share random numbers, warnings and what is printed.
_one_at_a_time = threading.Lock()


class Problem(Generic[A]):
    """Why an item failed, one sentence."""

    def __init__(self, item: A, reason: str) -> None:
        self.item, self.reason = item, reason


class Workers:
    """Those who work on items: this process, processes of this machine, or those of a cluster.

    As a context manager it keeps its processes for all calls inside of the block. They start with the first items.

    Args:
        jobs: processes on this machine, each of one thread; 1 works in this one, with its threads.
        scheduler: address of a Dask scheduler (tcp://..., tls://...), or the file that it wrote (*.json), whose workers
            do all. They need this package and the same paths; `jobs` has no meaning then.
    Raises:
        ValueError: if `jobs` is no whole number of at least 1.
    """

    def __init__(self, jobs: int = 1, scheduler: str | None = None) -> None:
        check_number("jobs", jobs, least=1, whole=True)
        self.jobs, self.scheduler = jobs, scheduler
        self._opened = contextlib.ExitStack()
        self._client: Client | None = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        self._client = None
        self._opened.close()

    def each(self, function: Callable[[A], B], items: Sequence[A], title: str = "") -> list[B | Problem[A]]:
        """What a function gives for each item, in their order, or the problem that an item had.

        Args:
            function: with what it refers to, can be pickled. A process gets it once, so what it keeps is there for the
                process's next item.
            items: what it is called with, one by one.
            title: of the progress bar, which tells the time that is left. What an item prints or logs is not shown.
        Raises:
            OSError: if the scheduler cannot be reached.
        """
        alone = self.scheduler is None and (self.jobs == 1 or len(items) < 2)
        results = _here(function, items) if alone else self._there(function, items)
        found: dict[int, B | Problem[A]] = {}
        for k, result in tqdm(results, total=len(items), desc=title, disable=not items):
            found[k] = result
        return [found[k] for k in range(len(items))]

    def _there(self, function: Callable[[A], B], items: Sequence[A]) -> Iterator[tuple[int, B | Problem[A]]]:
        from distributed import as_completed

        client = self._connected()
        # As the result of a task it goes to each process once, and Dask makes it again where one died with it.
        shared = client.submit(_same, function, pure=False)
        futures = client.map(_tried, items, function=shared, pure=False, batch_size=_BATCH)
        places = {future.key: k for k, future in enumerate(futures)}
        done = as_completed(futures, loop=client.loop, with_results=True, raise_errors=False)
        del futures  # what was taken, nobody keeps
        for future, result in done:
            k = places[future.key]
            yield k, result if future.status == "finished" else Problem(items[k], _reason(result))

    def _connected(self) -> Client:
        if self._client is None:
            from distributed import Client

            for name in ("distributed", "distributed.client"):  # their import sets a level of its own
                logging.getLogger(name).setLevel(logging.CRITICAL)
            try:
                where = {"scheduler_file" if str(self.scheduler).endswith(".json") else "address": self._where()}
                self._client = self._opened.enter_context(Client(**where, set_as_default=False))
            except (OSError, ValueError) as error:
                raise OSError(f"{self.scheduler}: no Dask scheduler can be reached there ({error})") from error
        return self._client

    def _where(self) -> object:
        """The scheduler that was named, or one of our own with its processes."""
        if self.scheduler is not None:
            return self.scheduler
        from dask import config
        from distributed import LocalCluster

        self._opened.enter_context(config.set(_SETTINGS))
        cluster = LocalCluster(
            n_workers=self.jobs,
            threads_per_worker=1,
            memory_limit=0,  # a process over Dask's limit would wait for memory that it holds itself
            dashboard_address="127.0.0.1:0",
            security=True,  # else whoever has an account on this machine could run code as us
            silence_logs=logging.CRITICAL,
            env={"ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1"},  # Dask itself sets OMP_NUM_THREADS and the like
        )
        return self._opened.enter_context(cluster)


def each(
    function: Callable[[A], B], items: Sequence[A], *, jobs: int = 1, scheduler: str | None = None, title: str = ""
) -> list[B | Problem[A]]:
    """As `Workers.each`, with workers for this call alone; arguments as those of `Workers`."""
    with Workers(jobs, scheduler) as workers:
        return workers.each(function, items, title)


def _here(function: Callable[[A], B], items: Sequence[A]) -> Iterator[tuple[int, B | Problem[A]]]:
    yield from ((k, _tried(item, function)) for k, item in enumerate(items))


def _same(function: Callable[[A], B]) -> Callable[[A], B]:
    return function


def _tried(item: A, function: Callable[[A], B]) -> B | Problem[A]:
    with _one_at_a_time, quiet():
        try:
            return function(item)
        except Exception as error:
            return Problem(item, sentence(error))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing that the block prints or logs is shown: talk would bury a progress bar. Warnings stand in the results."""
    before = logging.root.manager.disable
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


def _reason(failure: object) -> str:
    from distributed import KilledWorker

    error = failure[1] if isinstance(failure, tuple) else failure
    if isinstance(error, KilledWorker):
        return "its process died each time, as happens when memory is short: try fewer jobs"
    return sentence(error) if isinstance(error, BaseException) else str(error)
