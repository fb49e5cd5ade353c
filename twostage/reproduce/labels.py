"""What became of the labels: how many are right before and after a correction (paper, Table 2), and what they can tell.

Knows only numpy. `clean` are true classes, `label` noisy ones, both (n,) int64 of the same samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

STATES: Final = ("given", "argmax", "sampling", "stage1")
"""labels as given; after the correction of Patrini et al., by the likeliest class and by drawing; after stage 1"""


@dataclass(frozen=True)
class Ceiling:
    """How much of a test set can be named right by what the labels alone tell."""

    accuracy: float
    """share of the test samples that are of no confusable class"""
    pairs: tuple[tuple[int, int, float], ...]
    """(class, class, share of the two classes' training labels that name the other one)"""


def transition_counts(clean: Ints, label: Ints, num_classes: int) -> Ints:
    """(C, C) counts: how many samples of class i are labelled j."""
    return np.bincount(clean * num_classes + label, minlength=num_classes**2).reshape(num_classes, num_classes)


def ceiling(counts: Ints, num_test: Ints) -> Ceiling:
    """What no method that knows the labels alone can exceed, but by luck.

    Two classes are confusable when exchanging their names makes at least as many training labels right: then the
    labels themselves say that the names are the other way round, and nothing in the images contradicts them.

    Args:
        counts: (C, C) training samples of class i that are labelled j.
        num_test: (C,) test samples of each class.
    """
    pairs = []
    for i in range(len(counts)):
        for j in range(i + 1, len(counts)):
            exchanged, kept = counts[i, j] + counts[j, i], counts[i, i] + counts[j, j]
            if exchanged and exchanged >= kept:
                pairs.append((i, j, float(exchanged / counts[[i, j]].sum())))
    lost = sorted({c for i, j, _ in pairs for c in (i, j)})
    return Ceiling(float(1 - num_test[lost].sum() / num_test.sum()), tuple(pairs))


def posterior(transition: Floats, label: Ints) -> Floats:
    """(C, C): entry [j, c] is P(class c | label j), by Bayes' rule from an estimated transition matrix.

    This is the vector that Patrini et al.'s correction puts in the place of a label. The classes' frequencies are those
    that explain the labels' frequencies q best: q = π T.

    Args:
        transition: (C, C), [c, j] is P(label j | class c).
        label: (n,) noisy labels, for their frequencies.
    """
    num_classes = len(transition)
    frequency = np.bincount(label, minlength=num_classes) / len(label)
    prior = np.clip(np.linalg.lstsq(transition.T, frequency, rcond=None)[0], 0.0, None)
    joint = (transition * prior[:, None]).T
    total = joint.sum(axis=1, keepdims=True)
    # a label that the estimate cannot explain stays as it is
    table: Floats = np.where(total > 0, joint / np.where(total > 0, total, 1.0), np.eye(num_classes))
    return table


def label_shares(
    clean: Ints, label: Ints, kept: Mask, transition: Floats | None, num_classes: int
) -> dict[str, Floats]:
    """Shares of correct, incorrect and no labels: by state of the labels, (C + 1, 3); the last row is over all classes.

    Drawing is not done by random numbers: the expected share is given. Rows of classes without samples are NaN.

    Args:
        kept: (n,) whether stage 1 keeps the label.
        transition: (C, C) estimated; without one, there are no corrected labels.
    """
    right = (clean == label).astype(np.float64)
    none = np.zeros(len(label))
    kept_one = kept.astype(np.float64)
    parts: dict[str, tuple[Floats, Floats]] = {"given": (right, none), "stage1": (right * kept_one, 1.0 - kept_one)}
    if transition is not None:
        table = posterior(transition, label)
        parts["argmax"] = ((table.argmax(axis=1)[label] == clean).astype(np.float64), none)
        parts["sampling"] = (table[label, clean], none)
    return {state: _by_class(clean, *parts[state], num_classes) for state in STATES if state in parts}


def _by_class(clean: Ints, correct: Floats, missing: Floats, num_classes: int) -> Floats:
    shares = []
    for values in (correct, 1.0 - correct - missing, missing):
        sums = np.bincount(clean, weights=values, minlength=num_classes)
        shares.append(np.append(sums, sums.sum()))
    num = np.bincount(clean, minlength=num_classes).astype(np.float64)
    num = np.append(num, num.sum())
    with np.errstate(invalid="ignore"):
        return np.stack(shares, axis=1) / num[:, None]
