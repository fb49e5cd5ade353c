"""A tiny dataset written by hand, by the format's description: what noise and verify are tested on."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from twostage.data import schema

FORMATS = ("jpeg", "png", "webp")
CLASS_NAMES = ("cat", "dog", "frog")


def image_bytes(index: int, image_format: str, width: int, height: int, orientation: int | None = None) -> bytes:
    """A small image that differs from sample to sample; stored sideways where an EXIF orientation says so."""
    pixels = np.random.default_rng(index).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.fromarray(pixels).save(buffer, format=image_format, exif=exif)
    return buffer.getvalue()


def write_shard(path: Path, members: Sequence[tuple[str, bytes]]) -> list[int]:
    """Writes a tar file and its .idx; returns the offset of each member's first byte."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    offsets = []
    position = 0
    for _, data in members:
        offsets.append(position + 512)
        position += 512 + (len(data) + 511) // 512 * 512
    lines = [f"v1.2 {len(members)}"]
    for (name, data), offset in zip(members, offsets, strict=True):
        lines.append(f"{name.rsplit('.', 1)[1]} {offset} {len(data)} {name}")
    path.with_suffix(".idx").write_text("\n".join(lines) + "\n")
    return offsets


def write_dataset(path: Path, num_samples: int = 23, per_shard: int = 8) -> Path:
    """Writes a complete dataset: mixed formats, one image with an EXIF orientation, splits in turn, labels by turns."""
    (path / "shards").mkdir(parents=True)
    splits = [schema.SPLITS[(0, 0, 0, 1, 2, 3)[index % 6]] for index in range(num_samples)]
    rows = []
    for shard, first in enumerate(range(0, num_samples, per_shard)):
        members = []
        for index in range(first, min(first + per_shard, num_samples)):
            image_format = FORMATS[index % 3]
            width, height, sideways = 9 + index % 5, 7, index == 3
            data = image_bytes(index, image_format, width, height, orientation=6 if sideways else None)
            members.append((schema.member_name(index, image_format), data))
            shown = (height, width) if sideways else (width, height)
            rows.append([index, f"photos/{index}", splits[index], shard, 0, len(data), *shown, image_format,
                         hashlib.sha256(data).digest()])
        offsets = write_shard(path / "shards" / schema.shard_name(shard), members)
        for row, offset in zip(rows[first:], offsets, strict=True):
            row[4] = offset
    columns = [pa.array(list(column), type=field.type)
               for column, field in zip(zip(*rows, strict=True), schema.SAMPLES_SCHEMA, strict=True)]
    write_samples(path, pa.table(columns, schema=schema.SAMPLES_SCHEMA))
    digest = schema.file_digest(path / "samples.parquet")
    write_given(path, num_samples, CLASS_NAMES, digest)
    schema.write_table(path / "rejected.parquet", pa.table({"key": ["a"], "reason": ["truncated"], "detail": [""]},
                                                           schema=schema.REJECTED_SCHEMA))
    counts = {split: splits.count(split) for split in schema.SPLITS}
    write_marker(path, counts, (num_samples - 1) // per_shard + 1, digest)
    return path


def write_labelled(path: Path, labels: Sequence[int], class_names: Sequence[str], splits: Sequence[str]) -> Path:
    """Writes only what noise reads: the marker, samples.parquet with its splits, and the given labels."""
    num_samples = len(labels)
    path.mkdir(parents=True)
    columns = []
    for field in schema.SAMPLES_SCHEMA:
        column = pa.nulls(num_samples, field.type)
        if field.name in ("index", "split"):
            values = range(num_samples) if field.name == "index" else splits
            column = pa.array(list(values), type=field.type)
        columns.append(column)
    write_samples(path, pa.table(columns, schema=schema.SAMPLES_SCHEMA))
    digest = schema.file_digest(path / "samples.parquet")
    write_given(path, num_samples, class_names, digest, labels)
    write_marker(path, {split: list(splits).count(split) for split in schema.SPLITS}, 1, digest)
    return path


def write_samples(path: Path, table: pa.Table) -> None:
    schema.write_table(path / "samples.parquet", table)


def write_given(path: Path, num_samples: int, class_names: Sequence[str], digest: str,
                labels: Sequence[int] | None = None) -> None:
    index = np.arange(num_samples, dtype=np.int64)
    schema.write_labels(path, schema.LabelColumn(
        name=schema.GIVEN_LABELS,
        index=index,
        label=index % len(class_names) if labels is None else np.asarray(labels, dtype=np.int64),
        class_names=tuple(class_names),
        how="by hand",
        parent=digest,
    ))


def write_marker(path: Path, counts: dict[str, int], num_shards: int, digest: str) -> None:
    schema.write_json(path / "dataset.json", schema.dataset_marker(counts, num_shards, digest, ["by hand"]))
