"""DeepSpeed's ZeRO-1 and ZeRO-2: every process keeps and updates one part of the optimizer's state.

accelerate launches the processes and says which file configures DeepSpeed; the engine is made here, and accelerate's
DeepSpeed plugin is not used. With the plugin, accelerate imports transformers, believes every process to be the first
of one on a machine without a GPU, takes the step within `backward`, and cannot be tested without GPUs; what runs on
many GPUs would be code that no test has seen. `deepspeed.initialize` runs on gloo as it does on NCCL.

Nothing of DeepSpeed's own checkpoints is used either: they are pickles, are bound to the number of processes, and hold
one rank's BatchNorm. `gathered` puts the optimizer's parts together, by parameter, as a plain optimizer of torch has
them, and `take_over` distributes them again. So a checkpoint is the same files with and without DeepSpeed, and goes on
with any number of processes, with ZeRO-1, ZeRO-2 or none.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from twostage.data.schema import InputError
from twostage.machine_config import RuntimeConfig
from twostage.runtime.world import World, all_reduce_sum
from twostage.runtime.zero_config import read_config

INITIAL_MICRO_STEP_ID: Final = -1
"""of DeepSpeed, where no gradient has been accumulated"""


class ZeroOptimizer:
    """What the loops, the checkpoints and the learning rate see of DeepSpeed in place of torch's optimizer."""

    def __init__(self, engine: Any, parameters: list[list[nn.Parameter]], world: World) -> None:
        """Wraps an engine.

        Args:
            engine: a DeepSpeedEngine of stage 1 or 2.
            parameters: those of each parameter group, which DeepSpeed has replaced in the groups themselves.
        """
        self._engine, self._parameters, self._world = engine, parameters, world
        self._zero = engine.optimizer
        self._base: torch.optim.Optimizer = engine.optimizer.optimizer

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups with their options; what is set here holds for the next step."""
        groups: list[dict[str, Any]] = self._base.param_groups
        return groups

    def descend(self, loss: Tensor) -> None:
        """Backward pass of a piece, and with the last piece of a step the step itself: all ranks together.

        Args:
            loss: of this rank and piece; the mean over the pieces is descended.
        """
        self._engine.backward(loss)
        self._engine.step()

    def discard(self) -> None:
        """Throws away the gradients of the pieces since the last step, as if they had not been taken."""
        taken = self._engine.micro_steps % self._engine.gradient_accumulation_steps()
        if not taken:
            return
        self._engine.micro_steps -= taken
        self._zero.micro_step_id = INITIAL_MICRO_STEP_ID
        self._zero.zero_grad()
        self._zero._release_preflattened_grad_buffers()
        for gradients in (self._zero.averaged_gradients, self._zero.all_grad_tensors):
            gradients.update(dict.fromkeys(gradients))

    def gathered(self) -> torch.optim.Optimizer:
        """A plain optimizer over the network's parameters with the state of all parts; called by all ranks together.

        The numbers are those of the parts, bit for bit. It is a copy, for a checkpoint.
        """
        whole = self.whole()
        for number, (flat, parameters) in enumerate(self._groups()):
            for key, value in self._base.state.get(flat, {}).items():
                spread = isinstance(value, Tensor) and value.shape == flat.shape
                full = self._put_together(value) if spread else value
                for parameter, start in zip(parameters, self._starts(number), strict=True):
                    if spread:
                        own = full[start : start + parameter.numel()].view(parameter.shape)
                    else:
                        own = value.clone() if isinstance(value, Tensor) else value
                    whole.state[parameter][key] = own
        return whole

    def whole(self) -> torch.optim.Optimizer:
        """A plain optimizer of the same kind over the network's parameters, without state."""
        groups = [{**g, "params": list(p)} for g, p in zip(self.param_groups, self._parameters, strict=True)]
        # a name that torch's optimizers share, but not their base class
        return type(self._base)(groups, lr=groups[0]["lr"])     # type: ignore[call-arg]

    def take_over(self, whole: torch.optim.Optimizer) -> None:
        """Goes on with the state and the options of a plain optimizer, and with the network's weights as they are.

        Each rank takes its part; all ranks have the same `whole`.
        """
        for group, options in zip(self.param_groups, whole.param_groups, strict=True):
            group.update({key: value for key, value in options.items() if key != "params"})
        for number, (flat, parameters) in enumerate(self._groups()):
            state: dict[str, Any] = {}
            for key, value in whole.state.get(parameters[0], {}).items():
                if key != "step" and isinstance(value, Tensor):       # the count of steps is one number for all
                    full = flat.new_zeros(flat.numel() * self._world.size, requires_grad=False)
                    for parameter, start in zip(parameters, self._starts(number), strict=True):
                        full[start : start + parameter.numel()] = whole.state[parameter][key].reshape(-1)
                    state[key] = full[self._own_slots(flat)].clone()
                else:
                    state[key] = value.clone() if isinstance(value, Tensor) else value
            self._base.state[flat] = state
        self.weights_changed()

    def weights_changed(self) -> None:
        """Must follow whatever changes the network's weights beside `descend`: ZeRO steps from its own copy of them."""
        self._zero.refresh_fp32_params()

    def _groups(self) -> list[tuple[Tensor, list[nn.Parameter]]]:
        """Of each group, this rank's part of all its weights in one row, and its parameters in the order of the row."""
        return list(zip(self._zero.single_partition_of_fp32_groups, self._zero.round_robin_bit16_groups, strict=True))

    def _starts(self, number: int) -> list[int]:
        """Where each parameter of a group begins in the row of the whole group."""
        starts: list[int] = self._zero.round_robin_bit16_offsets[number]
        return starts

    def _own_slots(self, flat: Tensor) -> slice:
        return slice(self._world.rank * flat.numel(), (self._world.rank + 1) * flat.numel())

    def _put_together(self, part: Tensor) -> Tensor:
        """The row of the whole group. Sent as integers: a sum of floats would turn -0.0 into 0.0."""
        row = torch.zeros(part.numel() * self._world.size, dtype=torch.int32, device=part.device)
        row[self._own_slots(part)] = part.detach().contiguous().view(torch.int32)
        return all_reduce_sum(row, self._world).view(part.dtype)


