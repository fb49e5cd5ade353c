"""One chunk of a build: reads and checks its images, writes them into a tar file, and a row for each input."""

from __future__ import annotations

import errno
import gc
import os
from collections import Counter
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

import pyarrow as pa

from data_prep.check import Encoding, Limits, RejectionError, check_image
from data_prep.mean import SPLIT, PixelSums
from data_prep.sources import Reader
from data_prep.tar import TarWriter
from data_prep.work import CHUNK_SCHEMA, Work, tar_size
from twostage.data.schema import EXTENSIONS, SPLITS, InputError, write_table

TRAINING: Final = SPLITS.index(SPLIT)
_EXTENSIONS = {name: b"." + extension.encode() for name, extension in EXTENSIONS.items()}


@dataclass(frozen=True, kw_only=True)
class Task:
    """What all chunks of a build have in common."""

    work: Work
    reader: Reader
    limits: Limits
    encoding: Encoding | None


@dataclass(frozen=True, kw_only=True)
class ChunkResult:
    """What came of a chunk."""

    chunk: int
    num_accepted: int
    rejected: Counter[str]
    """number of inputs by reason"""
    num_bytes: int
    """size of the tar file"""

    @classmethod
    def of(cls, chunk: int, rows: pa.Table) -> ChunkResult:
        """From a chunk's rows."""
        reasons = Counter(rows["reason"].drop_null().to_pylist())
        accepted = rows.num_rows - reasons.total()
        return cls(chunk=chunk, num_accepted=accepted, rejected=reasons, num_bytes=tar_size(rows))


def write_chunk(task: Task, chunk: int) -> ChunkResult:
    """Writes a chunk's tar file, then its rows; what is there already is written anew.

    Members get the names that they have if no image before them is rejected.

    Raises:
        InputError: rows are there already, and these are others: the source was changed.
        OSError: the machine failed: no space, no memory, the source's file system is gone.
    """
    work = task.work
    positions = work.positions(chunk)
    places = work.inputs["place"].take(pa.array(positions)).to_pylist()
    splits = work.inputs["split"].take(pa.array(positions)).to_pylist()
    sums = None if work.mean_size is None else PixelSums(work.mean_size)
    found: list[tuple[Any, ...]] = []       # rows of CHUNK_SCHEMA, but for the position
    with TarWriter(work.tar_path(chunk)) as tar:
        index = work.chunk_start(chunk)
        for place, split in zip(places, splits, strict=True):
            try:
                found.append(_accept(task, place, tar, index, sums if split == TRAINING else None))
                index += 1
            except RejectionError as error:
                found.append((error.reason, error.detail, *[None] * 6, *task.reader.stamp(place)))
    rows = pa.table([pa.array(positions), *zip(*found, strict=True)], schema=CHUNK_SCHEMA)
    if index == work.chunk_start(chunk):
        work.tar_path(chunk).unlink()
    old = work.read_rows(chunk)
    if old is not None and not rows.equals(old):
        work.tar_path(chunk).unlink(missing_ok=True)
        raise InputError(_difference(work, old, rows))
    if sums is not None:
        write_table(work.sums_path(chunk), sums.table())
    if old is None:
        write_table(work.rows_path(chunk), rows)
    return ChunkResult.of(chunk, rows)


def _accept(task: Task, place: bytes, tar: TarWriter, index: int, sums: PixelSums | None) -> tuple[Any, ...]:
    """Reads, checks and adds one image; returns its row without the position."""
    try:
        data, stamp = task.reader.read(place, task.limits.max_bytes)
        image = check_image(data, task.limits, task.encoding, sums)
    except MemoryError as error:
        text = "out of memory; try again with fewer --workers or a smaller --max-pixels; at"
        raise OSError(errno.ENOMEM, text, os.fsdecode(place)) from error
    offset = tar.add(b"%09d" % index + _EXTENSIONS[image.image_format], image.data)
    digest = sha256(image.data).digest()
    return (None, None, offset, len(image.data), image.width, image.height, image.image_format, digest, *stamp)


def _difference(work: Work, old: pa.Table, new: pa.Table) -> str:
    for before, after in zip(old.to_pylist(), new.to_pylist(), strict=True):
        if before != after:
            names = [name for name in after if before[name] != after[name]]
            key = work.inputs["key"][after["position"]].as_py()
            return (
                f"the source was changed since {work.out} was begun: {key!r} has another {', '.join(names)}. Restore "
                f"it, or remove {work.out} to begin anew"
            )
    raise AssertionError("equal tables")


_task: Task | None = None           # of this process


def start_worker(task: Task) -> None:
    """Prepares a process for `run_in_worker`."""
    global _task
    _task = task
    gc.freeze()             # rows are many tuples without cycles: to look through them again and again took 3 %
    gc.set_threshold(100_000)


def run_in_worker(chunk: int) -> ChunkResult:
    """Writes a chunk of the task that the process was started with."""
    assert _task is not None
    return write_chunk(_task, chunk)
