"""What a training loop carries from step to step besides weights, and how all of it is saved and found again."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from twostage.config import PlateauConfig
from twostage.data.schema import InputError
from twostage.ensembling import TemporalEnsemble
from twostage.machine_config import RuntimeConfig
from twostage.runtime import checkpoint
from twostage.runtime.descent import Descent, RunningStatistics
from twostage.runtime.ema import WeightAverage
from twostage.runtime.optimizers import Plateau
from twostage.runtime.world import World, all_reduce_sum, average_batchnorm
from twostage.runtime.zero import ZeroOptimizer


class Meter:
    """Means of a few values over the steps since the last look; kept on the device so that no step waits for it."""

    def __init__(self, names: tuple[str, ...], device: torch.device) -> None:
        self.names = names
        self.skipped = 0
        """steps of this epoch that were not taken; the same on all ranks"""
        self.sums = torch.zeros(len(names) + 1, dtype=torch.float64, device=device)
        self._looked_at = [0.0] * (len(names) + 1)      # of this epoch, all ranks; not kept in checkpoints

    def add(self, *values: torch.Tensor) -> None:
        """Adds one step's values, in the order of `names`."""
        self.sums += torch.stack([*(v.detach().double() for v in values), self.sums.new_ones(())])

    def means(self, world: World) -> dict[str, float]:
        """Means over the steps and all ranks since the last call, which begins anew."""
        sums = all_reduce_sum(self.sums, world).tolist()
        self.sums = torch.zeros_like(self.sums)
        self._looked_at = [one + other for one, other in zip(self._looked_at, sums, strict=True)]
        means = self._divided(sums)
        return {**means, "train/skipped_steps": self.skipped} if self.skipped else means

    def epoch_means(self) -> dict[str, float]:
        """Means over all that `means` gave since the last call here; a resumed epoch's, since it was resumed."""
        sums, self._looked_at = self._looked_at, [0.0] * len(self._looked_at)
        return self._divided(sums)

    def _divided(self, sums: list[float]) -> dict[str, float]:
        count = sums[-1]
        return {name: total / count for name, total in zip(self.names, sums, strict=False)} if count else {}


