"""A table of images: CSV or Parquet with the columns path, label and, if there are splits, split."""

from __future__ import annotations

import argparse
import csv
import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from data_prep.inputs import some
from data_prep.sources import INPUTS_SCHEMA, Listing, SplitMap, read_class_names, sort_classes
from data_prep.sources.apart import keep_apart
from data_prep.sources.files import FileReader
from twostage.data.schema import NO_LABEL, SPLITS, InputError, nearest

OPTIONS = ("split_map", "class_names", "allow_outside", "image_root", "columns", "drop_leaks")
COLUMNS: Final = ("path", "label", "split")
WHOLE: Final = r"-?[0-9]+"
DECIMAL: Final = r"-?[0-9]+\.0"          # as pandas writes whole numbers among empty ones
LIKE_EMPTY: Final = ("nan", "na", "n/a", "<na>", "none", "null")
SUFFIXES: Final = (".csv", ".tsv", ".parquet")


def add_arguments(group: argparse._ArgumentGroup) -> None:
    """Adds the options that only this source has."""
    group.description = (
        "SOURCE is a .csv, .tsv or .parquet file with the columns path, label and, if there are several splits, split. "
        "Labels are class names, or numbers from 0; an empty one, or -1, is an image without a label. Keys are the "
        "paths as they stand in the table."
    )
    group.add_argument("--image-root", type=Path, metavar="DIR", help="folder that paths start from (SOURCE's folder)")
    group.add_argument(
        "--columns",
        metavar="path=NAME,...",
        help="names of the columns, where they are others: path=file,label=class,split=fold; 'split=' for no splits",
    )


def list_inputs(source: Path, args: argparse.Namespace) -> Listing:
    """See `Source.list_inputs`."""
    if not source.is_file():
        raise InputError(f"{source}: {'not a file' if source.exists() else 'no such file'}")
    if source.suffix.lower() not in SUFFIXES:
        raise InputError(f"{source}: a table's name ends in one of {', '.join(SUFFIXES)}")
    root = source.parent if args.image_root is None else args.image_root
    if not root.is_dir():
        raise InputError(f"--image-root {root}: no such folder")
    table = _Table(source, args.columns)
    labels, splits = table.survey()
    given = None if args.class_names is None else read_class_names(args.class_names)
    table.notes += _like_empty(source, labels, given)
    class_names, numbers = _classes(source, labels, given)
    split_numbers = _splits(source, splits, SplitMap(args.split_map))
    reader = FileReader(root, bool(args.allow_outside))
    return Listing(
        class_names=class_names,
        batches=table.batches(numbers, split_numbers),
        reader=keep_apart(reader, table.batches(numbers, split_numbers), args) if args.drop_leaks else reader,
        notes=tuple(table.notes),
    )


