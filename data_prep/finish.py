"""The end of a build: shards under their final names, and the tables, `dataset.json` last.

All of it may be done again after a crash, and comes out the same. Memory grows with the dataset by some 30 bytes a
sample only.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.chunk import ChunkResult
from data_prep.mean import write_mean
from data_prep.summary import Summary
from data_prep.tar import BLOCK, member_header
from data_prep.work import Plan, Work
from twostage.data.schema import (
    EXTENSIONS,
    GIVEN_LABELS,
    NO_LABEL,
    REJECTED_SCHEMA,
    SAMPLES_SCHEMA,
    SPLITS,
    LabelColumn,
    dataset_marker,
    file_digest,
    shard_name,
    table_writer,
    write_aside,
    write_json,
    write_labels,
)

ROW_GROUP: Final = 1 << 16              # rows of a table that are in memory at once


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a chunk goes, which is known once all chunks before it are."""

    chunk: int = 0
    shard: int = 0
    first_index: int = 0

    def after(self, result: ChunkResult) -> Place:
        """The place of the next chunk, given what came of this one. A chunk without any image is no shard."""
        assert result.chunk == self.chunk, (result, self)
        return Place(
            chunk=self.chunk + 1,
            shard=self.shard + (result.num_accepted > 0),
            first_index=self.first_index + result.num_accepted,
        )


def finish_shard(work: Work, place: Place) -> None:
    """Gives a chunk's members their final names, makes it safe on disk, and moves it to its place; writes its index.

    The names in the tar headers are written over where they lie: they depend on how many images were rejected in all
    chunks before, and to wait for that would either serialise the work or fill the memory.
    """
    rows = work.read_rows(place.chunk)
    assert rows is not None, place
    rows = rows.filter(pc.is_null(rows["reason"]))
    extensions = pa.array(EXTENSIONS.values()).take(pc.index_in(rows["format"], value_set=pa.array(EXTENSIONS)))
    indices = pa.array(np.arange(place.first_index, place.first_index + rows.num_rows)).cast(pa.string())
    names = pc.binary_join_element_wise(pc.utf8_lpad(indices, 9, "0"), extensions, ".")     # schema.member_name
    path, final = work.tar_path(place.chunk), work.shard_path(place.shard)
    final.parent.mkdir(exist_ok=True)
    if path.exists():
        with path.open("r+b", buffering=0) as file:
            if place.first_index != work.chunk_start(place.chunk):
                members = (names.to_pylist(), rows["offset"].to_pylist(), rows["size"].to_pylist())
                for name, offset, size in zip(*members, strict=True):
                    os.pwrite(file.fileno(), member_header(name.encode(), size), offset - BLOCK)
            os.fsync(file.fileno())
        path.replace(final)
    texts = (rows[name].cast(pa.string()) for name in ("offset", "size"))
    lines = pc.binary_join_element_wise(extensions, *texts, names, " ").to_pylist()
    write_aside(final.with_suffix(".idx"), "\n".join([f"v1.2 {len(lines)}", *lines, ""]).encode())


def is_whole(work: Work, results: list[ChunkResult]) -> bool:
    """Whether every file of the dataset is there, and in its place; `results` of chunks in order."""
    names = ["dataset.json", "samples.parquet", "rejected.parquet"]
    names += [f"labels/{name}.parquet" for name in (GIVEN_LABELS, *work.plan.label_columns)]
    names += ["mean.parquet"] if work.mean_size is not None else []
    if len(results) < work.num_chunks or not all((work.out / name).exists() for name in names):
        return False
    place = Place()
    for result in results:
        path = work.shard_path(place.shard)
        if result.num_accepted and not (path.exists() and path.with_suffix(".idx").exists()):
            return False
        place = place.after(result)
    return True


def missing_files(out: Path, marker: dict[str, Any], label_columns: Sequence[str]) -> list[str]:
    """Names of a complete dataset's files that are not there, by what dataset.json says alone."""
    names = ["samples.parquet", "rejected.parquet"]
    names += [f"labels/{name}.parquet" for name in (GIVEN_LABELS, *label_columns)]
    names += ["mean.parquet"] if "mean_sha256" in marker else []
    for shard in range(marker["num_shards"]):
        path = Path("shards") / shard_name(shard)
        names += [str(path), str(path.with_suffix(".idx"))]
    return [name for name in names if not (out / name).exists()]


