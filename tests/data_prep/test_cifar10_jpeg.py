"""The JPEG version of CIFAR-10 becomes a dataset with the original labels."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from data_prep.__main__ import main
from data_prep.sources.cifar10 import CLASS_NAMES
from tests.data_prep.cifar10_jpeg import write_cifar10_jpeg
from tests.data_prep.shared_data import shared_file
from twostage.data.schema import read_labels


def test_it_is_built_with_its_labels_and_bytes(tmp_path: Path) -> None:
    source = shared_file("cifar10/cifar10_jpeg_test.npz").parent
    table = write_cifar10_jpeg(source, tmp_path / "images", num=40)
    out = tmp_path / "dataset"
    assert main(["build", str(table), str(out), "--format", "table", "--workers", "1"]) == 0
    samples = pq.read_table(out / "samples.parquet").to_pylist()
    labels = read_labels(out, "given")
    assert labels.class_names == CLASS_NAMES            # in the order of the original numbers
    with table.open() as file:
        assert [row["path"] for row in csv.DictReader(file)][:2] == ["train/00/00000.jpg", "train/00/00001.jpg"]
    for split, name in (("noisy_train", "train"), ("test", "test")):
        with np.load(source / f"cifar10_jpeg_{name}.npz", allow_pickle=False) as file:
            content, offsets, expected = file["jpeg_bytes"], file["offsets"], file["labels"]
        rows = [row for row in samples if row["split"] == split]
        assert len(rows) == 40
        for row in rows:
            number = int(Path(row["key"]).stem)
            assert labels.label[row["index"]] == expected[number]
            with (out / "shards" / f"{row['shard']:06d}.tar").open("rb") as shard:
                shard.seek(row["offset"])
                assert shard.read(row["size"]) == content[offsets[number] : offsets[number + 1]].tobytes()
