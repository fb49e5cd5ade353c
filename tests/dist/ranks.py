"""Runs of several gloo processes, with or without DeepSpeed, as a launcher would start them.

They start fast, as they are forked from a process that has imported everything. What a real launcher does with signals
and dead processes is tested where there is one: tests/launch, tests/slurm.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from torch import nn

from tests import digit_runs
from tests.digit_runs import ROOT
from twostage.data.schema import InputError
from twostage.runtime import manifest
from twostage.runtime.tracking import NONREPRODUCIBLE_KEYS
from twostage.runtime.zero_config import FILE, USE

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["ranks", "twostage.verbs", "twostage.stage1.pretrain", "twostage.stage2.train"])
TOLD = "after a batch: "
SETTINGS = {
    "model.name": "ranks:factory",
    "pretrain.epochs": "2",
    "train.method": "temporal_ensembling",
    "train.sub_epochs": "3",
    "train.ema_decay": "0.99",
    "runtime.checkpoint_steps": "4",
    "runtime.index_log": "true",
}


def factory(*, num_classes: int, in_channels: int, image_size: int, dropout: float, input_noise: float) -> nn.Module:
    """A small network with BatchNorm and dropout: what ranks could disagree on."""
    assert image_size and not input_noise
    return nn.Sequential(
        nn.Conv2d(in_channels, 8, 3, stride=2, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(256, num_classes),
    )


def slow_factory(
    *, num_classes: int, in_channels: int, image_size: int, dropout: float, input_noise: float
) -> nn.Module:
    """The same network, which takes its time for each batch that it only looks at."""
    network = factory(
        num_classes=num_classes, in_channels=in_channels, image_size=image_size, dropout=dropout,
        input_noise=input_noise,
    )
    network.register_forward_pre_hook(lambda module, _: None if module.training else time.sleep(0.7))
    return network


def telling_factory(
    *, num_classes: int, in_channels: int, image_size: int, dropout: float, input_noise: float
) -> nn.Module:
    """The same network, which prints its first BatchNorm's statistics after each batch; see `told`."""
    network = factory(
        num_classes=num_classes, in_channels=in_channels, image_size=image_size, dropout=dropout,
        input_noise=input_noise,
    )

    def tell(module: nn.Module, *_: Any) -> None:
        batchnorm = module.get_submodule("1")
        values = [*batchnorm.running_mean.tolist(), *batchnorm.running_var.tolist()]
        line = {"rank": int(os.environ["RANK"]), "training": module.training, "statistics": values}
        os.write(1, f"{TOLD}{json.dumps(line)}\n".encode())      # at once, as the other rank writes there too

    network.register_forward_hook(tell)
    return network


def told(printed: str) -> list[dict[str, Any]]:
    """What networks of `telling_factory` have printed."""
    lines = [line for line in printed.splitlines() if line.startswith(TOLD)]
    return [json.loads(line.removeprefix(TOLD)) for line in lines]


def command(verb: str, dataset: Path, run_dir: Path, **settings: str) -> list[str]:
    """Arguments of `python -m twostage`; a setting is written `section__field`."""
    return digit_runs.arguments(verb, dataset, run_dir, SETTINGS, **settings)


@dataclasses.dataclass
class Run:
    """A command in several processes, which print into `log`."""

    processes: list[BaseProcess]
    log: Path

    @property
    def alive(self) -> bool:
        """Whether no rank has ended."""
        return all(process.is_alive() for process in self.processes)

    def signal(self, number: signal.Signals, *ranks: int) -> None:
        """Sends a signal to some ranks, or to all."""
        for rank in ranks or range(len(self.processes)):
            process = self.processes[rank]
            if process.is_alive() and process.pid is not None:
                os.kill(process.pid, number)

    def wait(self, seconds: float = 120) -> list[int | None]:
        """Waits for all ranks, and returns their exit codes; kills what is left then."""
        until = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, until - time.monotonic()))
        codes = [process.exitcode for process in self.processes]
        self.signal(signal.SIGKILL)
        for process in self.processes:
            process.join()
        return codes

    def succeed(self) -> str:
        """Waits for a good end, and returns what was printed."""
        codes = self.wait()
        assert not any(codes), f"{codes}\n{self.log.read_text()}"
        return self.log.read_text()


