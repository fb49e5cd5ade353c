"""The small-image path: stage 1's whole loop on images in memory, against the same steps on random tensors."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path

import torch

from tests.bench.contest import Contest, Pass, Scale, Target, alternate
from tests.bench.peer import ROOT
from twostage.cli import parse
from twostage.losses import cross_entropy
from twostage.runtime.optimizers import make_optimizer
from twostage.runtime.session import Session, open_session
from twostage.stage1.pretrain import pretrain

EPOCHS = 3      # the first decodes and warms up, and is not counted


def compare(scale: Scale, folder: Path) -> Iterator[Contest]:
    """Images per second of the paper's networks for MNIST and CIFAR-10, with their configurations from `configs`."""
    for name, size, num in (("mnist", 28, scale.pick(12_800, 51_200)), ("cifar10", 32, scale.pick(1_280, 5_120))):
        dataset = synthetic(folder / name, size, num)
        session = open_session(parse("pretrain", "", settings(name, dataset, folder / f"{name}-session", 3)))
        names = (folder / f"{name}-{number}" for number in count())
        yield alternate(
            f"{session.config.model.name}, {name}'s configuration",
            unit="images/s",
            amount=1,
            sides={
                "stage 1's loop": lambda session=session, names=names: _ours(session, next(names)),
                "bare loop on random tensors": partial(_bare_loop, session),
            },
            rounds=scale.rounds,
            warm_up=False,
            targets=[Target("≥ 0.9 × the bare loop", against=("bare loop on random tensors",), at_least=0.9)],
            notes=[f"batches of {session.config.pretrain.batch_size}, {torch.get_num_threads()} threads"],
        )
        session.loader.close()
    names = (folder / f"pair-{number}" for number in count())
    yield alternate(
        "mlp, two runs at once, a core each",
        unit="images/s",
        amount=1,
        sides={"stage 1's loop": lambda: _two_at_once(folder / "mnist", next(names))},
        rounds=scale.rounds,
        warm_up=False,
        targets=[Target("≥ 100,000 images/s on two cores", at_least=100_000)],
    )


def synthetic(out: Path, size: int, num: int) -> Path:
    """A dataset of that many made-up images."""
    for command in (
        ("synth", f"{out}-images", "--num", num, "--size", size),
        ("build", f"{out}-images", out, "--format", "folder"),
    ):
        call = [sys.executable, "-m", "data_prep", *map(str, command)]
        subprocess.run(call, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return out


def settings(name: str, dataset: Path, run_dir: Path, log_steps: int) -> list[str]:
    """A command line of stage 1 with the paper's configuration of a dataset."""
    changes = {
        "data.dataset": dataset,
        "data.labels": "given",
        "data.clean_labels": "null",
        "run.dir": run_dir,
        "run.baselines": "[]",
        "pretrain.epochs": EPOCHS,
        "runtime.log_steps": log_steps,
        "runtime.device": "cpu",
    }
    return ["--config", f"configs/{name}/table3.yaml", *(f"--{key}={value}" for key, value in changes.items())]


def _ours(session: Session, folder: Path) -> Pass:
    """Trains anew; the loop measures itself."""
    pretrain(session, folder, session.config.pretrain)
    return Pass(1 / rate(folder))


def _two_at_once(dataset: Path, folder: Path) -> Pass:
    """Both rates together."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    runs = [folder / str(number) for number in range(2)]
    commands = [
        [sys.executable, "-m", "twostage", "pretrain", *settings("mnist", dataset, run, 20)] for run in runs
    ]
    processes = [
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) for command in commands
    ]
    assert [process.wait() for process in processes] == [0, 0]
    return Pass(1 / sum(rate(run / "pretrain") for run in runs))


def rate(folder: Path) -> float:
    """Images per second of the loop, validation aside, after the first epoch."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rates = [line["train/images_per_second"] for line in lines if line["epoch"] > 0 and "train/data_wait" in line]
    return statistics.median(rates)


def _bare_loop(session: Session) -> Pass:
    """What a training step costs at least: forward, loss, backward, optimizer."""
    config = session.config
    model = session.new_model()
    optimizer = make_optimizer(model, config.pretrain.optimizer)
    channels = 1 if config.augment.channels == "gray" else 3
    batch = config.pretrain.batch_size
    images = torch.randn(batch, channels, config.augment.size, config.augment.size)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.randint(0, session.views.num_classes, (batch,))
    steps = len(session.views.train) // batch
    seconds = []
    for _ in range(EPOCHS):
        started = time.perf_counter()
        for _ in range(steps):
            cross_entropy(model(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
        seconds.append((time.perf_counter() - started) / (steps * batch))
    return Pass(statistics.median(seconds[1:]))
