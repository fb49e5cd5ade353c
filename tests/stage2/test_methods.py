"""The two losses of each method of stage 2, by value and by gradient, against formulas in numpy; and their weight."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from twostage.config import TrainConfig
from twostage.data.schema import NO_LABEL
from twostage.ensembling import TemporalEnsemble
from twostage.stage2.methods import Method, loss_weight
from twostage.stage2.pi_model import PiModel
from twostage.stage2.pseudo_label import PseudoLabel
from twostage.stage2.temporal_ensembling import TemporalEnsembling

Array = npt.NDArray[np.float64]
Reduction = Literal["sum", "mean"]

PIXELS, CLASSES, SAMPLES, DECAY = 5, 4, 12, 0.6
LABELS = torch.tensor([2, -1, 0, -1, 3, -1, -1, -1])
EPOCHS = (      # which samples a batch of 8 holds: some twice in an epoch, some not in all of them
    torch.tensor([7, 3, 0, 5, 1, 3, 9, 2]),
    torch.tensor([7, 3, 4, 6, 1, 8, 9, 9]),
    torch.tensor([7, 3, 4, 5, 10, 8, 11, 9]),
)


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(PIXELS, CLASSES).double()


def images(seed: int) -> Tensor:
    return torch.randn(len(LABELS), PIXELS, generator=torch.Generator().manual_seed(seed)).double()


def weights_of(network: nn.Linear) -> Array:
    """(CLASSES, PIXELS + 1), biases last."""
    joined: Array = torch.cat([network.weight, network.bias[:, None]], dim=1).detach().numpy()
    return joined


def predictions(weights: Array, of_images: Tensor) -> Array:
    powers: Array = np.exp(of_images.numpy() @ weights[:, :-1].T + weights[:, -1])
    probs: Array = powers / powers.sum(axis=1, keepdims=True)
    return probs


def surprise(probs: Array, labels: npt.NDArray[np.int64]) -> float:
    """Mean of -log p[label] over the slots that have a label."""
    return float(np.mean([-math.log(row[y]) for row, y in zip(probs, labels, strict=True) if y != NO_LABEL]))


def distance(probs: Array, others: Array, reduction: Reduction) -> float:
    squares = (probs - others) ** 2
    return float(squares.sum() / len(squares) / (1 if reduction == "sum" else CLASSES))


def assert_is(loss: Tensor, network: nn.Linear, formula: Callable[[Array], float]) -> None:
    """The loss is what the formula makes of the weights, and so is its gradient, by small changes of each weight."""
    weights = weights_of(network)
    slopes = np.zeros_like(weights)
    for place in np.ndindex(weights.shape):
        change = np.zeros_like(weights)
        change[place] = 1e-6
        slopes[place] = (formula(weights + change) - formula(weights - change)) / 2e-6
    of_weight, of_bias = torch.autograd.grad(loss, [network.weight, network.bias], retain_graph=True)
    assert loss.item() == pytest.approx(formula(weights), rel=1e-6)
    assert np.abs(slopes).max() > 1e-3, "nothing to compare"
    np.testing.assert_allclose(torch.cat([of_weight, of_bias[:, None]], dim=1).numpy(), slopes, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_pi_model_learns_labels_from_the_first_view_and_agreement_from_both(reduction: Reduction) -> None:
    network, first, second = linear(), images(1), images(2)
    supervised, consistency = PiModel(reduction).losses(network, (first, second), EPOCHS[0], LABELS)
    assert_is(supervised, network, partial(surprise_of, first))
    # what is varied in the formula is varied in both predictions: gradient flows through both
    assert_is(consistency, network, lambda w: distance(predictions(w, first), predictions(w, second), reduction))


def test_pi_model_passes_both_views_through_the_network_at_once() -> None:
    network, first, second = linear(), images(1), images(2)
    seen: list[Tensor] = []
    network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    PiModel("sum").losses(network, (first, second), EPOCHS[0], LABELS)
    assert len(seen) == 1 and torch.equal(seen[0], torch.cat([first, second]))


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_temporal_ensembling_agrees_with_earlier_sub_epochs_where_there_are_any(reduction: Reduction) -> None:
    network = linear()
    method = TemporalEnsembling(reduction, TemporalEnsemble(SAMPLES, CLASSES, ensemble_decay=DECAY))
    earlier: dict[int, list[Array]] = defaultdict(list)      # of each sample its mean prediction in each sub-epoch
    for epoch, index in enumerate(EPOCHS):
        of_epoch = images(10 + epoch)
        supervised, agreement = method.losses(network, (of_epoch,), index, LABELS)
        assert_is(supervised, network, partial(surprise_of, of_epoch))
        if epoch == 0:
            assert agreement.item() == 0
            assert not any(slope.any() for slope in torch.autograd.grad(agreement, [network.weight, network.bias]))
        else:
            assert_is(agreement, network, partial(distance_to, earlier, index, of_epoch, reduction))
        probs = predictions(weights_of(network), of_epoch)
        for sample in set(index.tolist()):
            earlier[sample].append(probs[index.numpy() == sample].mean(axis=0))
        method.memory.end_epoch()
        with torch.no_grad():
            network.weight += images(20 + epoch)[:CLASSES]


def surprise_of(of_images: Tensor, weights: Array) -> float:
    return surprise(predictions(weights, of_images), LABELS.numpy())


def distance_to(
    earlier: Mapping[int, list[Array]], index: Tensor, of_images: Tensor, reduction: Reduction, weights: Array
) -> float:
    """Mean over all slots; those without an earlier prediction, of which there are some, count as 0."""
    known = np.array([sample in earlier for sample in index.tolist()])
    assert known.any() and not known.all()
    targets = np.array([average(earlier[sample]) for sample in index[torch.as_tensor(known)].tolist()])
    return distance(predictions(weights, of_images)[known], targets, reduction) * float(known.mean())


def average(earlier: list[Array]) -> Array:
    """Of a sample's predictions, oldest first: each counts DECAY times as much as the next one."""
    mean: Array = np.average(earlier, axis=0, weights=[DECAY**age for age in reversed(range(len(earlier)))])
    return mean


