"""An exponential moving average of the weights, to evaluate and hand on in place of the last ones.

Off in the paper's recipe. As in mean teachers (Tarvainen & Valpola, 2017), the average is the plain mean of the steps
so far until those are more than its memory of about 1 / (1 - decay) steps: the weights before have no part in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch
from torch import Tensor, nn

from twostage.data.schema import InputError
from twostage.runtime.snapshot import bare

UPDATES: Final = "updates"
AVERAGE: Final = "average."


class WeightAverage:
    """The average of a network's parameters. Buffers (BatchNorm's statistics) are not averaged but taken as they are.

    After step n, with d = min(decay, (n - 1) / n): average <- d · average + (1 - d) · parameters. Every rank holds the
    same, as every rank has the same parameters.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Begins without any step.

        Raises:
            InputError: decay is not within 0..1, without 1.
        """
        if not 0 <= decay < 1:
            raise InputError(f"ema_decay is {decay}; it must be at least 0 and below 1, 0.999 for example")
        self.decay = decay
        self.updates = 0
        self.average = {name: value.clone() for name, value in _parameters(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Takes in the parameters after a step of the optimizer."""
        self.updates += 1
        share = 1 - min(self.decay, (self.updates - 1) / self.updates)
        own = _parameters(model)
        # on a GPU one launch for all parameters; waits for nothing
        torch._foreach_lerp_(list(self.average.values()), [own[name] for name in self.average], share)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Lends the averaged parameters to the network: to validate, to keep the best, to write weights. In place.

        Without any update so far the network keeps its own.
        """
        if not self.updates:
            yield
            return
        own = _parameters(model)
        aside = {name: value.clone() for name, value in own.items()}
        try:
            _copy(self.average, own)
            yield
        finally:
            _copy(aside, own)

    def state_dict(self) -> dict[str, Tensor]:
        """All that `load_state_dict` needs, as tensors by name; they share memory with the average."""
        return {UPDATES: torch.tensor(self.updates), **{AVERAGE + name: value for name, value in self.average.items()}}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Goes back to what `state_dict` gave, bit for bit.

        Raises:
            InputError: it is of another network, or of a training without averaging.
        """
        saved = {name.removeprefix(AVERAGE): value for name, value in state.items() if name.startswith(AVERAGE)}
        shapes, own = [{name: value.shape for name, value in part.items()} for part in (saved, self.average)]
        differing = sorted(name for name in {**shapes, **own} if shapes.get(name) != own.get(name))
        if differing or UPDATES not in state:
            where = f"they differ in {differing[0]}" if differing else "there are none"
            raise InputError(f"the checkpoint's averaged weights (ema_decay) do not fit the network: {where}")
        self.updates = int(state[UPDATES])
        _copy(saved, self.average)


def _parameters(model: nn.Module) -> dict[str, Tensor]:
    """By the names of the bare network, shared ones once."""
    return {name.replace("_orig_mod.", ""): parameter.detach() for name, parameter in bare(model).named_parameters()}


@torch.no_grad()
def _copy(source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    for name, value in target.items():
        value.copy_(source[name])
