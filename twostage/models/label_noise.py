"""The label-noise model: each label is right, wrong at random, or confused with a likely class (Table 4, row 3).

Source: Xiao, Xia, Yang, Huang, Wang, "Learning from massive noisy labeled data for image classification", CVPR 2015;
what that leaves open is as in the authors' code. Two networks see the image: one says which class it is, P(y | x), one
which type of noise its label has, P(z | x). The given label follows from both:

    none        it is y
    random      any other class, each with the same probability
    confusing   class j with probability confusing[y, j]

They are trained by EM: the posterior of (y, z) by the present networks (`posterior`), then a step towards it
(`label_noise_losses`). `confusing` is estimated once from images that have both labels, and fixed.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

from twostage.losses import NO_LABEL, cross_entropy

NOISE_TYPES: Final = ("none", "random", "confusing")


class LabelNoiseModel(nn.Module):
    """Both networks, so that they are trained as one.

    The parameters are `classes.…` and `types.…`; the weights to hand on are those of `classes`.
    """

    def __init__(self, classes: nn.Module, types: nn.Module) -> None:
        super().__init__()
        self.classes = classes
        """logits (b, num_classes) from images"""
        self.types = types
        """logits (b, 3) from images, in the order of NOISE_TYPES"""

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Training: logits of the class and of the noise type; evaluation: logits of the class."""
        logits: Tensor = self.classes(images)
        return (logits, self.types(images)) if self.training else logits


def posterior(class_logits: Tensor, type_logits: Tensor, given: Tensor, confusing: Tensor) -> Tensor:
    """E-step: P(class y, noise type z | given label, image), proportional to P(given | y, z) P(y | x) P(z | x).

    Args:
        class_logits: (b, num_classes).
        type_logits: (b, 3).
        given: (b,) int64 labels; of a slot with NO_LABEL the posterior is the prior P(y | x) P(z | x).
        confusing: (num_classes, num_classes) as of `confusing_matrix`.

    Returns:
        (b, num_classes, 3) float32 (float64 for float64 logits), sums to 1 over the last two; no gradient.
    """
    with torch.no_grad():
        classes, types = _log_probabilities(class_logits), _log_probabilities(type_logits)
        joint = classes[:, :, None] + types[:, None, :] + _log_likelihood(given, confusing.to(classes.dtype))
        return joint.flatten(1).softmax(dim=1).view_as(joint)


def label_noise_losses(
    class_logits: Tensor, type_logits: Tensor, given: Tensor, confusing: Tensor
) -> tuple[Tensor, Tensor]:
    """M-step: cross-entropy of both networks with the posterior's marginals: means over the labeled slots.

    Its gradient at the present networks is that of -log P(given label | x), which EM lowers.

    Args:
        class_logits, type_logits, given, confusing: as for `posterior`.

    Returns:
        -Σ_y P(y | given, x) log P(y | x), and -Σ_z P(z | given, x) log P(z | x).
    """
    expected = posterior(class_logits, type_logits, given, confusing)
    labeled = given != NO_LABEL
    count = labeled.sum().clamp(min=1)
    classes = -(expected.sum(dim=2) * _log_probabilities(class_logits)).sum(dim=1)
    types = -(expected.sum(dim=1) * _log_probabilities(type_logits)).sum(dim=1)
    return torch.where(labeled, classes, 0.0).sum() / count, torch.where(labeled, types, 0.0).sum() / count


def supervised_losses(
    class_logits: Tensor, type_logits: Tensor, clean: Tensor, given: Tensor, confusing: Tensor
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the classes with clean labels, and of the noise types where both labels are known.

    Args:
        clean, given: (b,) int64, NO_LABEL where unknown.
    """
    return cross_entropy(class_logits, clean), cross_entropy(type_logits, noise_types(clean, given, confusing))


def noise_types(clean: Tensor, given: Tensor, confusing: Tensor) -> Tensor:
    """(b,) int64: 0 none, 1 random, 2 confusing, as far as both labels tell; NO_LABEL where either is unknown.

    A wrong label is taken for confusing where that makes it likelier than a random one.
    """
    row, column = clean.clamp(min=0), given.clamp(min=0)
    wrong = torch.where(confusing[row, column] > 1 / (len(confusing) - 1), 2, 1)
    types = torch.where(clean == given, 0, wrong)
    return torch.where((clean == NO_LABEL) | (given == NO_LABEL), NO_LABEL, types)


def confusing_matrix(clean: Tensor, given: Tensor, num_classes: int) -> Tensor:
    """Which classes each class is confused with, from images that have both labels.

    Of a class's wrong labels, the k most frequent are taken for confusing, distributed as they are found, and the
    others for random; k is what makes all of them together the likeliest. A class without wrong labels is confused with
    every other one alike.

    Args:
        clean, given: (n,) int64; pairs of which either is NO_LABEL do not count.

    Returns:
        (num_classes, num_classes) float64; row y holds P(given label | class y, confusing): diagonal 0, sums to 1.

    Raises:
        ValueError: fewer than two classes.
    """
    if num_classes < 2:
        raise ValueError(f"{num_classes} class: there is nothing to confuse it with")
    known = (clean != NO_LABEL) & (given != NO_LABEL)
    pairs = torch.bincount(clean[known] * num_classes + given[known], minlength=num_classes**2)
    counts = pairs.view(num_classes, num_classes).double().fill_diagonal_(0)
    rows = [_confusing_row(counts[y], y) for y in range(num_classes)]
    return torch.stack(rows)


def _confusing_row(counts: Tensor, y: int) -> Tensor:
    random = 1 / (len(counts) - 1)
    if not bool(counts.any()):
        return torch.full_like(counts, random).index_fill_(0, torch.tensor([y], device=counts.device), 0.0)
    falling, order = counts.sort(descending=True, stable=True)
    found = falling[falling > 0]
    among = found.cumsum(0)                         # of the k most frequent
    # Σ n log(n / among) over the k, and log random for each of the others
    likelihood = (found * found.log()).cumsum(0) - among * among.log()
    likelihood += (among[-1] - among) * torch.tensor(random, dtype=counts.dtype).log()
    k = int(likelihood.argmax()) + 1
    return torch.zeros_like(counts).index_copy_(0, order[:k], found[:k] / among[k - 1])


def _log_likelihood(given: Tensor, confusing: Tensor) -> Tensor:
    """(b, num_classes, 3) log P(given label | y, z); 0 for NO_LABEL, which says nothing."""
    num_classes = len(confusing)
    is_given = given[:, None] == torch.arange(num_classes, device=given.device)
    none = is_given.to(confusing.dtype)
    likelihood = torch.stack([none, (1 - none) / (num_classes - 1), confusing.T[given.clamp(min=0)]], dim=2)
    return torch.where((given == NO_LABEL)[:, None, None], 0.0, likelihood.log())


def _log_probabilities(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=1)
