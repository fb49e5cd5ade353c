"""Mining a ranking of 14 classes, from its Parquet parts to the seed set on the disk, against what others would take.

A million rows; with --full also twenty million, and a hundred million by those that need not hold them. Each side is a
process that ends after a pass, so that its memory is that of one pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.bench.contest import Contest, Failed, Scale, Side, Target, alternate
from tests.bench.mine_sides import KEPT, NUM_CLASSES
from tests.bench.peer import Peer, extra
from twostage.stage1.rank import part_schema

MODULE = "tests.bench.mine_sides"
MILLION = 1_000_000
NUM_PARTS, ROW_GROUP, CHUNK = 8, 1 << 14, 1 << 18
OURS, DUCKDB, DUCKDB2, POLARS = "ours", "DuckDB, window", "DuckDB, window over the rest", "Polars, streaming"
SCORES, ISSUES = "cleanlab, get_label_quality_scores", "cleanlab, find_label_issues"
SIDES = {     # title: side, module, whether its rows are to be ours
    OURS: ("ours", "numpy", True),
    DUCKDB: ("duckdb", "duckdb", True),
    DUCKDB2: ("duckdb-less-sorted", "duckdb", True),
    POLARS: ("polars", "polars", True),
    "pandas": ("pandas", "pandas", True),
    SCORES: ("cleanlab-scores", "cleanlab", False),
    ISSUES: ("cleanlab-issues", "cleanlab", False),
}

BOUNDED = (OURS, DUCKDB, DUCKDB2)       # in memory that does not grow with the rows


def compare(scale: Scale, folder: Path) -> Iterator[Contest]:
    """One contest for each size."""
    yield contest(folder / "million", MILLION, scale.rounds)
    if scale.full:
        yield contest(folder / "twenty", 20 * MILLION, 3)
        yield contest(folder / "hundred", 100 * MILLION, 2, BOUNDED)


def contest(folder: Path, num: int, rounds: int, titles: Sequence[str] = tuple(SIDES)) -> Contest:
    """Some tools on the same parts, which are made here."""
    write_ranking(folder / "rank", num)
    best = (DUCKDB, DUCKDB2, POLARS)
    targets = [
        Target("≥ 1 × the best of DuckDB and Polars", against=best, at_least=1),
        Target("in less memory than theirs", against=best, of="mib", at_most=1),
        Target("≥ 20 × cleanlab", against=(ISSUES,), at_least=20),
    ]
    if num == MILLION:
        targets += [Target("under 1 s", at_least=MILLION), Target("within 500 MiB", of="mib", at_most=500)]
    return alternate(
        f"mining {num:,} scored samples of {NUM_CLASSES} classes",
        unit="samples/s",
        amount=num,
        sides={
            title: extra(module) or _once(folder, side, same=same)
            for title, (side, module, same) in SIDES.items()
            if title in titles
        },
        rounds=rounds,
        warm_up=False,
        targets=targets,
    )


def _once(folder: Path, side: str, *, same: bool) -> Side:
    """One pass by a new process; its rows are compared with ours, which come first."""

    def one_pass() -> object:
        with Peer(MODULE, side, folder) as peer:
            result = peer()
        for name in KEPT if same else ():
            ours, theirs = (pq.read_table(folder / who / f"{name}.parquet") for who in ("ours", side))
            if not theirs.cast(ours.schema).equals(ours):
                raise Failed(f"{side} keeps other rows: {theirs.num_rows} instead of {ours.num_rows} in {name}")
        return result

    return one_pass


def write_ranking(rank: Path, num: int) -> None:
    """A ranking as `rank` leaves it, 39 % of the labels random; odd classes are hard and have to be filled up."""
    rank.mkdir(parents=True)
    shares = np.arange(1, NUM_CLASSES + 1).cumsum()     # the largest class is 14 times as large as the smallest
    for part in range(NUM_PARTS):
        begin, end = num * part // NUM_PARTS, num * (part + 1) // NUM_PARTS
        path = rank / f"part-{part:05d}-of-{NUM_PARTS:05d}.parquet"
        with pq.ParquetWriter(path, part_schema(NUM_CLASSES), compression="zstd") as writer:
            for start in range(begin, end, CHUNK):
                writer.write_table(_rows(start, min(end, start + CHUNK), shares / shares[-1]), row_group_size=ROW_GROUP)


def _rows(start: int, stop: int, cumulated: np.ndarray[tuple[int], np.dtype[np.float64]]) -> pa.Table:
    num, rng = stop - start, np.random.default_rng([0, start])
    clean = np.searchsorted(cumulated, rng.random(num)).clip(0, NUM_CLASSES - 1)
    label = np.where(rng.random(num) < 0.61, clean, rng.integers(0, NUM_CLASSES, num))
    predicted = np.where(rng.random(num) < 0.7, clean, label)
    rows, odd = np.arange(num), (predicted % 2 == 1).astype(np.float32)
    probs = rng.standard_gamma(0.2, (num, NUM_CLASSES), dtype=np.float32) + np.float32(1e-9)
    probs *= ((0.2 + 0.4 * odd) / probs.sum(axis=1))[:, None]
    probs[rows, predicted] += 0.8 - 0.4 * odd
    columns = [
        pa.array(np.arange(start, stop)),
        pa.array(label),
        pa.array(predicted),
        pa.array(probs[rows, label]),
        pa.FixedSizeListArray.from_arrays(pa.array(probs.reshape(-1)), NUM_CLASSES),
        pa.array(rng.random(num) < 0.1),
    ]
    return pa.Table.from_arrays(columns, schema=part_schema(NUM_CLASSES))
