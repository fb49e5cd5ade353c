"""The dataset on disk: names, columns, and the checks that both writer and reader rely on.

Knows only numpy and pyarrow. `data_prep` writes by this file and `twostage` reads by it, so that a format
question has one answer. The format itself is described in `data_prep/README.md`.
"""

from __future__ import annotations

import difflib
import errno
import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

FORMAT_VERSION: Final = 1
NO_LABEL: Final = -1
SPLITS: Final = ("noisy_train", "clean_train", "val", "test")
GIVEN_LABELS: Final = "given"            # the label column that `data_prep build` writes
EXTENSIONS: Final = {"jpeg": "jpg", "png": "png", "webp": "webp"}   # format column -> member extension

SAMPLES_SCHEMA: Final = pa.schema(
    [
        ("index", pa.int64()),           # 0..N-1, equal to the row number
        ("key", pa.string()),            # the source's own name of the image
        ("split", pa.dictionary(pa.int8(), pa.string())),
        ("shard", pa.int32()),           # number of the tar file
        ("offset", pa.int64()),          # of the image's first byte in the tar file
        ("size", pa.int64()),            # bytes
        ("width", pa.int32()),           # pixels, after EXIF orientation: as DALI decodes it
        ("height", pa.int32()),
        ("format", pa.dictionary(pa.int8(), pa.string())),
        ("sha256", pa.binary(32)),       # of the image's bytes in the shard
    ]
)
REJECTED_SCHEMA: Final = pa.schema([("key", pa.string()), ("reason", pa.string()), ("detail", pa.string())])
LABELS_SCHEMA: Final = pa.schema([("index", pa.int64()), ("label", pa.int64())])   # further columns may follow
MEAN_SCHEMA: Final = pa.schema([(name, pa.int64()) for name in ("red", "green", "blue")])   # sums over images, 0..255
MANY_NAMES: Final = 40                   # no message lists more
FEW_NAMES: Final = 5
MAX_RATIO: Final = 4000
"""of the longer side to the shorter one: one thinner image would end training with `augment.resize: 256` at its start,
as it would grow to more pixels than the loader takes (loader.MAX_PIXELS)"""
CANNOT_WRITE: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


class InputError(ValueError):
    """A mistake of the user's: the message names the thing, the place and the remedy. Printed without traceback."""


def nearest(name: str, legal: Iterable[str]) -> str:
    """Says which legal name `name` was probably meant to be, and the others, if they are not many; for messages."""
    names = sorted(legal)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    if len(names) > MANY_NAMES:
        few = difflib.get_close_matches(name, names, n=FEW_NAMES, cutoff=0)
        return f"{hint}the nearest of {len(names)} names: {', '.join(few)}"
    return f"{hint}allowed: {', '.join(names) or 'none'}"


def shard_name(shard: int) -> str:
    """File name of shard number `shard` below `shards/`."""
    return f"{shard:06d}.tar"


