"""Ways to learn from noisy labels in one stage: the losses of Table 3 by name, with what each needs beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch

from twostage import losses
from twostage.transition import invert_transition

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(logits (b, num_classes), labels (b,) int64 with NO_LABEL) -> mean over the labeled slots"""

PLAIN: Final[dict[str, Loss]] = {
    "cross_entropy": losses.cross_entropy,
    "unhinged": losses.unhinged,
    "sigmoid": losses.sigmoid,
    "savage": losses.savage,
    "bootstrap_soft": losses.bootstrap_soft,
    "bootstrap_hard": losses.bootstrap_hard,
}
CORRECTED: Final = ("backward", "forward")
"""need an estimate of the transition matrix"""
PER_CLASS: Final = "binary_per_class"
"""one binary classifier per class: the outputs are not a distribution"""
OUTPUT_NORM: Final = ("unhinged", "sigmoid")
"""fall with the size of the outputs, so that BatchNorm behind the network takes it out of them: "(BN)" in Table 3"""


def loss_by_name(name: str, transition: torch.Tensor | None = None, positive_weight: float = 1.0) -> Loss:
    """The loss called `name`.

    Args:
        transition: (num_classes, num_classes) estimate, for those in CORRECTED.
        positive_weight: for PER_CLASS.

    Raises:
        ValueError: the transition matrix cannot be inverted, which `backward` needs.
    """
    if name in PLAIN:
        return PLAIN[name]
    if name == PER_CLASS:
        return lambda logits, labels: losses.binary_per_class(logits, labels, positive_weight=positive_weight)
    assert name in CORRECTED and transition is not None
    if name == "forward":
        return lambda logits, labels: losses.forward_correction(logits, labels, transition)
    inverse = invert_transition(transition)
    return lambda logits, labels: losses.backward_correction(logits, labels, inverse)