def prepare(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    file: Path,
    *,
    batch_size: int,
    pieces: int,
    runtime: RuntimeConfig,
    world: World,
) -> tuple[nn.Module, ZeroOptimizer]:
    """The network and the optimizer as DeepSpeed's engine runs them.

    Args:
        model: on its device; its weights now lie in one row per parameter group, so the layout channels-last is lost.
        optimizer: not used any more by itself.
        file: DeepSpeed's configuration; see `zero_config`.
        batch_size: of the global batch.
        pieces: in which each process takes its slots, one after the other.

    Raises:
        InputError: DeepSpeed is not installed, `file` or the batch size does not do, or an optimizer or a setting of
            `runtime` that does not go with it.
    """
    if runtime.compile != "no":
        raise InputError(f"runtime.compile: {runtime.compile} is not available with DeepSpeed; set it to no")
    if isinstance(optimizer, torch.optim.Adagrad):
        # it makes its own with torch's default options: other learning rate, no weight decay
        raise InputError("optimizer.name: adagrad loses its options under DeepSpeed; use adam, adamw or sgd")
    sizes = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    config = read_config(
        file,
        batch_size=batch_size,
        num_processes=world.size,
        pieces=pieces,
        precision=runtime.precision,
        parameters=sizes,
    )
    _join(world)
    deepspeed = _import(world.device)
    parameters = [list(group["params"]) for group in optimizer.param_groups]
    model = model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)
    return engine, ZeroOptimizer(engine, parameters, world)


def _join(world: World) -> None:
    """A single process, started without a launcher, needs what one would give it: DeepSpeed talks to itself."""
    if torch.distributed.is_initialized():
        return
    os.environ.setdefault("LOCAL_RANK", "0")
    backend = "nccl" if world.device.type == "cuda" else "gloo"
    store = torch.distributed.HashStore()  # type: ignore[attr-defined]
    torch.distributed.init_process_group(backend, store=store, rank=0, world_size=world.size)


def _import(device: torch.device) -> Any:
    """DeepSpeed, for this device; without its own compiled operations, of which none is used."""
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"        # before the import: it would take what it finds
    # hundreds of lines by torch about functions that DeepSpeed calls by their older names
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)
    try:
        import deepspeed
    except ImportError as error:
        raise InputError(
            f"the launcher asks for DeepSpeed, which cannot be imported ({error}): pip install 'twostage[deepspeed]'"
        ) from error
    if device.type == "cpu" and "deepspeed" in sys.modules:
        # else it compiles an all-reduce of its own for CPUs at the first start where it finds a compiler
        deepspeed.ops.__compatible_ops__ = {}
    return deepspeed