@dataclass
class TrainingState:
    """Position in the plan, learning-rate state, best weights so far, and the meter."""

    model: nn.Module
    """without any wrapper for distributed training"""
    optimizer: torch.optim.Optimizer | ZeroOptimizer
    plateau: Plateau
    meter: Meter
    scaler: torch.amp.GradScaler | None = None
    memory: TemporalEnsemble | None = None
    """what the method remembers of each sample"""
    average: WeightAverage | None = None
    """of the weights, where it is validated and kept in place of them"""
    epoch: int = 0
    step: int = 0
    """of the epoch: the next one to be taken"""
    total_steps: int = 0
    best: dict[str, torch.Tensor] = field(default_factory=dict)
    """copy of the weights with the best validation accuracy"""
    last_accuracy: float | None = None
    """validation accuracy of the last epoch"""

    def __post_init__(self) -> None:
        self._statistics = RunningStatistics(self.model)
        self._pieces: list[tuple[torch.Tensor, ...]] = []

    @classmethod
    def new(
        cls,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | ZeroOptimizer,
        plateau: PlateauConfig,
        meter: Meter,
        scaler: torch.amp.GradScaler | None,
        memory: TemporalEnsemble | None = None,
        ema_decay: float | None = None,
    ) -> TrainingState:
        average = None if ema_decay is None else WeightAverage(model, ema_decay)
        return cls(model, optimizer, Plateau(plateau), meter, scaler, memory, average)

    def set_lr(self, lr: float) -> float:
        """Sets the epoch's learning rate, which plateaus may have lowered since; returns it."""
        lr = max(self.plateau.config.min_lr, lr * self.plateau.lr_scale)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self._statistics.keep()
        return lr

    def advance(self, *values: torch.Tensor, descent: Descent) -> None:
        """Notes a piece of a step with its values for the meter; and with the last piece that the step was taken.

        Raises:
            InputError: the loss was not finite in too many steps of this epoch, on all ranks alike.
        """
        self._pieces.append(tuple(value.detach() for value in values))
        if not descent.complete:
            return
        pieces, self._pieces = self._pieces, []
        self.step += 1
        self.total_steps += 1
        if descent.spoiled_by:
            self._statistics.restore()
            self._skipped(descent)
            return
        if self.average is not None:
            self.average.update(self.model)
        for piece in pieces:
            self.meter.add(*piece)
        self._statistics.keep()

    def _skipped(self, descent: Descent) -> None:
        self.meter.skipped += 1
        if self.meter.skipped > descent.max_skipped:
            raise InputError(
                f"step {self.total_steps} (epoch {self.epoch + 1}): the loss is not finite on rank "
                f"{', '.join(map(str, descent.spoiled_by))}, after {self.meter.skipped - 1} skipped steps in this "
                f"epoch, and runtime.max_skipped_steps is {descent.max_skipped}. Lower the learning rate "
                "(optimizer.lr), or set runtime.precision to fp32"
            )

    def checkpoint_due(self, runtime: RuntimeConfig, steps: int) -> bool:
        """Whether a checkpoint is to be written here; not after an epoch's last step, as validation comes first."""
        every = runtime.checkpoint_steps
        return every is not None and self.total_steps % every == 0 and self.step < steps

    def validated(self) -> AbstractContextManager[None]:
        """Within it, the network has the weights that are validated and kept: averaged ones, where there are any."""
        return nullcontext() if self.average is None else self.average.applied(self.model)

    def end_epoch(self, accuracy: float) -> None:
        """Takes note of an epoch's validation accuracy: learning rate, best weights; moves to the next epoch."""
        self.plateau.step(accuracy)
        self.last_accuracy = accuracy
        if self.plateau.is_best:
            self.best = self._copied()
        self.epoch, self.step, self.meter.skipped = self.epoch + 1, 0, 0

    def save(self, folder: Path, runtime: RuntimeConfig, rng_seed: int, world: World) -> None:
        """Writes a checkpoint, and leaves no trace in what is trained.

        What each rank has of its own, BatchNorm statistics and the meter, is kept twice: as every rank's, with which
        the same number of processes goes on bit for bit, and averaged or summed, for any other number.
        """
        self._statistics.keep()
        own = {"meter": self.meter.sums, **self._statistics.tensors()} if world.size > 1 else {}
        average_batchnorm(self.model, world)
        tensors = {"meter": all_reduce_sum(self.meter.sums, world), **_prefixed("best.", self.best)}
        if self.memory is not None:
            tensors |= _prefixed("memory.", self.memory.state_dict(lambda tensor: all_reduce_sum(tensor, world)))
        if self.average is not None:
            tensors |= _prefixed("ema.", self.average.state_dict())
        checkpoint.save(
            folder / "checkpoints",
            step=self.total_steps,
            model=self.model,
            optimizer=self.optimizer,
            extra_tensors=tensors,
            state={
                "epoch": self.epoch,
                "step": self.step,
                "skipped": self.meter.skipped,
                "plateau": self.plateau.state_dict(),
                "last_accuracy": self.last_accuracy,
                "rng_seed": rng_seed,
            },
            world=world,
            keep=runtime.keep_checkpoints,
            scaler_state=self.scaler.state_dict() if self.scaler is not None else None,
            own_tensors=own,
        )
        self._statistics.restore()

    def resume(self, folder: Path, world: World) -> int | None:
        """Goes back to the newest valid checkpoint, if there is any, and says so; returns its total step.

        Raises:
            InputError: there are checkpoints, but none is valid, or the model does not fit.
        """
        found = checkpoint.load_newest(folder / "checkpoints", world)
        if found is None:
            return None
        found.restore(self.model, self.optimizer, world, self.scaler)
        self.total_steps = found.step
        self.epoch, self.step = found.state["epoch"], found.state["step"]
        self.meter.skipped = found.state.get("skipped", 0)      # not in checkpoints of earlier versions
        self.plateau.load_state_dict(found.state["plateau"])
        self.last_accuracy = found.state.get("last_accuracy", self.plateau.best)        # as `skipped`
        tensors = found.tensors()
        own = found.own_tensors(world)
        if "meter" in own:
            self.meter.sums = own.pop("meter").to(world.device)
            self._statistics.set(own)
        else:       # it was summed over all ranks: one goes on with the sum, the others from zero
            self.meter.sums = tensors["meter"].to(world.device) * (1.0 if world.is_main else 0.0)
        self.best = {name: value.to(world.device) for name, value in _below("best.", tensors).items()}
        if self.memory is not None:     # the running epoch was summed over all ranks too
            self.memory.load_state_dict(_below("memory.", tensors), with_running_epoch=world.is_main)
        if self.average is not None:
            self.average.load_state_dict(_below("ema.", tensors))
        if world.is_main:
            print(f"{folder.name}: goes on after step {found.step}, from {found.path}", flush=True)
        return found.step

    def kept_weights(self, select: str) -> dict[str, torch.Tensor]:
        """The weights that the stage hands on: the best by validation accuracy, or the last."""
        return self.best if select == "best" and self.best else self._copied()

    def kept_accuracy(self, select: str) -> float | None:
        """The validation accuracy of these weights."""
        return self.plateau.best if select == "best" else self.last_accuracy

    def _copied(self) -> dict[str, torch.Tensor]:
        with self.validated():
            return {name: value.detach().clone() for name, value in self.model.state_dict().items()}


def _prefixed(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in tensors.items()}


def _below(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