def test_pseudo_labels_are_the_likeliest_classes_of_unlabeled_samples_alone() -> None:
    network, only = linear(), images(3)
    supervised, guessed = PseudoLabel().losses(network, (only,), EPOCHS[0], LABELS)
    assert_is(supervised, network, partial(surprise_of, only))
    likeliest = predictions(weights_of(network), only).argmax(axis=1)
    guesses = np.where(LABELS.numpy() == NO_LABEL, likeliest, NO_LABEL)
    assert len(set(guesses.tolist())) > 2
    assert_is(guessed, network, lambda w: surprise(predictions(w, only), guesses))


@pytest.mark.parametrize(
    "method", [PiModel("sum"), PseudoLabel(), TemporalEnsembling("sum", TemporalEnsemble(SAMPLES, CLASSES))]
)
def test_a_batch_without_labels_has_a_supervised_loss_of_nothing(method: Method) -> None:
    network = linear()
    views = tuple(images(seed) for seed in range(method.num_views))
    supervised, _ = method.losses(network, views, EPOCHS[0], torch.full_like(LABELS, NO_LABEL))
    assert supervised.item() == 0
    assert not any(slope.any() for slope in torch.autograd.grad(supervised, [network.weight, network.bias]))


SMOOTH = [math.exp(-5), math.exp(-5 * 0.75**2), math.exp(-5 * 0.5**2), math.exp(-5 * 0.25**2), 1.0, 1.0]


@pytest.mark.parametrize(
    ("method", "rise"),
    [("pi_model", SMOOTH), ("temporal_ensembling", SMOOTH), ("pseudo_label", [0, 0.25, 0.5, 0.75, 1, 1])],
)
def test_the_weight_of_the_second_loss_rises_as_each_methods_authors_have_it(
    method: Literal["pi_model", "temporal_ensembling", "pseudo_label"], rise: list[float]
) -> None:
    config = TrainConfig(method=method, consistency_weight=20, ramp_up=4)
    assert [loss_weight(config, epoch) for epoch in range(6)] == pytest.approx([20 * part for part in rise])
    constant = TrainConfig(method=method, consistency_weight=20)
    assert [loss_weight(constant, epoch) for epoch in range(3)] == [20, 20, 20]
