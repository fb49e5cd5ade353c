"""Ends a run in which nothing moves any more, and says where each process stands.

Whoever feeds it (`tracking.Progress`, with each step and each batch that is scored; the loader, while it decodes into
memory) is `awake`; when nobody does for `runtime.watchdog_seconds`, the process prints the stacks of all its threads
and ends with exit code 1. One process that stands still lets all others wait for it, so theirs end as well. A process
that was stopped (SIGSTOP), or whose machine was suspended, cannot look at the clock; the others on its host let it go
on, so that it prints its stacks and ends too.
With the end of a stage (`stage.finish`) it falls asleep. Imports no torch.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from twostage.runtime import failure, status

if TYPE_CHECKING:
    from twostage.runtime.world import World

GRACE: Final = 10.0     # seconds that the others have to end by themselves


class Watchdog:
    """Watches this process from a thread of its own; at most one is there."""

    def __init__(self, seconds: float, world: World, run_dir: Path) -> None:
        """Begins asleep.

        Args:
            seconds: without a sign of life after which it bites.
            run_dir: gets a `status.json` that says `failed`.
        """
        self._seconds, self._world, self._run_dir = seconds, world, run_dir
        self._fed: float | None = None
        self._store = failure.store()
        if self._store is not None:
            self._store.set(_key("place", world.rank), f"{os.uname().nodename} {os.getpid()}")
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def feed(self) -> None:
        """Says that this process moves."""
        self._fed = time.monotonic()

    def sleep(self) -> None:
        """Until it is fed again, nothing is expected."""
        self._fed = None

    def _watch(self) -> None:
        while True:
            time.sleep(min(1.0, self._seconds / 4))
            fed = self._fed
            if fed is not None and time.monotonic() - fed > self._seconds:
                break
        rank = self._world.rank
        failure.claim()                 # so that nobody takes for the reason what this process's end leads to
        print(
            f"error: rank {rank}: nothing has moved for {self._seconds:g} s (runtime.watchdog_seconds); the stacks of "
            f"all threads of process {os.getpid()} on {os.uname().nodename}:",
            file=sys.stderr,
            flush=True,
        )
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        with suppress(OSError):
            message = f"rank {rank}: nothing has moved for {self._seconds:g} s; all stacks are in the log"
            status.write(self._run_dir, "failed", "watchdog", error=message, exit_code=1)
        with suppress(RuntimeError, OSError):       # torch's own errors are RuntimeErrors
            self._wake_the_others()
        os._exit(1)

    def _wake_the_others(self) -> None:
        """Waits for the other ranks to have said where they stand; lets those on this host go on that do not."""
        if self._store is None:
            return
        self._store.set_timeout(timedelta(seconds=GRACE))
        self._store.set(_key("ended", self._world.rank), "")
        others = [rank for rank in range(self._world.size) if rank != self._world.rank]
        for end in (self._seconds / 2, GRACE):      # they began to wait up to a step later than this one
            until = time.monotonic() + min(end, GRACE)
            while time.monotonic() < until and not self._store.check([_key("ended", rank) for rank in others]):
                time.sleep(0.1)
            for rank in others:
                if not self._store.check([_key("ended", rank)]):
                    self._wake(rank)

    def _wake(self, rank: int) -> None:
        assert self._store is not None
        host, pid = self._store.get(_key("place", rank)).decode().split()
        here = host == os.uname().nodename
        with suppress(ProcessLookupError):
            if here:
                os.kill(int(pid), signal.SIGCONT)
        what = "it is let go on, if it was stopped" if here else "look there"
        place = f"rank {rank} (process {pid} on {host})"
        print(f"{place} has not said where it stands: {what}", file=sys.stderr, flush=True)


_watchdog: Watchdog | None = None


def start(seconds: float | None, world: World, run_dir: Path) -> None:
    """Begins to watch, unless `seconds` is None."""
    global _watchdog
    if _watchdog is None and seconds is not None:
        _watchdog = Watchdog(seconds, world, run_dir)


def feed() -> None:
    """Says that this process moves; from then on it is expected to."""
    if _watchdog is not None:
        _watchdog.feed()


def sleep() -> None:
    """Says that what comes now has no steps."""
    if _watchdog is not None:
        _watchdog.sleep()


def _key(name: str, rank: int) -> str:
    return f"twostage/watchdog/{name}/{rank}"
