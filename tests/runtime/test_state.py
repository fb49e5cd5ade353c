"""What a training loop carries along: which weights it hands on, and the learning rate of an epoch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from twostage.config import PlateauConfig
from twostage.machine_config import RuntimeConfig
from twostage.runtime.state import Meter, TrainingState
from twostage.runtime.world import World

WORLD = World(rank=0, size=1, device=torch.device("cpu"))


def begin(ema_decay: float | None = None) -> TrainingState:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    groups = [{"params": list(layer.parameters())} for layer in model]
    optimizer = torch.optim.SGD(groups, lr=7.0, momentum=0.9)
    plateau = PlateauConfig(factor=0.5, patience=2, min_lr=0.001)
    return TrainingState.new(model, optimizer, plateau, Meter(("train/loss",), WORLD.device), None, None, ema_decay)


def epoch(state: TrainingState, accuracy: float, seed: int) -> dict[str, Tensor]:
    """An epoch that moves weights and statistics and ends with an accuracy; what was validated in it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in state.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    state.model.train()(torch.randn(6, 4, generator=generator))
    if state.average is not None:
        state.average.update(state.model)
    with state.validated():
        validated = {name: value.clone() for name, value in state.model.state_dict().items()}
    state.end_epoch(accuracy)
    return validated


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("ema_decay", [None, 0.5])
def test_the_best_validated_weights_are_handed_on_or_the_last(ema_decay: float | None, tmp_path: Path) -> None:
    state = begin(ema_decay)
    first, best, last = (epoch(state, accuracy, seed) for seed, accuracy in enumerate([0.4, 0.9, 0.5]))
    assert not same(first, best) and not same(best, last)
    assert same(state.kept_weights("best"), best)
    assert same(state.kept_weights("last"), last)

    state.save(tmp_path, RuntimeConfig(), 0, WORLD)
    resumed = begin(ema_decay)
    assert resumed.resume(tmp_path, WORLD) == 0
    assert same(resumed.kept_weights("best"), best)
    assert same(resumed.kept_weights("last"), last)
    worse = epoch(resumed, 0.8, 3)
    assert same(resumed.kept_weights("best"), best) and same(resumed.kept_weights("last"), worse)
    better = epoch(resumed, 0.95, 4)
    assert same(resumed.kept_weights("best"), better)


def test_the_learning_rate_is_the_schedules_times_what_standstills_left_of_it(tmp_path: Path) -> None:
    state = begin()

    def rates(scheduled: float) -> list[float]:
        """What the epoch is said to be trained with, and what the optimizer has for each group."""
        return [state.set_lr(scheduled), *(group["lr"] for group in state.optimizer.param_groups)]

    assert rates(0.4) == [0.4] * 4
    for accuracy in (0.5, 0.5, 0.5):        # two epochs without a better one
        state.end_epoch(accuracy)
    assert rates(0.4) == [0.2] * 4
    assert rates(0.1) == [0.05] * 4
    assert rates(0.0004) == [0.001] * 4, "plateau.min_lr"
    state.save(tmp_path, RuntimeConfig(), 0, WORLD)
    state = begin()
    state.resume(tmp_path, WORLD)
    assert rates(0.4) == [0.2] * 4
