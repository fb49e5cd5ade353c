"""Backward pass and optimizer step, and what all ranks must know of each other before it is taken.

In every step each rank says two things: whether its loss is finite, and whether it was asked to stop. The question
travels while the backward pass is computed, so that no step waits for it.
"""

from __future__ import annotations

import math
import sys
from typing import Final

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from twostage.runtime import preemption
from twostage.runtime.world import World
from twostage.runtime.zero import ZeroOptimizer

NOT_FINITE: Final = 1
STOP: Final = 2


class Descent:
    """Takes the steps of one stage, the same ones on all ranks."""

    def __init__(
        self, accelerator: Accelerator, optimizer: torch.optim.Optimizer | ZeroOptimizer, world: World
    ) -> None:
        """`optimizer` is the one that `session.prepare` gave."""
        self._accelerator, self._optimizer, self._world = accelerator, optimizer, world
        self.stop = False
        """whether any rank has been asked to stop, as far as the last step knew; the same on all"""

    def take(self, loss: Tensor, step: int) -> list[int]:
        """Takes one step, unless the loss of any rank is not finite; then nothing but BatchNorm has changed.

        Args:
            loss: this rank's, a scalar with its graph.
            step: its number, for the warning.

        Returns:
            The ranks whose loss is not finite: none, if the step was taken. The same on all ranks.
        """
        ballot = _Ballot(loss.detach(), self._world)
        if isinstance(self._optimizer, ZeroOptimizer):      # its backward pass leaves gradients that a step must use up
            spoiled_by = self._count(ballot, step)
            if not spoiled_by:
                self._optimizer.descend(loss)
            return spoiled_by
        self._accelerator.backward(loss)
        spoiled_by = self._count(ballot, step)
        if not spoiled_by:
            self._optimizer.step()
        self._optimizer.zero_grad()
        return spoiled_by

    def _count(self, ballot: _Ballot, step: int) -> list[int]:
        votes = ballot.votes()
        self.stop = self.stop or any(vote & STOP for vote in votes)
        spoiled_by = [rank for rank, vote in enumerate(votes) if vote & NOT_FINITE]
        if spoiled_by and self._world.is_main:
            ranks = ", ".join(map(str, spoiled_by))
            print(f"warning: step {step}: the loss is not finite on rank {ranks}; skipped", file=sys.stderr, flush=True)
        return spoiled_by


class _Ballot:
    """What every rank says in one step: sent when it is made, read with `votes`."""

    def __init__(self, loss: Tensor, world: World) -> None:
        own = STOP if preemption.asked() else 0
        self._work: dist.Work | None = None
        self._sent: torch.cuda.Event | None = None
        if loss.device.type == "cpu":       # nothing to wait for
            own |= 0 if math.isfinite(loss.item()) else NOT_FINITE
            self._slots = torch.zeros(world.size, dtype=torch.int64)
            self._slots[world.rank] = own
            if world.size > 1:
                self._work = dist.all_reduce(self._slots, async_op=True)
            return
        slots = torch.zeros(world.size, dtype=torch.int64, device=loss.device)
        slots[world.rank] = torch.where(torch.isfinite(loss), 0, NOT_FINITE) + own
        if world.size > 1:
            dist.all_reduce(slots)
        self._slots = torch.empty(world.size, dtype=torch.int64, pin_memory=True)
        self._slots.copy_(slots, non_blocking=True)
        self._sent = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._sent.record()

    def votes(self) -> list[int]:
        """By rank."""
        if self._work is not None:
            self._work.wait()
        if self._sent is not None:
            self._sent.synchronize()
        votes: list[int] = self._slots.tolist()
        return votes


class RunningStatistics:
    """A copy of BatchNorm's statistics, as a forward pass whose loss is not finite may have spoiled them for good."""

    def __init__(self, model: nn.Module) -> None:
        layers = [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]
        self._buffers = [buffer for layer in layers for buffer in layer.buffers(recurse=False)]
        self._copies = [buffer.clone() for buffer in self._buffers]

    @torch.no_grad()
    def keep(self) -> None:
        """Copies them as they are now."""
        if self._buffers:
            torch._foreach_copy_(self._copies, self._buffers)

    @torch.no_grad()
    def restore(self) -> None:
        """Goes back to what was kept last."""
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._copies)
