"""Puts together what several machines, or several array tasks, built in parts: one dataset, as one machine makes it."""

from __future__ import annotations

import argparse
import re
import shutil
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

from data_prep.build import check_out, complete
from data_prep.finish import is_whole
from data_prep.inputs import some
from data_prep.run import Finisher, done_before
from data_prep.work import Plan, Work, locked
from twostage.data.schema import InputError, aside_path, read_marker

LINE_EVERY: Final = 60.0                # seconds between two lines of progress
EXAMPLES: Final = """\
examples:
  python -m data_prep merge data/web                        all parts were written into one folder
  python -m data_prep merge data/web part1 part2 part3      or into one each
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describes the verb's arguments."""
    parser.description = (
        "Make one dataset of what `data_prep build --part I/N` wrote: into one OUT that all machines share, or into "
        "one folder each. The dataset is the one that a single build makes, byte for byte, if all parts were built of "
        "the same images: keys, labels and splits are compared, the images behind equal keys are not."
    )
    parser.epilog = EXAMPLES
    parser.add_argument("out", type=Path, metavar="OUT", help="the dataset, which may hold parts already")
    parser.add_argument(
        "parts", type=Path, nargs="*", metavar="FOLDER", help="OUT of other parts; copied from, and not changed"
    )
    parser.add_argument("--dry-run", action="store_true", help="say whether all parts are there, write nothing")


def main(args: argparse.Namespace) -> int:
    """Copies what OUT lacks, finishes the shards and writes the tables; returns the exit code."""
    out: Path = args.out
    if args.parts:
        check_out(out)
    for folder in args.parts or [out]:
        if not (folder / ".build" / "plan.json").exists():
            raise InputError(f"{folder} holds no part of a build: make one by `data_prep build SOURCE OUT --part I/N`")
    if args.dry_run:
        return _dry_run(out, args.parts)
    with locked(out / ".build", None):
        if not (out / ".build" / "plan.json").exists():
            for name in ("inputs.arrow", "plan.json"):
                _copy(args.parts[0] / ".build" / name, out / ".build" / name)
        work = Work(out)
        work.remove_leftovers(None)
        last = time.monotonic()
        for folder in args.parts:
            _check_same(work, folder)
            for chunk in range(work.num_chunks):
                _copy_chunk(folder, work, chunk)
                if time.monotonic() - last >= LINE_EVERY:
                    last = time.monotonic()
                    print(f"merge: copying from {folder}, shard {chunk + 1} of {work.num_chunks}", flush=True)
        done = done_before(work, None)
        _check_complete(work, done, args.parts)
        results = [done[chunk] for chunk in range(work.num_chunks)]
        if is_whole(work, results):
            print(f"{out} is complete already: {read_marker(out)['num_samples']} samples; nothing to do")
            return 0
        (out / "dataset.json").unlink(missing_ok=True)
        finisher = Finisher(work)
        try:
            for result in results:
                finisher.add(result)
            finisher.close()
        finally:
            finisher.cancel()
        complete(work, results)
    return 0


def _dry_run(out: Path, parts: Sequence[Path]) -> int:
    work = Work(out if (out / ".build" / "plan.json").exists() else parts[0])
    for folder in parts:
        _check_same(work, folder)
    folders = {work.out, *parts}
    there = {
        chunk for chunk in range(work.num_chunks)
        if any((folder / ".build" / work.rows_path(chunk).name).exists() for folder in folders)
    }
    _check_complete(work, there, parts)
    print(f"dry run: all {work.num_chunks} shards are written; {out} not changed")
    return 0


def _check_same(work: Work, folder: Path) -> None:
    """The part was made with the same arguments, of the same inputs."""
    plan = Plan.read(folder / ".build" / "plan.json")
    problems = work.plan.differences(plan)
    if not problems and plan.inputs_sha256 != work.plan.inputs_sha256:
        problems = [f"its {plan.num_inputs} inputs have other keys, labels or splits than {work.plan.num_inputs} here"]
    if problems:
        raise InputError(f"{folder} is a part of another dataset than {work.out}: {'; '.join(problems)}")


def _copy_chunk(folder: Path, work: Work, chunk: int) -> None:
    """Copies a chunk that the part has and OUT has not; rows last."""
    paths = (work.rows_path(chunk), work.tar_path(chunk), work.sums_path(chunk))
    rows, tar, sums = (folder / ".build" / path.name for path in paths)
    if sums.exists() and not work.sums_path(chunk).exists():
        _copy(sums, work.sums_path(chunk))
    if rows.exists() and not work.rows_path(chunk).exists():
        if tar.exists():                # none of a chunk without any accepted image
            _copy(tar, work.tar_path(chunk))
        _copy(rows, work.rows_path(chunk))


def _copy(source: Path, target: Path) -> None:
    aside = aside_path(target)
    try:
        shutil.copyfile(source, aside)
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)


def _check_complete(work: Work, done: Collection[int], folders: Sequence[Path]) -> None:
    """Names the parts that are missing, by the names of the parts that are there."""
    missing = [chunk for chunk in range(work.num_chunks) if chunk not in done]
    if not missing:
        return
    names = [path.name for folder in (work.out, *folders) for path in (folder / ".build").glob("part-*-of-*.lock")]
    counts = {int(match[1]) for name in names if (match := re.fullmatch(r"part-\d+-of-(\d+)\.lock", name))}
    text = f"{len(missing)} of {work.num_chunks} shards are not written"
    if len(counts) == 1:
        (count,) = counts
        parts = [f"{part}/{count}" for part in sorted({chunk % count + 1 for chunk in missing})]
        text += f": run `data_prep build` again with --part {some(parts).replace(chr(39), '')}"
    else:
        text += f" (numbers {some([str(chunk) for chunk in missing])}): run `data_prep build` again without --part"
    raise InputError(text)
