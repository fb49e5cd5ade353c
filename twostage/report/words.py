"""What a reader should notice, in words: which classes gain, which are doubtful, how unequal they are."""

from __future__ import annotations

import numpy as np

from twostage.report.collect import ClassRow, Run, Tested, setting, title_of
from twostage.report.ranking import counts
from twostage.report.tables import STAGES, main_model, number, percent, points, reference
from twostage.rows import BY_FOLDER, CLEAN_FOLDERS

MAX_DOUBTFUL = 3
ON_REFINED = tuple(folder for folder, row in BY_FOLDER.items() if row.refined_val)


def class_notes(tested: list[Tested]) -> list[str]:
    """Where stage 2 helped most and least, and which class is still the worst."""
    base, last = reference(tested), main_model(tested)
    if base is None or last is None or last is base:
        return []
    if last.per_class is None or not np.isfinite(last.per_class).any():
        return []
    names, notes = last.class_names, []
    if base.per_class is not None and base.class_names == names:
        gain = last.per_class - base.per_class
        if np.isfinite(gain).any():
            best, worst = int(np.nanargmax(gain)), int(np.nanargmin(gain))
            said = "Largest gain" if gain[best] > 0 else "Smallest loss"
            notes.append(f"{said}: {names[best]} ({points(gain[best])} points).")
            said = "Largest loss" if gain[worst] < 0 else "Smallest gain"
            notes.append(f"{said}: {names[worst]} ({points(gain[worst])} points).")
    lowest = int(np.nanargmin(last.per_class))
    notes.append(f"Still the lowest with {last.title}: {names[lowest]} ({percent(last.per_class[lowest])}).")
    return notes


def balance_notes(classes: list[ClassRow]) -> list[str]:
    """How unequal the classes are, before and after mining."""
    notes = []
    images, kept = ({row.name: getattr(row, column) for row in classes} for column in ("images", "kept"))
    for what, sizes in (("labels", images), ("labels kept", kept)):
        if len(sizes) < 2 or not sum(sizes.values()):
            continue
        largest, smallest = max(sizes, key=lambda name: sizes[name]), min(sizes, key=lambda name: sizes[name])
        ratio = f", {sizes[largest] / sizes[smallest]:.1f} to 1" if sizes[smallest] else ""
        notes.append(
            f"Most {what}: {largest} ({number(sizes[largest])}); fewest: {smallest} ({number(sizes[smallest])}){ratio}."
        )
    return notes


def doubt_notes(run: Run) -> list[str]:
    """The classes of whose labels stage 1 agrees with the smallest share, and what it takes the others for."""
    rows = sorted((row for row in run.classes if row.images), key=lambda row: row.consistent / row.images)
    notes = []
    for row in rows[:MAX_DOUBTFUL]:
        share = row.consistent / row.images
        if share > 0.9:
            break
        note = f"{row.name}: stage 1 agrees with {percent(share)} of the {number(row.images)} labels"
        ranking = run.ranking
        if ranking is not None and row.number < ranking.num_classes:
            seen = counts(ranking.label, ranking.predicted, ranking.num_classes)[row.number]
            seen[row.number] = 0
            other = int(seen.argmax())
            if seen[other]:
                note += f" and takes {percent(seen[other] / row.images)} for {run.class_name(other)}"
        notes.append(note + ".")
    return notes


def validation_notes(run: Run) -> dict[str, str]:
    """Stage -> which labels the models with a curve of validation accuracy in it were validated on."""
    groups: dict[str, dict[str, list[str]]] = {}
    for stage, names in STAGES.items():
        for name in names:
            if "val/accuracy" in run.curves.get(name, {}):
                groups.setdefault(stage, {}).setdefault(_validated_on(run, name, stage), []).append(name)
    several = len({labels for found in groups.values() for labels in found}) > 1
    notes = {}
    for stage, found in groups.items():
        only = len(found) == 1
        parts = [
            f"on {labels}" + ("" if only else f": {', '.join(title_of(run, name) for name in names)}")
            for labels, names in found.items()
        ]
        notes[stage] = f"Validated {'; '.join(parts)}."
        if several:
            notes[stage] += " Accuracies on different labels are not to be compared."
    return notes


def _validated_on(run: Run, model: str, stage: str) -> str:
    held_out = setting(run, "data", "holdout") is not None
    if model in CLEAN_FOLDERS and held_out:
        return "labels of the clean set that were held out"
    refined = (run.path / "mine" / "val.parquet").exists() and model not in CLEAN_FOLDERS
    if model in ON_REFINED or (stage == "stage 2" and refined):
        return "the held-out labels that stage 1 kept" if held_out else "the labels in mine/val.parquet"
    if held_out:
        return "labels that are as noisy as those trained on"
    return "the validation split, whose labels are as noisy as those trained on unless it is clean"
