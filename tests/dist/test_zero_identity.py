"""Under DeepSpeed: killed at any instant, the same bytes; with another engine or number of processes, the same run.

`TWOSTAGE_KILLS=20` makes the first test kill so often instead of a few times, and stage 1 too.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
from zero_ranks import ROOT, Run, command, differences, result, start

KILLS = int(os.environ.get("TWOSTAGE_KILLS", "3"))


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scanned digits, 1,297 to train on, with 40 % of five classes' labels wrong: column `noisy`."""
    folder = tmp_path_factory.mktemp("zero-digits")
    prep = [sys.executable, "-m", "data_prep"]
    build = ["build", str(folder / "images"), str(folder / "dataset"), "--format", "folder", "--workers", "1"]
    noise = ["noise", str(folder / "dataset"), "--name", "noisy", "--kind", "asymmetric", "--flips", "mnist"]
    for step in (["digits", str(folder / "images")], build, [*noise, "--rate", "0.4", "--rng-seed", "0"]):
        subprocess.run([*prep, *step], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return folder / "dataset"


@pytest.fixture(scope="module")
def ranked(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with stage 1 done under ZeRO-1; to be copied."""
    folder = tmp_path_factory.mktemp("zero-ranked")
    for verb in ("pretrain", "rank", "mine"):
        size = 1 if verb == "mine" else 2
        start(command(verb, digits, folder / "run"), folder / "log", size=size).succeed()
    return folder / "run"


def position(stage: Path) -> str:
    """The newest checkpoint, complete or not, with the number of files in it."""
    paths = {path.name.lstrip("."): path for path in (stage / "checkpoints").glob("*step-*")}
    if not paths:
        return ""
    return f"{max(paths)} {len(list(paths[max(paths)].glob('*')))}"


def kill(run: Run, number: int, rng: random.Random) -> None:
    """SIGKILL for one rank, or for all; or a request to stop, after which all leave with 0."""
    if number % 3 == 0:
        victim = rng.randrange(2)
        run.signal(signal.SIGKILL, victim)
        codes = run.wait(30)
        assert codes[1 - victim] not in (0, -signal.SIGKILL), f"the other rank: {codes}\n{run.log.read_text()}"
    elif number % 3 == 1:
        run.signal(signal.SIGKILL)
        run.wait(30)
    else:
        run.signal(rng.choice([signal.SIGTERM, signal.SIGUSR2]), *rng.choice([(0,), (1,), (0, 1)]))
        assert run.wait(60) == [0, 0], run.log.read_text()


@pytest.mark.parametrize("verb", ["train", "pretrain"] if "TWOSTAGE_KILLS" in os.environ else ["train"])
def test_killed_at_random_instants(verb: str, digits: Path, ranked: Path, tmp_path: Path) -> None:
    rng = random.Random(f"{verb} {os.environ.get('TWOSTAGE_KILLS_SEED', '')}")
    undisturbed, killed = (shutil.copytree(ranked, tmp_path / name) for name in ("undisturbed", "killed"))
    if verb == "pretrain":
        undisturbed = ranked
        shutil.rmtree(killed / verb)
    else:
        start(command(verb, digits, undisturbed), tmp_path / "log").succeed()

    arguments, kills = command(verb, digits, killed), 0
    while kills < KILLS:
        delay = rng.choice([0.0, 0.05])         # half of the runs spend most of their time writing checkpoints
        run, begun = start(arguments, tmp_path / "log", write_delay=delay), position(killed / verb)
        while run.alive and position(killed / verb) == begun:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.3))
        if not run.alive:
            run.succeed()
            break
        kill(run, kills, rng)
        kills += 1
    print(f"{verb}: {kills} kills")
    assert kills >= 3, "the stage is too short to be killed: the test shows nothing"
    start(arguments, tmp_path / "log").succeed()
    assert not differences(result(undisturbed / verb), result(killed / verb))


def test_another_engine_and_number_of_processes(digits: Path, ranked: Path, tmp_path: Path) -> None:
    """ZeRO-1 in two processes, stopped in its first epoch; then in turn none in one, ZeRO-2 in four, ZeRO-1 in one."""
    arguments = command("pretrain", digits, tmp_path / "run")
    stage = tmp_path / "run" / "pretrain"
    printed = ""
    for size, zero in ((2, 1), (1, 0), (4, 2), (1, 1)):
        run, begun = start(arguments, tmp_path / "log", size=size, stage=zero, write_delay=0.05), position(stage)
        while run.alive and position(stage)[:13] == begun[:13]:
            time.sleep(0.002)
        assert run.alive, f"ended too early to be stopped\n{run.log.read_text()}"
        run.signal(signal.SIGTERM)
        assert not any(run.wait(60)), run.log.read_text()
        printed += run.log.read_text()
    start(arguments, tmp_path / "log", size=2, stage=0).succeed()
    for change in ("written by 2 process(es), resumed by 1", "written by 1 process(es), resumed by 4", "by 4 process"):
        assert change in printed
    # dropout draws from each rank's own random state, so the weights are those of another draw
    scores = [float(result(folder)["metrics"][-1]["val/accuracy"]) for folder in (stage, ranked / "pretrain")]
    assert abs(scores[0] - scores[1]) < 0.25


@pytest.mark.parametrize(("optimizer", "tolerance"), [("sgd", 1e-6), ("adam", 1e-3)])
def test_weights_are_those_of_plain_data_parallelism(
    optimizer: str, tolerance: float, digits: Path, tmp_path: Path
) -> None:
    """On the same batches, in fp32, after all steps of stage 1.

    Both differ by rounding alone: convolutions are computed in another layout. SGD passes it on as it is; Adam divides
    by the gradient's own size, so that a gradient of nothing but rounding moves a weight by as much as a large one.
    """
    settings = {"pretrain__optimizer__name": optimizer, "pretrain__epochs": "1"}
    weights = []
    for stage in (0, 1):
        run_dir = tmp_path / f"run-{stage}"
        start(command("pretrain", digits, run_dir, **settings), tmp_path / "log", stage=stage).succeed()
        weights.append(safetensors.torch.load_file(run_dir / "pretrain" / "model.safetensors"))
    plain, zero = weights
    assert plain.keys() == zero.keys()
    assert max(float((plain[name] - zero[name]).abs().max()) for name in plain) < tolerance
