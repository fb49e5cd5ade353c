"""Clothing1M's lists of keys and labels (Xiao et al., CVPR 2015), with their traps, beside the published counts.

Every file name has a comma in it, and some lists end without a newline. The file of noisy labels has 37,497 keys more
than the noisy training set: images with both labels, 12,860 of them in val and test.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.inputs import some
from twostage.data.schema import NO_LABEL, SPLITS, InputError

LISTS: Final = {                # by split
    "noisy_train": "noisy_train_key_list.txt",
    "clean_train": "clean_train_key_list.txt",
    "val": "clean_val_key_list.txt",
    "test": "clean_test_key_list.txt",
}
LABELS: Final = {"noisy": "noisy_label_kv.txt", "clean": "clean_label_kv.txt"}      # by label column
CLASS_NAMES: Final = (
    "T-Shirt", "Shirt", "Knitwear", "Chiffon", "Sweater", "Hoodie", "Windbreaker", "Jacket", "Downcoat", "Suit",
    "Shawl", "Dress", "Vest", "Underwear",
)                               # fmt: skip
PUBLISHED: Final = {            # samples by split and class, of the original lists
    "noisy_train": (86152, 88131, 85788, 50092, 18976, 82829, 80437, 80699, 73318, 88588, 42312, 87958, 59663, 75057),
    "clean_train": (3974, 3032, 2507, 5225, 4126, 3670, 2690, 1326, 4420, 3467, 2223, 3126, 4051, 3733),
    "val": (1221, 891, 735, 1562, 1259, 1147, 785, 435, 1362, 1021, 704, 944, 1145, 1102),
    "test": (845, 636, 527, 1171, 918, 824, 558, 297, 1017, 727, 523, 686, 946, 851),
}
PUBLISHED_KV: Final = {"noisy": 1_037_497, "clean": 72_409}
PUBLISHED_BOTH: Final = {"noisy_train": 0, "clean_train": 24_637, "val": 7_465, "test": 5_395}
PREFIX: Final = b"images/"

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class KeyList:
    """The keys of a split."""

    path: Path
    keys: pa.Array
    """binary, in the list's order, each once; all begin with b"images/", whether the list says so or not"""
    repeated: tuple[str, ...]
    """keys of lines that repeat an earlier one"""


@dataclass(frozen=True)
class LabelFile:
    """Labels by key."""

    path: Path
    keys: pa.Array
    """binary, each once"""
    labels: Ints

    def of(self, keys: pa.Array) -> Ints:
        """(keys,) labels, NO_LABEL of keys that are not here."""
        row = pc.index_in(keys, value_set=self.keys)
        return np.asarray(pa.array(self.labels).take(row).fill_null(NO_LABEL))


def read_key_list(path: Path) -> KeyList:
    """Reads a *_key_list.txt.

    Raises:
        InputError: it is empty, or holds labels too.
    """
    lines, numbers = _lines(path)
    for line, number in zip(lines, numbers, strict=True):
        if line.rpartition(b" ")[2].isdigit() and b" " in line:
            raise InputError(f"{path}: line {number} is {_text(line)!r}, a key with a label; expected are keys alone")
    keys, first = _once(lines)
    again = np.setdiff1d(np.arange(len(lines)), first)
    return KeyList(path, keys, tuple(_text(lines[row]) for row in again))


def read_label_file(path: Path, num_classes: int) -> LabelFile:
    """Reads a *_label_kv.txt.

    Raises:
        InputError: it is empty, a line is not a key and a label, a label is out of range, a key has two labels.
    """
    lines, numbers = _lines(path)
    labels = np.empty(len(lines), np.int64)
    keys = []
    for row, line in enumerate(lines):
        key, _, label = line.rpartition(b" ")
        if not key or not label.isdigit():
            where = f"{path}: line {numbers[row]} is {_text(line)!r}"
            raise InputError(f"{where}; expected is a key, a space and a class number")
        if int(label) >= num_classes:
            raise InputError(f"{path}: line {numbers[row]}: label {int(label)} is out of range 0..{num_classes - 1}")
        keys.append(key.rstrip())
        labels[row] = int(label)
    once, first = _once(keys)
    found = LabelFile(path, once, labels[first])
    if len(once) < len(keys):
        for other in np.flatnonzero(found.of(_canonical(keys)) != labels).tolist():
            where = f"{path}: line {numbers[other]}, {_text(lines[other])!r}"
            raise InputError(f"{where}, gives the key another label than a line before it")
    return found


def labels_by_split(keys: Mapping[str, KeyList], files: Mapping[str, LabelFile]) -> dict[str, dict[str, Ints]]:
    """Labels of a split's keys, by split, then by column; NO_LABEL where there is none."""
    return {split: {column: file.of(keys[split].keys) for column, file in files.items()} for split in LISTS}


def own_column(split: str) -> str:
    """The label column that a split is used with."""
    return "noisy" if split == "noisy_train" else "clean"


