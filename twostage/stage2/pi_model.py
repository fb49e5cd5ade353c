"""The Π-model's loss: cross-entropy on the kept labels plus agreement of two draws of the same images (paper, 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from twostage.losses import consistency, cross_entropy


@dataclass(frozen=True)
class PiModel:
    """Two augmentations of each image, with noise and dropout of their own, should get the same prediction.

    Both go through the network in one pass over 2N images: one pass is faster than two, BatchNorm sees labeled and
    unlabeled images together, and DistributedDataParallel sees one forward for one backward.
    """

    reduction: Literal["sum", "mean"]
    """over the classes, in the consistency term"""
    num_views: ClassVar[int] = 2
    memory: ClassVar[None] = None

    def losses(
        self, network: nn.Module, images: tuple[Tensor, ...], index: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The two terms of equation 2, the second one without its weight α; see stage2.methods.Method.

        Returns:
            Cross-entropy: mean over the labeled slots, of the first view alone, as in Algorithm 1. Consistency: mean
            over all N slots; gradient flows through both of its branches.
        """
        logits_a, logits_b = network(torch.cat(images)).chunk(2)
        return cross_entropy(logits_a, labels), consistency(logits_a, logits_b, reduction=self.reduction)
