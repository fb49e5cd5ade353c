"""An opened dataset: the columns that training needs, as numpy arrays."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from twostage.data.schema import (
    SPLITS,
    InputError,
    LabelColumn,
    file_digest,
    labels_path,
    nearest,
    read_labels,
    read_marker,
    shard_name,
)


@dataclass(frozen=True)
class Dataset:
    """A complete dataset on disk. Arrays are (num_samples,), row i is sample i."""

    path: Path
    marker: dict[str, Any]
    shard: npt.NDArray[np.int32]
    offset: npt.NDArray[np.int64]
    size: npt.NDArray[np.int64]
    split: npt.NDArray[np.int8]
    """position in schema.SPLITS"""

    @classmethod
    def open(cls, path: Path) -> Dataset:
        """Opens a dataset after checking that it is complete and that samples.parquet is the one it was completed with.

        Raises:
            InputError: missing, unfinished or changed dataset.
        """
        marker = read_marker(path)
        samples = path / "samples.parquet"
        if not samples.exists():
            raise InputError(f"{samples} is missing: build the dataset again")
        found = file_digest(samples)
        if found != marker["samples_sha256"]:
            raise InputError(
                f"{samples} is not the file the dataset was completed with (SHA-256 {found[:12]}…, dataset.json says "
                f"{marker['samples_sha256'][:12]}…): run `python -m data_prep verify {path}`"
            )
        table = pq.read_table(samples, columns=["shard", "offset", "size", "split"])
        split = table["split"].cast(pa.string()).combine_chunks().dictionary_encode()
        codes = np.array([SPLITS.index(name) for name in split.dictionary.to_pylist()], dtype=np.int8)
        return cls(
            path=path,
            marker=marker,
            shard=table["shard"].to_numpy(),
            offset=table["offset"].to_numpy(),
            size=table["size"].to_numpy(),
            split=codes[split.indices.to_numpy()],
        )

    def __len__(self) -> int:
        return len(self.shard)

    @property
    def digest(self) -> str:
        """SHA-256 of samples.parquet: says which images, in which order."""
        return str(self.marker["samples_sha256"])

    @property
    def image_digests(self) -> npt.NDArray[np.uint8] | None:
        """(num_samples, 32) SHA-256 of each image's bytes, read anew; None where they are not known."""
        table = pq.read_table(self.path / "samples.parquet", columns=["sha256"])
        parts = [np.frombuffer(part.buffers()[1], np.uint8).reshape(-1, 32)[part.offset : part.offset + len(part)]
                 for part in table["sha256"].chunks]
        return np.concatenate(parts) if parts else np.empty((0, 32), np.uint8)

    @cached_property
    def shard_paths(self) -> list[Path]:
        """Paths of all tar files by shard number."""
        return [self.path / "shards" / shard_name(number) for number in range(self.marker["num_shards"])]

    def split_indices(self, split: str) -> npt.NDArray[np.int64]:
        """Increasing indices of a split's samples.

        Raises:
            InputError: the split does not exist here or holds nothing (names the nearest).
        """
        present = self.marker["splits"]
        if split not in present:
            raise InputError(f"{self.path} has no split {split!r}; {nearest(split, present)}")
        return np.flatnonzero(self.split == SPLITS.index(split)).astype(np.int64)

    def labels(self, name: str) -> LabelColumn:
        """Reads the label column `name`.

        Raises:
            InputError: as schema.read_labels, or it was written for another samples.parquet, has rows for samples that
                are not here, or a sample twice.
        """
        column = read_labels(self.path, name)
        column.check_samples(self.path, self.digest)
        rows, path = column.index, labels_path(self.path, name)
        if rows.size and (rows[0] < 0 or rows[-1] >= len(self) or (np.diff(rows) <= 0).any()):
            raise InputError(
                f"{path}: its samples, {rows.min()} to {rows.max()}, are not increasing numbers "
                f"from 0 to {len(self) - 1}; the column is of another dataset or damaged: write it again"
            )
        return column

    def digests(self, *columns: str) -> dict[str, str]:
        """What identifies the samples and these label columns, under the names by which stages record them."""
        return {
            "dataset.samples": self.digest,
            **{f"dataset.labels.{name}": self.labels_digest(name) for name in columns},
        }

    def labels_digest(self, name: str) -> str:
        """SHA-256 of a label column's file."""
        return file_digest(labels_path(self.path, name))
