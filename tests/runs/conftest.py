"""Small real datasets, and runs begun on them."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from running import command, succeed


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scanned digits, 1,297 to train on and 500 to test, with 40 % of five classes' labels wrong: column `noisy`."""
    folder = tmp_path_factory.mktemp("digits")
    prep = [sys.executable, "-m", "data_prep"]
    succeed([*prep, "digits", str(folder / "images")])
    succeed([*prep, "build", str(folder / "images"), str(folder / "dataset"), "--format", "folder", "--workers", "1"])
    succeed([*prep, "noise", str(folder / "dataset"), "--name", "noisy", "--kind", "asymmetric", "--flips", "mnist",
             "--rate", "0.4", "--rng-seed", "0"])
    return folder / "dataset"


@pytest.fixture(scope="session")
def ranked(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with stage 1 done; to be copied."""
    run_dir = tmp_path_factory.mktemp("ranked") / "run"
    for verb in ("pretrain", "rank", "mine"):
        succeed(command(verb, digits, run_dir))
    return run_dir


@pytest.fixture
def run_dir(ranked: Path, tmp_path: Path) -> Path:
    """A copy of a run with stage 1 done."""
    return Path(shutil.copytree(ranked, tmp_path / "run"))
