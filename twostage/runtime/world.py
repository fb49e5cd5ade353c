"""The processes of a run: who is who, and the few things that they do together.

Rank facts come from torch.distributed: on a host without a GPU, accelerate's own are wrong under some launches.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import warnings
from dataclasses import dataclass
from typing import Final

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, DistributedDataParallelKwargs, TorchDynamoPlugin
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from twostage.data.schema import InputError
from twostage.machine_config import RuntimeConfig
from twostage.runtime.meeting import meet
from twostage.runtime.zero_config import hidden_from_accelerate

PLAIN_BATCHNORM: Final = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass(frozen=True)
class World:
    """This process among all of the run."""

    rank: int
    """0..size-1"""
    size: int
    """number of processes"""
    device: torch.device
    """where this process computes"""

    @property
    def is_main(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.rank == 0


def start(runtime: RuntimeConfig) -> tuple[Accelerator, World]:
    """Joins the processes that the launcher started, and checks that they are what was asked for.

    One process needs no launcher. Several come by `accelerate launch` or `torchrun`; on CPUs they talk by gloo.

    Raises:
        InputError: the processes did not find each other, there are more of them than GPUs, or the precision is not
            available on the device.
    """
    use_cpu = runtime.device == "cpu" or not torch.cuda.is_available()
    # accelerate searches the disk for this optimizer twice in each step, a tenth of the time of a small network's step
    sys.modules.setdefault("lomo_optim", None)  # type: ignore[arg-type]
    # accelerate knows only the old name of this option. Buffers are never broadcast: average_batchnorm does better,
    # and new weights follow from rng_seed, so that all ranks begin with the same ones.
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
    if not use_cpu:
        _check_gpus()
    meet(runtime.start_seconds, runtime.watchdog_seconds, on_cpu=use_cpu)
    try:
        with hidden_from_accelerate():
            accelerator = Accelerator(
                mixed_precision={"fp32": "no", "bf16": "bf16", "fp16": "fp16"}[runtime.precision],
                cpu=use_cpu,
                step_scheduler_with_optimizer=False,
                dataloader_config=DataLoaderConfiguration(dispatch_batches=False),
                kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
                dynamo_plugin=None if runtime.compile == "no" else _compilation(runtime.compile),
            )
    except ValueError as error:
        raise InputError(f"accelerate cannot start with the section `runtime` and this launch: {error}") from error
    if runtime.precision == "fp16" and accelerator.device.type == "cpu":
        # accelerate would compute in fp32 without a word
        raise InputError("runtime.precision: fp16 needs a GPU; use bf16 or fp32 on a CPU")
    if accelerator.gradient_accumulation_steps != 1:
        # it would divide every loss
        raise InputError(
            f"the launch asks for gradient_accumulation_steps={accelerator.gradient_accumulation_steps}, which this "
            "program does not do; set it to 1 in the launcher's configuration"
        )
    joined = dist.is_available() and dist.is_initialized()
    world = World(
        rank=dist.get_rank() if joined else 0,
        size=dist.get_world_size() if joined else 1,
        device=_plain_device(accelerator.device),
    )
    _check_launch(world, accelerator.process_index, accelerator.num_processes)
    if runtime.precision == "bf16" and world.device.type == "cpu" and world.is_main and _emulates_bf16():
        print(
            "warning: this CPU has no bf16 instructions: runtime.precision: bf16 is emulated, about ten times slower "
            "than fp32",
            file=sys.stderr,
            flush=True,
        )
    return accelerator, world


def _check_gpus() -> None:
    """accelerate would let processes without a GPU of their own share one, and NCCL or DDP would fail of it later."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return
    local, gpus = os.environ.get("LOCAL_RANK", ""), torch.cuda.device_count()
    if not local.isdecimal():
        raise InputError(
            f"LOCAL_RANK is {local!r}, but with several processes on GPUs it must say which GPU of its machine each "
            "takes; `accelerate launch`, `torchrun` and the scripts in launch/slurm set it"
        )
    if int(local) >= gpus:
        shown = os.environ.get("CUDA_VISIBLE_DEVICES")
        raise InputError(
            f"LOCAL_RANK is {local}, but this process sees {gpus} GPU(s)"
            + (f" (CUDA_VISIBLE_DEVICES={shown})" if shown is not None else "")
            + ": start one process for each GPU at the most, and let each see all GPUs of its machine (in SLURM "
            "without --gpus-per-task and --gpu-bind)"
        )


def _emulates_bf16() -> bool:
    ask = getattr(torch.cpu, "get_capabilities", None)      # older versions of torch do not tell
    return ask is not None and not any(ask().get(name) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))


def _compilation(mode: str) -> TorchDynamoPlugin:
    """What lets `accelerator.prepare` compile a network; shapes are those of full batches, so they are static."""
    return TorchDynamoPlugin(backend="inductor", mode=mode, dynamic=False)


def _plain_device(device: torch.device) -> torch.device:
    """accelerate says `cpu:0` or `cpu`, `cuda` or `cuda:0`, by how it was launched; here a GPU has its number."""
    if device.type == "cuda":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu") if device.type == "cpu" else device


