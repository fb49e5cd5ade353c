"""The transition matrix: from posteriors whose matrix is known, and against the procedure written out in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from twostage.transition import estimate_transition, invert_transition

CLASSES = 10
ASYMMETRIC = np.eye(CLASSES)
for _clean, _given in ((2, 7), (3, 8), (5, 6), (6, 5), (7, 1)):
    ASYMMETRIC[_clean, _clean], ASYMMETRIC[_clean, _given] = 0.4, 0.6
SYMMETRIC = np.full((CLASSES, CLASSES), 0.2 / 9)
np.fill_diagonal(SYMMETRIC, 0.8)


def noisy_posteriors(transition: npt.NDArray[np.float64], num: int = 4000, seed: int = 0) -> npt.NDArray[np.float32]:
    """P(given | x) = P(clean | x) T for samples of which most are sure of their class."""
    generator = np.random.default_rng(seed)
    clean = 0.995 * np.eye(CLASSES)[generator.integers(CLASSES, size=num)] + 0.005 / CLASSES
    unsure = generator.random((num, 1)) < 0.3
    clean = np.where(unsure, generator.dirichlet(np.ones(CLASSES), size=num), clean)
    return (clean @ transition + 1e-4 * generator.random((num, CLASSES))).astype(np.float32)


def by_hand(probs: npt.NDArray[np.float32], percentile: float | None, faithful: bool) -> npt.NDArray[np.float64]:
    """The procedure in numpy; the aliasing of the authors' code is what a view does."""
    table = probs.astype(np.float64)
    rows = []
    for c in range(table.shape[1]):
        column = table[:, c] if faithful else table[:, c].copy()
        if percentile is not None:
            column[column >= np.percentile(column, percentile, method="higher")] = 0
        rows.append(table[column.argmax()].copy())
    matrix = np.array(rows)
    return matrix / matrix.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("transition", [SYMMETRIC, np.eye(CLASSES)], ids=["symmetric", "none"])
def test_recovers_a_known_matrix(transition: npt.NDArray[np.float64]) -> None:
    found = estimate_transition(torch.tensor(noisy_posteriors(transition)))
    np.testing.assert_allclose(found.numpy(), transition, atol=0.02)


def test_strong_asymmetric_noise_gives_the_row_of_the_class_that_most_of_the_given_labels_come_from() -> None:
    """At 0.6, most of what is called 6 is a 5, and the surest of them: so they are the anchors of 6."""
    found = estimate_transition(torch.tensor(noisy_posteriors(ASYMMETRIC))).numpy()
    for clean in (0, 1, 4, 8, 9):
        np.testing.assert_allclose(found[clean], ASYMMETRIC[clean], atol=0.02)
    np.testing.assert_allclose(found[5], ASYMMETRIC[6], atol=0.02)
    np.testing.assert_allclose(found[7], ASYMMETRIC[2], atol=0.02)


@pytest.mark.parametrize("mode", ["faithful", "fixed"])
@pytest.mark.parametrize("percentile", [97.0, 90.0, 100.0, None])
@pytest.mark.parametrize("num", [4000, 333])
def test_equals_the_procedure_by_hand(mode: Any, percentile: float | None, num: int) -> None:
    probs = noisy_posteriors(SYMMETRIC, num=num, seed=num)
    found = estimate_transition(torch.tensor(probs), percentile=percentile, mode=mode)
    np.testing.assert_allclose(found.numpy(), by_hand(probs, percentile, mode == "faithful"), rtol=1e-12)
    assert found.dtype == torch.float64


def test_faithful_mode_differs_below_the_diagonal_only_and_by_zeros() -> None:
    """Anchors of classes 0 and 1 coincide where class 0's outliers were set to 0."""
    probs = torch.full((100, 3), 0.01)
    probs[:, 2] = torch.linspace(0.01, 0.02, 100)
    probs[:50, 0] = torch.linspace(0.5, 0.9, 50)
    probs[50:97, 1] = 0.8
    probs[48, 1] = 0.85        # the anchor of class 1, and an outlier of class 0
    probs[97:, 1] = 0.9
    fixed = estimate_transition(probs, mode="fixed")
    faithful = estimate_transition(probs, mode="faithful")
    assert fixed[1, 0] > 0.4
    assert faithful[1, 0] == 0
    assert faithful[0].tolist() == fixed[0].tolist()


@pytest.mark.parametrize("seed", range(3))
def test_by_class_finds_the_row_of_a_class_smaller_than_the_outliers_of_all(seed: int) -> None:
    """2 % of the images, as of Clothing1M's sweaters; the percentile of all samples gives it another class's row."""
    generator = np.random.default_rng(seed)
    sizes = [2000, 2000, 80]
    transition = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.1, 0.6]])
    clean = np.repeat(0.97 * np.eye(3) + 0.01, sizes, axis=0) + 0.02 * generator.random((sum(sizes), 3))
    probs = torch.tensor(clean / clean.sum(axis=1, keepdims=True) @ transition)
    found = estimate_transition(probs, mode="by_class").numpy()
    np.testing.assert_allclose(found, transition, atol=0.03)
    assert estimate_transition(probs, mode="fixed").numpy()[2, 2] < 0.2


def test_by_class_takes_no_outlier_of_a_class_that_is_expected_nowhere() -> None:
    probs = torch.tensor([[0.98, 0.02]] * 20 + [[0.9, 0.1]])
    assert estimate_transition(probs, mode="by_class")[1].tolist() == pytest.approx([0.9, 0.1])


def test_leaves_the_predictions_as_they_are() -> None:
    probs = torch.tensor(noisy_posteriors(SYMMETRIC), dtype=torch.float64)
    before = probs.clone()
    estimate_transition(probs, mode="faithful")
    assert torch.equal(probs, before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"probs": torch.zeros(0, 3)}, "not empty"),
        ({"probs": torch.full((5, 3), torch.nan)}, "finite"),
        ({"probs": torch.ones(5)}, "num_classes"),
        ({"probs": torch.eye(3), "percentile": 101.0}, "percentile 101"),
        ({"probs": torch.eye(3), "mode": "fiexd"}, "faithful, fixed"),
        ({"probs": torch.zeros(9, 2)}, "class 0: no sample is below percentile"),
        ({"probs": torch.full((9, 2), 0.5)}, "class 0: no sample is below percentile"),     # nothing was learned
        ({"probs": torch.full((9, 2), 0.5), "mode": "faithful"}, "class 0: no sample is below percentile"),
        ({"probs": torch.eye(3), "percentile": 0.0}, "no sample is below percentile 0"),
    ],
)
def test_refuses_what_it_cannot_estimate_from(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        estimate_transition(**arguments)


def test_inverse_and_its_refusal() -> None:
    matrix = torch.tensor(ASYMMETRIC)
    torch.testing.assert_close(invert_transition(matrix) @ matrix, torch.eye(CLASSES, dtype=torch.float64))
    with pytest.raises(ValueError, match="no usable inverse"):
        invert_transition(torch.full((3, 3), 1 / 3))
