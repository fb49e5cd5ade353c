"""Reading: the bytes are the shard's, whatever is asked for in whatever order, and nothing is left open."""

from __future__ import annotations

import errno
import os
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.images import encoded, noise, write_images
from twostage.data import plan, reader
from twostage.data.dataset import Dataset
from twostage.data.reader import ReadAhead, ShardReader
from twostage.data.schema import InputError

NUM = 41


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    images = [encoded(noise(index, 3 + index % 7, 4)) for index in range(NUM)]
    return write_images(tmp_path_factory.mktemp("reader") / "d", images, per_shard=6)


@pytest.fixture(scope="module")
def members(dataset: Dataset) -> list[bytes]:
    """By Python's own tar reader."""
    found: list[bytes] = []
    for path in dataset.shard_paths:
        with tarfile.open(path) as archive:
            for member in archive.getmembers():
                file = archive.extractfile(member)
                assert file is not None and int(member.name.split(".")[0]) == len(found)
                found.append(file.read())
    return found


@pytest.fixture
def shards(dataset: Dataset) -> Iterator[ShardReader]:
    opened = ShardReader(dataset, threads=3)
    yield opened
    opened.close()


def open_shards(dataset: Dataset) -> int:
    """Descriptors of this process that point into the dataset."""
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found += dataset.path in entry.readlink().parents
        except OSError:
            continue
    return found


def test_bytes_are_those_of_the_members(shards: ShardReader, members: list[bytes]) -> None:
    @given(st.lists(st.integers(0, NUM - 1), max_size=120))
    def check(indices: list[int]) -> None:
        read = shards.read(np.array(indices, dtype=np.int64))
        assert [sample.tobytes() for sample in read] == [members[index] for index in indices]

    check()


def test_many_readers_and_few_open_files(dataset: Dataset, members: list[bytes]) -> None:
    shards = ShardReader(dataset, threads=8, max_open=2)
    rng = np.random.default_rng(0)
    asked = [rng.integers(0, NUM, 200) for _ in range(30)]
    reads = [shards.submit(indices) for indices in asked]
    for indices, read in zip(asked, reads, strict=True):
        assert [sample.tobytes() for sample in read.result()] == [members[index] for index in indices]
    assert open_shards(dataset) <= 2
    shards.close()
    assert open_shards(dataset) == 0


def test_close_ends_the_threads(dataset: Dataset) -> None:
    before = threading.active_count()
    shards = ShardReader(dataset, threads=4)
    assert threading.active_count() == before, "threads before there is anything to do"
    shards.read(np.arange(NUM).repeat(3))
    assert threading.active_count() > before
    shards.close()
    assert threading.active_count() == before


def test_a_read_that_is_cut_short_is_completed(
    shards: ShardReader, members: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: whole(fd, min(size, 7), offset))
    read = shards.read(np.arange(NUM))
    assert [sample.tobytes() for sample in read] == members


def test_a_shard_that_is_too_short_or_missing_is_named(tmp_path: Path) -> None:
    images = [encoded(noise(index, 5, 5)) for index in range(12)]
    dataset = write_images(tmp_path / "d", images, per_shard=4)
    shards = ShardReader(dataset, threads=2)
    os.truncate(dataset.shard_paths[1], int(dataset.offset[6]) + 10)
    with pytest.raises(InputError, match=r"sample 6: .*000001\.tar ends after 10 of its \d+ bytes.* verify"):
        shards.read(np.array([0, 6]))
    dataset.shard_paths[2].unlink()
    with pytest.raises(InputError, match=r"sample 9: .*000002\.tar is missing; run .* verify"):
        shards.read(np.array([9]))
    shards.advise(np.array([9]))                    # is not an error: the read that needs it says so
    assert len(shards.read(np.array([0, 1]))) == 2, "one missing shard ends all reading"
    shards.close()


def test_bytes_that_are_not_those_of_the_build_are_named(tmp_path: Path) -> None:
    images = [encoded(noise(index, 5, 5)) for index in range(12)]
    dataset = write_images(tmp_path / "d", images, per_shard=4)
    shards = ShardReader(dataset, threads=2)
    assert len(shards.read(np.array([7]))) == 1
    for index in (6, 7):
        with dataset.shard_paths[1].open("r+b") as file:
            file.seek(int(dataset.offset[index]) + 20)
            file.write(b"?")
    place = rf"sample 6: .*000001\.tar is damaged: its {len(images[6])} bytes at offset {dataset.offset[6]} are not"
    for _ in range(2):
        with pytest.raises(InputError, match=place + r".* run .* verify"):
            shards.read(np.array([4, 6]))
    (read,) = shards.read(np.array([7]))
    assert read[20] == ord("?"), "a sample is looked at once, when it is read first"
    shards.close()
    again = ShardReader(dataset, threads=2)
    with pytest.raises(InputError, match="sample 7: "):
        again.read(np.array([7]))
    again.close()