def survey(
    labels: Mapping[str, Mapping[str, Ints]], files: Mapping[str, LabelFile], class_names: tuple[str, ...]
) -> list[str]:
    """Lines for people: splits and classes; where they differ from the published ones, those too."""
    official = class_names == CLASS_NAMES
    rows: list[tuple[str, list[int], list[int]]] = []
    counts = [np.bincount(labels[split][own_column(split)] + 1, minlength=len(class_names) + 1) for split in LISTS]
    for number, name in enumerate(class_names):
        published = [PUBLISHED[split][number] for split in LISTS] if official else []
        rows.append((f"{number} {name}", [int(count[number + 1]) for count in counts], published))
    if any(count[0] for count in counts):
        rows.append(("no label", [int(count[0]) for count in counts], [0] * 4))
    rows.append(("all", [int(count.sum()) for count in counts], [sum(PUBLISHED[split]) for split in LISTS]))
    both = [int(np.logical_and(*(values != NO_LABEL for values in labels[split].values())).sum()) for split in LISTS]
    rows.append(("both labels", both, [PUBLISHED_BOTH[split] for split in LISTS]))
    rows += [(f"keys in {file.path.name}", [len(file.keys)], [PUBLISHED_KV[name]]) for name, file in files.items()]
    width = max(len(name) for name, _, _ in rows)
    lines = [f"{'class':<{width}}" + "".join(f"{split:>19}" for split in LISTS)]
    differs = False
    for name, found, expected in rows:
        cells = [str(count) for count in found]
        if official and found != expected:
            differs = True
            pairs = zip(found, expected, strict=True)
            cells = [f"{count}" if count == other else f"{count} ({other})" for count, other in pairs]
        lines.append(f"{name:<{width}}" + "".join(f"{cell:>19}" for cell in cells))
    if official:
        lines.append("in brackets: the published count" if differs else "all counts are the published ones")
    return lines


def notes_on(
    keys: Mapping[str, KeyList], labels: Mapping[str, Mapping[str, Ints]], files: Mapping[str, LabelFile]
) -> list[str]:
    """Lines for people on what is odd, and what is done about it."""
    lines = []
    for split, listed in keys.items():
        name = listed.path.name
        if listed.repeated:
            lines.append(f"{name}: {len(listed.repeated)} lines repeat a key, taken once: {some(listed.repeated)}")
        lost = listed.keys.filter(pa.array(labels[split][own_column(split)] == NO_LABEL))
        if len(lost):
            lines.append(f"{name}: {len(lost)} keys have no {own_column(split)} label: {_some(lost)}")
    every = pa.concat_arrays([listed.keys for listed in keys.values()])
    for file in files.values():
        unused = file.keys.filter(pc.invert(pc.is_in(file.keys, value_set=every)))
        if len(unused):
            lines.append(f"{file.path.name}: {len(unused)} keys are in no list, so not used: {_some(unused)}")
    return lines


def overlaps(keys: Mapping[str, KeyList]) -> dict[str, Ints]:
    """By split, for each key: the last later split that has it too, which then has the better claim; or -1."""
    found = {}
    for number, split in enumerate(SPLITS):
        also = np.full(len(keys[split].keys), -1, np.int64)
        for other in range(number + 1, len(SPLITS)):
            also[np.asarray(pc.is_in(keys[split].keys, value_set=keys[SPLITS[other]].keys))] = other
        found[split] = also
    return found


def to_text(keys: pa.Array) -> pa.Array:
    """Binary keys as strings; bytes that are no UTF-8 become \\xNN."""
    try:
        return keys.cast(pa.string())
    except pa.ArrowInvalid:
        return pa.array([_text(key) for key in keys.to_pylist()], pa.string())


def _lines(path: Path) -> tuple[list[bytes], Ints]:
    """The lines that are not empty, and their numbers; the last may end without a newline, all may end in CRLF."""
    lines = [line.strip() for line in path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")]
    numbers = 1 + np.flatnonzero(np.fromiter(map(bool, lines), bool, len(lines)))
    if not len(numbers):
        raise InputError(f"{path} is empty")
    return list(filter(None, lines)), numbers


def _canonical(keys: list[bytes]) -> pa.Array:
    return pa.array([PREFIX + key.removeprefix(b"./").removeprefix(PREFIX) for key in keys], pa.binary())


def _once(keys: list[bytes]) -> tuple[pa.Array, Ints]:
    """Each key once, in order, and the rows in which they come first."""
    array = _canonical(keys)
    codes = array.dictionary_encode()
    _, first = np.unique(codes.indices.to_numpy(), return_index=True)
    return codes.dictionary, first.astype(np.int64)


def _text(key: bytes) -> str:
    return key.decode("utf-8", "backslashreplace")


def _some(keys: pa.Array) -> str:
    return some(to_text(keys[:3]).to_pylist(), len(keys))
