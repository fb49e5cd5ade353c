"""Checks the tables of a dataset: dataset.json against samples.parquet, label columns, and rejected.parquet."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.findings import BUILD_COMMAND, Finding
from data_prep.mean import mean_problem
from data_prep.verify_shards import BLOCK, ShardRows
from twostage.data.schema import (
    EXTENSIONS,
    GIVEN_LABELS,
    NO_LABEL,
    REJECTED_SCHEMA,
    SAMPLES_SCHEMA,
    SPLITS,
    file_digest,
    labels_path,
    remake_column,
)

BATCH: Final = 1 << 16               # rows of samples.parquet in memory at once
# Arrow raises its own exceptions, and OSError, on damaged files; the others come from damaged values
DAMAGED: Final = (pa.ArrowException, OSError, ValueError, KeyError, TypeError)
BUILD_AGAIN: Final = f"remove {{}} and dataset.json, {BUILD_COMMAND}"


@dataclass
class Samples:
    """What a pass over samples.parquet found."""

    num_samples: int = 0
    splits: Counter[str] = field(default_factory=Counter)
    shard_sizes: list[int] = field(default_factory=list)
    """samples by shard"""
    usable: bool = True
    """rows are in order, so that shards can be compared with them"""
    findings: list[Finding] = field(default_factory=list)


def check_samples(dataset: Path, marker: dict[str, Any]) -> Samples:
    """Checks samples.parquet by itself and against dataset.json, in one pass of bounded memory."""
    samples = Samples()
    path = dataset / "samples.parquet"
    try:
        digest = file_digest(path)
        if digest != marker.get("samples_sha256"):
            _add(
                samples,
                f"is not the file that the dataset was completed with: its SHA-256 is {digest[:12]}…, "
                f"dataset.json says {str(marker.get('samples_sha256'))[:12]}…",
            )
        file = pq.ParquetFile(path)
        problem = _schema_problem(file.schema_arrow, SAMPLES_SCHEMA)
        if problem:
            _unusable(samples, problem)
            return samples
        for batch in file.iter_batches(BATCH):
            _check_batch(samples, batch)
    except DAMAGED as error:
        _unusable(samples, "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})")
        return samples
    _check_marker(samples, marker)
    return samples


def rows_by_shard(dataset: Path, shard_sizes: list[int]) -> Iterator[ShardRows]:
    """The rows of each shard in turn; only a few shards' rows are in memory at once."""
    pending: list[pa.RecordBatch] = []
    number = have = 0
    for batch in pq.ParquetFile(dataset / "samples.parquet").iter_batches(BATCH):
        rest = batch
        while rest.num_rows:
            piece = rest.slice(0, shard_sizes[number] - have)
            rest = rest.slice(piece.num_rows)
            pending.append(piece)
            have += piece.num_rows
            if have == shard_sizes[number]:
                yield ShardRows.from_table(number, pa.Table.from_batches(pending))
                pending, number, have = [], number + 1, 0


def check_labels(dataset: Path, marker: dict[str, Any], num_samples: int | None) -> tuple[list[Finding], int]:
    """Findings of all label columns, and how many columns there are. Index ranges need `num_samples`."""
    paths = sorted((dataset / "labels").glob("*.parquet"))
    findings: list[Finding] = []
    parents: list[tuple[Path, dict[str, str]]] = []
    of_samples = {str(marker.get("samples_sha256")), *_digests([dataset / "samples.parquet"])}
    known = {*of_samples, *_digests(paths)}
    for path in paths:
        metadata, problems = _check_column(path, num_samples)
        findings += [_label_finding(path, metadata, problem, index) for problem, index in problems]
        parents.append((path, metadata))
    damaged = {finding.file for finding in findings}
    for path, metadata in parents:
        digest = metadata.get("parent", "")
        source = f"labels/{_extra(metadata).get('from')}.parquet"
        samples = metadata.get("samples_sha256", "")
        if samples and samples not in of_samples:
            problem = f"was written for another samples.parquet (SHA-256 {samples[:12]}…), so for other images"
            findings.append(_label_finding(path, metadata, problem))
        elif digest and digest not in known and not {f"labels/{path.name}", source} & damaged:
            problem = f"was made from a file that is not here any more, or was changed since (SHA-256 {digest[:12]}…)"
            findings.append(_label_finding(path, metadata, problem))
    if not labels_path(dataset, GIVEN_LABELS).exists():
        findings.append(_label_finding(labels_path(dataset, GIVEN_LABELS), {}, "is missing"))
    return findings, len(paths)


