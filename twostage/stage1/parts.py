"""Reads the Parquet parts that `rank` leaves back into one ranking, window by window. Knows only numpy and pyarrow."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from twostage.data.schema import NO_LABEL, InputError

Indices = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

WINDOW_ROWS: Final = 1 << 18
KEPT_ROWS: Final = 1 << 22             # 120 MB: so many stay in memory once they are read
PART_NAME: Final = re.compile(r"part-(\d+)-of-(\d+)\.parquet")
PARTS_SCHEMA: Final = pa.schema(
    [
        ("index", pa.int64()),
        ("label", pa.int64()),
        ("predicted", pa.int64()),
        ("score", pa.float32()),
        ("held_out", pa.bool_()),
    ]
)
"""the columns that are read; a part has the probabilities of all classes, too"""
PART_COLUMNS: Final = PARTS_SCHEMA.names
ANY_INDEX: Final = np.iinfo(np.int64)
AGAIN: Final = "delete its folder and run `rank` again"


@dataclass(frozen=True)
class Ranked:
    """Scored samples, in increasing order of `index`; all arrays are (n,)."""

    index: Indices
    label: Indices
    """as given, NO_LABEL where there is none"""
    predicted: Indices
    score: Scores
    """P(given label | image)"""

    def where(self, rows: Mask) -> Ranked:
        return Ranked(self.index[rows], self.label[rows], self.predicted[rows], self.score[rows])


Window = tuple[Ranked, Mask]
"""scored samples, and for each whether it was held out of training"""


def read_parts(rank_dir: Path, num_classes: int) -> Window:
    """Reads all that `rank` wrote into memory, whatever the number of processes it ran in.

    Raises:
        InputError: parts are missing, damaged, or of two rankings, or a sample is there twice or not at all.
    """
    (whole,) = Parts(rank_dir, num_classes, window_rows=ANY_INDEX.max)
    return whole


class Parts:
    """A ranking as windows of increasing sample indices, of about `window_rows` samples each, so that it may be larger
    than memory. To be iterated as often as one likes; up to KEPT_ROWS samples are read once.

    A row group is read in each window that its indices reach into: `rank` writes them in increasing order, and then
    that is one window, or two at an edge.

    Raises:
        InputError: parts are missing, damaged or of two rankings; while iterating, a sample is there twice, or a value
            is missing or out of range.
    """

    def __init__(self, rank_dir: Path, num_classes: int, *, window_rows: int = WINDOW_ROWS) -> None:
        self.rank_dir, self.num_classes = rank_dir, num_classes
        self.paths = _part_paths(rank_dir)
        self._files = [_open_part(path) for path in self.paths]
        self._groups = [_row_groups(*part) for part in zip(self.paths, self._files, strict=True)]
        """of each part: (row groups, 3) number of rows, smallest and largest index"""
        groups = np.concatenate(self._groups)
        self.num_rows = int(groups[:, 0].sum())
        self.last = int(groups[:, 2].max(initial=-1))
        """the largest sample index, -1 where there is no sample"""
        _check_count(rank_dir, self.num_rows)
        self._bounds = list(pairwise([ANY_INDEX.min, *_edges(groups, window_rows), ANY_INDEX.max]))
        self._kept: list[Window] = []

    def __iter__(self) -> Iterator[Window]:
        if self._kept:
            yield from self._kept
            return
        found, kept = 0, []
        with ThreadPoolExecutor(1) as reader:           # the next window is decoded while this one is worked on
            ahead = reader.submit(self._read, *self._bounds[0])
            for following in [*self._bounds[1:], None]:
                window = ahead.result()
                if following is not None:
                    ahead = reader.submit(self._read, *following)
                found += len(window[1])
                if self.num_rows <= KEPT_ROWS:
                    kept.append(window)
                yield window
        if found != self.num_rows:
            raise InputError(
                f"{self.rank_dir}: {self.num_rows - found} samples are not where the statistics of the parts say: "
                "delete the folder and run `rank` again"
            )
        self._kept = kept

    def _read(self, start: int, stop: int) -> Window:
        """The samples whose index is within start..stop-1."""
        read = [
            (path, _within(_read_groups(path, file, reached, self.num_classes), start, stop))
            for path, file, groups in zip(self.paths, self._files, self._groups, strict=True)
            if (reached := np.flatnonzero((groups[:, 2] >= start) & (groups[:, 1] < stop)).tolist())
        ]
        parts = [columns for _, columns in read] or [[c.to_numpy() for c in PARTS_SCHEMA.empty_table().columns]]
        columns = parts[0] if len(parts) == 1 else [np.concatenate(column) for column in zip(*parts, strict=True)]
        if (columns[0][1:] <= columns[0][:-1]).any():       # not so where each part follows the one before it
            order = np.argsort(columns[0], kind="stable")
            origin = np.repeat(np.arange(len(parts)), [len(part[0]) for part in parts])[order]
            columns = [column[order] for column in columns]
            self._check_twice(columns[0], origin, [path.name for path, _ in read])
        index, label, predicted, score, held_out = columns
        return Ranked(index, label, predicted, score), held_out

    def _check_twice(self, index: Indices, origin: Indices, names: list[str]) -> None:
        twice = np.flatnonzero(index[1:] == index[:-1])
        if twice.size:
            one, other = (names[origin[row]] for row in (twice[0], twice[0] + 1))
            raise InputError(
                f"{self.rank_dir}: sample {index[twice[0]]} is there twice, in {one} and {other} "
                f"({twice.size} such samples among {len(index)}): delete the folder and run `rank` again"
            )


def _part_paths(rank_dir: Path) -> list[Path]:
    parts: dict[int, Path] = {}
    totals: set[int] = set()
    for path in sorted(rank_dir.glob("part-*.parquet")):
        match = PART_NAME.fullmatch(path.name)
        if match is None:
            raise InputError(f"{path} is not named like a part of a ranking (part-I-of-N.parquet): remove it")
        number, total = int(match[1]), int(match[2])
        totals.add(total)
        if len(totals) > 1:
            raise InputError(
                f"{rank_dir} holds parts of different rankings ({path.name} and {next(iter(parts.values())).name}): "
                "delete the folder and run `rank` again"
            )
        if number in parts or number >= total:
            raise InputError(f"{path} is one part too many: delete the folder {rank_dir} and run `rank` again")
        parts[number] = path
    if not parts:
        raise InputError(f"{rank_dir} holds no part of a ranking (part-*.parquet): run `rank` first")
    missing = [number for number in range(totals.pop()) if number not in parts]
    if missing:
        pattern = next(iter(parts.values())).name.partition("-of-")[2]
        names = ", ".join(f"part-{number:05d}-of-{pattern}" for number in missing[:5])
        raise InputError(f"{rank_dir} is not complete ({len(missing)} parts missing: {names}): run `rank` again")
    return [parts[number] for number in sorted(parts)]


def _open_part(path: Path) -> pq.FileMetaData:
    try:
        file = pq.read_metadata(path)
        names = file.schema.to_arrow_schema().names
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from error
    absent = [name for name in PART_COLUMNS if name not in names]
    if absent:
        raise InputError(f"{path} has no column {absent[0]!r}: {AGAIN}")
    return file


def _row_groups(path: Path, file: pq.FileMetaData) -> Indices:
    """(row groups, 3) rows, smallest and largest index; 0 and -1 where there is no such number."""
    column = [file.schema.column(n).path for n in range(len(file.schema))].index("index")
    found = np.empty((file.num_row_groups, 3), dtype=np.int64)
    for number in range(file.num_row_groups):
        group = file.row_group(number)
        said = group.column(column).statistics
        ends = (said.min, said.max) if said is not None and said.has_min_max else _ends(path, file, number)
        found[number] = group.num_rows, *(ends if all(isinstance(end, int) for end in ends) else (0, -1))
    return found


def _ends(path: Path, file: pq.FileMetaData, group: int) -> tuple[Any, Any]:
    """Smallest and largest index of a row group whose statistics do not say."""
    try:
        index = pq.ParquetFile(path, metadata=file).read_row_group(group, columns=["index"])["index"]
        return tuple(pc.min_max(index).as_py().values())
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from error


def _edges(groups: Indices, window_rows: int) -> list[int]:
    """Indices that divide a ranking into windows of about that many rows, at the start of a row group if possible."""
    number = -(-int(groups[:, 0].sum()) // window_rows)
    end = int(groups[:, 2].max(initial=-1)) + 1
    even = [end * n // number for n in range(1, number)]
    starts = np.unique(groups[:, 1])
    near = np.append(starts, end)[np.searchsorted(starts, even)]
    limits = [*even, end][1:]
    return [int(start) if start < limit else edge for edge, start, limit in zip(even, near, limits, strict=True)]


def _read_groups(path: Path, file: pq.FileMetaData, groups: list[int], num_classes: int) -> list[npt.NDArray[Any]]:
    """The rows of some row groups, each column an array, in the order of the file."""
    try:
        table = pq.ParquetFile(path, metadata=file).read_row_groups(groups, columns=PART_COLUMNS)
        table = table.select(PART_COLUMNS).cast(PARTS_SCHEMA)
        if any(table[name].null_count for name in PART_COLUMNS):
            raise InputError(f"{path} has rows without a value: {AGAIN}")
        columns = [table[name].to_numpy() for name in PART_COLUMNS]
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from error
    index, label, predicted = columns[:3]
    if not len(index) or (
        label.min() >= NO_LABEL and label.max() < num_classes and index.min() >= 0
        and predicted.min() >= 0 and predicted.max() < num_classes
    ):
        return columns
    wrong = (label < NO_LABEL) | (label >= num_classes) | (predicted < 0) | (predicted >= num_classes) | (index < 0)
    row = int(np.flatnonzero(wrong)[0])
    raise InputError(
        f"{path}: sample {index[row]}, label {label[row]}, predicted {predicted[row]} is out of range for "
        f"{num_classes} classes: {AGAIN}"
    )


def _within(columns: list[npt.NDArray[Any]], start: int, stop: int) -> list[npt.NDArray[Any]]:
    index = columns[0]
    if not len(index) or (index.min() >= start and index.max() < stop):
        return columns
    inside = (index >= start) & (index < stop)
    return [column[inside] for column in columns]


def _damaged(path: Path, error: Exception) -> Exception:
    """What to raise for a file that Arrow cannot read; the machine's own failures have an errno, damage has none."""
    if isinstance(error, OSError) and error.errno is not None:
        return error
    return InputError(f"{path} is damaged ({error}): {AGAIN}")


def _check_count(rank_dir: Path, found: int) -> None:
    """Compares with the number of samples that the finished ranking noted, where it is finished."""
    marker = rank_dir / "done.json"
    if not marker.exists():
        return
    try:
        noted = json.loads(marker.read_text())["results"]["samples"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{marker} is damaged ({error}): delete the folder and run `rank` again") from error
    if noted != found:
        raise InputError(
            f"{rank_dir}: its parts hold {found} samples, but {noted} were scored: delete the folder and run `rank` "
            "again"
        )
