"""Corrected labels as a new label column of the dataset: predictions in place of labels that were not believed."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any

import numpy as np

from twostage.data.schema import NO_LABEL, InputError, LabelColumn, labels_path, read_labels, write_labels
from twostage.report.audit import Judged
from twostage.report.ranking import counts
from twostage.stage1.parts import Indices


@dataclass(frozen=True)
class Correction:
    """Which labels become what."""

    index: Indices
    """(rows,) samples that have a label afterwards"""
    label: Indices
    """(rows,)"""
    changes: list[tuple[str, str, int]]
    """(given, corrected, how many), most frequent first; 'no label' among the names"""
    num_changed: int


def correct(judged: Judged, *, min_confidence: float, drop: bool) -> Correction:
    """Decides the corrected label of every sample of the dataset.

    A label that was kept stays. One that was not becomes the predicted class where that is another and its
    probability is `min_confidence` or more (compared in float32). All others stay as given, or are dropped. Samples
    that stage 1 did not score, of other splits say, stay as they are.

    Raises:
        InputError: min_confidence is not within 0..1.
    """
    if not 0 <= min_confidence <= 1:
        raise InputError(f"--min-confidence {min_confidence} is not within 0..1")
    ranking, given = judged.ranking, judged.labels.dense(len(judged.dataset))
    differs = (ranking.predicted != ranking.label) & ~ranking.kept
    believed = differs & (ranking.confidence >= np.float32(min_confidence))
    label = np.where(believed, ranking.predicted, ranking.label)
    if drop:
        label = np.where(ranking.kept | believed, label, NO_LABEL)
    corrected = given.copy()
    corrected[ranking.index] = label
    size = ranking.num_classes
    names = [*judged.labels.class_names, "no label"]
    as_last = [np.where(labels == NO_LABEL, size, labels) for labels in (given, corrected)]
    table = counts(as_last[0], as_last[1], size + 1)
    np.fill_diagonal(table, 0)
    pairs = [divmod(int(cell), size + 1) for cell in np.argsort(-table, axis=None, kind="stable")]
    index = np.flatnonzero(corrected != NO_LABEL).astype(np.int64)
    return Correction(
        index=index,
        label=corrected[index],
        changes=[(names[a], names[b], int(table[a, b])) for a, b in pairs if table[a, b]],
        num_changed=int(table.sum()),
    )


def export(
    judged: Judged, correction: Correction, name: str, settings: dict[str, Any], *, dry_run: bool = False
) -> bool:
    """Writes the corrected labels into the dataset as label column `name`; False where it is there already, the same.

    With `dry_run` it only says whether it would.

    Raises:
        InputError: `name` cannot be a file name, or the dataset has a column of that name with other labels.
    """
    dataset = judged.dataset
    path = labels_path(dataset.path, name)
    if path.exists():
        found = read_labels(dataset.path, name)
        if np.array_equal(found.index, correction.index) and np.array_equal(found.label, correction.label):
            return False
        raise InputError(f"{dataset.path} has a label column {name!r} already, with other labels: choose another name")
    if dry_run:
        return True
    options = [word for key, value in settings.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    column = LabelColumn(
        name=name,
        index=correction.index,
        label=correction.label,
        class_names=judged.labels.class_names,
        how=shlex.join(["twostage", "audit", "RUN", "--export", name, *options]),
        parent=dataset.labels_digest(judged.labels.name),
        extra={**settings, "from": judged.labels.name, "changed": correction.num_changed},
    )
    write_labels(dataset.path, column)
    return True
