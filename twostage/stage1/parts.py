"""Reads the Parquet parts that `rank` leaves, one per process, back into one ranking. Knows only numpy and pyarrow."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from twostage.data.schema import NO_LABEL, InputError

Indices = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

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


def read_parts(rank_dir: Path, num_classes: int) -> tuple[Ranked, Mask]:
    """Reads what `rank` wrote, whatever the number of processes it ran in.

    Returns:
        The scored samples, and for each whether it was held out of training.

    Raises:
        InputError: parts are missing, damaged, or of two rankings, or a sample is there twice or not at all.
    """
    paths = _part_paths(rank_dir)
    columns: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in PART_COLUMNS}
    for path in paths:
        for name, values in zip(PART_COLUMNS, _read_part(path, num_classes), strict=True):
            columns[name].append(values)
    index = np.concatenate(columns["index"])
    order = np.argsort(index, kind="stable")            # ranks have contiguous shares, so this finds sorted runs
    index = index[order]
    twice = np.flatnonzero(index[1:] == index[:-1])
    if twice.size:
        ends = np.cumsum([len(part) for part in columns["index"]])
        names = [paths[np.searchsorted(ends, order[row], side="right")].name for row in (twice[0], twice[0] + 1)]
        raise InputError(
            f"{rank_dir}: sample {index[twice[0]]} is there twice, in {names[0]} and {names[1]} ({twice.size} such "
            "samples): delete the folder and run `rank` again"
        )
    _check_count(rank_dir, len(index))
    label, predicted, score, held_out = (np.concatenate(columns[name])[order] for name in PART_COLUMNS[1:])
    return Ranked(index, label, predicted, score), held_out


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


def _read_part(path: Path, num_classes: int) -> list[npt.NDArray[Any]]:
    again = "delete its folder and run `rank` again"
    try:
        file = pq.ParquetFile(path)
        absent = [name for name in PART_COLUMNS if name not in file.schema_arrow.names]
        if absent:
            raise InputError(f"{path} has no column {absent[0]!r}: {again}")
        table = file.read(columns=PART_COLUMNS).select(PART_COLUMNS).cast(PARTS_SCHEMA)
        if any(table[name].null_count for name in PART_COLUMNS):
            raise InputError(f"{path} has rows without a value: {again}")
        columns = [table[name].to_numpy() for name in PART_COLUMNS]
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise                                       # the machine's failure; damage has no errno
        raise InputError(f"{path} is damaged ({error}): {again}") from error
    index, label, predicted = columns[:3]
    wrong = (label < NO_LABEL) | (label >= num_classes) | (predicted < 0) | (predicted >= num_classes) | (index < 0)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise InputError(
            f"{path}: sample {index[row]}, label {label[row]}, predicted {predicted[row]} is out of range for "
            f"{num_classes} classes: {again}"
        )
    return columns


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
