"""How all comparisons are timed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Comparison:
    """Median seconds of two sides; a ratio below 1 means that ours is faster."""

    title: str
    ours: float
    theirs: float

    @property
    def ratio(self) -> float:
        return self.ours / self.theirs


def alternate(title: str, ours: Callable[[], object], theirs: Callable[[], object], *, rounds: int = 7) -> Comparison:
    """Runs both sides in turn, once unmeasured and then `rounds` times, so that the machine's drift hits both alike."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        for side, action in enumerate((ours, theirs)):
            started = time.perf_counter()
            action()
            if number:
                seconds[side].append(time.perf_counter() - started)
    return Comparison(title, *(statistics.median(side) for side in seconds))
