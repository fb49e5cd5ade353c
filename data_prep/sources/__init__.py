"""Where images come from: one file here for each kind of source, and the interface that they share.

A source is a module with `OPTIONS`, `add_arguments` and `list_inputs` (see `Source`). It lists what there is, in an
order that depends on nothing but the source, and hands out a `Reader` that finds the bytes of one image. Everything
else (shuffling, checks, shards, workers, resuming) is `data_prep build`'s. To add a source: write the module, and
put its name into FORMATS.
"""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, Protocol, cast

import pyarrow as pa

from data_prep.check import REASONS
from twostage.data.schema import SPLITS, InputError, nearest

FORMATS: Final = ("folder", "mnist", "table", "cifar10", "clothing1m")      # each is a module of this package
BATCH: Final = 1 << 16                  # rows that are Python objects at the same time
SPLIT_NAMES: Final = {                  # names that people give their folders, in lower case
    **{name: name for name in SPLITS},
    **dict.fromkeys(("train", "training", "noisy"), "noisy_train"),
    **dict.fromkeys(("clean",), "clean_train"),
    **dict.fromkeys(("valid", "validation", "dev"), "val"),
    **dict.fromkeys(("testing", "eval"), "test"),
}
HELD_OUT: Final = ("val", "test")       # splits that nothing is trained on, the last ones of SPLITS
INPUTS_SCHEMA: Final = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),       # the source's own name of the image; no two are the same
        pa.field("place", pa.binary(), nullable=False),     # what the reader needs to find it
        pa.field("split", pa.int8(), nullable=False),       # position in schema.SPLITS
        pa.field("label", pa.int64(), nullable=False),      # class number, or NO_LABEL
        pa.field("reason", pa.string()),    # a key of check.REASONS, where it is not worth trying to read the image
        pa.field("detail", pa.string()),
    ]
)


class Input(NamedTuple):
    """One row of INPUTS_SCHEMA."""

    key: str
    place: bytes
    split: int
    label: int
    reason: str | None = None
    detail: str | None = None


class Stamp(NamedTuple):
    """What tells that an image's file was changed; zeros where images do not lie in files of their own."""

    size: int
    mtime_ns: int