def check_rejected(dataset: Path) -> list[Finding]:
    """Findings of rejected.parquet."""
    path = dataset / "rejected.parquet"
    try:
        problem = _schema_problem(pq.read_table(path).schema, REJECTED_SCHEMA)
    except DAMAGED as error:
        problem = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
    return [Finding(file=path.name, problem=problem, remedy=BUILD_AGAIN.format(path.name))] if problem else []


def check_mean(dataset: Path, marker: dict[str, Any]) -> list[Finding]:
    """Findings of mean.parquet."""
    problem = mean_problem(dataset / "mean.parquet", marker)
    remedy = BUILD_AGAIN.format("mean.parquet") if "mean_sha256" in marker else "remove mean.parquet"
    return [Finding(file="mean.parquet", problem=problem, remedy=remedy)] if problem else []


def _add(samples: Samples, problem: str) -> None:
    remedy = BUILD_AGAIN.format("samples.parquet")
    samples.findings.append(Finding(file="samples.parquet", problem=problem, remedy=remedy))


def _unusable(samples: Samples, problem: str) -> None:
    samples.usable = False
    _add(samples, f"{problem} (so the shards were not compared with it)")


def _schema_problem(found: pa.Schema, expected: pa.Schema) -> str:
    """Names and types; a text column may be dictionary-encoded or not, as Parquet does not promise to keep that."""
    def plain(schema: pa.Schema) -> list[tuple[str, str]]:
        types = ((f.name, f.type.value_type if pa.types.is_dictionary(f.type) else f.type) for f in schema)
        return [(name, str(type_)) for name, type_ in types]

    if plain(found) == plain(expected):
        return ""
    columns = ", ".join(f"{name} {type_}" for name, type_ in plain(found))
    return f"has not the columns of this format but {columns}"


def _check_batch(samples: Samples, batch: pa.RecordBatch) -> None:
    """One batch of rows: no nulls, dense index, known splits and formats, shards in order, possible places."""
    first = samples.num_samples
    samples.num_samples += batch.num_rows
    if not samples.usable:
        return
    batch.validate(full=True)
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if column.null_count:
            _unusable(samples, f"column {name} has {column.null_count} empty values from row {first} on")
            return
    numbers = {name: batch[name].to_numpy().astype(np.int64) for name in ("index", "shard", "offset", "size")}
    texts = {name: batch[name].cast(pa.string()) for name in ("split", "format")}
    samples.splits.update({v["values"]: v["counts"] for v in pc.value_counts(texts["split"]).to_pylist()})
    shard = numbers["shard"]
    before = len(samples.shard_sizes) - 1
    step = np.diff(shard, prepend=before)
    wrong = {
        "index": numbers["index"] != np.arange(first, first + batch.num_rows),
        "split": ~pc.is_in(texts["split"], pa.array(SPLITS)).to_numpy(zero_copy_only=False),
        "format": ~pc.is_in(texts["format"], pa.array(list(EXTENSIONS))).to_numpy(zero_copy_only=False),
        "shard": ((step != 0) & (step != 1)) | ((step == 0) & (shard < 0)),
        "offset": (numbers["offset"] < BLOCK) | (numbers["offset"] % BLOCK != 0),
        "size": numbers["size"] <= 0,
    }
    for name, rows in wrong.items():
        _wrong_rows(samples, name, batch[name], np.flatnonzero(rows), first)
    if samples.usable:
        counts = np.bincount(shard, minlength=before + 1)
        samples.shard_sizes += [0] * (len(counts) - before - 1)
        for number in range(max(before, 0), len(counts)):
            samples.shard_sizes[number] += int(counts[number])


