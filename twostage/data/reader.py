"""Image bytes out of the shards, by (offset, size), read by a few threads ahead of need."""

from __future__ import annotations

import hashlib
import os
import resource
import threading
from collections import OrderedDict, deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

import numpy as np
import numpy.typing as npt

from twostage.data.dataset import Dataset
from twostage.data.plan import Indices
from twostage.data.schema import InputError

Bytes = npt.NDArray[np.uint8]

MERGE_GAP: Final = 128 << 10
"""bytes; wanted ranges that are nearer to each other are announced to the kernel as one"""
ADVICE: Final = 128 << 10
"""bytes of one announcement: of a longer one, Linux reads only the first `read_ahead_kb` (128 unless set otherwise)"""
MIN_SHARE: Final = 16
"""samples; fewer are not worth another thread"""
READ_AHEAD: Final = 64 << 20
"""bytes of coming samples that the kernel is told about"""


class ShardReader:
    """Reads the encoded images of a dataset.

    The first time that a sample is read, its bytes are compared with the SHA-256 that was noted when the dataset was
    built: a few damaged images in one batch can end DALI with the whole process, without a word.
    """

    def __init__(self, dataset: Dataset, threads: int, *, max_open: int | None = None) -> None:
        """Starts no thread and opens no shard yet.

        Args:
            threads: that read at the same time.
            max_open: shards that are kept open, more while they are being read; by default a quarter of what the
                process may open.
        """
        self._dataset = dataset
        self._threads = threads
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._max_open = max_open or max(1, (4096 if limit == resource.RLIM_INFINITY else limit) // 4)
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="shard-reader")
        self._digests = dataset.image_digests
        self._known = np.full(len(dataset), self._digests is None)

    def read(self, indices: Indices) -> list[Bytes]:
        """The bytes of each sample, in the order asked for; a sample may be asked for more than once.

        Raises:
            InputError: a shard is missing, or shorter than samples.parquet says, or holds other bytes.
            OSError: the storage failed; names the shard.
        """
        return self.submit(indices).result()

    def submit(self, indices: Indices) -> PendingRead:
        """Begins to read; returns at once."""
        order = np.argsort(indices)                     # index order is the order on disk
        parts = np.array_split(order, max(1, min(self._threads, len(indices) // MIN_SHARE)))
        return PendingRead(len(indices), [(part, self._pool.submit(self._read, indices[part])) for part in parts])

    def advise(self, indices: Indices) -> None:
        """Tells the kernel that these samples come soon, so that it reads them while nobody waits; returns at once.

        Neighbours are announced together: samples that are shuffled within a window of shards turn into reads in
        sequence, and samples shuffled over all shards into one small read each.
        """
        if len(indices):
            self._pool.submit(self._advise, indices)    # a missing shard is reported by the read that needs it

    def close(self) -> None:
        """Drops reads that have not begun, waits for the others, ends the threads and closes the shards."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        with self._lock:
            self._open.clear()

    def _read(self, indices: Indices) -> list[Bytes]:
        columns = (self._dataset.shard[indices], self._dataset.offset[indices], self._dataset.size[indices])
        rows = zip(indices.tolist(), *(column.tolist() for column in columns), strict=True)
        return [self._read_one(index, shard, offset, size) for index, shard, offset, size in rows]

    def _read_one(self, index: int, shard: int, offset: int, size: int) -> Bytes:
        opened, data = self._shard(shard, index), b""
        while len(data) < size:                         # a signal or a network file system may cut a read short
            try:
                more = os.pread(opened.fd, size - len(data), offset + len(data))
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(self._dataset.shard_paths[shard])) from error
            if not more:
                raise InputError(
                    f"sample {index}: {self._dataset.shard_paths[shard]} ends after {len(data)} of its {size} bytes "
                    f"at offset {offset}; {self._remedy()}"
                )
            data = data + more if data else more
        if not self._known[index]:
            self._check(index, shard, offset, data)
        return np.frombuffer(data, dtype=np.uint8)

    def _check(self, index: int, shard: int, offset: int, data: bytes) -> None:
        """Compares bytes with their SHA-256, once for each sample: 12 µs for 20 KB, while other threads go on."""
        assert self._digests is not None
        if hashlib.sha256(data).digest() != self._digests[index].tobytes():
            raise InputError(
                f"sample {index}: {self._dataset.shard_paths[shard]} is damaged: its {len(data)} bytes at offset "
                f"{offset} are not those that the dataset was built with (another SHA-256); {self._remedy()}"
            )
        self._known[index] = True

    def _shard(self, shard: int, index: int) -> _OpenShard:
        with self._lock:
            opened = self._open.get(shard)
            if opened is not None:
                self._open.move_to_end(shard)
                return opened
        path = self._dataset.shard_paths[shard]
        try:
            opened = _OpenShard(os.open(path, os.O_RDONLY))
        except FileNotFoundError as error:
            raise InputError(f"sample {index}: {path} is missing; {self._remedy()}") from error
        with self._lock:
            opened = self._open.setdefault(shard, opened)
            while len(self._open) > self._max_open:
                self._open.popitem(last=False)
        return opened

    def _advise(self, indices: Indices) -> None:
        dataset = self._dataset
        unique = np.unique(indices)                     # index order is the order on disk
        shard, start = dataset.shard[unique], dataset.offset[unique]
        end = start + dataset.size[unique]
        apart = (shard[1:] != shard[:-1]) | (start[1:] > end[:-1] + MERGE_GAP)
        first = np.flatnonzero(np.concatenate([[True], apart]))
        last = np.append(first[1:], len(unique)) - 1
        for row, stop in zip(first.tolist(), end[last].tolist(), strict=True):
            opened = self._shard(int(shard[row]), int(unique[row]))
            for position in range(int(start[row]), stop, ADVICE):
                os.posix_fadvise(opened.fd, position, min(ADVICE, stop - position), os.POSIX_FADV_WILLNEED)

    def _remedy(self) -> str:
        return f"run `python -m data_prep verify {self._dataset.path}`"


class PendingRead:
    """Reads under way."""

    def __init__(self, num_samples: int, parts: Sequence[tuple[Indices, Future[list[Bytes]]]]) -> None:
        self._num_samples = num_samples
        self._parts = parts

    def done(self) -> bool:
        """Whether `result` would return or raise at once."""
        return all(future.done() for _, future in self._parts)

    def result(self) -> list[Bytes]:
        """Waits; returns the bytes of each sample. Raises what `ShardReader.read` raises."""
        data: list[Bytes] = [np.empty(0, dtype=np.uint8)] * self._num_samples
        for slots, future in self._parts:
            for slot, sample in zip(slots.tolist(), future.result(), strict=True):
                data[slot] = sample
        return data

    def cancel(self) -> None:
        """Drops what has not begun."""
        for _, future in self._parts:
            future.cancel()


class ReadAhead:
    """Reads the bytes of a plan's coming batches, and tells the kernel of those that come later."""

    def __init__(
        self, reader: ShardReader, dataset: Dataset, plan: Indices | Sequence[Indices], first_step: int, depth: int
    ) -> None:
        """Begins nothing yet.

        Args:
            plan: (steps, b) sample indices, or one array for each step; at least one step from `first_step` on.
            depth: batches that are read ahead.
        """
        self._reader, self._plan, self._depth = reader, plan, depth
        self._reads: deque[tuple[int, Indices, PendingRead]] = deque()
        self._next = self._advised = first_step
        batch_bytes = max(1, int(dataset.size[plan[first_step]].sum()))
        self._horizon = max(2 * depth, READ_AHEAD // batch_bytes)

    def ready(self, *, wait: bool) -> bool:
        """Whether the next batch's bytes are there; where `wait`, whether there is a next batch at all."""
        self._advise()
        while len(self._reads) < self._depth and self._next < len(self._plan):
            index = np.asarray(self._plan[self._next])
            self._reads.append((self._next, index, self._reader.submit(index)))
            self._next += 1
        return bool(self._reads) and (wait or self._reads[0][2].done())

    def take(self) -> tuple[int, Indices, list[Bytes]]:
        """Step, indices and bytes of the next batch. Raises what ShardReader.read raises."""
        step, index, read = self._reads.popleft()
        return step, index, read.result()

    def cancel(self) -> None:
        """Drops what is not yet read."""
        for _, _, read in self._reads:
            read.cancel()

    def _advise(self) -> None:
        if self._advised - self._next > self._horizon // 2:
            return
        stop = min(len(self._plan), self._next + self._horizon)
        if stop > self._advised:
            self._reader.advise(np.concatenate([self._plan[step] for step in range(self._advised, stop)]))
            self._advised = stop


class _OpenShard:
    """A descriptor that is closed when the last reader lets go of it, not under one that still reads."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)