def start(
    arguments: Sequence[str],
    log: Path,
    *,
    size: int = 2,
    zero: int = 0,
    write_delay: float = 0.0,
    spoil: str = "",
    wrong_on: int | None = None,
) -> Run:
    """Starts `python -m twostage ARGUMENTS` in `size` processes.

    Args:
        zero: stage of ZeRO; 0: without DeepSpeed.
        write_delay: seconds that the writing of each file of a checkpoint is slowed down by.
        spoil: `RANK:STEP[,RANK:STEP...]`: where the loss becomes NaN.
        wrong_on: the rank that finds the settings wrong, while the others do not.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    environment |= {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)} if size > 1 else {}
    environment |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "CUDA_VISIBLE_DEVICES": ""}
    if zero:
        environment |= {USE: "true", FILE: str(ROOT / "launch" / "deepspeed" / f"zero{zero}.json")}
    log.unlink(missing_ok=True)
    processes = []
    for rank in range(size):
        own = {**environment, **({"RANK": str(rank), "LOCAL_RANK": str(rank)} if size > 1 else {})}
        process = FORKS.Process(target=_rank, args=(own, list(arguments), log, write_delay, spoil, wrong_on == rank))
        process.start()
        processes.append(process)
    return Run(processes, log)


def _rank(
    environment: dict[str, str], arguments: list[str], log: Path, write_delay: float, spoil: str, wrong: bool
) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    os.environ.update(environment)

    import torch

    from twostage import checks
    from twostage.__main__ import main
    from twostage.runtime.descent import Descent

    torch.set_num_threads(1)
    write, take, rank = manifest.write_synced, Descent.take, environment.get("RANK", "0")

    def slow(path: Path, data: bytes) -> dict[str, Any]:
        time.sleep(write_delay)
        return write(path, data)

    def spoiled(self: Descent, loss: torch.Tensor, step: int) -> None:
        take(self, loss * float("nan") if f"{rank}:{step}" in spoil.split(",") else loss, step)

    def refuse(*_: Any) -> None:
        raise InputError("these settings are wrong")

    if wrong:
        checks.check = refuse
    manifest.write_synced, Descent.take = slow, spoiled     # type: ignore[method-assign]
    sys.exit(main(arguments))


def result(stage: Path) -> dict[str, Any]:
    """All that a stage leaves: weights, each file of the newest checkpoint, metrics, and the log of sample indices."""
    newest = manifest.committed(stage / "checkpoints")[0]
    lines = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    return {
        "weights": (stage / "model.safetensors").read_bytes(),
        "metrics": [{key: value for key, value in line.items() if key not in NONREPRODUCIBLE_KEYS} for line in lines],
        "done": (stage / "done.json").read_bytes(),
        **{f"checkpoint/{path.name}": path.read_bytes() for path in newest.iterdir()},
        **{f"indices/{path.name}": path.read_bytes() for path in stage.glob("indices/*")},
    }


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names of what differs; for messages that people can read."""
    return sorted(name for name in {**one, **other} if one.get(name) != other.get(name))


def global_batches(stage: Path) -> dict[int, list[int]]:
    """The log of indices: the slots of each step's global batch, in order, without a gap or anything twice."""
    slices: dict[int, dict[int, list[int]]] = {}
    for path in sorted((stage / "indices").glob("rank-*.jsonl")):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            step = slices.setdefault(entry["step"], {})
            assert entry["slot"] not in step, f"{path}: step {entry['step']}, slot {entry['slot']} is there twice"
            step[entry["slot"]] = entry["index"]
    batches = {}
    for number, pieces in sorted(slices.items()):
        batch: list[int] = []
        for slot, index in sorted(pieces.items()):
            assert slot == len(batch), f"step {number}: slot {slot} follows {len(batch)} slots"
            batch += index
        batches[number] = batch
    assert list(batches) == list(range(1, len(batches) + 1)), "steps are missing"
    return batches


def position(stage: Path) -> str:
    """The newest checkpoint, complete or not, with the number of files in it."""
    paths = {path.name.lstrip("."): path for path in (stage / "checkpoints").glob("*step-*")}
    if not paths:
        return ""
    return f"{max(paths)} {len(list(paths[max(paths)].glob('*')))}"