class Reader(Protocol):
    """Finds the bytes of one image. Pickled into each worker, so it opens what it needs when it first reads."""

    def read(self, place: bytes, max_bytes: int) -> tuple[bytes, Stamp]:
        """The encoded image, and its file's stamp as it was when it was read.

        Raises:
            RejectionError: there is no such image, or it may not be read, or it is larger than `max_bytes`.
            OSError: the machine failed; says nothing of the image.
        """

    def stamp(self, place: bytes) -> Stamp:
        """The stamp as it is now; Stamp(-1, -1) if there is no such file. Never raises for a single image."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What a source has to offer."""

    class_names: tuple[str, ...]
    batches: Iterable[pa.RecordBatch]
    """rows of INPUTS_SCHEMA, then one int64 column for each of `label_columns`; run through once"""
    reader: Reader
    label_columns: tuple[str, ...] = ()
    """names of further label columns, written to labels/<name>.parquet: class numbers, or NO_LABEL"""
    containers: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 by name of files that hold many images or the list itself (idx files, batches, a CSV file)"""
    notes: tuple[str, ...] = ()
    """lines to print once the inputs are listed"""


class Source(Protocol):
    """A module of this package."""

    OPTIONS: tuple[str, ...]
    """the options this source minds, shared ones included, as attributes of the parsed arguments"""

    def add_arguments(self, group: argparse._ArgumentGroup) -> None:
        """Adds the options that only this source has; every default is None."""

    def list_inputs(self, source: Path, args: argparse.Namespace) -> Listing:
        """Lists the inputs; finds mistakes of the whole source here, before anything is written.

        Raises:
            InputError: the source is not what it should be: missing, empty, unknown splits or labels, ...
        """


def load(name: str) -> Source:
    """The source module of a `--format`.

    Raises:
        InputError: no such format (names the nearest).
    """
    if name not in FORMATS:
        raise InputError(f"--format {name}: {nearest(name, FORMATS)}")
    return cast(Source, importlib.import_module(f"{__name__}.{name}"))


def add_shared_arguments(group: argparse._ArgumentGroup) -> None:
    """Adds the options that several sources have; a source names in OPTIONS those it minds."""
    usual = {split: [name for name, meant in SPLIT_NAMES.items() if meant == split] for split in SPLITS}
    group.add_argument(
        "--split-map",
        metavar="NAME=SPLIT,...",
        help="which split a folder (or a value of a table's split column) means, before the usual names: "
        + "; ".join(f"{', '.join(names)} mean {split}" for split, names in usual.items())
        + ". 'none': no folder is a split, all images are noisy_train",
    )
    group.add_argument(
        "--class-names",
        metavar="A,B,...|FILE",
        help="the classes in order of their numbers, or a file with one a line; default: the names that occur, sorted "
        "(by value if all are numbers)",
    )
    group.add_argument(
        "--allow-outside",
        action="store_true",
        default=None,
        help="follow paths and links that lead out of SOURCE; otherwise such images are rejected",
    )
    group.add_argument(
        "--drop-leaks",
        action="store_true",
        default=None,
        help="reject images of training whose bytes are in val or test too, and those of val that are in test. Without "
        "it they are kept, with a warning; those of Clothing1M, by name or by bytes, stop the build",
    )


class SplitMap:
    """Which split a name means."""

    def __init__(self, text: str | None) -> None:
        """Reads --split-map.

        Raises:
            InputError: not NAME=SPLIT,..., or an unknown split (names the nearest).
        """
        self.is_none = text == "none"
        self._names = dict(SPLIT_NAMES)
        for pair in text.split(",") if text and not self.is_none else []:
            name, equals, split = pair.strip().rpartition("=")
            if not equals or not name:
                raise InputError(f"--split-map {text}: {pair.strip()!r} is not NAME=SPLIT, e.g. holdout=test")
            if split not in SPLITS:
                raise InputError(f"--split-map {text}: no split {split!r}; {nearest(split, SPLITS)}")
            self._names[name.lower()] = split

    def number(self, name: str) -> int | None:
        """Position in schema.SPLITS of the split that `name` means in any case of letters, or None."""
        split = self._names.get(name.lower())
        return None if split is None or self.is_none else SPLITS.index(split)

    def known(self) -> list[str]:
        """All names that mean a split."""
        return sorted(self._names)


def sort_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Sorted by name, or by value if all are numbers (0, 1, ..., 10), so that then a folder's name is its number."""
    found = sorted(set(names))
    if all(name.isascii() and name.isdigit() for name in found):
        found.sort(key=lambda name: (int(name), name))
    return tuple(found)


def read_class_names(text: str) -> tuple[str, ...]:
    """Reads --class-names: names with commas between them, or a file with one a line.

    Raises:
        InputError: fewer than two, an empty one, or one twice; or the file is no text.
    """
    if os.path.isfile(text):            # noqa: PTH113  (Path.is_file raises OSError where many names make a long one)
        return read_names_file(Path(text), f"--class-names {text}")
    names = tuple(name.strip() for name in text.split(","))
    return _checked_names(names, f"--class-names {text}", "give two names or more (cat,dog), or an existing file")


def read_names_file(path: Path, said: str) -> tuple[str, ...]:
    """Reads class names from a file with one a line, whatever the file is called; `said` names it in messages.

    Raises:
        InputError: fewer than two, or one twice; or the file is no text.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{said}: not a text file in UTF-8 ({error})") from error
    names = tuple(line.strip() for line in lines if line.strip())
    return _checked_names(names, said, "it must hold two names or more, one a line")


def _checked_names(names: tuple[str, ...], said: str, remedy: str) -> tuple[str, ...]:
    twice = {name for name in names if names.count(name) > 1}
    if len(names) < 2 or "" in names or twice:
        raise InputError(f"{said}: {f'{min(twice)!r} occurs twice' if twice else remedy}")
    return names


def to_batches(rows: Iterable[Input]) -> Iterator[pa.RecordBatch]:
    """Record batches of INPUTS_SCHEMA from rows that are made on the way."""
    pending: list[Input] = []
    for row in rows:
        assert row.reason is None or row.reason in REASONS, row
        pending.append(row)
        if len(pending) == BATCH:
            yield _batch(pending)
            pending = []
    if pending:
        yield _batch(pending)


def _batch(rows: list[Input]) -> pa.RecordBatch:
    columns = zip(*rows, strict=True)
    arrays = [pa.array(values, type=field.type) for values, field in zip(columns, INPUTS_SCHEMA, strict=True)]
    return pa.record_batch(arrays, schema=INPUTS_SCHEMA)
