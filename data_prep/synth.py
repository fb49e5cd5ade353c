"""Made-up JPEG files in class folders, for load tests: any number of them, each of which depends on its number alone.

OUT/class_3/00012/000123453.jpg: image n belongs to class n modulo the number of classes, and no folder holds more
than a thousand files. Each file says in its comment which options it was made with.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

from PIL import Image
from tqdm import tqdm

from data_prep.canvas import Painter
from data_prep.workers import run_in_processes
from twostage.data.schema import InputError

PER_FOLDER: Final = 1000
PER_JOB: Final = 100            # images; a divisor of PER_FOLDER
LINE_EVERY: Final = 60.0        # seconds between lines of progress, where there is no terminal
SIDES: Final = (16, 4096)       # pixels
EXAMPLES: Final = """\
examples:
  python -m data_prep synth data/load --num 100000 --size 256
"""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be made."""

    out: Path
    width: int
    height: int
    classes: int
    quality: int
    rng_seed: int

    @property
    def comment(self) -> str:
        """What each file says of itself."""
        return (
            f"made up by data_prep synth --size {self.width}x{self.height} --classes {self.classes} "
            f"--quality {self.quality} --rng-seed {self.rng_seed}"
        )

    def folder(self, number: int) -> str:
        """The folder of image `number`."""
        label = f"class_{number % self.classes:0{len(str(self.classes - 1))}d}"
        return f"{self.out}/{label}/{number // self.classes // PER_FOLDER:05d}"

    def path(self, number: int) -> str:
        """The file of image `number`."""
        return f"{self.folder(number)}/{number:09d}.jpg"


class Job(NamedTuple):
    """Images of one class whose files lie side by side: numbers first, first + classes, ..., below `end`."""

    first: int
    end: int


class Done(NamedTuple):
    """What came of a job."""

    images: int
    written: int
    num_bytes: int      # of those written


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describes the verb's arguments."""
    parser.description = (
        "Make up any number of JPEG files for load tests: they compress and decode like photographs of their size. "
        "Only files that are missing are made, so the command can be run again after anything, or with a larger --num."
    )
    parser.epilog = EXAMPLES
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write, one folder per class in it")
    parser.add_argument("--num", type=int, required=True, help="number of images")
    parser.add_argument("--size", required=True, metavar="PX", help="pixels: 256 for squares, or 400x300")
    parser.add_argument("--classes", type=int, default=10, help="number of classes, in turn (%(default)s)")
    parser.add_argument("--quality", type=int, default=90, help="of the JPEG encoding, 1 to 100 (%(default)s)")
    parser.add_argument("--rng-seed", type=int, default=0, help="the same number gives the same images (%(default)s)")
    parser.add_argument(
        "--workers",
        type=int,
        default=len(os.sched_getaffinity(0)),
        metavar="N",
        help="processes (default: one for each core); the files do not depend on it",
    )
    parser.add_argument("--dry-run", action="store_true", help="check everything, write nothing")


def main(args: argparse.Namespace) -> int:
    """Makes what is missing and returns the exit code."""
    plan = _read_plan(args)
    _check_present(plan, args.num)
    if args.dry_run:
        print(f"dry run: {args.num} images of {plan.width} x {plan.height} pixels, {plan.classes} classes; {plan.out} "
              "not written")
        return 0
    start = time.monotonic()
    images = written = num_bytes = 0
    for done in _with_progress(_run(plan, args.num, args.workers), args.num):
        images, written, num_bytes = images + done.images, written + done.written, num_bytes + done.num_bytes
    seconds = time.monotonic() - start
    print(f"synth: {images} images in {plan.out}, {written} of them written now", end="")
    if written:
        per_pixel = num_bytes / written / (plan.width * plan.height)
        print(
            f" in {seconds:.1f} s ({written / seconds:.0f} images/s); {num_bytes / 1e6:.1f} MB, "
            f"{per_pixel:.3f} bytes per pixel",
            end="",
        )
    print()
    return 0


def make_images(plan: Plan, job: Job) -> Done:
    """Writes those of a job's files that are missing or empty, each aside and renamed.

    Raises:
        OSError: no space left, say; what was written stays.
    """
    folder = plan.folder(job.first)
    numbers = range(job.first, job.end, plan.classes)
    missing = [number for number in numbers if _size(plan.path(number)) == 0]
    num_bytes = 0
    if missing:
        _prepare(folder, missing)
    for number in missing:
        data = _painter(plan).jpeg(number, plan.comment.encode())
        aside = f"{folder}/.{number}.{os.getpid()}.tmp"
        with open(aside, "wb") as file:                 # noqa: PTH123  (buffered: else a full disk cuts it silently)
            file.write(data)
        os.replace(aside, plan.path(number))            # noqa: PTH105
        num_bytes += len(data)
    return Done(len(numbers), len(missing), num_bytes)


