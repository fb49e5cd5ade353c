"""Parts of a build that are at work at the same time in one folder: neither writes or removes what is another's."""

from __future__ import annotations

import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from photos import digests, write_photos

from data_prep import work as work_module
from data_prep.__main__ import main
from data_prep.sources import Input, Listing, Stamp, to_batches
from data_prep.tar import TarWriter
from data_prep.work import begin, locked
from twostage.data import schema

SETTINGS = {"rng_seed": 0, "shard_size": 4}


class Nothing:
    def read(self, place: bytes, max_bytes: int) -> tuple[bytes, Stamp]:
        raise AssertionError

    def stamp(self, place: bytes) -> Stamp:
        raise AssertionError


def listing() -> Listing:
    rows = [Input(f"{number}.jpg", b"%d" % number, 0, number % 2) for number in range(100)]
    return Listing(class_names=("a", "b"), batches=to_batches(rows), reader=Nothing())


def test_parts_of_one_process_number_do_not_share_a_list_under_way(tmp_path: Path) -> None:
    """In containers, both are number 1; here the other part begins while the first one is listing."""
    others = []

    def batches() -> Iterator[pa.RecordBatch]:
        yield from listing().batches
        others.append(begin(tmp_path, listing(), SETTINGS))
        yield from to_batches([Input("last.jpg", b"last", 0, 0)])

    with pytest.raises(schema.InputError, match=r"1 images are new: 'last\.jpg'"):
        begin(tmp_path, replace(listing(), batches=batches()), SETTINGS)
    assert others[0].inputs["key"].to_pylist() == [f"{number}.jpg" for number in range(100)]
    again = begin(tmp_path, listing(), SETTINGS)
    assert again.inputs.equals(others[0].inputs) and not list(tmp_path.rglob("*.tmp"))


def test_one_part_only_writes_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that begins between the list and the plan of another one waits, and leaves both as they are."""
    started: list[threading.Thread] = []
    found: list[int] = []

    def write(path: Path, value: Any) -> None:
        if not started:
            found.append((path.parent / "inputs.arrow").stat().st_ino)
            started.append(threading.Thread(target=begin, args=(tmp_path, listing(), SETTINGS)))
            started[0].start()
            started[0].join(0.5)
        schema.write_json(path, value)

    monkeypatch.setattr(work_module, "write_json", write)
    first = begin(tmp_path, listing(), SETTINGS)
    started[0].join()
    assert (tmp_path / ".build" / "inputs.arrow").stat().st_ino == found[0]
    assert len(first.inputs) == 100


def test_two_writers_of_one_file_do_not_mix_their_bytes(tmp_path: Path) -> None:
    path = tmp_path / "000000.tar"
    with TarWriter(path) as one:
        one.add(b"1.jpg", bytes(300_000))
        with TarWriter(path) as other:
            other.add(b"2.jpg", b"other")
        with tarfile.open(path) as archive:
            assert archive.getnames() == ["2.jpg"]
        one.add(b"3.jpg", b"more")
    with tarfile.open(path) as archive:
        assert archive.getnames() == ["1.jpg", "3.jpg"]
    table = tmp_path / "t"
    with schema.table_writer(table, schema.LABELS_SCHEMA), schema.table_writer(table, schema.MEAN_SCHEMA):
        assert len(list(tmp_path.glob(".t.*.tmp"))) == 2
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["000000.tar", "t"]


def build(source: Path, out: Path, *options: str) -> int:
    return main(["build", str(source), str(out), "--format", "folder", "--workers", "1", *options])


def test_what_dead_parts_left_behind_is_removed(tmp_path: Path) -> None:
    write_photos(tmp_path / "s", num=20, broken=False)
    assert build(tmp_path / "s", tmp_path / "whole") == 0
    for part in ("1/2", "2/2"):
        for name in ("inputs.arrow", "plan.json", "000000.tar", "000000.parquet"):
            left = schema.aside_path(tmp_path / "o" / ".build" / name)
            left.parent.mkdir(parents=True, exist_ok=True)
            left.write_bytes(b"half")
        assert build(tmp_path / "s", tmp_path / "o", "--part", part) == 0
    assert main(["merge", str(tmp_path / "o")]) == 0
    assert not list((tmp_path / "o").rglob("*.tmp")) and digests(tmp_path / "o") == digests(tmp_path / "whole")


def test_a_part_that_is_refused_leaves_the_locks_of_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_photos(tmp_path / "s", num=20, broken=False)
    for name in ("cat", "dog"):
        (tmp_path / "empty" / name).mkdir(parents=True)
    out = tmp_path / "o"
    with locked(out / ".build", "part-1-of-2"):         # which is still listing its inputs
        assert build(tmp_path / "empty", out, "--part", "2/2") == 2
        assert "SOURCE has no image" in capsys.readouterr().err
        for part in ((), ("--part", "1/2")):
            assert build(tmp_path / "s", out, *part) == 2
            assert "is at work in" in capsys.readouterr().err
        assert build(tmp_path / "s", out, "--part", "2/2") == 0
    assert build(tmp_path / "s", out) == 0
