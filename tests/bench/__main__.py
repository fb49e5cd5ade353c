"""`make bench`: runs every comparison, prints its tables, and writes them to a JSON and a Markdown file."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

from tests.bench import (
    building,
    checkpointing,
    loading,
    mining,
    peer,
    pi_forward,
    planning,
    small_images,
    tables,
    two_processes,
)
from tests.bench.contest import Contest, Scale

Compare: TypeAlias = Callable[[Scale, Path], Iterator[Contest]]
COMPARISONS: dict[str, Compare] = {
    "build": building.compare,
    "plan": planning.compare,
    "loader": loading.compare,
    "mining": mining.compare,
    "checkpoint": checkpointing.compare,
    "pi-forward": pi_forward.compare,
    "small-images": small_images.compare,
    "two-processes": two_processes.compare,
}
ROUNDS = {False: 3, True: 7}


def main() -> None:
    """Parses the arguments and runs."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(COMPARISONS), metavar="NAME", help=", ".join(COMPARISONS))
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--quick", action="store_true", help="under 10 minutes on 2 cores (the default)")
    group.add_argument("--full", action="store_true", help="larger inputs and more rounds; about an hour")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder of the results (%(default)s)")
    parser.add_argument("--work", type=Path, help="folder for inputs, on the disk to be measured (a temporary one)")
    parser.add_argument("--install", action="store_true", help="first install the peers that do not fit our pins")
    args = parser.parse_args()
    if args.install:
        peer.install()
    run(args.only or list(COMPARISONS), Scale(args.full, ROUNDS[args.full]), args.out, args.work)


def run(names: list[str], scale: Scale, out: Path, work: Path | None = None) -> dict[str, list[Contest]]:
    """Runs some comparisons; the results are written after each contest."""
    facts = tables.surroundings()
    results: dict[str, list[Contest]] = {}
    for name in names:
        started = time.monotonic()
        print(f"\n## {name}", flush=True)
        results[name] = []
        with tempfile.TemporaryDirectory(dir=work, prefix="twostage-bench-") as folder:
            for contest in COMPARISONS[name](scale, Path(folder)):
                print("\n" + "\n".join(tables.contest_lines(contest)), flush=True)
                results[name].append(contest)
                tables.write(out, facts, results)
        print(f"\n{name}: {time.monotonic() - started:.0f} s", flush=True)
    print(f"\n{out / 'results.md'}, {out / 'results.json'}", flush=True)
    return results


if __name__ == "__main__":
    main()