def _prepare(folder: str, missing: list[int]) -> None:
    """Makes the folder, and removes what killed processes were writing aside for the missing files."""
    os.makedirs(folder, exist_ok=True)                  # noqa: PTH103  (pathlib is slow beside one image)
    wanted = set(map(str, missing))
    for name in os.listdir(folder):                     # noqa: PTH208
        if name.startswith(".") and name.endswith(".tmp") and name.split(".")[1] in wanted:
            os.unlink(f"{folder}/{name}")               # noqa: PTH108


@lru_cache(maxsize=1)
def _painter(plan: Plan) -> Painter:
    return Painter(plan.width, plan.height, plan.quality, plan.rng_seed)


def _size(path: str) -> int:
    """Bytes of a file; 0 if there is none, or a crash of the machine has left it empty."""
    try:
        return os.stat(path).st_size                    # noqa: PTH116
    except FileNotFoundError:
        return 0


def list_jobs(num: int, classes: int) -> Iterator[Job]:
    """All jobs, in the order of their folders' numbers; together they hold each of 0..num-1 once."""
    for first_of_row in range(0, num, PER_JOB * classes):
        for label in range(classes):
            first = first_of_row + label
            if first < num:
                yield Job(first, min(num, first_of_row + PER_JOB * classes))


def _read_plan(args: argparse.Namespace) -> Plan:
    parts = args.size.lower().split("x")
    if len(parts) > 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise InputError(f"--size {args.size}: give pixels, as 256, or 400x300 (width x height)")
    width, height = int(parts[0]), int(parts[-1])
    for name, value, lowest, highest in (
        ("num", args.num, 1, 10**12),
        ("size", width, *SIDES),
        ("size", height, *SIDES),
        ("classes", args.classes, 1, 100_000),
        ("quality", args.quality, 1, 100),
        ("rng-seed", args.rng_seed, 0, 2**64 - 1),
        ("workers", args.workers, 1, 4096),
    ):
        if not lowest <= value <= highest:
            raise InputError(f"--{name} {value}: give {lowest} to {highest}")
    if args.out.exists() and not args.out.is_dir():
        raise InputError(f"{args.out} is a file: give a folder to write")
    return Plan(
        out=args.out,
        width=width,
        height=height,
        classes=args.classes,
        quality=args.quality,
        rng_seed=args.rng_seed,
    )


def _check_present(plan: Plan, num: int) -> None:
    """Refuses a folder that holds other files than those of this plan, or more of them."""
    for file in _some_files(plan.out):
        said = _comment(file)
        if said != plan.comment:
            wrong = repr(said) if said else "not made by data_prep synth"
            raise InputError(
                f"{plan.out} holds other files: {file} is {wrong}, asked for is {plan.comment!r}. "
                "Give another folder, or the same options"
            )
        if file.stem.isdigit() and int(file.stem) >= num:
            raise InputError(
                f"{plan.out} holds {file.name}, which is beyond --num {num}: give --num {int(file.stem) + 1} or more, "
                "or another folder"
            )


def _some_files(folder: Path, depth: int = 0) -> Iterator[Path]:
    """The first and the last file of each class, but hidden and empty ones, and files that lie elsewhere."""
    if not folder.exists():
        return
    found = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    found = [path for path in found if path.is_dir() or path.stat().st_size > 0]
    for path in found if depth == 0 else found[:1] + found[1:][-1:]:
        if path.is_dir():
            yield from _some_files(path, depth + 1)
        else:
            yield path


def _comment(file: Path) -> str | None:
    """What a file says of itself, or None."""
    try:
        with Image.open(file, formats=("JPEG",)) as image:
            return str(image.info["comment"].decode("ascii"))
    except (OSError, SyntaxError, KeyError, UnicodeDecodeError):
        return None


def _run(plan: Plan, num: int, workers: int) -> Iterator[Done]:
    """Does all jobs, in any order."""
    jobs = ((plan, job) for job in list_jobs(num, plan.classes))
    return run_in_processes(make_images, jobs, min(workers, -(-num // PER_JOB)))



def _with_progress(results: Iterator[Done], total: int) -> Iterator[Done]:
    """Passes the results on, with a bar on a terminal and a line now and then elsewhere."""
    last = time.monotonic()
    images = 0
    with tqdm(total=total, desc="synth", unit="image", unit_scale=True, disable=not sys.stderr.isatty()) as bar:
        for done in results:
            images += done.images
            bar.update(done.images)
            if bar.disable and time.monotonic() - last >= LINE_EVERY:
                last = time.monotonic()
                print(f"synth: {images} of {total} images", flush=True)
            yield done
