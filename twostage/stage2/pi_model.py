"""The Π-model's loss: cross-entropy on the kept labels plus agreement of two draws of the same images (paper, 3.2)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from twostage.losses import consistency, cross_entropy


def pi_losses(
    network: nn.Module,
    images_a: torch.Tensor,
    images_b: torch.Tensor,
    labels: torch.Tensor,
    *,
    reduction: Literal["sum", "mean"],
) -> tuple[torch.Tensor, torch.Tensor]:
    """The two terms of equation 2, the second one without its weight α.

    Both inputs go through the network in one pass over 2N images: one pass is faster than two, BatchNorm sees labeled
    and unlabeled images together, and DistributedDataParallel sees one forward for one backward.

    Args:
        network: logits (2N, classes) from images (2N, C, H, W).
        images_a, images_b: (N, C, H, W) two augmentations of the same samples.
        labels: (N,) int64, NO_LABEL where stage 1 kept no label.
        reduction: over the classes, in the consistency term.

    Returns:
        Cross-entropy: mean over the labeled samples, of `images_a` alone, as in Algorithm 1. Consistency: mean over all
        N samples; gradient flows through both of its branches.
    """
    logits_a, logits_b = network(torch.cat([images_a, images_b])).chunk(2)
    return cross_entropy(logits_a, labels), consistency(logits_a, logits_b, reduction=reduction)
