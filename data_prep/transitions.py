"""Transition matrices of label noise: by name, by pairs of classes, or from a file.

`matrix[i, j]` is the probability that a sample of class i is labelled j, so every row sums to one. The named pairs are
those of the paper and of the work that it compares with (Patrini et al., CVPR 2017). Note that a rate p is a
probability per flipped class, not the share of wrong labels: with asymmetric noise on MNIST, where 5 of 10 classes
are flipped, p = 0.6 makes about 30 % of the labels wrong.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from twostage.data.schema import InputError, nearest

Matrix = npt.NDArray[np.float64]
Flips = tuple[tuple[int, int], ...]

FLIPS: Final[dict[str, Flips]] = {
    "mnist": ((7, 1), (2, 7), (5, 6), (6, 5), (3, 8)),         # as in the compared code, and in the paper's figure 3
    "mnist-text": ((7, 1), (2, 7), (5, 6), (3, 8)),            # as in the paper's text: 6 stays 6
    "cifar10": ((9, 1), (2, 0), (3, 5), (5, 3), (4, 7)),       # truck, bird, cat and dog, deer
}
NEXT: Final = "next"                                           # every class to the one after it, the last to the first
NAMES: Final = ("symmetric", NEXT, *FLIPS)
ROW_TOLERANCE: Final = 1e-6


def check_rate(rate: float) -> float:
    """Returns the rate of noise if it is a probability.

    Raises:
        InputError: it is not in 0..1.
    """
    if not 0.0 <= rate <= 1.0:
        hint = f"; {rate:g} % is {rate / 100:g}" if 1 < rate <= 100 else ""
        raise InputError(f"--rate {rate:g} is not a probability: give a number from 0 to 1{hint}")
    return rate


def symmetric(num_classes: int, rate: float) -> Matrix:
    """(C, C) matrix: 1 - rate on the diagonal, rate / (C - 1) elsewhere, so a flipped label is never the true one."""
    _need_two(num_classes)
    matrix = np.full((num_classes, num_classes), check_rate(rate) / (num_classes - 1))
    np.fill_diagonal(matrix, 1.0 - rate)
    return matrix


def asymmetric(num_classes: int, rate: float, flips: Flips) -> Matrix:
    """(C, C) matrix: each pair (i, j) of `flips` turns class i into class j with probability `rate`."""
    matrix = np.eye(num_classes)
    for source, target in flips:
        matrix[source, source] = 1.0 - check_rate(rate)
        matrix[source, target] = rate
    return matrix


def named(name: str, class_names: Sequence[str], rate: float) -> Matrix:
    """The matrix called `name` (one of NAMES) for these classes.

    Raises:
        InputError: unknown name (says the nearest), or a name that needs other classes.
    """
    if name not in NAMES:
        raise InputError(f"no transition matrix is called {name!r}; {nearest(name, NAMES)}")
    if name == "symmetric":
        return symmetric(len(class_names), rate)
    return asymmetric(len(class_names), rate, parse_flips(name, class_names))


def parse_flips(text: str, class_names: Sequence[str]) -> Flips:
    """Pairs (source class, target class) from a name in FLIPS, from "next", or from pairs like "7>1,cat>dog".

    A class may be given by its name or by its number; where both fit, the name counts.

    Raises:
        InputError: unknown name or class, a class flipped to itself or twice, or a name made for other classes.
    """
    num_classes = len(class_names)
    if text == NEXT:
        _need_two(num_classes)
        return tuple((source, (source + 1) % num_classes) for source in range(num_classes))
    if text in FLIPS:
        if num_classes != 10:
            raise InputError(f"--flips {text} is for 10 classes, the labels have {num_classes}: give pairs instead")
        return FLIPS[text]
    if ">" not in text:
        raise InputError(f"--flips {text!r}: {nearest(text, [NEXT, *FLIPS])}; or pairs of classes such as \"7>1,2>7\"")
    flips: list[tuple[int, int]] = []
    for pair in text.split(","):
        parts = [part.strip() for part in pair.split(">")]
        if len(parts) != 2 or not all(parts):
            raise InputError(f"--flips: {pair.strip()!r} is not a pair of classes such as \"7>1\"")
        source, target = (_class_number(part, class_names) for part in parts)
        if source == target:
            raise InputError(f"--flips: {pair.strip()!r} flips class {class_names[source]!r} to itself")
        if source in [earlier for earlier, _ in flips]:
            raise InputError(
                f"--flips: class {class_names[source]!r} is flipped twice; for more than one target, write the "
                "probabilities into a file and use --kind matrix"
            )
        flips.append((source, target))
    return tuple(flips)


def read_matrix(path: Path, num_classes: int) -> Matrix:
    """A checked (C, C) matrix from a .json (list of rows), .csv (numbers only) or .npy file.

    Raises:
        InputError: no such file, not readable as what its name says, or not row-stochastic of this size.
    """
    if not path.is_file():
        problem = "not a file" if path.exists() else "no such file"
        raise InputError(f"--matrix {path}: {problem}; by name: {nearest(str(path), NAMES)}")
    readers = {".json": _read_json, ".csv": _read_csv, ".npy": _read_npy}
    if path.suffix.lower() not in readers:
        raise InputError(f"--matrix {path}: the file name must end in {', '.join(readers)}")
    try:
        matrix = np.asarray(readers[path.suffix.lower()](path.read_bytes()))
        if matrix.dtype.kind not in "iuf":
            raise ValueError(f"it holds {matrix.dtype}, not numbers")
        matrix = matrix.astype(np.float64)
    except (ValueError, EOFError, RecursionError, csv.Error) as error:
        raise InputError(f"--matrix {path}: not a matrix of numbers ({error})") from error
    return check_matrix(matrix, num_classes, f"--matrix {path}")


def check_matrix(matrix: Matrix, num_classes: int, where: str) -> Matrix:
    """Returns the matrix if it is (num_classes, num_classes), not negative, and its rows sum to one.

    Raises:
        InputError: says what is wrong, and in which row.
    """
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise InputError(f"{where}: the matrix has the shape {matrix.shape}, it must be square")
    if matrix.shape[0] != num_classes:
        raise InputError(f"{where}: the matrix is for {matrix.shape[0]} classes, the labels have {num_classes}")
    for row, values in enumerate(matrix):
        if not np.isfinite(values).all():
            raise InputError(f"{where}: row {row} (counted from 0) holds a value that is not a number")
        if (values < 0).any():
            column = int(values.argmin())
            raise InputError(f"{where}: row {row}, column {column} is negative ({values[column]:g})")
        total = math.fsum(values)
        if abs(total - 1.0) > ROW_TOLERANCE:
            raise InputError(f"{where}: row {row} (counted from 0) sums to {total:.6g}, it must sum to 1")
    return matrix


def _need_two(num_classes: int) -> None:
    if num_classes < 2:
        raise InputError(f"label noise needs at least two classes, these labels have {num_classes}")


def _class_number(text: str, class_names: Sequence[str]) -> int:
    if text in class_names:
        return class_names.index(text)
    if text.isascii() and text.isdigit():
        if int(text) < len(class_names):
            return int(text)
        raise InputError(f"--flips: there is no class {text}: the labels have the classes 0 to {len(class_names) - 1}")
    raise InputError(f"--flips: there is no class {text!r}; {nearest(text, class_names)}")


def _read_json(data: bytes) -> Any:
    return json.loads(data)


def _read_csv(data: bytes) -> Any:
    rows = [row for row in csv.reader(io.StringIO(data.decode("utf-8-sig"))) if row]
    return [[float(cell) for cell in row] for row in rows]


def _read_npy(data: bytes) -> Any:
    return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
