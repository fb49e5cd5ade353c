"""Two processes that are killed at any instant end with the same bytes as if nothing had happened; other numbers of
processes go on with the same global batches.

Compared are weights, the newest checkpoint (optimizer, random state of every rank), metrics and the log of sample
indices. `TWOSTAGE_KILLS=20` makes the tests kill so often instead of a few times, and stage 1 under DeepSpeed too.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
from ranks import Run, command, differences, global_batches, position, result, start

KILLS = int(os.environ.get("TWOSTAGE_KILLS", "3"))
KILLED = [("pretrain", 0), ("train", 0), ("train", 1)] + [("pretrain", 1)] * ("TWOSTAGE_KILLS" in os.environ)


def kill_one(run: Run, rng: random.Random) -> None:
    """SIGKILL for one rank; the other must end by itself, with an error."""
    victim = rng.randrange(2)
    run.signal(signal.SIGKILL, victim)
    codes = run.wait(30)
    assert codes[1 - victim] not in (0, -signal.SIGKILL), f"the other rank: {codes}\n{run.log.read_text()}"


def kill_all(run: Run, rng: random.Random) -> None:
    """SIGKILL for all ranks at once."""
    run.signal(signal.SIGKILL)
    run.wait(30)


def ask(run: Run, rng: random.Random) -> None:
    """SIGTERM or SIGUSR2 for one rank or for all, and once more while they save: all leave with 0."""
    number = rng.choice([signal.SIGTERM, signal.SIGUSR2])
    ranks = rng.choice([(0,), (1,), (0, 1)])
    run.signal(number, *ranks)
    time.sleep(rng.uniform(0, 0.2))
    run.signal(number, *ranks)
    assert run.wait(60) == [0, 0], run.log.read_text()


ENDINGS: list[Callable[[Run, random.Random], None]] = [kill_one, ask, kill_all]


@pytest.mark.parametrize(("verb", "zero"), KILLED)
def test_killed_at_random_instants(verb: str, zero: int, digits: Path, ranked: Path, tmp_path: Path) -> None:
    rng = random.Random(f"{verb} {zero} {os.environ.get('TWOSTAGE_KILLS_SEED', '')}")
    undisturbed, killed = (shutil.copytree(ranked, tmp_path / name) for name in ("undisturbed", "killed"))
    for run_dir in (undisturbed, killed) if verb == "pretrain" else ():
        shutil.rmtree(run_dir / verb)
    start(command(verb, digits, undisturbed), tmp_path / "log", zero=zero).succeed()

    arguments, kills = command(verb, digits, killed), 0
    while kills < KILLS:
        delay = rng.choice([0.01, 0.06])        # half of the runs spend most of their time writing checkpoints
        run, begun = start(arguments, tmp_path / "log", zero=zero, write_delay=delay), position(killed / verb)
        while run.alive and position(killed / verb) == begun:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.2))
        if not run.alive:
            run.succeed()
            break
        ENDINGS[kills % len(ENDINGS)](run, rng)
        kills += 1
    print(f"{verb}, ZeRO {zero}: {kills} kills")
    assert kills >= 3, "the stage is too short to be killed: the test shows nothing"
    start(arguments, tmp_path / "log", zero=zero).succeed()
    assert not differences(result(undisturbed / verb), result(killed / verb))
    assert global_batches(killed / verb)


def test_one_two_four_and_one_process_take_the_same_batches(digits: Path, ranked: Path, tmp_path: Path) -> None:
    """Without dropout, which draws from each rank's own random state, the losses are the same but for BatchNorm."""
    settings = {"model__dropout": "0", "runtime__log_steps": "1"}
    whole, moved = (command("pretrain", digits, tmp_path / name, **settings) for name in ("whole", "moved"))
    start(whole, tmp_path / "log", size=1).succeed()
    stage = tmp_path / "moved" / "pretrain"
    for size in (1, 2, 4):
        run, begun = start(moved, tmp_path / "log", size=size, write_delay=0.05), position(stage)
        while run.alive and position(stage)[:13] == begun[:13]:
            time.sleep(0.002)
        assert run.alive, f"ended too early to be stopped\n{run.log.read_text()}"
        run.signal(signal.SIGTERM)
        assert not any(run.wait(60)), run.log.read_text()
    start(moved, tmp_path / "log", size=1).succeed()
    assert global_batches(stage) == global_batches(tmp_path / "whole" / "pretrain")
    losses = [
        [line["train/loss"] for line in result(tmp_path / name / "pretrain")["metrics"] if "train/loss" in line]
        for name in ("whole", "moved")
    ]
    assert len(losses[0]) == len(losses[1]) > 30
    assert max(abs(a - b) for a, b in zip(*losses, strict=True)) < 0.25


@pytest.mark.parametrize("method", [None, "pi_model", "temporal_ensembling"], ids=lambda method: method or "pretrain")
def test_pieces_make_up_the_global_batch(method: str | None, digits: Path, ranked: Path, tmp_path: Path) -> None:
    """One process or two, in pieces or not, descend the gradient of all slots (no BatchNorm, no dropout)."""
    verb, runs = ("train", [(1, "null"), (2, "8")]) if method else ("pretrain", [(1, "null"), (1, "16"), (2, "8")])
    settings = {"model__name": "mlp", "model__dropout": "0", "runtime__checkpoint_steps": "null"}
    settings |= {f"{verb}__optimizer__name": "sgd"}
    if method:
        settings |= {"train__method": method, "train__init": "scratch", "train__sub_epochs": "2"}
    weights, batches, losses = [], [], []
    for size, micro_batch in runs:
        run_dir = tmp_path / f"{size}-{micro_batch}"
        if method:
            shutil.copytree(ranked / "mine", run_dir / "mine")
        arguments = command(verb, digits, run_dir, runtime__micro_batch=micro_batch, **settings)
        start(arguments, tmp_path / "log", size=size).succeed()
        weights.append(safetensors.torch.load_file(run_dir / verb / "model.safetensors"))
        batches.append(global_batches(run_dir / verb))
        lines = result(run_dir / verb)["metrics"]
        losses.append([value for line in lines for name, value in line.items() if name.startswith("train/")])
    assert all(other == batches[0] for other in batches)
    for other, of_other in zip(weights[1:], losses[1:], strict=True):
        assert max(float((weights[0][name] - other[name]).abs().max()) for name in other) < 1e-5
        assert of_other == pytest.approx(losses[0], abs=1e-4)


@pytest.mark.parametrize("zero", [0, 1])
def test_a_loss_that_is_not_finite_on_one_rank_is_skipped_by_all(zero: int, digits: Path, tmp_path: Path) -> None:
    settings = {"pretrain__epochs": "1", "pretrain__batch_size": "128", "runtime__micro_batch": "32"}
    for name, allowed in (("some", "2"), ("too-many", "1")):
        arguments = command("pretrain", digits, tmp_path / name, runtime__max_skipped_steps=allowed, **settings)
        run = start(arguments, tmp_path / "log", zero=zero, spoil="1:3,0:5")
        codes, printed = run.wait(), run.log.read_text()
        assert "warning: step 3: the loss is not finite on rank 1; skipped" in printed, printed
        assert "warning: step 5: the loss is not finite on rank 0; skipped" in printed
        if name == "some":
            assert codes == [0, 0]
            weights = safetensors.torch.load_file(tmp_path / name / "pretrain" / "model.safetensors")
            assert all(tensor.isfinite().all() for tensor in weights.values())
        else:
            assert codes == [2, 2]
            assert printed.count("step 5 (epoch 1): the loss is not finite on rank 0") == 1
