"""The losses of the paper, and those of the methods it is compared with (Table 3). Knows only torch.

Conventions that hold for all of them:

- `logits` are (b, num_classes) and of any floating dtype; all is computed in float32 (float64 stays float64), under
  autocast too.
- `labels` are (b,) int64, NO_LABEL where a slot of the batch has none. Such slots add nothing to the supervised losses
  and get no gradient from them; where no slot counts, the loss is exactly 0, with a graph, so that `backward` works.
- Every loss is a mean over the slots of this process. The average of the processes' losses is the global batch's loss
  if all have equally many slots that count.
- Gradient flows through the logits unless stated otherwise. Nothing here waits for the device.
"""

from __future__ import annotations

from typing import Final, Literal

import torch
from torch import Tensor, nn

NO_LABEL: Final = -1
"""as in twostage.data.schema, which this file may not know"""

PROBABILITY_FLOOR: Final = 1e-7
"""probabilities are held this far from 0 and 1 before their logarithm, as in the compared code (Keras' epsilon)"""


# The paper's own: equation 2 is cross_entropy + α · consistency


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-1/M Σ log softmax(logits)[label] over the M labeled slots: mean (paper, equation 2, first term)."""
    total = nn.functional.cross_entropy(_at_least_float32(logits), labels, ignore_index=NO_LABEL, reduction="sum")
    return total / (labels != NO_LABEL).sum().clamp(min=1)


def consistency(logits_a: Tensor, logits_b: Tensor, *, reduction: Literal["sum", "mean"]) -> Tensor:
    """Squared distance of two softmax outputs of the same samples: mean over all b slots (paper, equation 1).

    Args:
        reduction: over the classes. `sum` is the paper's squared L2 norm; `mean` is the code of temporal ensembling,
            smaller by a factor of num_classes, which the weight α has to make up for.

    Gradient flows through both arguments.
    """
    squared = (_probabilities(logits_a) - _probabilities(logits_b)).square()
    return _over_classes(squared, reduction).mean()


def consistency_to_target(
    logits: Tensor,
    target_probs: Tensor,
    *,
    reduction: Literal["sum", "mean"],
    weight: Tensor | None = None,
) -> Tensor:
    """Squared distance of softmax outputs to targets of earlier epochs: mean over all b slots (temporal ensembling).

    Args:
        target_probs: (b, num_classes) probabilities. No gradient flows into them.
        reduction: over the classes, as in `consistency`.
        weight: (b,) factor per slot, 0 where there is no target yet. The divisor stays b.
    """
    distance = _over_classes((_probabilities(logits) - target_probs.detach()).square(), reduction)
    if weight is not None:
        distance = distance * weight.detach()
    return distance.mean()


# The compared methods. Formulas and constants as in the code of the loss-correction paper (Patrini et al., CVPR 2017),
# whose figures are the rows of Table 3; hard bootstrapping and pseudo-labels, which it lacks, from their own papers.


def unhinged(outputs: Tensor, labels: Tensor) -> Tensor:
    """1 - y·s with one-hot y: mean over classes and labeled slots (van Rooyen et al., 2015).

    `outputs` s are not put through a softmax, and larger ones always mean a smaller loss: put
    BatchNorm1d(num_classes) behind the network ("BN" in Table 3), which leaves a scale per class to be learned.
    """
    outputs = _at_least_float32(outputs)
    return _labeled_mean((1 - _one_hot(labels, outputs) * outputs).mean(dim=1), labels)


def sigmoid(outputs: Tensor, labels: Tensor) -> Tensor:
    """1 / (1 + exp(y·s)) with one-hot y: mean over classes and labeled slots (Ghosh et al., 2015).

    `outputs` s are not put through a softmax; BatchNorm1d(num_classes) behind the network, as for `unhinged`.
    """
    outputs = _at_least_float32(outputs)
    return _labeled_mean(torch.sigmoid(-_one_hot(labels, outputs) * outputs).mean(dim=1), labels)


def savage(logits: Tensor, labels: Tensor) -> Tensor:
    """1 / (1 + exp(2 y·p))² with p = softmax and one-hot y: mean over classes and labeled slots.

    Source: Masnadi-Shirazi & Vasconcelos, 2009.
    """
    probs = _probabilities(logits)
    return _labeled_mean(torch.sigmoid(-2 * _one_hot(labels, probs) * probs).square().mean(dim=1), labels)


def bootstrap_soft(logits: Tensor, labels: Tensor, *, beta: float = 0.95) -> Tensor:
    """-Σ (β y + (1 - β) p) log p, sum over classes, mean over labeled slots (Reed et al., 2014).

    Gradient flows through both p: the prediction is its own target.
    """
    probs = _clipped_probabilities(logits)
    target = beta * _one_hot(labels, probs) + (1 - beta) * probs
    return _labeled_mean(-(target * probs.log()).sum(dim=1), labels)


def bootstrap_hard(logits: Tensor, labels: Tensor, *, beta: float = 0.8) -> Tensor:
    """-Σ (β y + (1 - β) onehot(argmax p)) log p, sum over classes, mean over labeled slots (Reed et al., 2014).

    No gradient flows through the argmax.
    """
    probs = _clipped_probabilities(logits)
    target = beta * _one_hot(labels, probs) + (1 - beta) * _one_hot(probs.argmax(dim=1), probs)
    return _labeled_mean(-(target * probs.log()).sum(dim=1), labels)


def backward_correction(logits: Tensor, labels: Tensor, inverse_transition: Tensor) -> Tensor:
    """-Σ_c T⁻¹[label, c] log p_c, sum over classes, mean over labeled slots (Patrini et al., theorem 1).

    Args:
        inverse_transition: (num_classes, num_classes) T⁻¹ on the logits' device, see `transition.invert_transition`;
            not T itself, so that it is inverted once and not at every step. No gradient flows into it.

    T⁻¹ has negative entries: the loss may be negative, and it is the floor on p that keeps it from falling for ever.
    """
    log_probs = _clipped_probabilities(logits).log()
    rows = inverse_transition.detach().to(log_probs.dtype)[labels.clamp(min=0)]
    return _labeled_mean(-(rows * log_probs).sum(dim=1), labels)


def forward_correction(logits: Tensor, labels: Tensor, transition: Tensor) -> Tensor:
    """-log Σ_c p_c T[c, label], mean over labeled slots (Patrini et al., theorem 2).

    Args:
        transition: (num_classes, num_classes) T on the logits' device; row c holds P(given label | clean label c). No
            gradient flows into it.
    """
    probs = _clipped_probabilities(logits)
    # A gather and a product, not `probs @ transition`: autocast would take the matrix product in half precision.
    columns = transition.detach().to(probs.dtype).T[labels.clamp(min=0)]
    given = (probs * columns).sum(dim=1).clamp(min=PROBABILITY_FLOOR)
    return _labeled_mean(-given.log(), labels)


def pseudo_label(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each unlabeled slot with its own argmax: mean over the unlabeled slots (Lee, 2013, equation 15).

    Its second term, without the weight; the first is `cross_entropy`. No gradient flows through the argmax.
    """
    guesses = torch.where(labels == NO_LABEL, logits.argmax(dim=1), NO_LABEL)
    return cross_entropy(logits, guesses)


