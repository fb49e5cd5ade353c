"""Verifies a dataset: everything that can be wrong is found, named, and said how to mend."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from tqdm import tqdm

from data_prep.findings import (
    Finding,
    check_report_path,
    in_order,
    print_findings,
    without_work_folder,
    write_report,
)
from data_prep.verify_shards import check_shard
from data_prep.verify_tables import (
    DAMAGED,
    Samples,
    check_labels,
    check_mean,
    check_rejected,
    check_samples,
    rows_by_shard,
)
from data_prep.workers import run_in_processes
from twostage.data.schema import InputError, read_marker, shard_name

LINE_EVERY: Final = 60.0     # seconds between two lines of progress where there is no terminal
EXAMPLES: Final = """\
examples:
  python -m data_prep verify data/mnist
  python -m data_prep verify data/mnist --quick --report findings.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describes the verb's arguments."""
    parser.description = (
        "Check a whole dataset: every image's SHA-256 and header, tar headers and offsets, indices, counts, label "
        "columns. Changes nothing. Exit code 0: all is well; 1: something is wrong; 2: not a dataset."
    )
    parser.epilog = EXAMPLES
    parser.add_argument("dataset", type=Path, metavar="DATASET", help="a dataset made by `data_prep build`")
    parser.add_argument("--quick", action="store_true", help="read headers only: leaves out the images' SHA-256")
    parser.add_argument(
        "--workers",
        type=int,
        default=len(os.sched_getaffinity(0)),
        metavar="N",
        help="processes, each with one shard at a time (default: one for each core)",
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="write all findings to FILE: .json or .parquet")


def main(args: argparse.Namespace) -> int:
    """Prints all findings; returns 0 if there are none, 1 if there are."""
    if args.workers < 1:
        raise InputError(f"--workers {args.workers}: give 1 or more")
    if args.report is not None:
        check_report_path(args.report)
    marker = read_marker(args.dataset)
    samples = check_samples(args.dataset, marker)
    findings = samples.findings + check_rejected(args.dataset) + check_mean(args.dataset, marker)
    label_findings, num_columns = check_labels(args.dataset, marker, samples.num_samples if samples.usable else None)
    findings += label_findings + _unexpected_files(args.dataset, marker, samples)
    if samples.usable:
        findings += _check_shards(args.dataset, samples.shard_sizes, args.quick, args.workers)
    if not (args.dataset / ".build" / "plan.json").exists():
        findings = without_work_folder(findings)
    findings = in_order(findings)
    print_findings(findings)
    if args.report is not None:
        write_report(args.report, findings)
    count = "1 finding" if len(findings) == 1 else f"{len(findings)} findings"
    checked = f"{len(samples.shard_sizes)} shards, {samples.num_samples} samples, {num_columns} label columns"
    unread = " (without the images' SHA-256)" if args.quick else ""
    print(f"{args.dataset}: {checked}{unread}: {count if findings else 'all is well'}")
    return 1 if findings else 0


def _check_shards(dataset: Path, shard_sizes: list[int], quick: bool, workers: int) -> list[Finding]:
    """Findings of all shards, in any order."""
    findings: list[Finding] = []
    jobs = ((dataset, rows, quick) for rows in rows_by_shard(dataset, shard_sizes))
    results = run_in_processes(check_shard, jobs, min(workers, len(shard_sizes)))
    for part in _with_progress(results, len(shard_sizes)):
        findings += part
    return findings


def _with_progress(results: Iterator[list[Finding]], total: int) -> Iterator[list[Finding]]:
    """Passes the results on, with a bar on a terminal and a line now and then elsewhere."""
    bar = tqdm(total=total, desc="verify", unit="shard", disable=not sys.stderr.isatty())
    last = time.monotonic()
    found = 0
    for done, findings in enumerate(results, start=1):
        found += len(findings)
        bar.update()
        if bar.disable and time.monotonic() - last >= LINE_EVERY:
            last = time.monotonic()
            print(f"verify: {done} of {total} shards, {found} findings in them", flush=True)
        yield findings
    bar.close()


def _unexpected_files(dataset: Path, marker: dict[str, Any], samples: Samples) -> list[Finding]:
    """Files in the shards' folder that do not belong to the dataset; hidden ones are left-overs of writing aside."""
    num_shards = len(samples.shard_sizes) if samples.usable else marker.get("num_shards")
    if not isinstance(num_shards, int):
        return []
    expected = {shard_name(number) for number in range(num_shards)}
    expected |= {name.removesuffix(".tar") + ".idx" for name in expected}
    try:
        present = sorted(path.name for path in (dataset / "shards").iterdir())
    except DAMAGED:
        return []            # then each shard is missing, which is found later
    return [
        Finding(
            file=f"shards/{name}",
            problem=f"does not belong to the dataset, which has {num_shards} shards",
            remedy=f"remove shards/{name}",
        )
        for name in present
        if name not in expected and not name.startswith(".")
    ]
