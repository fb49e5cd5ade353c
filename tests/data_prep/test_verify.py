"""Every kind of damage is found and named, and nothing else is reported."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_dataset import write_dataset, write_samples, write_shard

from data_prep import noise, verify
from twostage.data import schema

Found = tuple[str, int | None, str]      # file, sample, a part of the problem


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 samples in 3 shards, labels `given`, `noisy` made from it, `twice` made from that."""
    dataset = write_dataset(tmp_path_factory.mktemp("verify") / "intact")
    parser = argparse.ArgumentParser()
    noise.add_arguments(parser)
    for name, parent in (("noisy", "given"), ("twice", "noisy")):
        noise.main(parser.parse_args([str(dataset), "--name", name, "--from", parent, "--kind", "symmetric", "--rate",
                                      "0.5", "--rng-seed", "0"]))
    return dataset


@pytest.fixture
def dataset(intact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(intact, tmp_path / "dataset"))


def run(dataset: Path, *options: str) -> int:
    parser = argparse.ArgumentParser()
    verify.add_arguments(parser)
    return verify.main(parser.parse_args([str(dataset), *options]))


def findings(dataset: Path, *options: str) -> list[dict[str, Any]]:
    report = dataset.parent / "report.json"
    code = run(dataset, "--workers", "1", "--report", str(report), *options)
    found: list[dict[str, Any]] = json.loads(report.read_text())
    assert code == (1 if found else 0)
    return found


def require(dataset: Path, expected: list[Found], *options: str) -> None:
    found = findings(dataset, *options)
    assert [(f["file"], f["index"]) for f in found] == [(file, index) for file, index, _ in expected], found
    for finding, (_, index, words) in zip(found, expected, strict=True):
        assert words in finding["problem"], finding
        assert finding["remedy"]
        if finding["file"].startswith("shards/"):
            assert finding["key"] == (None if index is None else f"photos/{index}")


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0x41
    path.write_bytes(data)


def row(dataset: Path, index: int) -> dict[str, Any]:
    result: dict[str, Any] = pq.read_table(dataset / "samples.parquet").slice(index, 1).to_pylist()[0]
    return result


def rewrite_marker(**changes: Any) -> Callable[[Path], None]:
    def damage(dataset: Path) -> None:
        marker = json.loads((dataset / "dataset.json").read_text())
        schema.write_json(dataset / "dataset.json", {**marker, **changes})
    return damage


def rewrite_samples(column: str, change: Callable[[list[Any]], None], stamp: bool = True) -> Callable[[Path], None]:
    """Changes a column of samples.parquet; with `stamp`, every digest that hangs on it is made to agree."""
    def damage(dataset: Path) -> None:
        table = pq.read_table(dataset / "samples.parquet")
        values = table[column].to_pylist()
        change(values)
        number = schema.SAMPLES_SCHEMA.get_field_index(column)
        array = pa.array(values, type=schema.SAMPLES_SCHEMA.field(column).type)
        write_samples(dataset, table.set_column(number, column, array))
        if stamp:
            samples = digest = schema.file_digest(dataset / "samples.parquet")
            rewrite_marker(samples_sha256=digest)(dataset)
            for name in ("given", "noisy", "twice"):
                rewrite_labels(name, same, parent=digest, samples_sha256=samples)(dataset)
                digest = schema.file_digest(schema.labels_path(dataset, name))
    return damage


def swap(first: int, second: int) -> Callable[[list[Any]], None]:
    def change(values: list[Any]) -> None:
        values[first], values[second] = values[second], values[first]
    return change


def put(index: int, value: Any) -> Callable[[list[Any]], None]:
    def change(values: list[Any]) -> None:
        values[index] = value
    return change


