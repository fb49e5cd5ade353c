"""Who is taken for whom: confusion in the tests, and how labels came about, as stage 1 sees it and in truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from twostage.report.collect import Run
from twostage.report.ranking import Floats, counts, estimated_joint
from twostage.stage1.parts import Indices

MAX_CLASSES: Final = 30             # of a matrix that can still be read
MAX_LARGEST: Final = 5              # entries in words; of a matrix that is not shown, four times as many


@dataclass(frozen=True)
class Matrix:
    """A table of shares by row, with its largest entries off the diagonal."""

    title: str
    note: str
    names: tuple[str, ...]
    shares: list[list[float]] | None
    """None where there are too many classes to read"""
    counts: list[list[int]]
    largest: list[tuple[str, str, int, float]]
    """(row, column, count, share of the row)"""


@dataclass(frozen=True)
class Noise:
    """The noise in the labels that stage 1 was trained on, as its own predictions imply it."""

    wrong: float
    """share of the labels that are wrong, estimated"""
    truly_wrong: float | None
    """the same in truth, None where unknown"""
    error: float | None
    """mean absolute difference between the estimated and the true transition matrix, None where unknown"""
    matrices: list[Matrix]


def test_matrices(run: Run) -> list[Matrix]:
    """One for each tested model that left its confusion."""
    note = "Rows: true class. Columns: predicted class."
    return [matrix(m.title, note, m.confusion, m.class_names) for m in run.tested if m.confusion is not None]


def noise(run: Run) -> Noise | None:
    """What stage 1's ranking says about the labels; None without a ranking."""
    ranking = run.ranking
    if ranking is None or not len(ranking.label):
        return None
    size = ranking.num_classes
    names = tuple(run.class_name(c) for c in range(size))
    joint = estimated_joint(ranking)
    matrices = [
        matrix("Estimated noise", "Rows: true class, as stage 1 sees it. Columns: label as given.", joint, names),
        matrix("What stage 1 makes of the labels", "Rows: label as given. Columns: what stage 1 predicts.",
               counts(ranking.label, ranking.predicted, size), names),
    ]
    truly_wrong = error = None
    if ranking.truth is not None:
        actual = counts(ranking.truth, ranking.label, size)
        kept = counts(ranking.truth[ranking.kept], ranking.label[ranking.kept], size)
        matrices.insert(1, matrix("True noise", "Rows: true class. Columns: label as given.", actual, names))
        matrices.append(matrix("Labels that were kept", "Rows: true class. Columns: label that was kept.", kept, names))
        if actual.sum():
            truly_wrong = float(1 - np.trace(actual) / actual.sum())
            present = actual.sum(axis=1) > 0
            error = float(np.abs(by_row(joint) - by_row(actual))[present].mean())
    return Noise(float(1 - np.trace(joint) / joint.sum()), truly_wrong, error, matrices)


def by_row(table: Floats | Indices) -> Floats:
    """(rows, columns) the table's shares by row; a row without anything stays 0."""
    sums = table.sum(axis=1, keepdims=True)
    shares: Floats = table / np.where(sums > 0, sums, 1)
    return shares


def matrix(title: str, note: str, table: Floats | Indices, names: Sequence[str]) -> Matrix:
    """Puts a square table of counts into words and shares; fractions of a sample are rounded for display only."""
    shares, rounded = by_row(table), np.rint(table).astype(np.int64)
    off = np.where(np.eye(len(names), dtype=bool), 0, rounded)
    readable = len(names) <= MAX_CLASSES
    order = np.argsort(-off, axis=None, kind="stable")[: MAX_LARGEST if readable else 4 * MAX_LARGEST]
    cells = [divmod(int(flat_index), len(names)) for flat_index in order]
    largest = [(names[r], names[c], int(off[r, c]), float(shares[r, c])) for r, c in cells if off[r, c]]
    if not readable:
        return Matrix(title, note, tuple(names), None, [], largest)
    return Matrix(title, note, tuple(names), shares.tolist(), rounded.tolist(), largest)
