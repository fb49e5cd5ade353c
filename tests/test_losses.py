"""Losses against numpy, against finite differences, and for where their gradient flows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from twostage import losses
from twostage.data import schema
from twostage.losses import NO_LABEL
from twostage.transition import invert_transition

Array = npt.NDArray[np.float64]

BATCH, CLASSES = 7, 5
LABELS = torch.tensor([0, NO_LABEL, 4, 2, NO_LABEL, 2, 1])
T = np.full((CLASSES, CLASSES), 0.05) + 0.75 * np.eye(CLASSES)[[0, 1, 2, 3, 4]]
T[3] = [0.1, 0.0, 0.6, 0.3, 0.0]


def random_logits(seed: int = 0, scale: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(BATCH, CLASSES, dtype=torch.float64, generator=generator)


def softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def each_labeled(term: Callable[[Array, int], float], logits: Array, labels: npt.NDArray[np.int64]) -> float:
    """Mean of term(row, label) over the labeled rows, one after the other."""
    terms = [term(row, int(label)) for row, label in zip(logits, labels, strict=True) if label != NO_LABEL]
    return float(np.mean(terms)) if terms else 0.0


def one_hot(label: int) -> Array:
    return np.eye(CLASSES)[label]


def p_of(row: Array) -> Array:
    return np.clip(softmax(row[None])[0], 1e-7, 1 - 1e-7)


# name: (loss in torch, one slot's term in numpy)
SUPERVISED: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Array, int], float]]] = {
    "cross_entropy": (losses.cross_entropy, lambda s, y: -np.log(softmax(s[None])[0, y])),
    "unhinged": (losses.unhinged, lambda s, y: np.mean(1 - one_hot(y) * s)),
    "sigmoid": (losses.sigmoid, lambda s, y: np.mean(1 / (1 + np.exp(one_hot(y) * s)))),
    "savage": (losses.savage, lambda s, y: np.mean(1 / (1 + np.exp(2 * one_hot(y) * softmax(s[None])[0])) ** 2)),
    "bootstrap_soft": (
        losses.bootstrap_soft,
        lambda s, y: -np.sum((0.95 * one_hot(y) + 0.05 * p_of(s)) * np.log(p_of(s))),
    ),
    "bootstrap_hard": (
        losses.bootstrap_hard,
        lambda s, y: -0.8 * np.log(p_of(s)[y]) - 0.2 * np.log(p_of(s).max()),
    ),
    "backward": (
        lambda s, y: losses.backward_correction(s, y, invert_transition(torch.tensor(T))),
        lambda s, y: -np.sum((one_hot(y) @ np.linalg.inv(T)) * np.log(p_of(s))),
    ),
    "forward": (
        lambda s, y: losses.forward_correction(s, y, torch.tensor(T)),
        lambda s, y: -np.log((p_of(s) @ T)[y]),
    ),
    "binary_per_class": (
        losses.binary_per_class,
        lambda s, y: -np.sum(np.log(np.where(one_hot(y) == 1, 1 / (1 + np.exp(-s)), 1 - 1 / (1 + np.exp(-s))))),
    ),
    "binary_per_class_weighted": (
        lambda s, y: losses.binary_per_class(s, y, positive_weight=4.0),
        lambda s, y: np.sum(np.log(1 + np.exp(np.delete(s, y)))) + 4 * np.log(1 + np.exp(-s[y])),
    ),
}
supervised = pytest.mark.parametrize("name", SUPERVISED)


def test_no_label_is_the_one_of_the_dataset() -> None:
    assert losses.NO_LABEL == schema.NO_LABEL


@supervised
def test_equals_numpy(name: str) -> None:
    loss, term = SUPERVISED[name]
    logits = random_logits()
    assert loss(logits, LABELS).item() == pytest.approx(each_labeled(term, logits.numpy(), LABELS.numpy()), rel=1e-12)


@supervised
def test_gradient_equals_finite_differences(name: str) -> None:
    loss, _ = SUPERVISED[name]
    assert torch.autograd.gradcheck(lambda s: loss(s, LABELS), random_logits().requires_grad_())


@supervised
def test_unlabeled_slots_get_no_gradient_and_change_nothing(name: str) -> None:
    loss, _ = SUPERVISED[name]
    logits = random_logits().requires_grad_()
    value = loss(logits, LABELS)
    value.backward()
    assert logits.grad is not None
    unlabeled = LABELS == NO_LABEL
    assert (logits.grad[unlabeled] == 0).all()
    assert (logits.grad[~unlabeled].abs().sum(dim=1) > 0).all()
    torch.testing.assert_close(loss(logits[~unlabeled], LABELS[~unlabeled]), value)


@supervised
def test_without_any_label_it_is_exactly_zero_with_a_graph(name: str) -> None:
    loss, _ = SUPERVISED[name]
    logits = random_logits().requires_grad_()
    value = loss(logits, torch.full((BATCH,), NO_LABEL))
    value.backward()
    assert value.item() == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


@supervised
def test_extreme_logits_stay_finite(name: str) -> None:
    loss, _ = SUPERVISED[name]
    logits = (1e4 * torch.eye(CLASSES)[[0, 1, 2, 3, 4, 0, 1]]).requires_grad_()
    value = loss(logits, LABELS)
    value.backward()
    assert torch.isfinite(value)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


ALL: dict[str, Callable[[Tensor], Tensor]] = {
    **{name: lambda s, loss=loss: loss(s, LABELS) for name, (loss, _) in SUPERVISED.items()},
    "pseudo_label": lambda s: losses.pseudo_label(s, LABELS),
    "consistency": lambda s: losses.consistency(s, s.roll(1, dims=0), reduction="sum"),
    "consistency_to_target": lambda s: losses.consistency_to_target(s, s.roll(1, dims=0), reduction="mean"),
}


@pytest.mark.parametrize("name", ALL)
def test_half_precision_logits_are_computed_in_float32_under_autocast(name: str) -> None:
    logits = random_logits().bfloat16()
    expected = ALL[name](logits.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = ALL[name](logits)
    assert found.dtype == torch.float32
    if name != "consistency_to_target":     # there the target is rounded to half precision too
        assert found.item() == expected.item()


def numpy_consistency(a: Array, b: Array, divisor: int) -> float:
    return float(np.mean([np.sum((x - y) ** 2) / divisor for x, y in zip(a, b, strict=True)]))


@pytest.mark.parametrize(("reduction", "divisor"), [("sum", 1), ("mean", CLASSES)])
def test_consistency_equals_numpy_and_differs_by_the_number_of_classes(reduction: Any, divisor: int) -> None:
    a, b = random_logits(1), random_logits(2)
    expected = numpy_consistency(softmax(a.numpy()), softmax(b.numpy()), divisor)
    assert losses.consistency(a, b, reduction=reduction).item() == pytest.approx(expected, rel=1e-12)
    assert losses.consistency(a, a, reduction=reduction).item() == 0


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_consistency_sends_gradient_through_both_branches(reduction: Any) -> None:
    a, b = random_logits(1).requires_grad_(), random_logits(2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y: losses.consistency(x, y, reduction=reduction), (a, b))
    losses.consistency(a, b, reduction=reduction).backward()
    assert a.grad is not None
    assert b.grad is not None
    assert (a.grad != 0).all()
    assert (b.grad != 0).all()


@pytest.mark.parametrize(("reduction", "divisor"), [("sum", 1), ("mean", CLASSES)])
def test_consistency_to_target_equals_numpy_with_and_without_weights(reduction: Any, divisor: int) -> None:
    logits, target = random_logits(1), torch.softmax(random_logits(2), dim=1)
    weight = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 0.5, 1.0])
    p, t, w = softmax(logits.numpy()), target.numpy(), weight.numpy()
    plain = losses.consistency_to_target(logits, target, reduction=reduction)
    assert plain.item() == pytest.approx(numpy_consistency(p, t, divisor), rel=1e-12)
    weighted = losses.consistency_to_target(logits, target, reduction=reduction, weight=weight)
    rows = ((p - t) ** 2).sum(axis=1) / divisor
    assert weighted.item() == pytest.approx(float((w * rows).sum() / BATCH), rel=1e-12)


def test_no_gradient_reaches_a_target_or_its_weight() -> None:
    logits = random_logits(1).requires_grad_()
    target = torch.softmax(random_logits(2), dim=1).requires_grad_()
    weight = torch.ones(BATCH, dtype=torch.float64).requires_grad_()
    losses.consistency_to_target(logits, target, reduction="sum", weight=weight).backward()
    assert target.grad is None
    assert weight.grad is None
    assert logits.grad is not None
    assert (logits.grad != 0).all()
    fixed = target.detach()
    assert torch.autograd.gradcheck(lambda s: losses.consistency_to_target(s, fixed, reduction="sum"), logits)


def test_an_unknown_reduction_names_the_allowed_ones() -> None:
    with pytest.raises(ValueError, match="'avg': allowed: mean, sum"):
        losses.consistency(random_logits(), random_logits(), reduction="avg")


def test_no_gradient_reaches_a_transition_matrix() -> None:
    transition = torch.tensor(T).requires_grad_()
    for loss in (losses.forward_correction, losses.backward_correction):
        loss(random_logits().requires_grad_(), LABELS, transition).backward()
        assert transition.grad is None


def test_corrections_by_the_identity_are_cross_entropy() -> None:
    logits, identity = random_logits(), torch.eye(CLASSES)
    expected = losses.cross_entropy(logits, LABELS)
    torch.testing.assert_close(losses.forward_correction(logits, LABELS, identity), expected)
    torch.testing.assert_close(losses.backward_correction(logits, LABELS, identity), expected)


def test_backward_correction_is_unbiased() -> None:
    """Its expectation over the noise is the cross-entropy with the clean label: what the method is for."""
    logits, inverse = random_logits(), invert_transition(torch.tensor(T))
    for clean in range(CLASSES):
        noisy = [losses.backward_correction(logits, torch.full((BATCH,), j), inverse).item() for j in range(CLASSES)]
        expected = losses.cross_entropy(logits, torch.full((BATCH,), clean)).item()
        assert float(T[clean] @ noisy) == pytest.approx(expected, rel=1e-9)


def test_soft_bootstrapping_sends_gradient_through_its_target_and_hard_does_not() -> None:
    """Against a version whose target is a constant."""
    for loss, beta, flows in ((losses.bootstrap_soft, 0.95, True), (losses.bootstrap_hard, 0.8, False)):
        logits = random_logits().requires_grad_()
        probs = torch.softmax(logits, dim=1)
        guess = probs if flows else torch.eye(CLASSES, dtype=torch.float64)[probs.argmax(dim=1)]
        labeled = LABELS != NO_LABEL
        target = beta * torch.eye(CLASSES, dtype=torch.float64)[LABELS[labeled]] + (1 - beta) * guess[labeled].detach()
        constant = -(target * probs[labeled].log()).sum(dim=1).mean()
        (expected,) = torch.autograd.grad(constant, logits)
        (found,) = torch.autograd.grad(loss(logits, LABELS), logits)
        assert torch.allclose(found, expected) != flows


def test_pseudo_label_is_cross_entropy_of_the_unlabeled_with_their_own_argmax() -> None:
    logits = random_logits().requires_grad_()
    value = losses.pseudo_label(logits, LABELS)
    probs = softmax(logits.detach().numpy())
    unlabeled = (LABELS == NO_LABEL).numpy()
    assert value.item() == pytest.approx(float(np.mean(-np.log(probs[unlabeled].max(axis=1)))), rel=1e-12)
    value.backward()
    assert logits.grad is not None
    assert (logits.grad[LABELS != NO_LABEL] == 0).all()
    assert (logits.grad[LABELS == NO_LABEL] != 0).all()
    everything_labeled = losses.pseudo_label(logits, torch.zeros(BATCH, dtype=torch.int64))
    assert everything_labeled.item() == 0
    assert everything_labeled.requires_grad
