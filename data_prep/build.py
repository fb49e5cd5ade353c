"""Builds a dataset: checked images in immutable tar shards, everything else in Parquet tables."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal

from data_prep import sources
from data_prep.check import REASONS, Encoding, Limits
from data_prep.chunk import ChunkResult, Task
from data_prep.findings import ANEW
from data_prep.finish import finish_tables, identity, is_whole, missing_files
from data_prep.inputs import some, write_inputs
from data_prep.mean import MAX_SIZE
from data_prep.run import done_before, run_chunks
from data_prep.sources import Listing, Source
from data_prep.summary import Summary, printable
from data_prep.work import Plan, Work, begin, locked
from twostage.data.schema import EXTENSIONS, InputError, read_marker

MAX_BYTES: Final = 64 << 20
MAX_PIXELS: Final = 100_000_000
QUALITY: Final = 90
SMALL: Final = 128              # pixels of the shorter side, up to which the configuration for a CPU is named
# options whose value is no setting: a path, or what the plan holds
PATHS: Final = ("class_names", "image_root")
EXAMPLES: Final = """\
examples:
  python -m data_prep build photos data/photos --format folder
  python -m data_prep build photos data/photos --format folder --short-side 256 --dry-run
  python -m data_prep build labels.csv data/web --format table --short-side 256 --workers 8
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describes the verb's arguments."""
    parser.description = (
        "Make a dataset of the images in SOURCE: each one is checked, and kept byte for byte unless --short-side or "
        "--encode is given. Stopped at any moment, the same command goes on where it was; the same inputs and "
        "--rng-seed give the same bytes, with any number of workers."
    )
    parser.epilog = EXAMPLES
    parser.add_argument("source", type=Path, metavar="SOURCE", help="folder or file with the images; never changed")
    parser.add_argument("out", type=Path, metavar="OUT", help="the dataset: a new folder, or one to go on with")
    parser.add_argument("--format", required=True, help=f"what SOURCE is: {', '.join(sources.FORMATS)}; see below")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--workers", type=int, default=cores, metavar="N", help="processes (default: one a core)")
    parser.add_argument("--rng-seed", type=int, default=0, metavar="K", help="of the samples' order (%(default)s)")
    parser.add_argument(
        "--shard-size",
        type=int,
        metavar="IMAGES",
        help="images in a shard, before rejections (4096; of less than 65,536 images a sixteenth, but at least 256). A "
        "number of images and not of bytes, so that what goes where is known before anything is read",
    )
    parser.add_argument("--part", metavar="I/N", help="do one of N parts only, on one of N machines; then see merge")
    parser.add_argument("--dry-run", action="store_true", help="list the inputs, write nothing")
    group = parser.add_argument_group("checks")
    group.add_argument(
        "--check",
        choices=("full", "header"),
        default="full",
        help="decode every image, or only read its header: eight times faster, but damaged pixels pass, and one such "
        "image can end a training run (%(default)s)",
    )
    group.add_argument("--max-bytes", type=int, default=MAX_BYTES, metavar="N", help="of an image file (%(default)s)")
    group.add_argument("--max-pixels", type=int, default=MAX_PIXELS, metavar="N", help="of an image (%(default)s)")
    group = parser.add_argument_group("writing images anew (upright, RGB or gray, without metadata)")
    group.add_argument("--short-side", type=int, metavar="PX", help="reduce larger images to this; never enlarges")
    group.add_argument("--encode", choices=tuple(EXTENSIONS), help="write this format (jpeg, if --short-side is given)")
    group.add_argument("--quality", type=int, metavar="Q", help=f"1 to 100, of JPEG and WebP ({QUALITY})")
    group.add_argument(
        "--mean-size",
        type=int,
        metavar="PX",
        help="compute the mean of the training images on the way, pixel by pixel, each cut to a square and resized to "
        "PX (what --short-side says; 0: none). Images that are kept as they are must then be decoded at this size, "
        "which takes longer",
    )
    sources.add_shared_arguments(parser.add_argument_group("options of several sources"))
    for name in sources.FORMATS:
        sources.load(name).add_arguments(parser.add_argument_group(f"--format {name}"))


