"""A small dataset, and stage 1 on it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from ranks import ROOT, command, start


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scanned digits, 1,297 to train on, with 40 % of five classes' labels wrong: column `noisy`."""
    folder = tmp_path_factory.mktemp("digits")
    prep = [sys.executable, "-m", "data_prep"]
    build = ["build", str(folder / "images"), str(folder / "dataset"), "--format", "folder", "--workers", "1"]
    noise = ["noise", str(folder / "dataset"), "--name", "noisy", "--kind", "asymmetric", "--flips", "mnist"]
    for step in (["digits", str(folder / "images")], build, [*noise, "--rate", "0.4", "--rng-seed", "0"]):
        subprocess.run([*prep, *step], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return folder / "dataset"


@pytest.fixture(scope="session")
def ranked(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with stage 1 done in two processes; to be copied."""
    folder = tmp_path_factory.mktemp("ranked")
    for verb in ("pretrain", "rank", "mine"):
        size = 1 if verb == "mine" else 2
        start(command(verb, digits, folder / "run"), folder / "log", size=size).succeed()
    return folder / "run"