class _Table:
    """Reads the table in batches, all values as text."""

    def __init__(self, path: Path, columns: str | None) -> None:
        self._path = path
        self._is_parquet = path.suffix.lower() == ".parquet"
        self.notes: list[str] = []
        try:
            if self._is_parquet:
                present = pq.ParquetFile(path).schema_arrow.names
            else:
                with path.open(encoding="utf-8-sig") as file:
                    head = file.readline()
                self._separator = max(",;\t", key=head.count)
                present = next(csv.reader([head], delimiter=self._separator), [])
        except (pa.ArrowException, OSError, UnicodeError, csv.Error) as error:
            raise InputError(f"{path} cannot be read as a table: {error}") from error
        spelled = {name.strip(' "'): name for name in reversed(present)}     # "path, label": the space is in the name
        chosen = _choose_columns(path, [name.strip(' "') for name in present], columns)
        self._names = {name: spelled[column] for name, column in chosen.items()}

    def survey(self) -> tuple[set[str], set[str]]:
        """The labels and splits that occur; finds rows without a path or a split, and rows that swallowed others."""
        labels: set[str] = set()
        splits: set[str] = set()
        row = 1
        for batch in self._read():
            for name in ("path", "split"):
                if batch[name].null_count:
                    empty = row + pc.index(batch[name].is_null(), True).as_py()
                    raise InputError(f"{self._path}: row {empty} has no {name}")
            if not self._is_parquet:
                self._check_lines(batch, row)
            labels.update(batch["label"].drop_null().unique().to_pylist())
            splits.update(batch["split"].unique().to_pylist())
            row += batch.num_rows
        if row == 1:
            raise InputError(f"{self._path} has no rows")
        if not self._is_parquet:
            with self._path.open(encoding="utf-8", errors="replace") as file:
                num_lines = sum(not line.isspace() for line in file)
            if num_lines > row:
                self.notes.append(
                    f"warning: {self._path} has {row - 1} rows on {num_lines - 1} lines: values go over several lines; "
                    "is a quotation mark left open?"
                )
        return labels, splits

    def _check_lines(self, batch: pa.RecordBatch, row: int) -> None:
        """A quotation mark that is left open makes one value of all lines up to the next one, images and all."""
        for name in COLUMNS:
            several = pc.match_substring_regex(batch[name], "[\r\n]")
            if name == "path":          # may have line breaks in it, but hardly columns as well
                several = pc.and_(several, pc.match_substring(batch[name], self._separator))
            broken = pc.index(several, True).as_py()
            if broken >= 0:
                start = batch[name][broken].as_py().splitlines()[0]
                raise InputError(
                    f"{self._path}: row {row + broken} has a {name} of several lines, which begins with {start!r}: is "
                    "a quotation mark left open?"
                )

    def batches(self, labels: dict[str, int], splits: dict[str, int]) -> Iterator[pa.RecordBatch]:
        """Record batches of INPUTS_SCHEMA."""
        for batch in self._read():
            columns = [
                batch["path"],
                batch["path"].cast(pa.binary()),
                _translate(batch["split"], splits, pa.int8()),
                _translate(batch["label"], labels, pa.int64()).fill_null(NO_LABEL),
                pa.nulls(batch.num_rows, pa.string()),
                pa.nulls(batch.num_rows, pa.string()),
            ]
            yield pa.record_batch(columns, schema=INPUTS_SCHEMA)

    def _read(self) -> Iterator[pa.RecordBatch]:
        """Batches of path, label, split as texts; an empty value is null."""
        try:
            for batch in self._open():
                texts = {name: self._texts(batch, column) for name, column in self._names.items()}
                if "split" not in texts:
                    texts["split"] = pa.array([SPLITS[0]] * batch.num_rows, pa.string())
                yield pa.record_batch([texts[name] for name in COLUMNS], names=list(COLUMNS))
        except (pa.ArrowException, OSError, UnicodeError) as error:
            raise InputError(f"{self._path} cannot be read as a table: {error}") from error

    def _open(self) -> Iterator[pa.RecordBatch]:
        wanted = list(self._names.values())
        if self._is_parquet:
            yield from pq.ParquetFile(self._path).iter_batches(columns=wanted)
            return
        yield from pacsv.open_csv(
            self._path,
            parse_options=pacsv.ParseOptions(delimiter=self._separator, newlines_in_values=True),
            convert_options=pacsv.ConvertOptions(
                include_columns=wanted,
                column_types=dict.fromkeys(wanted, pa.string()),    # guessed types would turn class 007 into 7
                strings_can_be_null=True,
                null_values=[""],
            ),
        )

    def _texts(self, batch: pa.RecordBatch, column: str) -> pa.Array:
        values = batch[column]
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        if pa.types.is_floating(values.type):       # whole numbers among empty ones, as pandas writes them
            values = pc.if_else(pc.is_nan(values), None, values)
            broken = pc.index(pc.equal(values, pc.floor(values)), False).as_py()
            if broken >= 0:
                raise InputError(f"{self._path}: column {column!r} has {values[broken]}, which is no whole number")
            values = values.cast(pa.int64())
        values = values.cast(pa.string())
        if column != self._names["path"]:
            values = pc.utf8_trim_whitespace(values)
        return pc.if_else(pc.equal(values, ""), None, values)