def main(args: argparse.Namespace) -> int:
    """Builds, or goes on building, and prints what came of it; returns the exit code."""
    source = sources.load(args.format)
    settings, limits, encoding = _settings(args, source)
    part = None if args.part is None else _part(args.part)
    _check_places(args.source, args.out)
    print(f"listing {args.source}", flush=True)
    listing = source.list_inputs(args.source, args)
    for note in listing.notes:
        print(printable(note))
    if args.dry_run:
        return _dry_run(args.out, listing)
    folder = args.out / ".build"
    if (args.out / "dataset.json").exists() and not folder.exists():
        return _compare_finished(args.out, listing, settings)
    with locked(folder, None if part is None else f"part-{part[0]}-of-{part[1]}"):
        work = begin(args.out, listing, settings)
        task = Task(work=work, reader=listing.reader, limits=limits, encoding=encoding)
        chunks = [chunk for chunk in range(work.num_chunks) if part is None or chunk % part[1] == part[0] - 1]
        work.remove_leftovers(None if part is None else chunks)
        return _build(task, chunks, args.workers, is_part=part is not None)


def _build(task: Task, chunks: list[int], workers: int, *, is_part: bool) -> int:
    work, out = task.work, task.work.out
    done = done_before(work, task.reader)
    todo = [chunk for chunk in chunks if chunk not in done]
    if not todo and is_whole(work, list(done.values())):
        print(f"{out} is complete already: {read_marker(out)['num_samples']} samples; nothing to do")
        return 0
    (out / "dataset.json").unlink(missing_ok=True)
    before = f", {len(chunks) - len(todo)} of them done before" if len(todo) < len(chunks) else ""
    print(f"{sum(len(work.positions(chunk)) for chunk in chunks)} images, {len(chunks)} shards{before}", flush=True)
    start = time.monotonic()
    results = run_chunks(task, chunks, done, workers, finish=not is_part)
    count = sum(len(work.positions(chunk)) for chunk in todo)
    seconds = time.monotonic() - start
    print(f"{count} images in {seconds:.1f} s: {count / seconds:.0f} images/s")
    if is_part:
        rejected = sum(result.rejected.total() for result in results)
        print(f"this part is done: {len(chunks)} shards, {rejected} images rejected")
        print(f"next, once all parts are: python -m data_prep merge {shlex.quote(str(out))} [FOLDERS OF OTHER PARTS]")
        return 0
    complete(work, results)
    return 0


def complete(work: Work, results: list[ChunkResult]) -> None:
    """Writes the tables of a dataset whose shards are all there, and says what it holds and what comes next.

    Raises:
        InputError: not one image was accepted.
    """
    out = work.out
    if not any(result.num_accepted for result in results):
        reasons = sum((result.rejected for result in results), Counter[str]())
        lines = "; ".join(f"{count} {reason}: {REASONS[reason]}" for reason, count in reasons.most_common())
        raise InputError(f"not one of {len(work.order)} images was accepted ({lines})")
    summary = finish_tables(work, results, command(work.plan.settings))
    print("\n".join(summary.lines()))
    if summary.leaks() and "drop_leaks" in sources.load(work.plan.settings["format"]).OPTIONS:
        print("  with --drop-leaks, and another OUT, such images are left out of training")
    name = shlex.quote(str(out))
    num_shards = sum(result.num_accepted > 0 for result in results)
    print(f"{out}: {sum(summary.split_counts().values())} samples, {num_shards} shards, {summary.num_bytes} bytes")
    print(f"next: python -m data_prep verify {name}")
    print(f"      {_training(work.plan.settings, summary.split_counts())} --data.dataset {name} --run.dir runs/first")


def _training(settings: dict[str, Any], counts: dict[str, int]) -> str:
    """The command to begin with, but for its paths."""
    if settings.get("short_side", SMALL + 1) > SMALL:
        return "python -m twostage run --config configs/photos.yaml"
    small = "python -m twostage run --config configs/photos-small.yaml"
    return small if counts["val"] else f"{small} --data.holdout=0.1"


def command(settings: dict[str, Any]) -> str:
    """The command that makes these bytes, without what does not matter to them, and without paths."""
    words = ["data_prep", "build", "SOURCE", "OUT"]
    for name, value in settings.items():
        words.append(f"--{name.replace('_', '-')}")
        if value is not True:
            words.append(str(value))
    return shlex.join(words)