def _wrong_rows(samples: Samples, name: str, column: pa.Array, rows: npt.NDArray[np.int64], first: int) -> None:
    if rows.size == 0:
        return
    row = int(rows[0])
    value = column[row].as_py()
    expected = {
        "index": f"{first + row}: row i is sample i",
        "split": f"one of {', '.join(SPLITS)}",
        "format": f"one of {', '.join(EXTENSIONS)}",
        "shard": "the same shard as the row before, or the next one",
        "offset": "a multiple of 512, and at least that",
        "size": "at least 1",
    }[name]
    more = f" (and {rows.size - 1} more such rows)" if rows.size > 1 else ""
    _unusable(samples, f"row {first + row} has {name} {value!r}, it should be {expected}{more}")


def _check_marker(samples: Samples, marker: dict[str, Any]) -> None:
    """The counts in dataset.json."""
    counts: dict[str, tuple[Any, int]] = {"num_samples": (marker.get("num_samples"), samples.num_samples)}
    if samples.usable:
        counts["num_shards"] = (marker.get("num_shards"), len(samples.shard_sizes))
        splits = marker.get("splits")
        splits = splits if isinstance(splits, dict) else {}
        for split in [*SPLITS, *sorted(set(splits) - set(SPLITS))]:
            counts[f"splits: {split}"] = (splits.get(split, 0), samples.splits[split])
    for name, (stated, found) in counts.items():
        if stated != found:
            problem = f"says {name} {stated}, samples.parquet has {found}"
            remedy = f"remove dataset.json, {BUILD_COMMAND}"
            samples.findings.append(Finding(file="dataset.json", problem=problem, remedy=remedy))


def _check_column(path: Path, num_samples: int | None) -> tuple[dict[str, str], list[tuple[str, int | None]]]:
    """A label column's metadata, and what is wrong with it: problem and sample."""
    metadata: dict[str, str] = {}
    try:
        if path.is_dir():                       # which Arrow would take for a table in many files
            raise ValueError("it is a folder")
        table = pq.read_table(path)
        metadata = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
        class_names = json.loads(metadata["class_names"])
        num_classes = int(metadata["num_classes"])
        index, label = table["index"], table["label"]
        if index.type != pa.int64() or label.type != pa.int64() or index.null_count or label.null_count:
            raise ValueError("index and label must be int64, without empty values")
        if not (isinstance(class_names, list) and class_names and all(isinstance(n, str) for n in class_names)):
            raise ValueError("class_names must be a list of texts")
        json.loads(metadata.get("rng_seed", "null"))
        if not isinstance(json.loads(metadata.get("extra", "{}")), dict):
            raise ValueError("extra must be a JSON object")
    except DAMAGED as error:
        return metadata, [(f"is not a label column of this format ({error})", None)]
    problems: list[tuple[str, int | None]] = []
    if len(class_names) != num_classes or len(set(class_names)) != num_classes:
        problems.append((f"says num_classes {num_classes}, and {len(set(class_names))} different class names", None))
    rows, labels = index.to_numpy(), label.to_numpy()
    for row in np.flatnonzero((labels < NO_LABEL) | (labels >= len(class_names))).tolist():
        problem = f"label {labels[row]} is out of range 0..{len(class_names) - 1} (or {NO_LABEL}: none)"
        problems.append((problem, int(rows[row])))
    if num_samples is not None:
        outside = rows[(rows < 0) | (rows >= num_samples)].tolist()
        problems += [(f"there is no such sample: the dataset has {num_samples}", index) for index in outside]
    unordered = np.flatnonzero(np.diff(rows) <= 0)
    if unordered.size:
        row = int(unordered[0]) + 1
        problems.append((f"row {row} has index {rows[row]} after {rows[row - 1]}: it must increase", None))
    return metadata, problems


def _digests(paths: list[Path]) -> Iterator[str]:
    """Of what can be read; of the rest, it is said elsewhere."""
    for path in paths:
        with suppress(OSError):
            yield file_digest(path)


def _extra(metadata: dict[str, str]) -> dict[str, Any]:
    try:
        extra = json.loads(metadata.get("extra", "{}"))
    except ValueError:
        return {}
    return extra if isinstance(extra, dict) else {}


def _label_finding(path: Path, metadata: dict[str, str], problem: str, index: int | None = None) -> Finding:
    how = metadata.get("how", "")
    is_given = path.stem == GIVEN_LABELS
    remedy = BUILD_AGAIN.format(f"labels/{path.name}") if is_given else remake_column(how)
    return Finding(file=f"labels/{path.name}", index=index, problem=problem, remedy=remedy)
