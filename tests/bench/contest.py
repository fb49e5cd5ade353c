"""How all comparisons are timed, and what comes of it: rates of several sides, their ratios, targets beside them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias


@dataclass(frozen=True)
class Scale:
    """How long to measure: `pick(quick, full)` chooses a size by it."""

    full: bool
    rounds: int

    def pick(self, quick: int, full: int) -> int:
        return full if self.full else quick


@dataclass(frozen=True)
class Pass:
    """What a side measured itself: seconds of one round, and the most memory that its processes held, in MiB."""

    seconds: float
    mib: float | None = None


@dataclass(frozen=True)
class Missing:
    """A side that cannot be measured here."""

    why: str


Side: TypeAlias = Callable[[], object]


@dataclass(frozen=True)
class Target:
    """A bound on our rate or memory, divided by that of the best of some sides (by nothing, if there are none)."""

    text: str
    against: tuple[str, ...] = ()
    at_least: float | None = None
    at_most: float | None = None
    of: str = "rate"
    """`rate`, `mib` or `growth` (of memory, over the later half of the rounds; ours alone)"""
    ours: str | None = None
    """name of the side that is meant; the first, unless said otherwise"""


@dataclass(frozen=True)
class Contest:
    """One row of figures: several sides that did the same work."""

    title: str
    unit: str
    rates: dict[str, list[float]]
    """by side, ours first; one figure a round; more is better"""
    mib: dict[str, float] = field(default_factory=dict)
    """by side, the largest of all rounds"""
    growth: dict[str, float] = field(default_factory=dict)
    """by side, memory after the last round divided by that after half of them"""
    missing: dict[str, str] = field(default_factory=dict)
    """sides that were not measured, and why"""
    targets: tuple[Target, ...] = ()
    notes: tuple[str, ...] = ()

    def rate(self, side: str) -> float:
        """Median of the rounds."""
        return statistics.median(self.rates[side])

    def found(self, target: Target) -> float | None:
        """What the target speaks of; None where a side that it needs was not measured."""
        ours = target.ours or next(iter(self.rates), "")
        rates = {side: self.rate(side) for side in self.rates}
        values = {"rate": rates, "mib": self.mib, "growth": self.growth}[target.of]
        others = [values[side] for side in target.against if side in values]
        if ours not in values or (target.against and not others):
            return None
        best = (min if target.of == "mib" else max)(others, default=1.0)
        return values[ours] / best

    def met(self, target: Target) -> bool | None:
        """Whether the target is reached; None where that was not measured."""
        found = self.found(target)
        if found is None:
            return None
        return (target.at_least is None or found >= target.at_least) and (
            target.at_most is None or found <= target.at_most
        )

    def record(self) -> dict[str, Any]:
        """For the JSON file."""
        ours = next(iter(self.rates), None)
        sides = [
            {
                "name": side,
                "rates": rates,
                "median": self.rate(side),
                "ours_over_it": None if ours is None else self.rate(ours) / self.rate(side),
                "mib": self.mib.get(side),
                "growth": self.growth.get(side),
            }
            for side, rates in self.rates.items()
        ]
        targets = [
            {"text": target.text, "found": self.found(target), "met": self.met(target)} for target in self.targets
        ]
        return {
            "title": self.title,
            "unit": self.unit,
            "sides": sides,
            "missing": self.missing,
            "targets": targets,
            "notes": list(self.notes),
        }


def alternate(
    title: str,
    *,
    unit: str,
    amount: float,
    sides: Mapping[str, Side | Missing],
    rounds: int,
    targets: Sequence[Target] = (),
    before: Callable[[], object] | None = None,
    warm_up: bool = True,
    notes: Sequence[str] = (),
) -> Contest:
    """Runs all sides in turn, once unmeasured and then `rounds` times, so that the machine's drift hits all alike.

    Args:
        unit: of the rates, such as images/s.
        amount: how many of them one call of a side does.
        before: called before each measured call, unmeasured: drops the page cache, say.
        warm_up: whether there is an unmeasured round.
    """
    present = {name: side for name, side in sides.items() if not isinstance(side, Missing)}
    missing = {name: side.why for name, side in sides.items() if isinstance(side, Missing)}
    rates: dict[str, list[float]] = {name: [] for name in present}
    mib: dict[str, list[float]] = {name: [] for name in present}
    for number in range(-1 if warm_up else 0, rounds):
        for name, side in list(present.items()):
            if before is not None:
                before()
            started = time.perf_counter()
            try:
                result = side()
            except Failed as error:         # a peer that fails is said to have failed, and the others go on
                missing[name] = str(error)
                del present[name], rates[name]
                continue
            seconds = time.perf_counter() - started
            if isinstance(result, Pass):
                seconds = result.seconds
                if result.mib is not None:
                    mib[name].append(result.mib)
            if number >= 0:
                rates[name].append(amount / seconds)
    return Contest(
        title,
        unit,
        rates,
        mib={name: max(values) for name, values in mib.items() if values},
        growth={name: values[-1] / values[len(values) // 2] for name, values in mib.items() if values},
        missing=missing,
        targets=tuple(targets),
        notes=tuple(notes),
    )


class Failed(Exception):        # noqa: N818
    """A side that somebody else wrote ended with an error."""