def rewrite_labels(name: str, change: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]],
                   **metadata: str) -> Callable[[Path], None]:
    def damage(dataset: Path) -> None:
        path = schema.labels_path(dataset, name)
        table = pq.read_table(path)
        index, label = change(table["index"].to_numpy().copy(), table["label"].to_numpy().copy())
        known = {k.decode(): v.decode() for k, v in table.schema.metadata.items()}
        pq.write_table(pa.table([index, label], schema=schema.LABELS_SCHEMA.with_metadata({**known, **metadata})), path)
    return damage


def same(index: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return index, label


def set_label(row: int, value: int) -> Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    def change(index: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        label[row] = value
        return index, label
    return change


def set_index(row: int, value: int) -> Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    def change(index: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        index[row] = value
        return index, label
    return change


def edit(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(dataset: Path) -> None:
        (dataset / name).write_bytes(change((dataset / name).read_bytes()))
    return damage


def remove(name: str) -> Callable[[Path], None]:
    return lambda dataset: (dataset / name).unlink()


def flip_image(index: int) -> Callable[[Path], None]:
    def damage(dataset: Path) -> None:
        sample = row(dataset, index)
        flip(dataset / "shards" / schema.shard_name(sample["shard"]), sample["offset"] + sample["size"] // 2)
    return damage


def flip_header(index: int, byte: int) -> Callable[[Path], None]:
    def damage(dataset: Path) -> None:
        sample = row(dataset, index)
        flip(dataset / "shards" / schema.shard_name(sample["shard"]), sample["offset"] - 512 + byte)
    return damage


def rewrite_shard(number: int, change: Callable[[list[tuple[str, bytes]]], None]) -> Callable[[Path], None]:
    """Writes a well-formed shard and index, with other members."""
    def damage(dataset: Path) -> None:
        rows = [r for r in pq.read_table(dataset / "samples.parquet").to_pylist() if r["shard"] == number]
        path = dataset / "shards" / schema.shard_name(number)
        data = path.read_bytes()
        names = [schema.member_name(r["index"], r["format"]) for r in rows]
        members = [(name, data[r["offset"] :][: r["size"]]) for name, r in zip(names, rows, strict=True)]
        change(members)
        write_shard(path, members)
    return damage


def after(dataset: Path, index: int) -> int:
    """Where the padded data of a sample ends in its shard."""
    sample = row(dataset, index)
    return int(sample["offset"] + sample["size"] + -sample["size"] % 512)


DAMAGES: dict[str, tuple[Callable[[Path], object], list[Found]]] = {
    "image byte": (flip_image(9), [("shards/000001.tar", 9, "bytes were changed")]),
    "padding byte": (
        lambda d: flip(d / "shards/000001.tar", after(d, 9) - 1), [("shards/000001.tar", 9, "padding")]),
    "header byte": (flip_header(9, 3), [("shards/000001.tar", 9, "000000009.jpg, there is none (bad checksum)")]),
    "header of the first": (flip_header(0, 126), [("shards/000000.tar", 0, "bad checksum")]),
    "two headers": (
        lambda d: [flip_header(9, 3)(d), flip_header(10, 0)(d)],
        [("shards/000001.tar", 9, "bad checksum"), ("shards/000001.tar", 10, "bad checksum")]),
    "end marker": (lambda d: flip(d / "shards/000001.tar", after(d, 15) + 700),
                   [("shards/000001.tar", 15, "should be zeros")]),
    "shard cut in an image": (
        lambda d: os.truncate(d / "shards/000001.tar", row(d, 12)["offset"] + 5),
        [("shards/000001.tar", 12, "the 3 samples after it are cut off")]),
    "shard cut in a header": (
        lambda d: os.truncate(d / "shards/000001.tar", row(d, 12)["offset"] - 100),
        [("shards/000001.tar", 12, "cut off")]),
    "shard cut after the last": (
        lambda d: os.truncate(d / "shards/000001.tar", after(d, 15)), [("shards/000001.tar", 15, "0 bytes are left")]),
    "empty shard": (lambda d: os.truncate(d / "shards/000001.tar", 0), [("shards/000001.tar", 8, "cut off")]),
    "missing shard": (remove("shards/000001.tar"), [("shards/000001.tar", None, "missing; it holds samples 8 to 15")]),
    "missing index": (remove("shards/000001.idx"), [("shards/000001.idx", None, "missing")]),
    "folder for a shard": (
        lambda d: [(d / "shards/000001.tar").unlink(), (d / "shards/000001.tar").mkdir()],
        [("shards/000001.tar", None, "cannot be read")]),
    "extra shard": (
        lambda d: shutil.copy(d / "shards/000001.tar", d / "shards/000003.tar"),
        [("shards/000003.tar", None, "does not belong")]),
    "extra member": (
        rewrite_shard(1, lambda m: m.append(("000000016.png", b"x"))),
        [("shards/000001.idx", None, "10 lines"), ("shards/000001.tar", 15, "another member '000000016.png'")]),
    "members swapped": (
        rewrite_shard(0, swap(1, 2)),
        [("shards/000000.idx", 1, "line 3"), ("shards/000000.idx", 2, "line 4"),
         ("shards/000000.tar", 1, "a member '000000002.webp'"), ("shards/000000.tar", 2, "a member '000000001.png'")]),
    "hostile name": (
        rewrite_shard(0, lambda m: m.__setitem__(0, ("../../outside.jpg", m[0][1]))),
        [("shards/000000.idx", 0, "outside.jpg"), ("shards/000000.tar", 0, "../../outside.jpg")]),
    "index line": (
        edit("shards/000001.idx", lambda data: data.replace(b"000000010", b"000000011")),
        [("shards/000001.idx", 10, "line 4")]),
    "index version": (
        edit("shards/000001.idx", lambda data: data.replace(b"v1.2", b"v1.1")),
        [("shards/000001.idx", None, "line 1 is 'v1.1 8', it should be 'v1.2 8'")]),
    "index cut": (
        edit("shards/000001.idx", lambda data: data[: data.rindex(b"\njpg")]),
        [("shards/000001.idx", None, "8 lines")]),
    "index binary": (edit("shards/000001.idx", lambda data: b"\xff\x00"), [("shards/000001.idx", None, "1 lines")]),
    "sample.parquet gone": (remove("samples.parquet"), [("samples.parquet", None, "missing")]),
    "samples.parquet garbage": (
        edit("samples.parquet", lambda data: b"x" * 100),
        [("samples.parquet", None, "cannot be read"), ("samples.parquet", None, "is not the file")]),
    "samples.parquet other columns": (
        lambda d: pq.write_table(pa.table({"a": [1]}), d / "samples.parquet"),
        [("samples.parquet", None, "has not the columns"), ("samples.parquet", None, "is not the file")]),
    "rewritten, same content": (
        lambda d: pq.write_table(pq.read_table(d / "samples.parquet"), d / "samples.parquet", compression="none"),
        [("samples.parquet", None, "is not the file")]),
    "rows swapped": (
        rewrite_samples("index", swap(3, 5)),
        [("samples.parquet", None, "row 3 has index 5, it should be 3: row i is sample i (and 1 more such rows)")]),
    "split unknown": (rewrite_samples("split", put(4, "tset")), [("samples.parquet", None, "'tset'")]),
    "shard skipped": (
        rewrite_samples("shard", lambda v: v.__setitem__(slice(16, None), [3] * 7)),
        [("samples.parquet", None, "row 16 has shard 3")]),
    "shard negative": (rewrite_samples("shard", put(0, -1)), [("samples.parquet", None, "row 0 has shard -1")]),
    "empty value": (rewrite_samples("width", put(4, None)), [("samples.parquet", None, "width has 1 empty")]),
    "offset odd": (rewrite_samples("offset", put(4, 700)), [("samples.parquet", None, "row 4 has offset 700")]),
    "offset wrong": (rewrite_samples("offset", put(4, 512)), [("shards/000000.tar", 4, "with")]),
    "size wrong": (rewrite_samples("size", put(4, 17)), [("shards/000000.tar", 4, "17 bytes")]),
    "hash wrong": (rewrite_samples("sha256", put(4, bytes(32))), [("shards/000000.tar", 4, "says 000000000000")]),
    "width wrong": (rewrite_samples("width", put(4, 99)), [("shards/000000.tar", 4, "99 x 7")]),
    "turned by EXIF": (
        lambda d: [rewrite_samples("width", put(3, 12))(d), rewrite_samples("height", put(3, 7))(d)],
        [("shards/000000.tar", 3, "jpeg, 7 x 12 pixels")]),
    "sizes and hashes swapped, not stamped": (
        rewrite_samples("sha256", swap(1, 4), stamp=False),
        [("samples.parquet", None, "is not the file"), ("shards/000000.tar", 1, "SHA-256"),
         ("shards/000000.tar", 4, "SHA-256")]),
    "marker: samples": (rewrite_marker(num_samples=24), [("dataset.json", None, "num_samples 24")]),
    "marker: shards": (rewrite_marker(num_shards=2), [("dataset.json", None, "num_shards 2, samples.parquet has 3")]),
    "marker: split": (
        rewrite_marker(splits={"noisy_train": 12, "clean_train": 4, "val": 4, "tost": 3}),
        [("dataset.json", None, "splits: test 0, samples.parquet has 3"), ("dataset.json", None, "splits: tost 3")]),
    "marker: no splits": (
        rewrite_marker(splits=None), [("dataset.json", None, f"splits: {s}") for s in sorted(schema.SPLITS)]),
    "marker: digest": (rewrite_marker(samples_sha256="0" * 64), [("samples.parquet", None, "dataset.json says 0000")]),
    "marker: digest gone": (rewrite_marker(samples_sha256=None), [("samples.parquet", None, "dataset.json says None")]),
    "rejected.parquet gone": (remove("rejected.parquet"), [("rejected.parquet", None, "missing")]),
    "rejected.parquet garbage": (
        edit("rejected.parquet", lambda data: data[:20]), [("rejected.parquet", None, "cannot be read")]),
    "rejected.parquet other columns": (
        lambda d: pq.write_table(pa.table({"key": ["a"]}), d / "rejected.parquet"),
        [("rejected.parquet", None, "has not the columns")]),
    "label too large": (rewrite_labels("given", set_label(7, 3)), [("labels/given.parquet", 7, "label 3 is out")]),
    "label too small": (rewrite_labels("twice", set_label(7, -2)), [("labels/twice.parquet", 7, "label -2")]),
    "label index twice": (rewrite_labels("twice", set_index(7, 6)), [("labels/twice.parquet", None, "6 after 6")]),
    "label index outside": (rewrite_labels("twice", set_index(22, 23)), [("labels/twice.parquet", 23, "no such")]),
    "label valid but other": (
        rewrite_labels("given", set_label(1, 0)), [("labels/noisy.parquet", None, "was made from a file")]),
    "label parent": (
        rewrite_labels("twice", same, parent="0" * 64), [("labels/twice.parquet", None, "(SHA-256 000000000000…)")]),
    "label of other samples": (
        rewrite_labels("twice", same, samples_sha256="0" * 64),
        [("labels/twice.parquet", None, "another samples.parquet (SHA-256 000000000000…)")]),
    "label classes": (
        rewrite_labels("twice", same, num_classes="4"), [("labels/twice.parquet", None, "num_classes 4, and 3")]),
    "label metadata": (
        rewrite_labels("twice", same, class_names="cat, dog"), [("labels/twice.parquet", None, "not a label column")]),
    "label extra": (
        rewrite_labels("twice", same, extra="{'kind': 1}"), [("labels/twice.parquet", None, "not a label column")]),
    "label extra no object": (
        rewrite_labels("twice", same, extra="[1]"), [("labels/twice.parquet", None, "extra must be a JSON object")]),
    "label seed": (
        rewrite_labels("twice", same, rng_seed="four"), [("labels/twice.parquet", None, "not a label column")]),
    "label folder": (
        lambda d: (d / "labels/z.parquet").mkdir(), [("labels/z.parquet", None, "it is a folder")]),
    "label garbage": (
        edit("labels/twice.parquet", lambda data: data[:-9]), [("labels/twice.parquet", None, "not a label column")]),
    "no given labels": (
        lambda d: [(d / "labels/given.parquet").unlink(), (d / "labels/noisy.parquet").unlink(),
                   (d / "labels/twice.parquet").unlink()],
        [("labels/given.parquet", None, "missing")]),
    "parent column gone": (
        remove("labels/noisy.parquet"), [("labels/twice.parquet", None, "was made from a file that is not here")]),
}


def test_an_intact_dataset_is_well(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in dataset.rglob("*") if path.is_file()}
    (dataset / "shards" / ".000001.tar.77.tmp").write_bytes(b"left over by a crash")
    assert run(dataset, "--workers", "2") == 0
    assert "3 shards, 23 samples, 3 label columns: all is well" in capsys.readouterr().out
    assert run(dataset, "--workers", "1", "--quick") == 0
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found_and_nothing_else(dataset: Path, name: str) -> None:
    damage, expected = DAMAGES[name]
    damage(dataset)
    require(dataset, expected)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_byte_of_a_shard_is_found_where_it_is(intact: Path, tmp_path: Path, data: st.DataObject) -> None:
    dataset = tmp_path / "flipped"
    shutil.rmtree(dataset, ignore_errors=True)
    shutil.copytree(intact, dataset)
    rows = [r for r in pq.read_table(dataset / "samples.parquet").to_pylist() if r["shard"] == 2]
    path = dataset / "shards" / "000002.tar"
    position = data.draw(st.integers(0, path.stat().st_size - 1))
    owner = max(r["index"] for r in rows if r["offset"] - 512 <= position)
    if (position - row(dataset, owner)["offset"]) % 512 == 155 and position < row(dataset, owner)["offset"]:
        return               # the byte after the checksum's end: the one byte of a tar header that means nothing
    content = bytearray(path.read_bytes())
    content[position] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    found = findings(dataset)
    assert [(f["file"], f["index"]) for f in found] == [("shards/000002.tar", owner)], (position, found)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_cut_of_a_shard_is_found_once(intact: Path, tmp_path: Path, data: st.DataObject) -> None:
    dataset = tmp_path / "cut"
    shutil.rmtree(dataset, ignore_errors=True)
    shutil.copytree(intact, dataset)
    length = data.draw(st.integers(0, after(dataset, 22) + 1023))
    os.truncate(dataset / "shards" / "000002.tar", length)
    rows = [r for r in pq.read_table(dataset / "samples.parquet").to_pylist() if r["shard"] == 2]
    lost = [r["index"] for r in rows if r["offset"] + r["size"] > length]
    found = findings(dataset)
    assert [(f["file"], f["index"]) for f in found] == [("shards/000002.tar", lost[0] if lost else 22)]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_byte_of_a_table_is_survived(intact: Path, tmp_path: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["samples.parquet", "labels/given.parquet", "dataset.json", "rejected.parquet"]))
    dataset = tmp_path / "table"
    shutil.rmtree(dataset, ignore_errors=True)
    shutil.copytree(intact, dataset)
    content = bytearray((dataset / name).read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= data.draw(st.integers(1, 255))
    (dataset / name).write_bytes(content)
    try:
        found = findings(dataset)
    except schema.InputError as error:
        assert name == "dataset.json" and "dataset.json" in str(error)
        return
    if name in ("samples.parquet", "labels/given.parquet"):      # both have their digest somewhere else
        assert found


def test_quick_leaves_out_the_hashes_only(dataset: Path) -> None:
    flip_image(9)(dataset)
    require(dataset, [], "--quick")
    flip_header(11, 3)(dataset)
    rewrite_samples("width", put(4, 99))(dataset)
    require(dataset, [("shards/000000.tar", 4, "99 x 7"), ("shards/000001.tar", 11, "bad checksum")], "--quick")


def test_quick_reads_headers_that_lie_deep_in_the_file(dataset: Path) -> None:
    """A JPEG whose size comes after 200 KB of metadata."""
    def stuff(members: list[tuple[str, bytes]]) -> None:
        name, data = members[0]
        comment = b"\xff\xfe\xff\xff" + bytes(0xFFFD)
        members[0] = (name, data[:2] + 3 * comment + data[2:])
    rewrite_shard(0, stuff)(dataset)
    found = findings(dataset, "--quick")
    assert all("samples.parquet says byte" in f["problem"] for f in found)
    table = pq.read_table(dataset / "samples.parquet").to_pylist()
    lines = (dataset / "shards/000000.idx").read_text().splitlines()[1:]
    for column, position in (("offset", 1), ("size", 2)):
        rewrite_samples(column, lambda values, p=position: values.__setitem__(  # type: ignore[misc]
            slice(0, 8), [int(line.split()[p]) for line in lines]))(dataset)
    assert pq.read_table(dataset / "samples.parquet")["size"][0].as_py() > table[0]["size"] + 190_000
    require(dataset, [], "--quick")


def test_workers_and_report_format_do_not_change_what_is_found(dataset: Path) -> None:
    flip_image(1)(dataset)
    flip_image(9)(dataset)
    flip_image(20)(dataset)
    expected = findings(dataset)
    assert len(expected) == 3
    assert run(dataset, "--workers", "2", "--report", str(dataset.parent / "report.parquet")) == 1
    assert pq.read_table(dataset.parent / "report.parquet").to_pylist() == expected


def test_the_remedy_can_be_followed_without_the_work_folder_too(dataset: Path) -> None:
    (dataset / "shards/000001.tar").unlink()
    (dataset / "rejected.parquet").unlink()
    (dataset / ".build").mkdir()
    (dataset / ".build" / "plan.json").touch()
    assert all("`data_prep build` command again" in finding["remedy"] for finding in findings(dataset))
    (dataset / ".build" / "plan.json").unlink()
    found = findings(dataset)
    assert len(found) == 2 and all("build the whole dataset into a new folder" in f["remedy"] for f in found)


def test_many_findings_are_capped_in_print_but_not_in_the_report(
    dataset: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_prep.findings.MAX_PRINTED", 2)
    rewrite_samples("sha256", lambda values: values.__setitem__(slice(None), [bytes(32)] * 23))(dataset)
    assert len(findings(dataset)) == 23
    printed = capsys.readouterr().out
    assert printed.count("mend:") == 2 and "... and 21 more, in shards/000000.tar, shards/000001.tar" in printed
    assert "23 findings" in printed


def test_progress_is_plain_lines_without_a_terminal(
    dataset: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_prep.verify.LINE_EVERY", 0.0)
    run(dataset, "--workers", "1")
    captured = capsys.readouterr()
    assert "verify: 2 of 3 shards" in captured.out and "\r" not in captured.out + captured.err


def test_what_is_no_dataset_is_wrong_input(tmp_path: Path, dataset: Path) -> None:
    with pytest.raises(schema.InputError, match="not a dataset"):
        run(tmp_path / "nothing")
    (dataset / "dataset.json").unlink()
    with pytest.raises(schema.InputError, match="not complete"):
        run(dataset)
    with pytest.raises(schema.InputError, match=r"must end in \.json"):
        run(dataset, "--report", "findings.txt")
    with pytest.raises(schema.InputError, match="there is no folder"):
        run(dataset, "--report", str(tmp_path / "no" / "findings.json"))
    with pytest.raises(schema.InputError, match="--workers 0"):
        run(dataset, "--workers", "0")
