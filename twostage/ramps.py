"""Ramps: each takes its two arguments in the same unit (epochs or steps) and returns a multiplier in 0..1.

A length of 0 means no ramp: the multiplier is 1 everywhere. All raise ValueError for a negative length.
"""

from __future__ import annotations

import math


def sigmoid_ramp_up(current: float, length: float) -> float:
    """Rises as exp(-5 (1 - current/length)²) from exp(-5) = 0.0067 at 0 to 1 at `length`.

    Source: temporal ensembling (Laine & Aila, arXiv 1610.02242), appendix A; there over the first 80 of 300 epochs, for
    the consistency weight and the learning rate. It does not begin at 0: their code sets the consistency weight of the
    first epoch to 0 besides.
    """
    return math.exp(-5.0 * (1.0 - _progress(current, length)) ** 2)


def ramp_down(remaining: float, length: float) -> float:
    """Falls as exp(-12.5 (1 - remaining/length)²): 1 while more than `length` remains, exp(-12.5) = 4e-6 with 0 left.

    Source: temporal ensembling (Laine & Aila, arXiv 1610.02242), appendix A; there over the last 50 of 300 epochs, for
    the learning rate. Their code has exp(-d²/(4 length)) after d epochs of the fall, which is the same for a length of
    50 only; this is the form of their text, whose end does not depend on the length.
    """
    return math.exp(-12.5 * (1.0 - _progress(remaining, length)) ** 2)


def linear_ramp_up(current: float, length: float) -> float:
    """Rises as current/length from 0 to 1; 0 before.

    Source: pseudo-label (Lee, ICML workshop 2013), equation 16: weight 3 · linear_ramp_up(t - 100, 500) at epoch t.
    """
    return _progress(current, length)


def _progress(current: float, length: float) -> float:
    """current/length, held within 0..1."""
    if length < 0:
        raise ValueError(f"ramp of length {length}: it must not be negative (0: no ramp)")
    if length == 0:
        return 1.0
    return min(max(current / length, 0.0), 1.0)
