"""The noise layer: limits, gradient, rows that stay probabilities, and that it finds how labels were flipped."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from torch import Tensor, nn

from twostage.losses import NO_LABEL, cross_entropy, forward_correction
from twostage.models.noise_layer import MAX_MOVE, BottomUp, NoiseLayer, onto_simplex

T = torch.tensor([[0.7, 0.2, 0.1, 0.0], [0.0, 1.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25], [0.1, 0.0, 0.3, 0.6]])
LABELS = torch.tensor([0, 3, NO_LABEL, 2, 1, 1])


def random_logits(seed: int = 0) -> Tensor:
    return 3 * torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def layer_with(transition: Tensor) -> NoiseLayer:
    layer = NoiseLayer(len(transition)).double()
    layer.held = False
    with torch.no_grad():
        layer.transition.copy_(transition)
    return layer


def gradient(loss: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(loss, logits)[0]


@pytest.mark.parametrize("held", [True, False])
def test_as_the_identity_it_gives_cross_entropy_and_its_gradient(held: bool) -> None:
    layer = NoiseLayer(4).double()
    assert torch.equal(layer.transition, torch.eye(4, dtype=torch.float64))
    layer.held = held
    logits = random_logits().requires_grad_()
    with_layer, without = cross_entropy(layer(logits), LABELS), cross_entropy(logits, LABELS)
    torch.testing.assert_close(with_layer, without, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient(with_layer, logits), gradient(without, logits), rtol=1e-9, atol=1e-12)


def test_with_a_known_matrix_it_gives_the_forward_correction() -> None:
    logits = random_logits().requires_grad_()
    ours, known = cross_entropy(layer_with(T)(logits), LABELS), forward_correction(logits, LABELS, T)
    torch.testing.assert_close(ours, known, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient(ours, logits), gradient(known, logits), rtol=1e-5, atol=1e-7)


def test_gives_log_probabilities_of_the_given_label() -> None:
    logits = random_logits()
    powers = np.exp(logits.numpy())
    expected = powers / powers.sum(axis=1, keepdims=True) @ T.double().numpy()
    np.testing.assert_allclose(layer_with(T)(logits).exp().detach().numpy(), expected, rtol=1e-6, atol=1e-7)


def test_gradient_is_that_of_finite_differences() -> None:
    layer = layer_with(T * 0.9 + 0.025)

    def loss(logits: Tensor, transition: Tensor) -> Tensor:
        found = torch.func.functional_call(layer, {"transition": transition}, (logits,))
        assert isinstance(found, Tensor)
        return cross_entropy(found, LABELS)

    assert torch.autograd.gradcheck(loss, (random_logits().requires_grad_(), layer.transition))


def test_a_held_layer_gets_a_gradient_of_zero_and_stays_the_identity() -> None:
    layer = NoiseLayer(4)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, weight_decay=0.1)
    cross_entropy(layer(random_logits()), LABELS).backward()
    assert layer.transition.grad is not None and not layer.transition.grad.any()
    optimizer.step()
    layer.settle_()
    assert torch.equal(layer.transition, torch.eye(4))


def test_probabilities_too_small_for_the_logarithm_stay_finite() -> None:
    layer = NoiseLayer(3)
    layer.held = False
    logits = torch.tensor([[500.0, -500.0, 0.0]], requires_grad=True)
    loss = cross_entropy(layer(logits), torch.tensor([1]))
    loss.backward()
    assert loss.item() == pytest.approx(-np.log(1e-7), rel=1e-6)
    assert logits.grad is not None and torch.isfinite(logits.grad).all()
    assert layer.transition.grad is not None and torch.isfinite(layer.transition.grad).all()


def test_is_computed_in_float32_under_autocast() -> None:
    layer, logits = layer_with(T).float(), random_logits().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer(logits)
    assert torch.equal(found, layer(logits)) and found.dtype == torch.float32
    assert layer(logits.bfloat16()).dtype == torch.float32


@given(arrays(np.float64, array_shapes(min_dims=2, max_dims=2, max_side=6), elements=st.floats(-50, 50)))
def test_the_projection_gives_the_nearest_probabilities(rows: npt.NDArray[np.float64]) -> None:
    """The nearest point p of the simplex is the one with p = max(x - θ, 0) for some θ: whatever way it was found."""
    found = onto_simplex(torch.from_numpy(rows)).numpy()
    assert (found >= 0).all()
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-12)
    for x, p in zip(rows, found, strict=True):
        thetas = (x - p)[p > 0]
        np.testing.assert_allclose(thetas, thetas[0], atol=1e-10)
        assert (x[p == 0] <= thetas[0] + 1e-10).all()


def test_the_projection_leaves_probabilities_as_they_are() -> None:
    assert torch.equal(onto_simplex(torch.eye(5)), torch.eye(5))
    torch.testing.assert_close(onto_simplex(T), T, rtol=0, atol=1e-7)


def test_penalties() -> None:
    layer = layer_with(T)
    assert layer.penalty("trace").item() == pytest.approx(0.7 + 1 + 0.25 + 0.6)
    assert layer.penalty("squares").item() == pytest.approx(float((T**2).sum()))
    with pytest.raises(ValueError, match="penalty 'trcae': allowed: squares, trace"):
        layer.penalty("trcae")  # type: ignore[arg-type]


def descend(layer: NoiseLayer, logits: Tensor, labels: Tensor, weight: float = 0.0) -> None:
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.02)
    layer.held = False
    for _ in range(300):
        optimizer.zero_grad()
        (cross_entropy(layer(logits), labels) + weight * layer.penalty("squares")).backward()
        optimizer.step()
        layer.settle_()


def test_behind_a_network_that_is_right_it_finds_how_labels_were_flipped() -> None:
    generator = torch.Generator().manual_seed(3)
    clean = torch.randint(4, (1000,), generator=generator)
    labels = torch.multinomial(T[clean], 1, generator=generator)[:, 0]
    logits = 12.0 * torch.eye(4)[clean]
    counts = torch.bincount(clean * 4 + labels, minlength=16).view(4, 4).float()
    layer = NoiseLayer(4)
    descend(layer, logits, labels)
    torch.testing.assert_close(layer.transition.data, counts / counts.sum(dim=1, keepdim=True), rtol=0, atol=0.01)


def test_a_penalty_pulls_it_from_the_identity_where_the_labels_do_not() -> None:
    labels = torch.arange(4).repeat(5)
    logits = 12.0 * torch.eye(4)[labels]
    for weight, low, high in ((0.0, 1.0, 1.0), (0.2, 0.5, 0.9)):
        layer = NoiseLayer(4)
        descend(layer, logits, labels, weight)
        assert low <= layer.transition.diagonal().min().item() <= high


def test_one_step_moves_no_row_far_however_large_its_gradient() -> None:
    layer = NoiseLayer(4)
    layer.held = False
    optimizer = torch.optim.SGD(layer.parameters(), lr=10.0)
    for _ in range(5):
        before = layer.transition.detach().clone()
        optimizer.zero_grad()
        cross_entropy(layer(30.0 * torch.eye(4)), torch.tensor([1, 1, 3, 3])).backward()
        optimizer.step()
        layer.settle_()
        moved = (layer.transition - before).abs().sum(dim=1) / 2
        assert moved.max().item() == pytest.approx(MAX_MOVE, rel=1e-3)
        torch.testing.assert_close(layer.transition.sum(dim=1), torch.ones(4))
        assert (layer.transition >= 0).all()


def test_evaluation_goes_without_the_layer() -> None:
    torch.manual_seed(0)
    network = nn.Linear(3, 4)
    model = BottomUp(network, 4)
    with torch.no_grad():
        model.noise_layer.held = False
        model.noise_layer.transition.copy_(T)
    images = torch.randn(5, 3)
    assert torch.equal(model.eval()(images), network(images))
    logits, given = model.train()(images)
    assert torch.equal(logits, network(images))
    torch.testing.assert_close(given.exp(), network(images).softmax(dim=1) @ T)
    assert sorted(model.state_dict()) == ["network.bias", "network.weight", "noise_layer.transition"]