def test_a_failing_disk_is_named(shards: ShardReader, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int, size: int, offset: int) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(OSError, match=r"Input/output error: .*000000\.tar"):
        shards.read(np.array([2]))


# ------------------------------------------------------------------------------------------------------------ ahead


class Recorded(ShardReader):
    """Notes what it is asked for."""

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(dataset, threads=2)
        self.submitted: list[list[int]] = []
        self.advised: list[int] = []

    def submit(self, indices: plan.Indices) -> reader.PendingRead:
        self.submitted.append(indices.tolist())
        return super().submit(indices)

    def advise(self, indices: plan.Indices) -> None:
        self.advised += indices.tolist()
        super().advise(indices)


@pytest.mark.parametrize("first_step", [0, 4, 11])
def test_reads_depth_ahead_in_order_and_announces_all_once(
    dataset: Dataset, members: list[bytes], first_step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "READ_AHEAD", 500)
    batches = np.random.default_rng(1).integers(0, NUM, (12, 5))
    shards = Recorded(dataset)
    ahead = ReadAhead(shards, dataset, batches, first_step, depth=3)
    for step in range(first_step, 12):
        assert ahead.ready(wait=True)
        assert len(shards.submitted) == min(step + 3, 12) - first_step, "reads more or less than it should"
        number, index, data = ahead.take()
        assert number == step and index.tolist() == batches[step].tolist()
        assert [sample.tobytes() for sample in data] == [members[i] for i in batches[step]]
    assert not ahead.ready(wait=True) and not ahead.ready(wait=False)
    assert shards.submitted == batches[first_step:].tolist()
    assert shards.advised == batches[first_step:].ravel().tolist(), "announced twice, or not at all"
    shards.close()


def test_ready_does_not_wait_unless_asked(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, whole = threading.Event(), os.pread

    def slow(fd: int, size: int, offset: int) -> bytes:
        gate.wait(10)
        return whole(fd, size, offset)

    monkeypatch.setattr(os, "pread", slow)
    shards = ShardReader(dataset, threads=2)
    ahead = ReadAhead(shards, dataset, [np.arange(3)], 0, depth=2)
    assert not ahead.ready(wait=False) and ahead.ready(wait=True)
    gate.set()
    deadline = time.monotonic() + 10
    while not ahead.ready(wait=False):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert len(ahead.take()[2]) == 3
    shards.close()


def test_announcements_cover_what_is_wanted_in_pieces_that_the_kernel_takes(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, int, int]] = []

    def note(fd: int, start: int, length: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_WILLNEED and length <= 1000
        path = Path(f"/proc/self/fd/{fd}").readlink()
        told.append((dataset.shard_paths.index(path), start, start + length))

    monkeypatch.setattr(os, "posix_fadvise", note)
    monkeypatch.setattr(reader, "ADVICE", 1000)
    monkeypatch.setattr(reader, "MERGE_GAP", 900)
    wanted = np.array([40, 3, 4, 5, 3, 20, 12])
    shards = ShardReader(dataset, threads=1)
    shards.advise(wanted)
    shards.read(np.array([0]))                      # there is one thread, and it does one thing after the other
    shards.close()
    for index in wanted:
        shard, start = int(dataset.shard[index]), int(dataset.offset[index])
        end = start + int(dataset.size[index])
        covered = sum(max(0, min(end, b) - max(start, a)) for of, a, b in told if of == shard)
        assert covered == end - start
    first, last = int(dataset.offset[3]), int(dataset.offset[5] + dataset.size[5])
    together = [(0, first, first + 1000), (0, first + 1000, first + 2000), (0, first + 2000, last)]
    assert told[:3] == together and len(told) == 6, "neighbours 3, 4 and 5 are not announced together, or others are"


def test_what_is_dropped_is_not_read(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, whole, reads = threading.Event(), os.pread, []

    def slow(fd: int, size: int, offset: int) -> bytes:
        reads.append(offset)
        gate.wait(10)
        return whole(fd, size, offset)

    monkeypatch.setattr(os, "pread", slow)
    shards = ShardReader(dataset, threads=1)
    ahead = ReadAhead(shards, dataset, [np.array([number]) for number in range(10)], 0, depth=8)
    assert ahead.ready(wait=True)
    deadline = time.monotonic() + 10
    while not reads and time.monotonic() < deadline:
        time.sleep(0.001)
    ahead.cancel()
    gate.set()
    shards.read(np.array([NUM - 1]))                # there is one thread: what was not dropped would come before this
    shards.close()
    assert len(reads) == 2
