"""The list of a build's inputs: written once, in bounded memory, and compared with later listings."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.sources import INPUTS_SCHEMA, Listing
from twostage.data.schema import InputError

NAMED: Final = 3                        # examples in a message


def write_inputs(listing: Listing, path: Path) -> tuple[int, str]:
    """Writes the inputs as they are listed, in bounded memory.

    Returns:
        (number of inputs, SHA-256 of what identifies them)

    Raises:
        InputError: two images with one key, or no image at all.
    """
    schema = INPUTS_SCHEMA
    for name in listing.label_columns:
        schema = schema.append(pa.field(name, pa.int64(), nullable=False))
    names = [name for name in schema.names if name != "place"]
    hashers = {name: (hashlib.sha256(), hashlib.sha256()) for name in names}
    hashes = []
    num_candidates = 0
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for batch in listing.batches:
            writer.write_batch(batch)
            hashes.append(np.fromiter(map(hash, batch["key"].to_pylist()), np.int64, batch.num_rows))
            num_candidates += batch["reason"].null_count
            for name, (lengths, content) in hashers.items():
                for part, hasher in zip(_plain(batch[name]), (lengths, content), strict=False):
                    hasher.update(part)
    hashes_of_keys = np.concatenate(hashes) if hashes else np.empty(0, np.int64)
    if not num_candidates:
        raise InputError("SOURCE has no image" if not len(hashes_of_keys) else "SOURCE has no image that could be read")
    _check_keys(hashes_of_keys, pa.ipc.open_file(pa.memory_map(str(path))).read_all())
    whole = hashlib.sha256()
    for name, (lengths, content) in hashers.items():
        whole.update(name.encode() + lengths.digest() + content.digest())
    return len(hashes_of_keys), whole.hexdigest()


def _plain(column: pa.Array) -> Iterator[bytes]:
    """The bytes that identify a column's values, however it is cut into batches: lengths and texts, or numbers."""
    if pa.types.is_string(column.type):
        column = column.fill_null("").cast(pa.binary())
        yield pc.binary_length(column).to_numpy().astype("<i4").tobytes()
        yield b"".join(column.to_pylist())
    else:
        yield column.to_numpy(zero_copy_only=False).astype("<i8").tobytes()


def _check_keys(hashes: npt.NDArray[np.int64], inputs: pa.Table) -> None:
    order = np.argsort(hashes, kind="stable")
    for first in np.flatnonzero(np.diff(hashes[order]) == 0).tolist():
        a, b = (inputs.slice(int(order[i]), 1).to_pylist()[0] for i in (first, first + 1))
        if a["key"] == b["key"]:
            numbers = f"number {order[first] + 1} and number {order[first + 1] + 1} of the inputs"
            places = f"at {os.fsdecode(a['place'])!r} and at {os.fsdecode(b['place'])!r}"
            raise InputError(f"two images with one key, {a['key']!r}: {numbers}, {places}; keep one of them")


def changed_inputs(old: pa.Table, new: pa.Table) -> list[str]:
    """In words, what was added, removed or relabelled between two listings."""
    before, after = (table["key"].combine_chunks() for table in (old, new))
    problems = []
    for text, keys, others in (("not there any more", before, after), ("new", after, before)):
        lost = keys.filter(pc.invert(pc.is_in(keys, value_set=others)))
        if len(lost):
            problems.append(f"{len(lost)} images are {text}: {some(lost[:NAMED].to_pylist(), len(lost))}")
    if not problems:
        place = pc.index_in(after, value_set=before)
        same = old.take(place)
        rejection = {"reason", "detail"}
        labels = set(new.column_names) - {"key", "place"} - rejection
        for text, columns in (("have another label or split", labels), ("are rejected otherwise", rejection)):
            changed = np.zeros(len(after), bool)
            for name in columns:
                values, earlier = (np.asarray(table[name].to_pylist(), dtype=object) for table in (new, same))
                changed |= values != earlier
            keys = after.filter(pa.array(changed))
            if len(keys):
                problems.append(f"{len(keys)} images {text}: {some(keys[:NAMED].to_pylist(), len(keys))}")
    return problems or ["another order"]


def some(names: Sequence[str], total: int | None = None) -> str:
    """A few of the names for a message, and how many more there are."""
    total = len(names) if total is None else total
    return ", ".join(map(repr, names[:NAMED])) + (f" and {total - NAMED} more" if total > NAMED else "")
