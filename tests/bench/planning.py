"""Planning a pass over a million samples, and with --full over a hundred million, against what torch's samplers take.

DistributedSampler makes one process's share, an eighth; ours makes all processes' batches, on each of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from tests.bench.contest import Contest, Scale, Side, Target, alternate
from tests.bench.peer import Peer

MODULE = "tests.bench.plan_sides"
OURS = {
    "ours: classes balanced, half labeled, half unlabeled": "halves",
    "ours: shuffled": "shuffled",
    "ours: shuffled in windows of 16 of its shards": "windows",
    "ours: classes balanced": "balanced",
}
THEIRS = ("WeightedRandomSampler", "RandomSampler", "DistributedSampler")
MILLION = 1_000_000


def compare(scale: Scale, folder: Path) -> Iterator[Contest]:
    """The first of ours does the most, and is the one that is compared."""
    yield contest(MILLION, scale.rounds, warm_up=True)
    if scale.full:
        yield contest(100 * MILLION, 1, warm_up=False)


def contest(num: int, rounds: int, *, warm_up: bool) -> Contest:
    """All sides; each holds the memory that it needs until all are done."""
    targets = [Target("≥ 10 × WeightedRandomSampler", against=("WeightedRandomSampler",), at_least=10)]
    if num == MILLION:
        targets += [Target(f"{name} in under 100 ms", at_least=num / 0.1, ours=name) for name in OURS]
    with ExitStack() as stack:
        sides: dict[str, Side] = {}
        for name, side in (OURS | {name: name for name in THEIRS}).items():
            sides[name] = stack.enter_context(Peer(MODULE, side, num)) if num == MILLION else _once(side, num)
        return alternate(
            f"plan of an epoch of {num:,} samples",
            unit="samples/s",
            amount=num,
            sides=sides,
            rounds=rounds,
            targets=targets,
            warm_up=warm_up,
        )


def _once(side: str, num: int) -> Side:
    """One pass by a process that then ends, as not all of them fit into memory together."""

    def one_pass() -> object:
        with Peer(MODULE, side, num) as peer:
            return peer()

    return one_pass
