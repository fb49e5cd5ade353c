"""Backward pass and optimizer step, and what all ranks must know of each other before it is taken.

In every step each rank says two things: whether its loss is finite, and whether it was asked to stop. The answer is
read behind the backward pass, so that no program waits for it; on GPUs it comes before that pass in the same queue.
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
from twostage.runtime.snapshot import bare
from twostage.runtime.world import World
from twostage.runtime.zero import ZeroOptimizer

NOT_FINITE: Final = 1
STOP: Final = 2


class Descent:
    """Takes the steps of one stage, the same ones on all ranks, each in one or more pieces."""

    def __init__(
        self,
        accelerator: Accelerator,
        network: nn.Module,
        optimizer: torch.optim.Optimizer | ZeroOptimizer,
        world: World,
        pieces: int,
        max_skipped: int,
    ) -> None:
        """Begins before the first step.

        Args:
            network, optimizer: what `session.prepare` gave.
            pieces: of each step; every rank has as many.
            max_skipped: how many steps of one epoch may be skipped.
        """
        self._accelerator, self._optimizer, self._world = accelerator, optimizer, world
        self._pieces, self._taken = pieces, 0
        self._wrapped = _wrapped(network) if pieces > 1 else None
        self._finite = True
        self.max_skipped = max_skipped
        self.complete = False
        """whether the last piece was the last one of its step"""
        self.spoiled_by: list[int] = []
        """ranks whose loss was not finite in the last step, so that no rank took it; the same on all"""
        self.stop = False
        """whether any rank has been asked to stop, as far as the last step knew; the same on all"""
        self._expect_piece()

    def take(self, loss: Tensor, step: int) -> None:
        """Takes a piece of a step; with the last one the step itself, unless the loss of any rank is not finite.

        In that case nothing has changed but BatchNorm's statistics.

        Args:
            loss: this rank's, a scalar with its graph: a mean over the piece.
            step: its number, for the warning.
        """
        self._taken += 1
        self.complete = self._taken == self._pieces
        if not self.complete:
            self._finite = self._finite and math.isfinite(loss.item())
            self._take_piece(loss)
            self._expect_piece()
            return
        ballot = _Ballot(loss.detach(), self._finite, self._world)
        if isinstance(self._optimizer, ZeroOptimizer):
            self._count(ballot, step)           # before its backward pass, behind which the step cannot be left out
            if self.spoiled_by:
                self._optimizer.discard()
            else:
                self._optimizer.descend(loss)
        else:
            self._take_piece(loss)
            self._count(ballot, step)
            if not self.spoiled_by:
                self._optimizer.step()
            self._optimizer.zero_grad()
        self._taken, self._finite = 0, True
        self._expect_piece()

    def _take_piece(self, loss: Tensor) -> None:
        """Adds the gradients of one of several pieces."""
        if isinstance(self._optimizer, ZeroOptimizer):
            self._optimizer.descend(loss)       # it knows how many there are
        else:
            self._accelerator.backward(loss if self._pieces == 1 else loss / self._pieces)

    def _expect_piece(self) -> None:
        """Only a step's last piece sums its gradients over the ranks, as DDP wants to know before the forward pass."""
        if self._wrapped is not None:
            self._wrapped.require_backward_grad_sync = self._taken == self._pieces - 1

    def _count(self, ballot: _Ballot, step: int) -> None:
        votes = ballot.votes()
        self.stop = self.stop or any(vote & STOP for vote in votes)
        self.spoiled_by = [rank for rank, vote in enumerate(votes) if vote & NOT_FINITE]
        if self.spoiled_by and self._world.is_main:
            ranks = ", ".join(map(str, self.spoiled_by))
            print(f"warning: step {step}: the loss is not finite on rank {ranks}; skipped", file=sys.stderr, flush=True)


def _wrapped(network: nn.Module) -> nn.parallel.DistributedDataParallel | None:
    """What sums the gradients over the ranks, below the wrapper of torch.compile; None with one process."""
    inner = getattr(network, "_orig_mod", network)
    return inner if isinstance(inner, nn.parallel.DistributedDataParallel) else None


class _Ballot:
    """What every rank says in one step: sent when it is made, read with `votes`."""

    def __init__(self, loss: Tensor, finite: bool, world: World) -> None:
        """`finite` says whether the pieces before this loss were."""
        own = (STOP if preemption.asked() else 0) | (0 if finite else NOT_FINITE)
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
        slots[world.rank] = torch.where(torch.isfinite(loss), own, own | NOT_FINITE)
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
    """A copy of BatchNorm's statistics: a forward pass whose loss is not finite spoils them for good, and a checkpoint
    averages them over the ranks.
    """

    def __init__(self, model: nn.Module) -> None:
        layers = {name: layer for name, layer in bare(model).named_modules() if isinstance(layer, _BatchNorm)}
        named = {f"{name}.{own}": buffer for name, layer in layers.items() for own, buffer in layer.named_buffers()}
        self._names, self._buffers = list(named), list(named.values())
        self._copies = [buffer.clone() for buffer in self._buffers]

    def tensors(self) -> dict[str, Tensor]:
        """What was kept, by name."""
        return dict(zip(self._names, self._copies, strict=True))

    @torch.no_grad()
    def set(self, tensors: dict[str, Tensor]) -> None:
        """Sets the network's own to what `tensors` gave."""
        for name, buffer in zip(self._names, self._buffers, strict=True):
            buffer.copy_(tensors[name])

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
