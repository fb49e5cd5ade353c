"""Runs a function over many jobs in worker processes that end with their parent, whatever ends it."""

from __future__ import annotations

import ctypes
import errno
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, Final, TypeVar

Result = TypeVar("Result")
PR_SET_PDEATHSIG: Final = 1
WAITING: Final = 2          # jobs for each worker that are made and not yet done
PATIENCE: Final = 2.0       # seconds without a result after which the workers are looked at
PIPE: Final = 16 << 10      # bytes; of more, what a worker that dies early has not read would keep its parent for ever


def run_in_processes(
    function: Callable[..., Result],
    jobs: Iterable[tuple[Any, ...]],
    workers: int,
    initializer: Callable[..., None] | None = None,
    initargs: tuple[Any, ...] = (),
) -> Generator[Result, None, None]:
    """Yields function(*job) of all jobs as they are done, in any order; only a few jobs and results are in memory.

    With one worker, everything happens in this process. When the iterator is closed, or anything goes wrong, what is
    under way is ended and not waited for.

    Raises:
        OSError: a worker died. Also what `function` raises.
    """
    if workers <= 1:
        if initializer is not None:
            initializer(*initargs)
        for job in jobs:
            yield function(*job)
        return
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")              # Arrow's threads do not survive a fork
    arguments = pickle.dumps((initializer, initargs))
    shipped = NamedTemporaryFile(prefix="data_prep-") if len(arguments) > PIPE else None    # noqa: SIM115
    if shipped is not None:
        shipped.write(arguments)
        shipped.flush()
    start = arguments if shipped is None else shipped.name
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(start,))
    started: set[BaseProcess] = set()
    try:
        waiting: set[Future[Result]] = set()
        for job in jobs:
            with _interrupts_blocked():                         # a new process inherits it
                waiting.add(pool.submit(function, *job))
            started.update(set(multiprocessing.active_children()) - others)
            if len(waiting) >= WAITING * workers:
                done, waiting = _wait_for_one(waiting, started)
                yield from (future.result() for future in done)
        while waiting:
            done, waiting = _wait_for_one(waiting, started)
            yield from (future.result() for future in done)
    except BaseException as error:                              # a job may take long, and nobody wants its result now
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()                                 # the pool would wait for one that began as it broke
        if not isinstance(error, BrokenProcessPool):
            raise
        raise OSError(
            errno.ENOMEM, "a worker process died, probably for lack of memory; try again with fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
        if shipped is not None:
            shipped.close()


def _wait_for_one(
    waiting: set[Future[Result]], started: set[BaseProcess]
) -> tuple[set[Future[Result]], set[Future[Result]]]:
    """Splits jobs into those that are done, at least one, and the others.

    Raises:
        BrokenProcessPool: a worker died; the pool itself misses it where that happens while it starts another one.
    """
    while True:
        done, others = wait(waiting, PATIENCE, return_when=FIRST_COMPLETED)
        if done:
            return done, others
        if any(process.exitcode is not None for process in started):
            raise BrokenProcessPool("a process ended")


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Leaves Ctrl-C, which a terminal sends to all processes, to the parent: it ends its workers."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(arguments: bytes | str) -> None:
    """Begins a worker; takes pickled arguments, or the path of a file with them."""
    if sys.platform == "linux":     # at once: a worker that outlives its parent would write beside the next run's
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_end_with_parent, daemon=True).start()      # elsewhere; or the parent has ended already
    data = arguments if isinstance(arguments, bytes) else Path(arguments).read_bytes()
    initializer, initargs = pickle.loads(data)          # noqa: S301  (our own parent's)
    if initializer is not None:
        initializer(*initargs)


def _end_with_parent() -> None:
    """A worker would wait for jobs for ever after its parent was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
