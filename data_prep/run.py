"""Runs the chunks of a build in worker processes, finishes shards as soon as they can be, and shows progress."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Final

import pyarrow as pa
from tqdm import tqdm

from data_prep.chunk import ChunkResult, Task, run_in_worker, start_worker
from data_prep.finish import Place, finish_shard
from data_prep.inputs import some
from data_prep.sources import Reader, Stamp
from data_prep.work import Work, tar_size
from data_prep.workers import run_in_processes
from twostage.data.schema import InputError

LINE_EVERY: Final = 60.0                # seconds between two lines of progress where there is no terminal
FINISHERS: Final = 4                    # threads; they wait for the disk


def done_before(work: Work, reader: Reader | None) -> dict[int, ChunkResult]:
    """The chunks that are written; with a reader, checks that the files they were made of are still the same.

    Raises:
        InputError: files were changed since they were read (names them).
    """
    results: dict[int, ChunkResult] = {}
    changed: list[str] = []
    shard: int | None = 0               # of the next chunk; None once that cannot be known
    for chunk in range(work.num_chunks):
        rows = work.read_rows(chunk)
        if rows is None:
            shard = None
            continue
        if reader is not None:
            changed += _changed(work, rows, reader)
        num_bytes = tar_size(rows)
        paths = [work.tar_path(chunk)] if shard is None else [work.tar_path(chunk), work.shard_path(shard)]
        is_there = not num_bytes or any(path.exists() and path.stat().st_size == num_bytes for path in paths)
        if is_there and (work.mean_size is None or work.sums_path(chunk).exists()):
            results[chunk] = ChunkResult.of(chunk, rows)
        if shard is not None and num_bytes:
            shard += 1
    if changed:
        raise InputError(
            f"{len(changed)} files of the source were changed since {work.out} was begun (by size or time of change): "
            f"{some(changed)}. Restore them, or remove {work.out} to begin anew"
        )
    return results


def _changed(work: Work, rows: pa.Table, reader: Reader) -> list[str]:
    """Keys of the inputs whose file is not what it was when it was read."""
    places = work.inputs["place"].take(rows["position"]).to_pylist()
    stamps = zip(rows["stamp_size"].to_pylist(), rows["stamp_mtime_ns"].to_pylist(), strict=True)
    changed = [reader.stamp(place) != Stamp(*stamp) for place, stamp in zip(places, stamps, strict=True)]
    keys: list[str] = work.inputs["key"].take(rows["position"].filter(pa.array(changed))).to_pylist()
    return keys


class Finisher:
    """Finishes shards in threads, as soon as all chunks before them are written."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._results: dict[int, ChunkResult] = {}
        self._place = Place()
        self._futures: list[Future[None]] = []
        self._pool = ThreadPoolExecutor(FINISHERS, thread_name_prefix="finish")

    def add(self, result: ChunkResult) -> None:
        """Takes a written chunk. Raises OSError if an earlier shard could not be finished."""
        self._results[result.chunk] = result
        while (ready := self._results.pop(self._place.chunk, None)) is not None:
            if ready.num_accepted and not self._is_final(ready):
                self._futures.append(self._pool.submit(finish_shard, self._work, self._place))
            self._place = self._place.after(ready)
        finished = [future for future in self._futures if future.done()]
        self._futures = [future for future in self._futures if not future.done()]
        for future in finished:
            future.result()

    def close(self) -> None:
        """Waits for all shards; raises OSError if one could not be finished."""
        self._pool.shutdown()
        for future in self._futures:
            future.result()

    def cancel(self) -> None:
        """Drops what has not begun."""
        self._pool.shutdown(cancel_futures=True)

    def _is_final(self, result: ChunkResult) -> bool:
        path = self._work.shard_path(self._place.shard)
        has_size = path.exists() and path.stat().st_size == result.num_bytes
        return has_size and path.with_suffix(".idx").exists() and not self._work.tar_path(result.chunk).exists()


def run_chunks(
    task: Task, chunks: Sequence[int], done: dict[int, ChunkResult], workers: int, finish: bool
) -> list[ChunkResult]:
    """Writes the chunks that are not done; with `finish`, shards get their final names and places on the way.

    Args:
        chunks: to be written, `done` ones among them; with `finish`, all there are.

    Returns:
        What came of `chunks`, in order.

    Raises:
        InputError: the source was changed.
        OSError: the machine failed: no space, no memory, a worker died.
    """
    results = {chunk: done[chunk] for chunk in chunks if chunk in done}
    todo = [chunk for chunk in chunks if chunk not in done]
    finisher = Finisher(task.work) if finish else None
    try:
        for result in results.values():
            if finisher is not None:
                finisher.add(result)
        jobs = [(chunk,) for chunk in todo]
        with closing(run_in_processes(run_in_worker, jobs, min(workers, len(jobs)), start_worker, (task,))) as found:
            for result in _with_progress(task.work, found, chunks, results):
                results[result.chunk] = result
                if finisher is not None:
                    finisher.add(result)
        if finisher is not None:
            finisher.close()
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise _no_space(error, task.work, results) from error
        raise
    finally:
        if finisher is not None:
            finisher.cancel()
    return [results[chunk] for chunk in chunks]


def _with_progress(
    work: Work, results: Iterator[ChunkResult], chunks: Sequence[int], done: dict[int, ChunkResult]
) -> Iterator[ChunkResult]:
    """Passes the results on, with a bar on a terminal and a line now and then elsewhere."""
    total, before = (sum(len(work.positions(chunk)) for chunk in numbers) for numbers in (chunks, done))
    rejected = sum(result.rejected.total() for result in done.values())
    begin = last = time.monotonic()
    count = before
    with tqdm(total=total, initial=before, desc="build", unit="image", disable=not sys.stderr.isatty()) as bar:
        for result in results:
            count += len(work.positions(result.chunk))
            rejected += result.rejected.total()
            bar.update(len(work.positions(result.chunk)))
            bar.set_postfix(rejected=rejected, refresh=False)
            now = time.monotonic()
            if bar.disable and now - last >= LINE_EVERY:
                last = now
                rate = (count - before) / (now - begin)
                print(f"build: {count} of {total} images, {rejected} rejected, {rate:.0f} images/s", flush=True)
            yield result


def _no_space(error: OSError, work: Work, results: dict[int, ChunkResult]) -> OSError:
    """Says how much is missing, as far as that can be told."""
    free = shutil.disk_usage(work.out).free
    text = f"{os.strerror(error.errno or errno.ENOSPC)}; {free} bytes are free"
    if results:
        written = sum(result.num_bytes for result in results.values())
        needed = written * work.num_chunks // len(results) - written
        text += f", about {needed} bytes are needed for the {work.num_chunks - len(results)} shards to come"
    text += ". Make space and run the same command again: what is written is kept"
    # Arrow's errors name no file, and their text is Arrow's own
    return OSError(error.errno, text, error.filename or str(work.out))