def finish_tables(work: Work, results: list[ChunkResult], command: str) -> Summary:
    """Writes samples.parquet, rejected.parquet, labels/, mean.parquet if asked for, and, last of all, dataset.json.

    Args:
        results: of all chunks, in order.
        command: what made the dataset, for people.
    """
    out, plan = work.out, work.plan
    summary = Summary(plan.class_names)
    columns: dict[str, list[Any]] = {name: [] for name in ("label", *plan.label_columns)}
    with (
        table_writer(out / "samples.parquet", SAMPLES_SCHEMA) as samples,
        table_writer(out / "rejected.parquet", REJECTED_SCHEMA) as rejected,
    ):
        _write_rejected(rejected, _rejected_unread(work), summary)
        for accepted, refused in _by_row_group(work, results):
            _write_rejected(rejected, refused, summary)
            if accepted.num_rows:
                samples.write_table(accepted.select(SAMPLES_SCHEMA.names).cast(SAMPLES_SCHEMA))
                for name, parts in columns.items():
                    parts.append(accepted[name].to_numpy())
                summary.add(accepted)
    digest = file_digest(out / "samples.parquet")
    for name, parts in columns.items():
        label = np.concatenate(parts)
        index = np.arange(len(label), dtype=np.int64) if name == "label" else np.flatnonzero(label != NO_LABEL)
        column = LabelColumn(
            name=GIVEN_LABELS if name == "label" else name,
            index=index,
            label=label[index],
            class_names=plan.class_names,
            how=command,
            rng_seed=plan.settings["rng_seed"],
            parent=digest,
        )
        write_labels(out, column)
    num_shards = sum(result.num_accepted > 0 for result in results)
    marker = dataset_marker(summary.split_counts(), num_shards, digest, [command])
    if work.mean_size is not None:
        sums = [work.sums_path(chunk) for chunk in range(work.num_chunks)]
        means = write_mean(out / "mean.parquet", sums, work.mean_size, digest)
        marker["mean_sha256"], summary.channel_means = means
    write_json(out / "dataset.json", marker | {"build": identity(plan)})
    return summary


def identity(plan: Plan) -> dict[str, Any]:
    """What dataset.json keeps of the plan: by it, a second run knows whether the dataset is the one it would make."""
    return {
        "inputs_sha256": plan.inputs_sha256,
        "containers": plan.containers,
        "class_names": plan.class_names,
        "settings": plan.settings,
    }


def _by_row_group(work: Work, results: list[ChunkResult]) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Accepted and rejected rows, some chunks at a time."""
    place = Place()
    accepted: list[pa.Table] = []
    rejected: list[pa.Table] = []
    pending = 0
    for result in results:
        rows = work.read_rows(result.chunk)
        assert rows is not None, result
        inputs = work.inputs.drop_columns(["place", "reason", "detail"]).take(rows["position"])
        is_accepted = pc.is_null(rows["reason"])
        refused = inputs.append_column("reason", rows["reason"]).append_column("detail", rows["detail"])
        rejected.append(refused.select(REJECTED_SCHEMA.names).filter(pc.invert(is_accepted)))
        accepted.append(_samples(inputs.filter(is_accepted), rows.filter(is_accepted), place))
        place = place.after(result)
        pending += rows.num_rows
        if pending >= ROW_GROUP or result is results[-1]:
            yield pa.concat_tables(accepted), pa.concat_tables(rejected)
            accepted, rejected, pending = [], [], 0


def _samples(inputs: pa.Table, rows: pa.Table, place: Place) -> pa.Table:
    """Rows of samples.parquet, and the labels beside them."""
    split = pa.DictionaryArray.from_arrays(inputs["split"].combine_chunks(), pa.array(SPLITS))
    formats = pa.array(list(EXTENSIONS))
    codes = pc.index_in(rows["format"].combine_chunks(), value_set=formats).cast(pa.int8())
    columns = {
        "index": pa.array(np.arange(place.first_index, place.first_index + rows.num_rows)),
        "key": inputs["key"],
        "split": split,
        "shard": pa.array(np.full(rows.num_rows, place.shard, np.int32)),
        "format": pa.DictionaryArray.from_arrays(codes, formats),
        **{name: rows[name] for name in ("offset", "size", "width", "height", "sha256")},
        **{name: inputs[name] for name in inputs.column_names if name not in ("key", "split")},
    }
    return pa.table(columns)


def _rejected_unread(work: Work) -> pa.Table:
    """The inputs that were not worth trying to read."""
    positions = np.flatnonzero(pc.is_valid(work.inputs["reason"]).to_numpy())
    return work.inputs.select(REJECTED_SCHEMA.names).take(pa.array(positions))


def _write_rejected(writer: pq.ParquetWriter, rows: pa.Table, summary: Summary) -> None:
    if rows.num_rows:
        writer.write_table(rows.cast(REJECTED_SCHEMA))
        summary.add_rejected(rows)