def binary_per_class(outputs: Tensor, labels: Tensor, *, positive_weight: float = 1.0) -> Tensor:
    """Logistic loss of one binary classifier per class: sum over classes, mean over labeled slots (paper, section 3.1).

    -w log σ(s[label]) - Σ_{c ≠ label} log(1 - σ(s[c])): each sample is a positive one for the classifier of its class
    and a negative one for all others.

    Args:
        outputs: (b, num_classes) s, the classifiers' logits; not put through a softmax.
        positive_weight: w. A classifier meets num_classes - 1 negative samples for each positive one where the classes
            are balanced; w = num_classes - 1 makes up for it, and so moves what a score of 0.5 means.
    """
    outputs = _at_least_float32(outputs)
    positive = _one_hot(labels, outputs)
    logistic = nn.functional.softplus
    losses = positive_weight * positive * logistic(-outputs) + (1 - positive) * logistic(outputs)
    return _labeled_mean(losses.sum(dim=1), labels)


def _at_least_float32(values: Tensor) -> Tensor:
    """Half precision widened to float32; float32 and float64 as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _probabilities(logits: Tensor) -> Tensor:
    return torch.softmax(_at_least_float32(logits), dim=1)


def _clipped_probabilities(logits: Tensor) -> Tensor:
    """Softmax, held off 0 and 1; no gradient where it is held."""
    return _probabilities(logits).clamp(PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)


def _one_hot(labels: Tensor, like: Tensor) -> Tensor:
    """(b, num_classes) zeros and ones in the dtype of `like`; NO_LABEL gives a row of zeros."""
    # Not torch's one_hot, which checks the labels and so waits for the device.
    return (labels[:, None] == torch.arange(like.shape[1], device=like.device)).to(like.dtype)


def _labeled_mean(values: Tensor, labels: Tensor) -> Tensor:
    """Mean of (b,) values over the labeled slots; 0 where there is none."""
    labeled = labels != NO_LABEL
    return torch.where(labeled, values, 0.0).sum() / labeled.sum().clamp(min=1)


def _over_classes(values: Tensor, reduction: Literal["sum", "mean"]) -> Tensor:
    """(b, num_classes) -> (b,)."""
    if reduction == "sum":
        return values.sum(dim=1)
    if reduction == "mean":
        return values.mean(dim=1)
    raise ValueError(f"reduction {reduction!r}: allowed: mean, sum")