def _choose_columns(path: Path, present: list[str], text: str | None) -> dict[str, str]:
    """Which of a table's columns are path, label and split; split may be missing."""
    chosen: dict[str, str] = {}
    for pair in text.split(",") if text else []:
        name, equals, column = pair.strip().partition("=")
        if not equals or name not in COLUMNS:
            allowed = ", ".join(COLUMNS)
            raise InputError(f"--columns {text}: {pair.strip()!r} is not NAME=COLUMN with NAME one of {allowed}")
        chosen[name] = column
        if column not in present and (column or name != "split"):
            raise InputError(f"--columns {text}: {path} has no column {column!r}; {nearest(column, present)}")
    by_case = {column.lower(): column for column in reversed(present)}
    for name in COLUMNS:
        if name in chosen:
            continue
        if name in by_case:
            chosen[name] = by_case[name]
        elif name != "split":
            remedy = f"{nearest(name, present)}; say which by --columns {name}=NAME"
            raise InputError(f"{path} has no column {name!r}; {remedy}")
        elif close := difflib.get_close_matches(name, present, n=1):       # a test split must not become training
            raise InputError(
                f"{path} has no column 'split', but {close[0]!r}: say --columns split={close[0]}, or --columns split= "
                "if all images are for training"
            )
    return {name: column for name, column in chosen.items() if column}


def _like_empty(path: Path, labels: set[str], names: tuple[str, ...] | None) -> list[str]:
    """Lines for people on labels that other programs write where there is none, and that are classes here."""
    found = sorted({label for label in labels if label.lower() in LIKE_EMPTY} - set(names or ()))
    if not found:
        return []
    remedy = f"an image without a label has an empty one, or {NO_LABEL}"
    if all(re.fullmatch(f"{WHOLE}|{DECIMAL}", label) for label in labels.difference(found)):
        raise InputError(f"{path}: label {found[0]!r} is no class number; {remedy}")
    return [f"warning: {path}: label {some(found)} is taken for the name of a class; {remedy}"]


def _classes(path: Path, labels: set[str], names: tuple[str, ...] | None) -> tuple[tuple[str, ...], dict[str, int]]:
    """Class names, and the class number of each label that occurs."""
    if labels and all(re.fullmatch(DECIMAL, label) for label in labels) and not labels <= set(names or ()):
        names, plain = _classes(path, {label.removesuffix(".0") for label in labels}, names)
        return names, {f"{label}.0": number for label, number in plain.items()}
    labels = labels - {str(NO_LABEL)}
    numbers = {label: int(label) for label in labels if re.fullmatch(WHOLE, label)}
    if len(numbers) < len(labels) or (names is not None and labels <= set(names)):
        names = names or sort_classes(labels)
        for label in sorted(labels - set(names)):
            raise InputError(f"{path}: label {label!r} is not in --class-names; {nearest(label, names)}")
        numbers = {label: names.index(label) for label in labels}
    elif names is not None:
        _check_range(path, numbers, len(names))
    else:
        _check_range(path, numbers, len(labels))
        names = tuple(map(str, range(len(labels))))
    if len(names) < 2:
        found = ", ".join(names) or "no labels"
        raise InputError(f"{path} has only one class ({found}): a classifier needs two at least")
    return names, {**numbers, str(NO_LABEL): NO_LABEL}


def _check_range(path: Path, numbers: dict[str, int], num_classes: int) -> None:
    wrong = [label for label, number in numbers.items() if not 0 <= number < num_classes or str(number) != label]
    if wrong:
        label = min(wrong, key=lambda text: (abs(int(text)), text))
        raise InputError(
            f"{path}: label {label} is out of range 0..{num_classes - 1}, and there are {num_classes} classes. Labels "
            "that are numbers must count from 0 without a gap; --class-names A,B,... says what the numbers mean"
        )


def _splits(path: Path, splits: set[str], split_map: SplitMap) -> dict[str, int]:
    """The split number of each split name that occurs."""
    if split_map.is_none:
        return dict.fromkeys(splits, SPLITS.index("noisy_train"))
    numbers = {}
    for name in sorted(splits):
        number = split_map.number(name)
        if number is None:
            close = nearest(name, split_map.known())
            raise InputError(f"{path}: split {name!r} is unknown; {close}; or say --split-map {name}=SPLIT")
        numbers[name] = number
    return numbers


def _translate(values: pa.Array, numbers: dict[str, int], type_: pa.DataType) -> pa.Array:
    """The number of each value; null stays null."""
    names = pa.array(list(numbers), pa.string())
    return pa.array(list(numbers.values()), type_).take(pc.index_in(values, value_set=names))
