"""What stage 1's loop adds to forward, backward and all-reduce in two processes: against a bare loop under DDP.

    accelerate launch --config_file launch/accelerate/cpu-2.yaml -m tests.bench.two_processes NAME DATASET FOLDER ROUNDS

prints a JSON line of both rates, images/s, for each round. NAME: mnist or cifar10, whose configuration is taken.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from tests.bench.contest import Contest, Scale, Target
from tests.bench.peer import ROOT
from tests.bench.small_images import EPOCHS, rate, settings, synthetic
from twostage.cli import parse
from twostage.losses import cross_entropy
from twostage.runtime.optimizers import make_optimizer
from twostage.runtime.session import Session, open_session
from twostage.stage1.pretrain import pretrain

OURS, BARE = "stage 1's loop", "bare loop under DDP, random tensors"
LAUNCH = ["-m", "accelerate.commands.launch", "--config_file", "launch/accelerate/cpu-2.yaml"]


def compare(scale: Scale, folder: Path) -> Iterator[Contest]:
    """The paper's networks for CIFAR-10 and MNIST, a core for each process."""
    for name, size, num in (("cifar10", 32, scale.pick(3_840, 7_680)), ("mnist", 28, scale.pick(38_400, 76_800))):
        dataset = synthetic(folder / name, size, num)
        command = [sys.executable, *LAUNCH, "-m", "tests.bench.two_processes", name, dataset, folder, scale.rounds]
        done = subprocess.run([*map(str, command)], cwd=ROOT, check=True, capture_output=True, text=True)
        rounds = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"ours"')]
        yield Contest(
            f"two processes, {name}'s configuration",
            "images/s",
            {OURS: [found["ours"] for found in rounds], BARE: [found["bare"] for found in rounds]},
            targets=(Target("at most 3 % of a step more", against=(BARE,), at_least=0.97),),
        )


def _bare(session: Session) -> float:
    """Images per second of forward, loss, backward with its all-reduce, and optimizer."""
    config = session.config
    batch_size, size = config.pretrain.batch_size, config.augment.size
    model = session.new_model()
    network, optimizer = session.prepare(model, make_optimizer(model, config.pretrain.optimizer), batch_size)
    shape = (batch_size // session.world.size, 1 if config.augment.channels == "gray" else 3, size, size)
    images = torch.randn(shape).to(memory_format=torch.channels_last)
    labels = torch.randint(0, session.views.num_classes, shape[:1])
    steps = len(session.views.train) // batch_size
    rates = []
    for _ in range(EPOCHS):
        dist.barrier()
        started = time.perf_counter()
        for _ in range(steps):
            session.accelerator.backward(cross_entropy(network(images), labels))
            optimizer.step()
            optimizer.zero_grad()
        rates.append(steps * batch_size / (time.perf_counter() - started))
    return sorted(rates[1:])[len(rates) // 2 - 1]


def main() -> None:
    """One of the two processes."""
    name, dataset, folder, rounds = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    session = open_session(parse("pretrain", "", settings(name, dataset, folder / f"{name}-two", 10)))
    for number in range(rounds):
        stage = folder / f"{name}-two" / str(number)
        pretrain(session, stage, session.config.pretrain)
        bare = _bare(session)
        if session.world.is_main:
            print("\n" + json.dumps({"ours": rate(stage), "bare": bare}), flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
