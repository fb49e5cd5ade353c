"""The optimizer, and what a standstill of the validation accuracy does to the learning rate."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from twostage.config import OptimizerConfig, PlateauConfig
from twostage.data.schema import InputError, nearest


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The configured optimizer over all parameters that need a gradient.

    Weight decay is left out for parameters of at most one dimension: biases and normalisation.

    Raises:
        InputError: nothing to train, an unknown name, a value out of range, or a momentum for AdaGrad, which has none.
    """
    wanted = [p for p in model.parameters() if p.requires_grad]
    if not wanted:
        raise InputError("the network has no parameter that needs a gradient: check model.name")
    groups: list[dict[str, Any]] = [
        {"params": [p for p in wanted if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in wanted if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if not config.weight_decay >= 0:        # torch looks only at its default
        raise InputError(f"optimizer.weight_decay is {config.weight_decay}; it must be at least 0")
    momentum = 0.9 if config.momentum is None else config.momentum
    # On a CPU too: three times faster for small networks. AdaGrad's exists for the CPU only.
    fused = all(p.device.type in ("cuda", "cpu") for p in wanted)
    fused_adagrad = all(p.device.type == "cpu" for p in wanted)
    try:
        match config.name:
            case "sgd":
                return torch.optim.SGD(groups, lr=config.lr, momentum=momentum, fused=fused)
            case "adam":
                return torch.optim.Adam(groups, lr=config.lr, betas=(momentum, 0.999), fused=fused)
            case "adamw":
                return torch.optim.AdamW(groups, lr=config.lr, betas=(momentum, 0.999), fused=fused)
            case "adagrad":
                if config.momentum is not None:
                    raise InputError(f"optimizer.momentum is {config.momentum}, but adagrad has none; remove it")
                return torch.optim.Adagrad(groups, lr=config.lr, fused=fused_adagrad)
    except ValueError as error:
        raise error if isinstance(error, InputError) else InputError(f"optimizer {config.name}: {error}") from error
    raise InputError(f"optimizer.name {config.name!r}; {nearest(config.name, ('sgd', 'adam', 'adamw', 'adagrad'))}")


class Plateau:
    """Lowers the learning rate, and at last ends the training, when the validation accuracy stands still.

    After `patience` epochs without a better accuracy the learning rate is multiplied by `factor`, and the count for
    it begins anew; `stop_after` counts from the best epoch on. Better means strictly greater; but of equally good
    epochs the last one's weights are kept: a small refined validation set is often all right from the first on.
    """

    def __init__(self, config: PlateauConfig) -> None:
        """Begins without any accuracy.

        Raises:
            InputError: a value of the configuration is out of range.
        """
        if not 0 < config.factor <= 1:
            raise InputError(f"plateau.factor is {config.factor}; it must be above 0 and at most 1")
        if config.patience < 1:
            raise InputError(f"plateau.patience is {config.patience}; it must be at least 1")
        if config.min_lr < 0:
            raise InputError(f"plateau.min_lr is {config.min_lr}; it must not be negative")
        if config.stop_after is not None and config.stop_after < 1:
            raise InputError(f"plateau.stop_after is {config.stop_after}; it must be at least 1, or null for never")
        self.config = config
        self.lr_scale = 1.0
        """the learning rate is max(min_lr, initial one * lr_scale)"""
        self.best: float | None = None
        """highest accuracy so far"""
        self.stalled = 0
        """epochs since the best one"""
        self.waited = 0
        """epochs since the best one, or since the learning rate was lowered last"""
        self.is_best = False
        """whether no epoch so far was better than the last one"""

    @property
    def should_stop(self) -> bool:
        """Whether the training should end here."""
        return self.config.stop_after is not None and self.stalled >= self.config.stop_after

    def step(self, accuracy: float) -> None:
        """Takes an epoch's validation accuracy.

        Raises:
            InputError: it is not a number.
        """
        if not math.isfinite(accuracy):
            raise InputError(f"the validation accuracy is {accuracy}: are there validation samples with labels?")
        self.is_best = self.best is None or accuracy >= self.best
        if self.best is None or accuracy > self.best:
            self.best, self.stalled, self.waited = accuracy, 0, 0
            return
        self.stalled += 1
        self.waited += 1
        if self.waited >= self.config.patience:
            self.lr_scale *= self.config.factor
            self.waited = 0

    def state_dict(self) -> dict[str, float | int | None]:
        """All that `load_state_dict` needs, as plain JSON values."""
        return {"lr_scale": self.lr_scale, "best": self.best, "stalled": self.stalled, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back to what `state_dict` gave."""
        self.lr_scale, self.best = state["lr_scale"], state["best"]
        self.stalled, self.waited = state["stalled"], state["waited"]
        self.is_best = False
