"""The label-noise model: E-step against enumeration, M-step against the likelihood's gradient, limits, counts."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from twostage.losses import NO_LABEL, cross_entropy
from twostage.models.label_noise import (
    NOISE_TYPES,
    LabelNoiseModel,
    confusing_matrix,
    label_noise_losses,
    noise_types,
    posterior,
    supervised_losses,
)

Array = npt.NDArray[np.float64]

CONFUSING = torch.tensor(
    [[0.0, 0.5, 0.5, 0.0], [1.0, 0.0, 0.0, 0.0], [0.2, 0.3, 0.0, 0.5], [1 / 3, 1 / 3, 1 / 3, 0.0]], dtype=torch.float64
)
GIVEN = torch.tensor([0, 3, NO_LABEL, 2, 1])


def random_logits(columns: int, seed: int, scale: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(len(GIVEN), columns, dtype=torch.float64, generator=generator)


def softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def likelihood(label: int, y: int, z: int, confusing: Array) -> float:
    """P(given label | class y, noise type z), by its definition."""
    match NOISE_TYPES[z]:
        case "none":
            return float(label == y)
        case "random":
            return 0.0 if label == y else 1 / (len(confusing) - 1)
        case _:
            return float(confusing[y, label])


def enumerated(class_row: Array, type_row: Array, label: int, confusing: Array) -> Array:
    """The joint probability of the given label and every (class, noise type), one after the other."""
    classes, types = softmax(class_row), softmax(type_row)
    joint = np.zeros((len(classes), 3))
    for y, z in itertools.product(range(len(classes)), range(3)):
        joint[y, z] = (1.0 if label == NO_LABEL else likelihood(label, y, z, confusing)) * classes[y] * types[z]
    return joint


@given(st.integers(0, 10_000), st.integers(2, 7))
def test_the_e_step_is_that_of_enumeration(seed: int, num_classes: int) -> None:
    rng = np.random.default_rng(seed)
    class_logits, type_logits = 3 * rng.normal(size=(4, num_classes)), 3 * rng.normal(size=(4, 3))
    confusing = rng.dirichlet(np.ones(num_classes), num_classes) * (rng.random((num_classes, num_classes)) < 0.7)
    labels = rng.integers(NO_LABEL, num_classes, 4)
    found = posterior(*(torch.from_numpy(a) for a in (class_logits, type_logits, labels, confusing)))
    for row in range(4):
        joint = enumerated(class_logits[row], type_logits[row], int(labels[row]), confusing)
        np.testing.assert_allclose(found[row].numpy(), joint / joint.sum(), rtol=1e-9, atol=1e-12)


def test_the_m_step_is_cross_entropy_with_the_marginals_of_the_posterior() -> None:
    class_logits, type_logits = random_logits(4, 0), random_logits(3, 1)
    classes, types = label_noise_losses(class_logits, type_logits, GIVEN, CONFUSING)
    expected_classes, expected_types = [], []
    for row, label in enumerate(GIVEN.tolist()):
        if label != NO_LABEL:
            joint = enumerated(class_logits[row].numpy(), type_logits[row].numpy(), label, CONFUSING.numpy())
            joint /= joint.sum()
            expected_classes.append(-np.sum(joint.sum(axis=1) * np.log(softmax(class_logits[row].numpy()))))
            expected_types.append(-np.sum(joint.sum(axis=0) * np.log(softmax(type_logits[row].numpy()))))
    assert classes.item() == pytest.approx(np.mean(expected_classes), rel=1e-9)
    assert types.item() == pytest.approx(np.mean(expected_types), rel=1e-9)


def negative_log_likelihood(class_logits: Tensor, type_logits: Tensor) -> Tensor:
    """-log P(given | x) = -log Σ_y,z P(given | y, z) P(y | x) P(z | x): mean over the labeled slots; plain autograd."""
    terms = []
    for row, label in enumerate(GIVEN.tolist()):
        if label != NO_LABEL:
            classes, types = class_logits[row].softmax(0), type_logits[row].softmax(0)
            pairs = itertools.product(range(4), range(3))
            table = CONFUSING.numpy()
            joint = [likelihood(label, y, z, table) * classes[y] * types[z] for y, z in pairs]
            terms.append(-torch.stack(joint).sum().log())
    return torch.stack(terms).mean()


def test_the_m_steps_gradient_is_that_of_the_likelihood() -> None:
    logits = [random_logits(4, 0).requires_grad_(), random_logits(3, 1).requires_grad_()]
    ours = torch.autograd.grad(sum(label_noise_losses(*logits, GIVEN, CONFUSING), torch.zeros(())), logits)
    expected = torch.autograd.grad(negative_log_likelihood(*logits), logits)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    assert not ours[0][GIVEN == NO_LABEL].any() and not ours[1][GIVEN == NO_LABEL].any()


def test_em_raises_the_likelihood_at_every_step() -> None:
    """A full M-step has a closed form here: the logits of each slot are free, so they become the log-posterior."""
    class_logits, type_logits = random_logits(4, 2), random_logits(3, 3)
    last = negative_log_likelihood(class_logits, type_logits).item()
    for _ in range(5):
        expected = posterior(class_logits, type_logits, GIVEN, CONFUSING)
        class_logits, type_logits = expected.sum(dim=2).log(), expected.sum(dim=1).log()
        now = negative_log_likelihood(class_logits, type_logits).item()
        assert now < last - 1e-9
        last = now


def always(kind: str) -> Tensor:
    column = torch.tensor([NOISE_TYPES.index(kind)])
    return torch.full((len(GIVEN), 3), -1e4, dtype=torch.float64).index_fill_(1, column, 0.0)


def test_without_noise_it_is_cross_entropy_and_its_gradient() -> None:
    logits = random_logits(4, 0).requires_grad_()
    ours, _ = label_noise_losses(logits, always("none"), GIVEN, CONFUSING)
    expected = cross_entropy(logits, GIVEN)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=0)
    for a, b in zip(torch.autograd.grad(ours, logits), torch.autograd.grad(expected, logits), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)


def test_a_random_label_only_rules_its_own_class_out() -> None:
    logits = random_logits(4, 0)
    found = posterior(logits, always("random"), GIVEN, CONFUSING)[0, :, NOISE_TYPES.index("random")]
    others = logits[0].softmax(0)[1:]
    torch.testing.assert_close(found, torch.cat([torch.zeros(1), others / others.sum()]), rtol=1e-9, atol=1e-12)


def test_a_confusing_label_is_traced_back_by_the_matrix() -> None:
    found = posterior(torch.zeros(5, 4).double(), always("confusing"), GIVEN, CONFUSING)[:, :, 2]
    torch.testing.assert_close(found[1], torch.tensor([0, 0, 1.0, 0], dtype=torch.float64))        # only 2 gives 3
    torch.testing.assert_close(found[0], CONFUSING[:, 0] / CONFUSING[:, 0].sum())


def test_extreme_logits_stay_finite_in_half_precision_too() -> None:
    classes = torch.tensor([[200.0, -200.0, 0.0, 0.0]] * 5).half().requires_grad_()
    types = torch.tensor([[-200.0, 100.0, 100.0]] * 5).half().requires_grad_()
    a, b = label_noise_losses(classes, types, GIVEN, CONFUSING)
    assert a.dtype == torch.float32
    (a + b).backward()
    for logits in (classes, types):
        assert logits.grad is not None and torch.isfinite(logits.grad).all()


def test_no_labeled_slot_gives_zero_with_a_graph() -> None:
    logits = [random_logits(4, 0).requires_grad_(), random_logits(3, 1).requires_grad_()]
    a, b = label_noise_losses(*logits, torch.full((5,), NO_LABEL), CONFUSING)
    (a + b).backward()
    assert a.item() == b.item() == 0
    assert all(x.grad is not None and not x.grad.any() for x in logits)


def test_noise_types_follow_from_both_labels() -> None:
    clean = torch.tensor([0, 0, 0, 1, 2, 2, 3, NO_LABEL, 1])
    label = torch.tensor([0, 1, 3, 0, 0, 3, 0, 1, NO_LABEL])
    #       none, confusing, random (0 < 1/3), confusing, random (.2 < 1/3), confusing, random (1/3 is no more than 1/3)
    assert noise_types(clean, label, CONFUSING.float()).tolist() == [0, 2, 1, 2, 1, 2, 1, NO_LABEL, NO_LABEL]


def test_clean_labels_teach_both_networks() -> None:
    class_logits, type_logits = random_logits(4, 0), random_logits(3, 1)
    clean = torch.tensor([0, 2, 1, NO_LABEL, 0])
    found = supervised_losses(class_logits, type_logits, clean, GIVEN, CONFUSING)
    assert found[0].item() == pytest.approx(cross_entropy(class_logits, clean).item())
    kinds = torch.tensor([0, 2, NO_LABEL, NO_LABEL, 2])
    assert found[1].item() == pytest.approx(cross_entropy(type_logits, kinds).item())


def best_row(counts: list[int], own: int) -> tuple[float, set[int]]:
    """By trying every set of classes: the largest likelihood of the wrong labels, and the confusing classes there."""
    wrong = [j for j in range(len(counts)) if j != own and counts[j]]
    best: tuple[float, set[int]] = (-math.inf, set())
    for size in range(1, len(wrong) + 1):
        for chosen in itertools.combinations(wrong, size):
            among = sum(counts[j] for j in chosen)
            terms = [counts[j] * math.log(counts[j] / among if j in chosen else 1 / (len(counts) - 1)) for j in wrong]
            best = max(best, (sum(terms), set(chosen)), key=lambda found: found[0])
    return best


@given(st.integers(0, 10_000), st.integers(2, 6))
def test_the_confusing_matrix_makes_the_wrong_labels_likeliest(seed: int, num_classes: int) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 20, (num_classes, num_classes)) * (rng.random((num_classes, num_classes)) < 0.7)
    pairs = [(y, j) for y in range(num_classes) for j in range(num_classes) for _ in range(counts[y, j])]
    pairs += [(NO_LABEL, 0), (0, NO_LABEL)]
    rng.shuffle(pairs)
    clean, label = torch.tensor(pairs).T
    found = confusing_matrix(clean, label, num_classes).numpy()
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-12)
    assert (found.diagonal() == 0).all() and (found >= 0).all()
    for y, row in enumerate(counts.tolist()):
        if sum(row) == row[y]:
            np.testing.assert_allclose(np.delete(found[y], y), 1 / (num_classes - 1))
            continue
        among = sum(row[j] for j in range(num_classes) if found[y, j] > 0)
        for j in range(num_classes):
            assert found[y, j] in (0, pytest.approx(row[j] / among))
        likelihoods = [row[j] * math.log(found[y, j] or 1 / (num_classes - 1)) for j in range(num_classes) if j != y]
        assert sum(likelihoods) == pytest.approx(best_row(row, y)[0], rel=1e-9, abs=1e-9)


def test_a_likely_confusion_is_kept_and_an_even_rest_left_to_chance() -> None:
    counts = {(0, 0): 500, (0, 1): 90, (0, 2): 3, (0, 3): 3, (0, 4): 3, (1, 1): 10}
    pairs = [pair for pair, times in counts.items() for _ in range(times)]
    clean, label = torch.tensor(pairs).T
    assert confusing_matrix(clean, label, 5)[0].tolist() == [0, 1, 0, 0, 0]
    with pytest.raises(ValueError, match="1 class: there is nothing to confuse it with"):
        confusing_matrix(clean * 0, label * 0, 1)


class Columns(nn.Module):
    """A network for tests: the given columns of its input."""

    def __init__(self, start: int, stop: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.columns = slice(start, stop)

    def forward(self, images: Tensor) -> Any:
        return self.scale * images[:, self.columns]


def test_evaluation_asks_only_for_the_class() -> None:
    model = LabelNoiseModel(Columns(0, 4), Columns(4, 7))
    images = torch.randn(5, 7)
    classes, types = model.train()(images)
    assert torch.equal(classes, images[:, :4]) and torch.equal(types, images[:, 4:])
    assert torch.equal(model.eval()(images), images[:, :4])
    assert sorted(model.state_dict()) == ["classes.scale", "types.scale"]


def test_it_recovers_the_classes_from_labels_of_which_most_are_wrong() -> None:
    """Class y is given as y + 1 in 60 % of its images: cross-entropy learns the wrong class, this the right one."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.arange(600) % 4
    wrong = torch.rand(600, generator=generator) < 0.6
    labels = torch.where(wrong, (clean + 1) % 4, clean)
    confusing = torch.eye(4).roll(1, dims=1)
    inputs = torch.eye(4)[clean]
    types = torch.log(torch.tensor([0.4, 1e-6, 0.6])).expand(600, 3)
    found = {}
    for name in ("plain", "model"):
        weights = torch.zeros(4, 4, requires_grad=True)
        optimizer = torch.optim.SGD([weights], lr=2.0)
        with torch.no_grad():
            weights += 0.5 * torch.eye(4)       # as after a little training on clean samples
        for _ in range(100):
            logits = inputs @ weights
            plain, corrected = cross_entropy(logits, labels), label_noise_losses(logits, types, labels, confusing)[0]
            loss = plain if name == "plain" else corrected
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found[name] = ((inputs @ weights).argmax(dim=1) == clean).float().mean().item()
    assert found == {"plain": 0.0, "model": 1.0}
