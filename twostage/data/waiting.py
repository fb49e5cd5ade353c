"""How long training waits for images: one number that says whether data or model is the bottleneck."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class WaitMeter:
    """Adds up the time spent in `waiting()`, as a share of the wall time since the last reset."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Starts again from now."""
        self._since = time.perf_counter()
        self._waited = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The time inside counts as waiting, also when it ends in an error."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._waited += time.perf_counter() - max(start, self._since)

    @property
    def share(self) -> float:
        """Share of the wall time since the last reset, 0..1."""
        elapsed = time.perf_counter() - self._since
        return min(self._waited / elapsed, 1.0) if elapsed > 0 else 0.0
