"""The label transition matrix T, estimated from predictions of a trained network (Patrini et al., CVPR 2017)."""

from __future__ import annotations

import math
from typing import Final, Literal

import torch
from torch import Tensor

Mode = Literal["faithful", "fixed", "by_class"]
MODES: Final[tuple[Mode, ...]] = ("faithful", "fixed", "by_class")
PERCENTILE: Final = 97.0
"""of the authors, but for CIFAR-100"""


def estimate_transition(probs: Tensor, *, percentile: float | None = PERCENTILE, mode: Mode = "fixed") -> Tensor:
    """Estimates T from anchors: for each class c, the sample most surely of it; T[c] is what was predicted there.

    The surest samples of all are taken for outliers: the anchor of c is the most probable sample below the percentile
    of P(c | x). Rows are normalised to sum to 1.

    That is right for ten classes of equal size. Of 14 unequal ones, the 3 % of all samples above the percentile may be
    more than a small class has, and its anchor would be another class's: mode `by_class` is for these.

    Args:
        probs: (num_samples, num_classes) P(given label | x), any floating dtype and device: of a network trained on the
            noisy labels, on the images it was trained on, without augmentation.
        percentile: 0..100; None takes the largest (as the authors do for CIFAR-100).
        mode: `fixed` reads T from `probs`. `faithful` does as the authors' code, which sets the outliers of each class
            to 0 in the very array that it later reads rows from: T[c, j] with j < c may be 0 where it should be large.
            `by_class` is `fixed` with as many outliers of c as the percentile makes of the samples that are expected to
            be labelled c, Σ P(c | x).

    Returns:
        (num_classes, num_classes) float64 on the device of `probs`; T[c, j] estimates P(given label j | clean label c).

    Raises:
        ValueError: `probs` is empty, not a matrix or not finite; percentile or mode is not allowed; or no sample is
            below the percentile, all being equally probable for example.
    """
    if probs.ndim != 2 or not len(probs) or not bool(torch.isfinite(probs).all()):
        raise ValueError(f"probs of shape {tuple(probs.shape)}: must be (num_samples, num_classes), finite, not empty")
    if percentile is not None and not 0 <= percentile <= 100:
        raise ValueError(f"percentile {percentile}: must be within 0..100, or None for the largest")
    if mode not in MODES:
        raise ValueError(f"mode {mode!r}: allowed: {', '.join(MODES)}")
    probs = probs.detach().to(torch.float64, copy=True)
    rows = []
    for c in range(probs.shape[1]):
        candidates = probs[:, c] if mode == "faithful" else probs[:, c].clone()
        outliers = num_outliers(candidates, percentile, by_class=mode == "by_class")
        if outliers:
            candidates[candidates >= candidates.topk(outliers).values[-1]] = 0.0
        if not bool((candidates > 0).any()):
            raise ValueError(f"class {c}: no sample is below percentile {percentile} of its probability; lower it")
        rows.append(probs[candidates.argmax()].clone())
    transition = torch.stack(rows)
    return transition / transition.sum(dim=1, keepdim=True)


def num_outliers(probs: Tensor, percentile: float | None, *, by_class: bool) -> int:
    """How many samples at the top of (num_samples,) P(c | x) are taken for outliers, ties left aside.

    Args:
        by_class: of the samples that are expected to be labelled c, Σ P(c | x), instead of all.
    """
    if percentile is None:
        return 0
    if by_class:
        return math.floor((1 - percentile / 100) * float(probs.sum()))
    return len(probs) - math.ceil(percentile / 100 * (len(probs) - 1))      # the sample at or above it, too


def invert_transition(transition: Tensor) -> Tensor:
    """T⁻¹ for `losses.backward_correction`, inverted in float64.

    Raises:
        ValueError: T has no inverse to speak of (condition number above 1e6): two classes have the same row, say.
    """
    condition = float(torch.linalg.cond(transition.double()))
    if not condition < 1e6:
        raise ValueError(
            f"the transition matrix has no usable inverse (condition number {condition:.3g}): two classes cannot be "
            "told apart by their labels; use the forward correction"
        )
    inverse: Tensor = torch.linalg.inv(transition.double())
    return inverse
