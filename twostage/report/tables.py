"""The figures of the report as small tables, and how numbers are written in it. No files, no pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from twostage.report.collect import Run, Tested
from twostage.report.ranking import Indices

MODEL_COLOURS: Final = {
    "baseline_cross_entropy": "grey",
    "baseline_balanced_cross_entropy": "sand",
    "pretrain": "amber",
    "train": "blue",
}
STAGES: Final = {
    "stage 1": ("baseline_cross_entropy", "baseline_balanced_cross_entropy", "pretrain"),
    "stage 2": ("train", "finetune"),
}
MAX_MATRIX: Final = 30              # classes of a matrix that can still be read


@dataclass(frozen=True)
class Headline:
    """One line of the headline table."""

    model: Tested
    colour: str
    gain: float | None
    """difference against the reference, None for the reference itself"""
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class ClassAccuracy:
    """One class before and after."""

    name: str
    num_samples: int | None
    accuracies: list[tuple[str, str, float]]
    """(title, colour, accuracy) of each model, NaN where unknown"""
    gain: float | None
    """last model against the reference"""


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


def wilson(accuracy: float, num_samples: int) -> tuple[float, float]:
    """95 % score interval of a share that was measured on `num_samples` samples (Wilson 1927)."""
    z = 1.959964
    spread = z * math.sqrt(accuracy * (1 - accuracy) / num_samples + (z / (2 * num_samples)) ** 2)
    middle, scale = accuracy + z * z / (2 * num_samples), 1 + z * z / num_samples
    return (middle - spread) / scale, (middle + spread) / scale


def headlines(tested: list[Tested]) -> list[Headline]:
    """The headline table; differences are against ordinary training, or what comes nearest to it."""
    base = reference(tested)
    return [
        Headline(
            model,
            MODEL_COLOURS.get(model.name, "green"),
            None if base is None or model is base else model.accuracy - base.accuracy,
            wilson(model.accuracy, model.num_samples) if model.num_samples else None,
        )
        for model in tested
    ]


def class_notes(tested: list[Tested]) -> list[str]:
    """In words: where stage 2 helped most and least, and which class is still the worst."""
    base = reference(tested)
    last = next((m for m in reversed(tested) if m.name in STAGES["stage 2"]), None)
    if base is None or last is None or last.per_class is None or not np.isfinite(last.per_class).any():
        return []
    names, notes = last.class_names, []
    if base.per_class is not None and base.class_names == names:
        gain = last.per_class - base.per_class
        if np.isfinite(gain).any():
            best, worst = int(np.nanargmax(gain)), int(np.nanargmin(gain))
            notes.append(f"Largest gain: {names[best]} ({points(gain[best])} points).")
            said = "Largest loss" if gain[worst] < 0 else "Smallest gain"
            notes.append(f"{said}: {names[worst]} ({points(gain[worst])} points).")
    lowest = int(np.nanargmin(last.per_class))
    notes.append(f"Still the lowest with {last.title}: {names[lowest]} ({percent(last.per_class[lowest])}).")
    return notes


def reference(tested: list[Tested]) -> Tested | None:
    """What the others are compared with: ordinary training, or what comes nearest to it; None without any."""
    return next((model for model in tested if model.name in STAGES["stage 1"]), None)


def seed_totals(run: Run) -> dict[str, float | None] | None:
    """Sums over the classes; shares of right labels only where every class with labels has them."""
    rows = run.classes
    if not rows:
        return None
    images, kept = sum(row.images for row in rows), sum(row.kept for row in rows)
    known = [row for row in rows if row.purity is not None]
    right = sum((row.purity or 0.0) * row.kept for row in known)
    purity = right / kept if kept and all(row.purity is not None for row in rows if row.kept) else None
    before = rejected_wrong = None
    if run.ranking is not None and run.ranking.truth is not None:
        with_truth = run.ranking.truth >= 0
        is_right = run.ranking.truth == run.ranking.label
        before = float(is_right[with_truth].mean()) if with_truth.any() else None
        rejected = with_truth & ~run.ranking.kept
        rejected_wrong = float(1 - is_right[rejected].mean()) if rejected.any() else None
    return {"images": images, "kept": kept, "share": kept / images if images else None, "purity": purity,
            "before": before, "rejected_wrong": rejected_wrong, "empty": sum(row.kept == 0 for row in rows)}


def per_class(tested: list[Tested]) -> list[ClassAccuracy]:
    """Test accuracies by class, of all models that know the same classes."""
    known = [m for m in tested if m.per_class is not None]
    if not known:
        return []
    models = [m for m in known if m.class_names == known[0].class_names]
    base = reference(models)
    tables = {m.name: m.per_class for m in models if m.per_class is not None}
    counts = next((m.confusion.sum(axis=1).tolist() for m in models if m.confusion is not None), None)
    rows = []
    for c, name in enumerate(known[0].class_names):
        values = [(m.title, MODEL_COLOURS.get(m.name, "green"), float(tables[m.name][c])) for m in models]
        gain = values[-1][2] - float(tables[base.name][c]) if base is not None and base is not models[-1] else None
        rows.append(ClassAccuracy(name, counts[c] if counts else None, values, gain))
    return rows


def lowest_tenth(accuracies: list[float]) -> float:
    """Where an axis of these accuracies begins: the tenth below all of them, 0.9 at most."""
    return max(0.0, min(0.9, math.floor(10 * min(filter(math.isfinite, accuracies), default=0.0)) / 10))


def matrices(run: Run) -> list[Matrix]:
    found = [
        _matrix(f"Test images, {m.title}", "Rows: true class. Columns: predicted class.", m.confusion, m.class_names)
        for m in run.tested
        if m.confusion is not None
    ]
    if run.ranking is not None and run.class_names:
        size, ranking = len(run.class_names), run.ranking
        inside = (ranking.label < size) & (ranking.predicted < size)
        counts = np.bincount(ranking.label[inside] * size + ranking.predicted[inside], minlength=size * size)
        note = "Rows: label as given. Columns: what stage 1 predicts. Off the diagonal lies the noise that it sees."
        found.append(_matrix("Training labels", note, counts.reshape(size, size), run.class_names))
    return found


def _matrix(title: str, note: str, counts: Indices, names: tuple[str, ...]) -> Matrix:
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    off = np.where(np.eye(len(names), dtype=bool), 0, counts)
    order = np.argsort(-off, axis=None, kind="stable")[:5 if len(names) <= MAX_MATRIX else 20]
    cells = [divmod(int(flat_index), len(names)) for flat_index in order]
    largest = [(names[r], names[c], int(off[r, c]), float(shares[r, c])) for r, c in cells if off[r, c]]
    if len(names) > MAX_MATRIX:
        return Matrix(title, note, names, None, [], largest)
    return Matrix(title, note, names, shares.tolist(), counts.tolist(), largest)


def percent(value: float | None, digits: int = 1) -> str:
    """0.4256 -> '42.6 %'; unknown values as a dash."""
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.{digits}f}\u202f%"


def points(value: float | None) -> str:
    """A difference of two shares in percentage points, with its sign."""
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{100 * value:+.1f}"
    return "±0.0" if float(text) == 0 else text.replace("-", "−")


def number(value: float | None) -> str:
    """1234567 -> '1,234,567'; unknown values as a dash."""
    return "–" if value is None or not math.isfinite(value) else f"{value:,.0f}"


def share(value: float | None) -> str:
    """A share as a plain number for the style sheet, 0 where unknown."""
    return "0" if value is None or not math.isfinite(value) else f"{min(1.0, max(0.0, value)):.4f}"
