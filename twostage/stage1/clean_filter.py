"""Stage 1 with a clean set: which noisy labels their class's classifier accepts (section 3.1; Figure 2, panel 2).

One binary classifier per class, all of them one network with an output each: positive are the clean samples of the
class, negative those of all others. A noisy label is put to the classifier of its own class alone, and removed where
that says no. Knows only numpy.
"""

from __future__ import annotations

import numpy as np

from twostage.data.schema import NO_LABEL, InputError
from twostage.stage1.parts import Indices, Mask, Scores


def accepted(label: Indices, score: Scores, *, min_score: float) -> Mask:
    """Decides which labels are kept. All arrays are (n,), in any order.

    Args:
        label: as given; a sample with NO_LABEL is never kept.
        score: σ(s[label]), what the classifier of the label's own class says. It is accepted from `min_score` on
            (compared in float32, so that a stored 0.5 reaches 0.5); what other classes' classifiers say is not asked.
        min_score: 0.5 is where a classifier is undecided.

    Returns:
        (n,) whether the label is kept.

    Raises:
        InputError: `min_score` is not within 0..1.
    """
    if not 0 <= min_score <= 1:
        raise InputError(f"mine.accept_score: {min_score} is not within 0..1")
    kept: Mask = (label != NO_LABEL) & (score >= np.float32(min_score))
    return kept
