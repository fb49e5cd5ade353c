"""Opening a dataset: only a complete one that is what it was when it was completed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.data_prep.tiny_dataset import write_dataset
from twostage.data import schema
from twostage.data.dataset import Dataset
from twostage.data.schema import InputError, LabelColumn


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "d")


def test_columns_by_sample_index(path: Path) -> None:
    dataset = Dataset.open(path)
    assert len(dataset) == 23 and dataset.shard.tolist() == [0] * 8 + [1] * 8 + [2] * 7
    assert [p.name for p in dataset.shard_paths] == ["000000.tar", "000001.tar", "000002.tar"]
    for index in (0, 9, 22):
        with dataset.shard_paths[dataset.shard[index]].open("rb") as shard:
            shard.seek(int(dataset.offset[index]))
            found = shard.read(int(dataset.size[index]))
        assert found[:2] == (b"\xff\xd8", b"\x89P", b"RI")[index % 3]
    assert dataset.digest == schema.file_digest(path / "samples.parquet")


def test_splits_make_up_the_whole(path: Path) -> None:
    dataset = Dataset.open(path)
    assert dataset.split_indices("clean_train").tolist() == [3, 9, 15, 21]
    together = np.concatenate([dataset.split_indices(split) for split in schema.SPLITS])
    assert sorted(together) == list(range(23))
    with pytest.raises(InputError, match=r"has no split 'vall'; did you mean 'val'\? allowed: clean_train, "):
        dataset.split_indices("vall")


@pytest.mark.parametrize(("field", "text"), [("extra", "{'rate': 1}"), ("extra", "5"), ("rng_seed", "four")])
def test_a_label_column_whose_metadata_is_damaged_is_refused(path: Path, field: str, text: str) -> None:
    given = schema.labels_path(path, "given")
    table = pq.read_table(given)
    schema.write_table(given, table.replace_schema_metadata({**table.schema.metadata, field.encode(): text.encode()}))
    with pytest.raises(InputError, match=r"given\.parquet is not a label column of this format"):
        schema.read_labels(path, "given")


def test_a_dataset_that_is_none_unfinished_or_changed_is_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not a dataset .*data_prep build SOURCE OUT"):
        Dataset.open(tmp_path)
    marker = (path / "dataset.json").read_text()
    (path / "dataset.json").unlink()
    with pytest.raises(InputError, match=r"is not complete .* again"):
        Dataset.open(path)
    (path / "dataset.json").write_text(marker)
    with (path / "samples.parquet").open("ab") as file:
        file.write(b"x")
    with pytest.raises(InputError, match=r"samples\.parquet is not the file the dataset was completed with .* verify"):
        Dataset.open(path)
    (path / "samples.parquet").unlink()
    with pytest.raises(InputError, match=r"samples\.parquet is missing"):
        Dataset.open(path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"format": "twostage-dataset", "version": 9}', "\udcff"])
def test_a_marker_that_is_damaged_or_of_another_version_is_refused(path: Path, text: str) -> None:
    (path / "dataset.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=r"dataset\.json"):
        Dataset.open(path)


def test_a_marker_without_its_digest_is_damaged(path: Path) -> None:
    marker: dict[str, Any] = json.loads((path / "dataset.json").read_text())
    for key in ("samples_sha256", "num_shards", "splits"):
        (path / "dataset.json").write_text(json.dumps({k: v for k, v in marker.items() if k != key}))
        with pytest.raises(InputError, match=rf"dataset\.json is damaged \(no .{key}"):
            Dataset.open(path)


@pytest.mark.parametrize("index", [[0, 5, 23], [-1, 4, 5], [4, 4, 7], [9, 2, 3]], ids=["high", "low", "twice", "order"])
def test_labels_of_another_dataset_are_refused(path: Path, index: list[int]) -> None:
    column = LabelColumn(name="odd", index=np.array(index), label=np.zeros(3, np.int64), class_names=("a", "b"), how="")
    schema.write_labels(path, column)
    with pytest.raises(InputError, match=r"odd\.parquet: its samples, -?\d+ to \d+, are not increasing .* 0 to 22"):
        Dataset.open(path).labels("odd")


def test_labels_by_name(path: Path) -> None:
    dataset = Dataset.open(path)
    assert dataset.labels("given").dense(23).tolist() == [index % 3 for index in range(23)]
    assert dataset.labels_digest("given") == schema.file_digest(path / "labels" / "given.parquet")
    with pytest.raises(InputError, match=r"no label column 'givn'; did you mean 'given'"):
        dataset.labels("givn")
