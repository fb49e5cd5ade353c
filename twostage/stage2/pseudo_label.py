"""Pseudo-labels: an unlabeled sample's most likely class is taken for its label (Lee, ICML workshop 2013)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from twostage.losses import cross_entropy, pseudo_label


@dataclass(frozen=True)
class PseudoLabel:
    """One forward pass; the guesses are made anew in every step."""

    num_views: ClassVar[int] = 1
    memory: ClassVar[None] = None

    def losses(
        self, network: nn.Module, images: tuple[Tensor, ...], index: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See stage2.methods.Method; the second term is a mean over the unlabeled slots."""
        (only,) = images
        logits = network(only)
        return cross_entropy(logits, labels), pseudo_label(logits, labels)
