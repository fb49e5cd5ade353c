"""Temporal ensembling: predictions agree with their average over earlier sub-epochs (Laine & Aila, section 2.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from twostage.ensembling import TemporalEnsemble
from twostage.losses import consistency_to_target, cross_entropy


@dataclass(frozen=True)
class TemporalEnsembling:
    """One forward pass; the target of a sample is what the network said of it in earlier sub-epochs.

    A sample without a target yet adds nothing to the second loss: in the first sub-epoch its weight is 0 for all.
    """

    reduction: Literal["sum", "mean"]
    memory: TemporalEnsemble
    num_views: ClassVar[int] = 1

    def losses(
        self, network: nn.Module, images: tuple[Tensor, ...], index: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See stage2.methods.Method; the consistency term is a mean over all b slots. Notes the predictions."""
        (only,) = images
        logits = network(only)
        targets, weight = self.memory.targets(index)
        self.memory.record(index, logits.detach().float().softmax(dim=1))
        agreement = consistency_to_target(logits, targets, reduction=self.reduction, weight=weight)
        return cross_entropy(logits, labels), agreement
