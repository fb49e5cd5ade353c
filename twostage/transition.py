"""The label transition matrix T, estimated from predictions of a trained network (Patrini et al., CVPR 2017)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor


def estimate_transition(
    probs: Tensor, *, percentile: float | None = 97.0, mode: Literal["faithful", "fixed"] = "fixed"
) -> Tensor:
    """Estimates T from anchors: for each class c, the sample most surely of it; T[c] is what was predicted there.

    The surest samples of all are taken for outliers: the anchor of c is the most probable sample below the percentile
    of P(c | x). Rows are normalised to sum to 1.

    Args:
        probs: (num_samples, num_classes) P(given label | x), any floating dtype and device: of a network trained on the
            noisy labels, on the images it was trained on, without augmentation.
        percentile: 0..100; None takes the largest (as the authors do for CIFAR-100).
        mode: `fixed` reads T from `probs`. `faithful` does as the authors' code, which sets the outliers of each class
            to 0 in the very array that it later reads rows from: T[c, j] with j < c may be 0 where it should be large.

    Returns:
        (num_classes, num_classes) float64 on the device of `probs`; T[c, j] estimates P(given label j | clean label c).

    Raises:
        ValueError: `probs` is empty, not a matrix or not finite; percentile or mode is not allowed; or an anchor
            predicts nothing, so that its row cannot be normalised.
    """
    if probs.ndim != 2 or not len(probs) or not bool(torch.isfinite(probs).all()):
        raise ValueError(f"probs of shape {tuple(probs.shape)}: must be (num_samples, num_classes), finite, not empty")
    if percentile is not None and not 0 <= percentile <= 100:
        raise ValueError(f"percentile {percentile}: must be within 0..100, or None for the largest")
    if mode not in ("faithful", "fixed"):
        raise ValueError(f"mode {mode!r}: allowed: faithful, fixed")
    probs = probs.detach().to(torch.float64, copy=True)
    rows = []
    for c in range(probs.shape[1]):
        candidates = probs[:, c] if mode == "faithful" else probs[:, c].clone()
        if percentile is not None:
            # The sample at or above the percentile, never a value between two samples.
            rank = math.ceil(percentile / 100 * (len(candidates) - 1))
            candidates[candidates >= candidates.kthvalue(rank + 1).values] = 0.0
        rows.append(probs[candidates.argmax()].clone())
    transition = torch.stack(rows)
    sums = transition.sum(dim=1, keepdim=True)
    if bool((sums <= 0).any()):
        c = int(sums.argmin())
        raise ValueError(f"class {c}: its anchor predicts nothing: no samples below percentile {percentile}? Lower it")
    return transition / sums


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
