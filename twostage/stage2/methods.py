"""What stage 2 asks of the samples without a label: the Π-model, temporal ensembling, or pseudo-labels."""

from __future__ import annotations

import math
from typing import Protocol

from torch import Tensor, nn

from twostage.config import TrainConfig
from twostage.data.plan import check_halves
from twostage.data.schema import InputError
from twostage.ensembling import TemporalEnsemble
from twostage.ramps import linear_ramp_up, sigmoid_ramp_up
from twostage.runtime.session import Session
from twostage.stage2.pi_model import PiModel
from twostage.stage2.pseudo_label import PseudoLabel
from twostage.stage2.temporal_ensembling import TemporalEnsembling


class Method(Protocol):
    """One way to train on labeled and unlabeled samples together."""

    @property
    def num_views(self) -> int:
        """Independent augmentations of each sample that a step takes."""

    @property
    def memory(self) -> TemporalEnsemble | None:
        """What it remembers of each sample from sub-epoch to sub-epoch."""

    def losses(
        self, network: nn.Module, images: tuple[Tensor, ...], index: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The supervised loss (mean over the labeled slots) and the other one, without its weight.

        Args:
            images: num_views tensors (b, C, H, W).
            index: (b,) int64 sample indices.
            labels: (b,) int64, NO_LABEL where stage 1 kept no label.
        """


def check_method(config: TrainConfig) -> None:
    """Checks what would otherwise be noticed in the middle of the work.

    Raises:
        InputError: a setting is out of range.
    """
    check_halves(config.batch_size)
    for name in ("ramp_up", "ramp_down", "consistency_weight"):
        if not 0 <= getattr(config, name) < math.inf:
            raise InputError(f"train.{name} is {getattr(config, name)}; it must be a number of at least 0 (0: none)")
    if not 0 <= config.ensemble_decay < 1:
        raise InputError(f"train.ensemble_decay is {config.ensemble_decay}; it must be at least 0 and below 1")


def make_method(config: TrainConfig, session: Session) -> Method:
    """The method that `train.method` names."""
    match config.method:
        case "pi_model":
            return PiModel(config.reduction)
        case "pseudo_label":
            return PseudoLabel()
        case "temporal_ensembling":
            ensemble = TemporalEnsemble(
                len(session.views.dataset),
                session.views.num_classes,
                ensemble_decay=config.ensemble_decay,
                device=session.world.device,
            )
            return TemporalEnsembling(config.reduction, ensemble)


def loss_weight(config: TrainConfig, sub_epoch: int) -> float:
    """w(t): the weight of the second loss in a sub-epoch; each method rises as its authors have it."""
    ramp = linear_ramp_up if config.method == "pseudo_label" else sigmoid_ramp_up
    return config.consistency_weight * ramp(sub_epoch, config.ramp_up)
