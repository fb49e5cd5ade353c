"""Saving and loading ResNet-50 with Adam's moments: ours hashed, on the disk and renamed, beside what others write.

The others' file is whole only if nothing happens meanwhile; "then sync" brings it to the disk as ours is.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from tests.bench.contest import Contest, Scale, Target, alternate
from twostage.config import OptimizerConfig
from twostage.models import build_model
from twostage.runtime import checkpoint
from twostage.runtime.optimizers import make_optimizer
from twostage.runtime.world import World

ALONE = World(rank=0, size=1, device=torch.device("cpu"))
SAVE_STATE, LOAD_STATE = "accelerate's save_state", "accelerate's load_state"


def compare(scale: Scale, folder: Path) -> Iterator[Contest]:
    """Bytes per second, as many as the tensors have."""
    network = build_model("resnet50", num_classes=14, in_channels=3, image_size=224)
    optimizer = make_optimizer(network, OptimizerConfig(name="adam"))
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    accelerator = Accelerator(cpu=True)
    prepared, wrapped = accelerator.prepare(network, optimizer)
    tensors = [*network.state_dict().values(), *(t for state in optimizer.state.values() for t in state.values())]
    megabytes = sum(tensor.nbytes for tensor in tensors) / 1e6
    everything = {"model": network.state_dict(), "optimizer": optimizer.state_dict()}
    steps = count()

    def ours() -> None:
        checkpoint.save(
            folder / "ours", step=next(steps), model=network, optimizer=optimizer, extra_tensors={},
            state={"rng_seed": 0}, world=ALONE, keep=1,
        )

    def theirs(*, sync: bool) -> None:
        accelerator.save_state(str(folder / "accelerate"))
        if sync:
            _sync(folder / "accelerate")

    def torchs(*, sync: bool) -> None:
        (folder / "torch").mkdir(exist_ok=True)
        torch.save(everything, folder / "torch" / "all.pt")
        if sync:
            _sync(folder / "torch")

    what: dict[str, Any] = {"unit": "MB/s", "amount": megabytes, "rounds": scale.rounds}
    yield alternate(
        f"saving ResNet-50 and Adam's moments, {megabytes:.0f} MB",
        sides={
            "ours": ours,
            SAVE_STATE: partial(theirs, sync=False),
            f"{SAVE_STATE}, then sync": partial(theirs, sync=True),
            "torch.save": partial(torchs, sync=False),
            "torch.save, then sync": partial(torchs, sync=True),
        },
        before=os.sync,
        targets=[
            Target("≥ 1.0 × save_state", against=(SAVE_STATE,), at_least=1.0),
            Target("≥ 1.0 × save_state, then sync", against=(f"{SAVE_STATE}, then sync",), at_least=1.0),
        ],
        **what,
    )
    yield alternate(
        "loading it: ours checks every byte first",
        sides={
            "ours": lambda: _restore(folder / "ours", network, optimizer),
            LOAD_STATE: lambda: accelerator.load_state(str(folder / "accelerate")),
            "torch.load": lambda: _torch_load(folder / "torch" / "all.pt", network, optimizer),
        },
        targets=[Target("≥ 1.0 × load_state", against=(LOAD_STATE,), at_least=1.0)],
        **what,
    )
    del prepared, wrapped
    shutil.rmtree(folder)


def _restore(folder: Path, network: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    found = checkpoint.load_newest(folder)
    assert found is not None
    found.restore(network, optimizer, ALONE)


def _torch_load(path: Path, network: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    found = torch.load(path, weights_only=True)
    network.load_state_dict(found["model"])
    optimizer.load_state_dict(found["optimizer"])


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