def _check_launch(world: World, process_index: int, num_processes: int) -> None:
    asked = {"WORLD_SIZE": world.size, "RANK": world.rank}
    for name, found in asked.items():
        value = os.environ.get(name, str(found))
        if value != str(found):
            raise InputError(
                f"the launcher asked for {name}={value}, but this is process {world.rank} of {world.size} that found "
                "each other; start all of them by one `accelerate launch` or `torchrun` (on CPUs with "
                "ACCELERATE_USE_CPU=true and --multi_gpu), or unset the variable for a single process"
            )
    if (process_index, num_processes) != (world.rank, world.size):
        raise InputError(
            f"torch.distributed says process {world.rank} of {world.size}, accelerate says process {process_index} of "
            f"{num_processes}; check `distributed_type` and `use_cpu` in the launcher's configuration"
        )


def all_reduce_sum(tensor: Tensor, world: World) -> Tensor:
    """The sum of all ranks' tensors, as a new tensor on every rank. The shape and dtype are the same on all."""
    total = tensor.detach().clone()
    if world.size > 1:
        dist.all_reduce(total, op=dist.ReduceOp.SUM)
    return total


def barrier(world: World) -> None:
    """Waits until every rank is here."""
    all_reduce_sum(torch.zeros((), device=world.device), world).item()


def gather_strings(value: str, world: World) -> list[str]:
    """Every rank's string, by rank, on every rank. Sent as plain bytes, so nothing is unpickled."""
    data = value.encode()
    lengths = torch.zeros(world.size, dtype=torch.int64, device=world.device)
    lengths[world.rank] = len(data)
    counts = all_reduce_sum(lengths, world).tolist()
    table = torch.zeros((world.size, max(1, *counts)), dtype=torch.uint8)
    table[world.rank, : len(data)] = torch.tensor(list(data), dtype=torch.uint8)
    rows = all_reduce_sum(table.to(world.device), world).cpu().numpy()
    return [row[:count].tobytes().decode() for row, count in zip(rows, counts, strict=True)]


def agree(value: str, what: str, world: World) -> None:
    """Checks that every rank holds the same string; JSON objects are compared key by key for the message.

    Raises:
        InputError: on every rank alike, naming the first rank that differs from rank 0, and what differs.
    """
    digests = gather_strings(hashlib.sha256(value.encode()).hexdigest(), world)
    other = next((rank for rank, digest in enumerate(digests) if digest != digests[0]), None)
    if other is None:
        return
    values = gather_strings(value, world)
    raise InputError(
        f"rank {other} was started with another {what} than rank 0: {_difference(values[0], values[other], other)}; "
        "start all processes with the same command on the same files"
    )


def _difference(first: str, second: str, rank: int) -> str:
    try:
        one, two = json.loads(first), json.loads(second)
    except json.JSONDecodeError:
        one = two = None
    if isinstance(one, dict) and isinstance(two, dict):
        keys = sorted(key for key in one.keys() | two.keys() if one.get(key) != two.get(key))
        shown = [f"{key} is {one.get(key)!r} on rank 0 and {two.get(key)!r} on rank {rank}" for key in keys[:3]]
        return ", ".join(shown) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
    return f"{first[:200]!r} on rank 0 and {second[:200]!r} on rank {rank}"


def synchronise_batchnorm(model: nn.Module, world: World) -> None:
    """Lets every BatchNorm layer take its statistics from the slots of all ranks, in place; parameters stay the same.

    Raises:
        InputError: on a CPU, where torch has no such layer; or a layer does more than BatchNorm (timm has some with an
            activation), which torch would leave out.
    """
    if world.device.type == "cpu":
        raise InputError(
            "runtime.sync_batch_norm needs GPUs; on CPUs leave it off: statistics are averaged over the processes "
            "before every evaluation all the same"
        )
    for name, layer in model.named_modules():
        if isinstance(layer, _BatchNorm) and type(layer) not in PLAIN_BATCHNORM:
            raise InputError(
                f"runtime.sync_batch_norm: {name} is a {type(layer).__module__}.{type(layer).__name__}, which torch "
                "would replace by a SyncBatchNorm that does not do the rest of it: set it to false, or choose another "
                "network"
            )
    nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]


def average_batchnorm(model: nn.Module, world: World) -> None:
    """Sets the running mean and variance of every BatchNorm layer to their mean over the ranks, in place.

    Each rank gathers these statistics from its own slices only, and neither DDP nor DeepSpeed brings them together.
    Nothing happens with one process.
    """
    if world.size == 1:
        return
    layers = [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]
    stats = [s for layer in layers for s in (layer.running_mean, layer.running_var) if s is not None]
    if not stats:
        return
    with torch.no_grad():
        mean = all_reduce_sum(torch.cat([s.reshape(-1) for s in stats]), world) / world.size
        for own, averaged in zip(stats, torch.split(mean, [s.numel() for s in stats]), strict=True):
            own.copy_(averaged.view_as(own))
