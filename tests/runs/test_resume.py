"""A run that is killed at any instant ends with the same weights and metrics, bit for bit."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from running import ROOT, command, environment, succeed

from twostage.runtime.tracking import NONREPRODUCIBLE_KEYS

KILLS = 4
OFTEN = {"runtime__checkpoint_steps": "3"}      # so that most kills fall between, or into, checkpoints


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in NONREPRODUCIBLE_KEYS} for line in lines]


def run_with_kills(arguments: list[str], folder: Path, rng: random.Random) -> int:
    """Kills the command some time after it has got further than ever before; returns how often it was killed."""
    kills = 0
    while kills < KILLS:
        process = subprocess.Popen(
            arguments, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        begun = position(folder)
        while process.poll() is None and position(folder) == begun:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.4))
        if process.poll() is not None:
            assert process.returncode == 0
            return kills
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    return kills


def position(folder: Path) -> str:
    """The newest checkpoint, complete or not."""
    return max((path.name.lstrip(".") for path in (folder / "checkpoints").glob("*step-*")), default="")


@pytest.mark.parametrize(
    ("verb", "settings"),
    [
        ("pretrain", {}),
        ("train", {"train__method": "pi_model"}),
        ("train", {"train__method": "temporal_ensembling", "train__pass_over": "unlabeled"}),
    ],
    ids=["pretrain", "pi_model", "temporal_ensembling"],
)
def test_killed_at_random_instants(
    verb: str, settings: dict[str, str], digits: Path, run_dir: Path, tmp_path: Path
) -> None:
    if verb == "pretrain":
        shutil.rmtree(run_dir)
    undisturbed = tmp_path / "undisturbed"
    if run_dir.exists():
        shutil.copytree(run_dir, undisturbed)
    succeed(command(verb, digits, undisturbed, **OFTEN, **settings))
    arguments = command(verb, digits, run_dir, **OFTEN, **settings)
    kills = run_with_kills(arguments, run_dir / verb, random.Random(verb))
    succeed(arguments)
    assert kills >= 2, "the stage is too short to be killed: the test shows nothing"
    weights = [folder / verb / "model.safetensors" for folder in (undisturbed, run_dir)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert metrics(undisturbed / verb) == metrics(run_dir / verb)
    results = [json.loads((folder / verb / "done.json").read_text()) for folder in (undisturbed, run_dir)]
    assert results[0] == results[1]


def test_running_in_between_changes_nothing_but_the_time(digits: Path, tmp_path: Path) -> None:
    """Checkpoints themselves leave no trace in the result."""
    for name, settings in (("often", OFTEN), ("seldom", {})):
        succeed(command("pretrain", digits, tmp_path / name, pretrain__epochs="2", **settings))
    often, seldom = (tmp_path / name / "pretrain" / "model.safetensors" for name in ("often", "seldom"))
    assert often.read_bytes() == seldom.read_bytes()
