"""The moving average of weights: its formula, that it can be lent and taken back, and that it is saved bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from twostage.data.schema import InputError
from twostage.runtime import checkpoint
from twostage.runtime.ema import WeightAverage
from twostage.runtime.world import World

WORLD = World(rank=0, size=1, device=torch.device("cpu"))


def network(rng_seed: int = 0) -> nn.Module:
    torch.manual_seed(rng_seed)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))


def copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def step(model: nn.Module, seed: int) -> None:
    """Moves parameters and statistics, as a training step would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape, generator=generator)
    model.train()(torch.randn(5, 1, 4, 4, generator=generator))


@settings(max_examples=30)
@given(st.floats(0, 0.9999), st.integers(1, 30))
def test_the_average_is_its_formula(decay: float, steps: int) -> None:
    model = nn.Linear(3, 2)
    average = WeightAverage(model, decay)
    expected = np.full((2, 3), np.nan)
    for n in range(1, steps + 1):
        step(nn.Sequential(nn.Flatten(), nn.Linear(16, 3), model), n)
        average.update(model)
        d = min(decay, (n - 1) / n)
        own = model.weight.detach().numpy().astype(np.float64)
        expected = own if n == 1 else d * expected + (1 - d) * own
    np.testing.assert_allclose(average.average["weight"].numpy(), expected, rtol=1e-4, atol=1e-5)


def test_it_is_the_plain_mean_at_first_and_forgets_then() -> None:
    model = nn.Linear(1, 1, bias=False)
    average = WeightAverage(model, 0.75)
    seen = []
    for n in range(1, 9):
        with torch.no_grad():
            model.weight.fill_(float(n))
        average.update(model)
        seen.append(average.average["weight"].item())
    assert seen[:4] == pytest.approx([1, 1.5, 2, 2.5])      # means of 1..n
    assert seen[4] == pytest.approx(0.75 * 2.5 + 0.25 * 5)
    assert seen[7] < 8


def test_without_decay_it_is_the_network_itself() -> None:
    model = network()
    average = WeightAverage(model, 0.0)
    for seed in range(3):
        step(model, seed)
        average.update(model)
        assert all(torch.equal(average.average[name], p) for name, p in model.named_parameters())


def test_it_is_lent_with_the_networks_own_statistics_and_taken_back() -> None:
    model = network()
    average = WeightAverage(model, 0.9)
    for seed in range(4):
        step(model, seed)
        average.update(model)
    own = copied(model)
    with average.applied(model):
        lent = copied(model)
    assert same(copied(model), own)
    for name, value in lent.items():
        if name in average.average:
            assert torch.equal(value, average.average[name]) and not torch.equal(value, own[name])
        else:
            assert torch.equal(value, own[name]) and name.startswith("1."), name
    with pytest.raises(RuntimeError, match="as asked"), average.applied(model):
        raise RuntimeError("as asked")
    assert same(copied(model), own)


def test_before_the_first_step_the_network_keeps_its_own() -> None:
    model = network()
    average = WeightAverage(model, 0.9)
    step(model, 0)
    own = copied(model)
    with average.applied(model):
        assert same(copied(model), own)


def test_lending_does_not_disturb_the_training_nor_the_average() -> None:
    def train(lend: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        model = network()
        optimizer = torch.optim.Adam(model.parameters())
        average = WeightAverage(model, 0.9)
        inputs = torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(1))
        for _ in range(5):
            optimizer.zero_grad()
            model.train()(inputs).square().sum().backward()
            optimizer.step()
            average.update(model)
            if lend:
                with average.applied(model), torch.no_grad():
                    model.eval()(inputs)
        return copied(model), {name: value.clone() for name, value in average.state_dict().items()}

    for a, b in zip(train(True), train(False), strict=True):
        assert same(a, b)


def test_a_checkpoint_keeps_it_bit_for_bit(tmp_path: Path) -> None:
    """Four steps, and two, a checkpoint and two more in another process' place, give the same bits."""

    def begin() -> tuple[nn.Module, torch.optim.Optimizer, WeightAverage]:
        model = network()
        return model, torch.optim.SGD(model.parameters(), lr=0.1), WeightAverage(model, 0.6)

    model, _, average = begin()
    for seed in range(4):
        step(model, seed)
        average.update(model)
    expected = {name: value.clone() for name, value in average.state_dict().items()}

    model, optimizer, average = begin()
    for seed in range(2):
        step(model, seed)
        average.update(model)
    checkpoint.save(
        tmp_path, step=2, model=model, optimizer=optimizer, extra_tensors=average.state_dict(), state={"rng_seed": 0},
        world=WORLD, keep=1,
    )  # fmt: skip
    model, optimizer, average = begin()
    step(model, 99)
    average.update(model)
    found = checkpoint.load_newest(tmp_path)
    assert found is not None
    found.restore(model, optimizer, WORLD)
    average.load_state_dict(found.tensors())
    for seed in range(2, 4):
        step(model, seed)
        average.update(model)
    after = average.state_dict()
    assert sorted(after) == sorted(expected) and all(torch.equal(after[name], expected[name]) for name in after)


def test_names_are_those_of_the_bare_network() -> None:
    model = network()
    wrapped = nn.DataParallel(model)
    average = WeightAverage(wrapped, 0.9)
    assert list(average.average) == [name for name, _ in model.named_parameters()]
    step(model, 0)
    average.update(wrapped)
    assert torch.equal(average.average["3.bias"], model.get_parameter("3.bias"))


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5, float("nan")])
def test_a_decay_out_of_range_is_refused(decay: float) -> None:
    with pytest.raises(InputError, match=f"ema_decay is {decay}; it must be at least 0 and below 1"):
        WeightAverage(network(), decay)


def test_a_state_that_does_not_fit_is_refused() -> None:
    average = WeightAverage(network(), 0.9)
    state = average.state_dict()
    with pytest.raises(InputError, match=r"do not fit the network: they differ in 0\.bias"):
        average.load_state_dict({})
    with pytest.raises(InputError, match=r"they differ in 3\.weight"):
        average.load_state_dict(state | {"average.3.weight": torch.zeros(3, 9)})
    with pytest.raises(InputError, match="they differ in other"):
        average.load_state_dict(state | {"average.other": torch.zeros(1)})
    with pytest.raises(InputError, match="there are none"):
        average.load_state_dict({name: value for name, value in state.items() if name != "updates"})
    average.load_state_dict(state | {"meter": torch.zeros(3)})      # what else a checkpoint holds does not matter