def member_name(index: int, image_format: str) -> str:
    """Name of a sample's member in its shard."""
    return f"{index:09d}.{EXTENSIONS[image_format]}"


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def aside_path(path: Path) -> Path:
    """Where to write a file until it is whole; drawn, as in containers on one disk every process may be number 1."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def write_aside(path: Path, data: bytes) -> None:
    """Writes `data` to `path` so that a crash leaves either the old file or the new one, never a part of it."""
    with _renamed(path) as aside, aside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, value: Any) -> None:
    """Writes JSON aside and renames it; keys keep their order, so the same value gives the same bytes."""
    write_aside(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


@contextmanager
def table_writer(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """Writes a Parquet file aside, in pieces, and renames it at the end; after an exception nothing stays behind."""
    with _renamed(path) as aside:
        with pq.ParquetWriter(aside, schema, compression="zstd") as writer:
            yield writer
        with aside.open("rb") as file:
            os.fsync(file.fileno())


@contextmanager
def _renamed(path: Path) -> Iterator[Path]:
    """Where to write a file until it is whole; then it gets its name. What cannot be written is removed, and named."""
    aside = aside_path(path)
    try:
        yield aside
        aside.replace(path)
    except OSError as error:
        # others without a file's name, as of reading images, may come from the caller's code
        if error.errno in CANNOT_WRITE and error.filename in (None, str(aside), aside):
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise
    finally:
        with suppress(OSError):
            aside.unlink()


def write_table(path: Path, table: pa.Table) -> None:
    """Writes a Parquet file aside and renames it; the same table gives the same bytes."""
    with table_writer(path, table.schema) as writer:
        writer.write_table(table)


@dataclass(frozen=True, kw_only=True)
class LabelColumn:
    """One column of labels, with what is known of how it came about."""

    name: str
    index: npt.NDArray[np.int64]
    """(rows,) strictly increasing sample indices; samples that are missing here have no label"""
    label: npt.NDArray[np.int64]
    """(rows,) class numbers 0..num_classes-1, or NO_LABEL"""
    class_names: tuple[str, ...]
    how: str
    """one line for people: which command, which parameters"""
    rng_seed: int | None = None
    parent: str = ""
    """digest of what it was made from: of samples.parquet, or of the label column that was changed"""
    samples_sha256: str = ""
    """of the samples.parquet whose samples `index` means; `write_labels` fills it in, "" where it is not known"""
    extra: dict[str, Any] = field(default_factory=dict)
    """anything else worth keeping, as JSON: a transition matrix, say"""

    def dense(self, num_samples: int) -> npt.NDArray[np.int64]:
        """(num_samples,) labels by sample index, NO_LABEL where there is none."""
        table = np.full(num_samples, NO_LABEL, dtype=np.int64)
        table[self.index] = self.label
        return table

    def check_samples(self, dataset: Path, samples_sha256: str) -> None:
        """Checks that it is a column of this dataset, as far as it says of which it is.

        Raises:
            InputError: it was written for another samples.parquet than that with this digest.
        """
        if self.samples_sha256 not in ("", samples_sha256):
            raise InputError(
                f"{labels_path(dataset, self.name)} was written for other samples, or for these in another order (its "
                f"samples.parquet had SHA-256 {self.samples_sha256[:12]}…, here it is {samples_sha256[:12]}…), so its "
                f"labels would go to the wrong images: {remake_column(self.how)}"
            )


def remake_column(how: str) -> str:
    """In words, how to get a label column again that was made so."""
    if how.startswith("data_prep noise"):
        return f"run `python -m {how} --overwrite` again"
    return f"write it again, or remove it; it was made by: {how or 'unknown'}"


def labels_path(dataset: Path, name: str) -> Path:
    """Where the label column `name` of a dataset lies.

    Raises:
        InputError: the name cannot be a file name (it may hold letters, digits, '.', '_' and '-' only).
    """
    if not name or not all(c.isascii() and (c.isalnum() or c in "._-") for c in name) or name.startswith("."):
        raise InputError(f"label column name {name!r}: only letters, digits, '.', '_' and '-', and no leading '.'")
    return dataset / "labels" / f"{name}.parquet"


def write_labels(dataset: Path, column: LabelColumn) -> Path:
    """Writes a label column into a dataset and returns its path."""
    metadata = {
        "num_classes": str(len(column.class_names)),
        "class_names": json.dumps(column.class_names, ensure_ascii=False),
        "how": column.how,
        "rng_seed": json.dumps(column.rng_seed),
        "parent": column.parent,
        "extra": json.dumps(column.extra, ensure_ascii=False),
    }
    samples = dataset / "samples.parquet"
    if samples.exists():
        metadata["samples_sha256"] = file_digest(samples)
    table = pa.table([column.index, column.label], schema=LABELS_SCHEMA.with_metadata(metadata))
    path = labels_path(dataset, column.name)
    path.parent.mkdir(exist_ok=True)
    write_table(path, table)
    return path


def read_labels(dataset: Path, name: str) -> LabelColumn:
    """Reads a label column.

    Raises:
        InputError: no such column (names the nearest), or it is damaged: not a label file, or a label out of range.
    """
    path = labels_path(dataset, name)
    if not path.exists():
        present = [p.stem for p in (dataset / "labels").glob("*.parquet")]
        raise InputError(f"{dataset} has no label column {name!r}; {nearest(name, present)}")
    try:
        table = pq.read_table(path)
        metadata = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
        class_names = tuple(json.loads(metadata["class_names"]))
        index = table["index"].to_numpy().astype(np.int64, copy=False)
        label = table["label"].to_numpy().astype(np.int64, copy=False)
        rng_seed, extra = json.loads(metadata.get("rng_seed", "null")), json.loads(metadata.get("extra", "{}"))
        if not isinstance(extra, dict):
            raise ValueError(f"extra must be a JSON object, it is {extra!r}")
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:    # Arrow: OSError for damaged data
        raise InputError(f"{path} is not a label column of this format ({error}); write it again") from error
    wrong = np.flatnonzero((label < NO_LABEL) | (label >= len(class_names)))
    if wrong.size:
        row = int(wrong[0])
        raise InputError(
            f"{path}: label {label[row]} of sample {index[row]} is out of range 0..{len(class_names) - 1} "
            f"({wrong.size} such labels)"
        )
    return LabelColumn(
        name=name,
        index=index,
        label=label,
        class_names=class_names,
        how=metadata.get("how", ""),
        rng_seed=rng_seed,
        parent=metadata.get("parent", ""),
        samples_sha256=metadata.get("samples_sha256", ""),
        extra=extra,
    )


def mean_table(sums: npt.NDArray[np.int64], metadata: dict[str, str]) -> pa.Table:
    """Sums of pixels, (height, width, 3), as rows of MEAN_SCHEMA, line by line."""
    columns = [np.ascontiguousarray(sums[..., channel]).ravel() for channel in range(3)]
    return pa.table(columns, schema=MEAN_SCHEMA.with_metadata(metadata))


def read_mean(dataset: Path, marker: dict[str, Any]) -> npt.NDArray[np.float64] | None:
    """The mean image of the training split as `data_prep build` computed it.

    Args:
        marker: content of dataset.json.

    Returns:
        (3, size, size) on the scale 0..255: the centre of each image whose shorter side was resized to `size`; None if
        none was computed, or no image is in the split.

    Raises:
        InputError: the file is missing or damaged.
    """
    if "mean_sha256" not in marker:
        return None
    path = dataset / "mean.parquet"
    try:
        if file_digest(path) != marker["mean_sha256"]:
            raise ValueError("its SHA-256 is not what dataset.json says")
        table = pq.read_table(path)
        size, num_images = (int(table.schema.metadata[name]) for name in (b"size", b"num_images"))
        sums = np.stack([table[name].to_numpy() for name in MEAN_SCHEMA.names]).reshape(3, size, size)
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        remedy = f"run `python -m data_prep verify {dataset}`"
        raise InputError(f"{path} is damaged or missing ({error}): {remedy}") from error
    return sums / num_images if num_images else None


def dataset_marker(
    counts: dict[str, int], num_shards: int, samples_digest: str, made_by: Sequence[str]
) -> dict[str, Any]:
    """The content of dataset.json, which is written last and makes a dataset complete."""
    return {
        "format": "twostage-dataset",
        "version": FORMAT_VERSION,
        "num_samples": sum(counts.values()),
        "num_shards": num_shards,
        "splits": {split: counts[split] for split in SPLITS if counts.get(split)},
        "samples_sha256": samples_digest,
        "made_by": list(made_by),
    }


def read_marker(dataset: Path) -> dict[str, Any]:
    """Reads and checks dataset.json.

    Raises:
        InputError: no dataset there, an unfinished one, or one of another format version.
    """
    path = dataset / "dataset.json"
    if not path.exists():
        if (dataset / "shards").exists():
            raise InputError(f"{dataset} is not complete (no dataset.json): run its `data_prep build` command again")
        raise InputError(f"{dataset} is not a dataset (no dataset.json): make one by `data_prep build SOURCE OUT`")
    try:
        marker: dict[str, Any] = json.loads(path.read_text())
        kind, version = marker["format"], marker["version"]
    except (ValueError, KeyError, TypeError) as error:          # not JSON, not even text, or not an object
        raise InputError(f"{path} is damaged ({error}): build the dataset again") from error
    if kind != "twostage-dataset" or version != FORMAT_VERSION:
        raise InputError(f"{path}: format {kind!r} version {version}, this program reads version {FORMAT_VERSION}")
    for key in ("num_samples", "num_shards", "splits", "samples_sha256"):
        if key not in marker:
            raise InputError(f"{path} is damaged (no {key!r}): build the dataset again")
    return marker
