"""The figures of the report as small tables, and how numbers are written in it. No files, no pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import cycle
from typing import Final

from twostage.report.collect import Run, Tested
from twostage.rows import ALL_BASELINES, folder_of

STAGES: Final = {
    "stage 1": (*(folder_of(name) for name, row in ALL_BASELINES.items() if not row.stage2), "pretrain"),
    "stage 2": (*(folder_of(name) for name, row in ALL_BASELINES.items() if row.stage2), "train", "finetune"),
}
"""which models are trained by which stage, in the order of the report"""
MODEL_COLOURS: Final = dict(zip(map(folder_of, ALL_BASELINES), cycle(("grey", "sand", "violet", "teal", "rose")))) | {
    "pretrain": "amber",
    "train": "blue",
    "finetune": "green",
}
SHORT: Final = {"pretrain": "stage 1", "finetune": "fine-tuned"}
"""what a model is called at the head of a narrow column"""
REFERENCES: Final = ("baseline_cross_entropy", "baseline_balanced_cross_entropy", "pretrain")


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
    """(short title, colour, accuracy) of each model, NaN where unknown"""
    gain: float | None
    """last model against the reference"""


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


def reference(tested: list[Tested]) -> Tested | None:
    """What the others are compared with: ordinary training, or what comes nearest to it; None without any."""
    found = {model.name: model for model in tested}
    return next((found[name] for name in REFERENCES if name in found), None)


def main_model(tested: list[Tested]) -> Tested | None:
    """What the run is about: its last model, and not a baseline if there is another; None where nothing was tested."""
    found = {model.name: model for model in tested}
    main = next((found[name] for name in ("finetune", "train", "pretrain") if name in found), None)
    return main or (tested[-1] if tested else None)


def seed_totals(run: Run) -> dict[str, float | None] | None:
    """Sums over the classes; shares of right labels only where every class with labels has them."""
    rows = run.classes
    if not rows:
        return None
    images, kept = sum(row.images for row in rows), sum(row.kept for row in rows)
    known = [row for row in rows if row.purity is not None]
    right = sum((row.purity or 0.0) * row.kept for row in known)
    purity = right / kept if kept and all(row.purity is not None for row in rows if row.kept) else None
    purity = run.mined.get("purity", purity)        # as `mine` noted it, exact where some clean labels are not known
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
    base, last = reference(models), main_model(models)
    tables = {m.name: m.per_class for m in models if m.per_class is not None}
    counts = next((m.confusion.sum(axis=1).tolist() for m in models if m.confusion is not None), None)
    rows = []
    for c, name in enumerate(known[0].class_names):
        values = [
            (SHORT.get(m.name, m.title), MODEL_COLOURS.get(m.name, "green"), float(tables[m.name][c])) for m in models
        ]
        gain = None
        if base is not None and last is not None and last is not base:
            gain = float(tables[last.name][c] - tables[base.name][c])
        rows.append(ClassAccuracy(name, counts[c] if counts else None, values, gain))
    return rows


def lowest_tenth(accuracies: list[float]) -> float:
    """Where an axis of these accuracies begins: the tenth below all of them, 0.9 at most."""
    return max(0.0, min(0.9, math.floor(10 * min(filter(math.isfinite, accuracies), default=0.0)) / 10))


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


def shade(value: float) -> float:
    """How much colour a matrix cell gets, 0..1. From 0.53 to 0.88 neither dark nor light text could be read on it."""
    return 0.74 * value if value <= 0.7 else 0.88 + 0.4 * (min(1.0, value) - 0.7)


def share(value: float | None) -> str:
    """A share as a plain number for the style sheet, 0 where unknown."""
    return "0" if value is None or not math.isfinite(value) else f"{min(1.0, max(0.0, value)):.4f}"
