from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from twostage.config import OptimizerConfig, PlateauConfig
from twostage.data.schema import InputError
from twostage.runtime.optimizers import Plateau, make_optimizer


def test_weight_decay_spares_biases_and_normalisation() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(4, 3))
    model[2].bias.requires_grad_(False)
    optimizer = make_optimizer(model, OptimizerConfig(name="adamw", lr=1e-3, weight_decay=0.1))
    names = {id(p): n for n, p in model.named_parameters()}
    decay = {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay == {"0.weight": 0.1, "2.weight": 0.1, "0.bias": 0.0, "1.weight": 0.0, "1.bias": 0.0}


@pytest.mark.parametrize(
    ("name", "momentum", "kind", "option", "value"),
    [
        ("sgd", None, torch.optim.SGD, "momentum", 0.9),
        ("sgd", 0.0, torch.optim.SGD, "momentum", 0.0),
        ("adam", None, torch.optim.Adam, "betas", (0.9, 0.999)),
        ("adam", 0.5, torch.optim.Adam, "betas", (0.5, 0.999)),
        ("adamw", 0.5, torch.optim.AdamW, "betas", (0.5, 0.999)),
        ("adagrad", None, torch.optim.Adagrad, "lr", 0.25),
    ],
)
def test_kinds_and_momentum(
    name: str, momentum: float | None, kind: type[torch.optim.Optimizer], option: str, value: object
) -> None:
    config = OptimizerConfig(name=name, momentum=momentum, lr=0.25)  # type: ignore[arg-type]
    optimizer = make_optimizer(nn.Linear(2, 2), config)
    assert type(optimizer) is kind
    assert all(group[option] == value and group["lr"] == 0.25 for group in optimizer.param_groups)


def test_wrong_configuration_is_named() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(InputError, match=r"optimizer\.momentum is 0\.9, but adagrad has none"):
        make_optimizer(model, OptimizerConfig(name="adagrad", momentum=0.9))
    with pytest.raises(InputError, match=r"optimizer adam: .*learning rate"):
        make_optimizer(model, OptimizerConfig(lr=-1.0))
    with pytest.raises(InputError, match="did you mean 'adam'"):
        make_optimizer(model, OptimizerConfig(name="adm"))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no parameter that needs a gradient"):
        make_optimizer(nn.Flatten(), OptimizerConfig())
    for wrong in ({"factor": 0.0}, {"factor": 1.5}, {"patience": 0}, {"min_lr": -1.0}, {"stop_after": 0}):
        with pytest.raises(InputError, match=f"plateau.{next(iter(wrong))} is"):
            Plateau(PlateauConfig(**wrong))  # type: ignore[arg-type]


# accuracy of the epoch -> learning-rate scale after it, best epoch so far?, epochs since the best, stop?
TABLE = [
    (0.50, 1.0, True, 0, False),
    (0.60, 1.0, True, 0, False),
    (0.60, 1.0, True, 1, False),        # equal is not better, but its weights are kept
    (0.59, 0.5, False, 2, False),       # two epochs of patience are over: halved, and counted anew
    (0.55, 0.5, False, 3, False),
    (0.61, 0.5, True, 0, False),        # better again: the scale stays
    (0.10, 0.5, False, 1, False),
    (0.20, 0.25, False, 2, False),
    (0.30, 0.25, False, 3, False),
    (0.40, 0.125, False, 4, False),
    (0.50, 0.125, False, 5, True),      # five since the best one
]


def test_plateau_follows_the_table_also_when_resumed_at_any_epoch() -> None:
    config = PlateauConfig(factor=0.5, patience=2, stop_after=5)
    for resumed in range(len(TABLE)):
        plateau = Plateau(config)
        for epoch, (accuracy, scale, is_best, stalled, stop) in enumerate(TABLE):
            if epoch == resumed:
                state = json.loads(json.dumps(plateau.state_dict()))
                plateau = Plateau(config)
                plateau.load_state_dict(state)
            plateau.step(accuracy)
            assert (plateau.lr_scale, plateau.is_best, plateau.stalled, plateau.should_stop) == (
                scale, is_best, stalled, stop,
            ), f"epoch {epoch}, resumed before epoch {resumed}"
        assert plateau.best == 0.61


def test_plateau_without_stop_goes_on() -> None:
    plateau = Plateau(PlateauConfig(patience=1))
    for _ in range(50):
        plateau.step(0.5)
    assert plateau.lr_scale == 0.5**49 and not plateau.should_stop


@pytest.mark.parametrize("accuracy", [math.nan, math.inf])
def test_plateau_refuses_what_is_no_accuracy(accuracy: float) -> None:
    with pytest.raises(InputError, match="validation accuracy is"):
        Plateau(PlateauConfig()).step(accuracy)