def _settings(args: argparse.Namespace, source: Source) -> tuple[dict[str, Any], Limits, Encoding | None]:
    """Checks the arguments; returns those that decide over the dataset's bytes, and what is made of them."""
    for name, least in (("workers", 1), ("rng_seed", 0), ("shard_size", 1), ("max_bytes", 1), ("max_pixels", 1),
                        ("short_side", 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise InputError(f"--{name.replace('_', '-')} {value}: give {least} or more")
    for other in sources.FORMATS:
        for name in sources.load(other).OPTIONS:
            if name not in source.OPTIONS and getattr(args, name) is not None:
                raise InputError(f"--{name.replace('_', '-')} does not go with --format {args.format}")
    encoding = _encoding(args)
    settings = {"format": args.format, "rng_seed": args.rng_seed, "shard_size": args.shard_size, "check": args.check,
                "max_bytes": args.max_bytes, "max_pixels": args.max_pixels}
    if encoding is not None:
        settings["encode"] = encoding.image_format
        settings["short_side"] = encoding.short_side
        settings["quality"] = None if encoding.image_format == "png" else encoding.quality
    settings["mean_size"] = _mean_size(args)
    settings |= {name: getattr(args, name) for name in source.OPTIONS if name not in PATHS}
    if args.format == "clothing1m":         # without it a leak ends the build, so that it decides over no byte
        settings["drop_leaks"] = None
    limits = Limits(max_bytes=args.max_bytes, max_pixels=args.max_pixels, decode=args.check == "full")
    return {name: value for name, value in settings.items() if value is not None}, limits, encoding


def _encoding(args: argparse.Namespace) -> Encoding | None:
    if args.quality is not None and not 1 <= args.quality <= 100:
        raise InputError(f"--quality {args.quality}: give 1 to 100")
    if args.encode is None and args.short_side is None:
        if args.quality is not None:
            raise InputError("--quality goes with --encode or --short-side; without them images are kept as they are")
        return None
    image_format: Literal["jpeg", "png", "webp"] = args.encode or "jpeg"
    if image_format == "png" and args.quality is not None:
        raise InputError("--quality does not go with --encode png, which loses nothing")
    quality = QUALITY if args.quality is None else args.quality
    return Encoding(image_format=image_format, short_side=args.short_side, quality=quality)


def _mean_size(args: argparse.Namespace) -> int | None:
    if args.mean_size is None:
        return None if args.short_side is None else min(args.short_side, MAX_SIZE)
    if not 0 <= args.mean_size <= MAX_SIZE:
        raise InputError(f"--mean-size {args.mean_size}: give 1 to {MAX_SIZE}, or 0 for no mean image")
    if args.mean_size and args.check == "header" and args.short_side is None and args.encode is None:
        raise InputError("--mean-size needs pixels: it goes with --check full, --short-side or --encode")
    return args.mean_size or None


def _part(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise InputError(f"--part {text}: give I/N, e.g. 1/8 to 8/8 for eight parts")
    return int(match[1]), int(match[2])


def _check_places(source: Path, out: Path) -> None:
    """OUT does not lie in SOURCE."""
    inner, outer = out.resolve(), source.resolve()
    if outer.is_dir() and (inner == outer or outer in inner.parents):
        raise InputError(f"OUT {out} lies in SOURCE {source}: a second run would find its own files there")
    check_out(out)


def check_out(out: Path) -> None:
    """OUT is new, empty, or of a build.

    Raises:
        InputError: it is something else.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"OUT {out} is not a folder")
    if out.is_dir() and not (out / ".build").exists() and not (out / "dataset.json").exists():
        present = sorted(path.name for path in out.iterdir())
        if present:
            raise InputError(f"OUT {out} holds other files ({some(present)}): give a new or an empty folder")


def _dry_run(out: Path, listing: Listing) -> int:
    summary = Summary(listing.class_names)
    with TemporaryDirectory() as folder:
        write_inputs(replace(listing, batches=map(summary.add_inputs, listing.batches)), Path(folder) / "inputs.arrow")
    print("\n".join(map(printable, summary.table())))
    print(f"dry run: {out} not written")
    return 0


def _compare_finished(out: Path, listing: Listing, settings: dict[str, Any]) -> int:
    """A dataset without its work folder: by what dataset.json keeps, is it the one that would be made now?"""
    marker = read_marker(out)
    with TemporaryDirectory() as folder:
        num_inputs, digest = write_inputs(listing, Path(folder) / "inputs.arrow")
    plan = Plan.of(listing, settings, num_inputs, digest)
    found = marker.get("build")
    if found != json.loads(json.dumps(identity(plan))):
        raise InputError(
            f"{out} holds a dataset that was made otherwise (by {'; '.join(marker.get('made_by', []))}; or of other "
            f"images). Give another OUT, or remove {out} to begin anew"
        )
    if missing := missing_files(out, marker, listing.label_columns):
        raise InputError(f"{out} lacks {some(missing)}, and {ANEW}")
    print(f"{out} is complete already: {marker['num_samples']} samples; nothing to do")
    return 0
