"""For all tests: one thread for each process, as tests share few cores and waiting OpenMP threads spin; no deadline for
hypothesis' examples, as a busy machine would miss it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

from tests.digit_runs import ROOT

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scanned digits, 1,297 to train on and 500 to test, with 40 % of five classes' labels wrong: column `noisy`."""
    folder = tmp_path_factory.mktemp("digits")
    build = ["build", str(folder / "images"), str(folder / "dataset"), "--format", "folder", "--workers", "1"]
    noise = ["noise", str(folder / "dataset"), "--name", "noisy", "--kind", "asymmetric", "--flips", "mnist"]
    for step in (["digits", str(folder / "images")], build, [*noise, "--rate", "0.4", "--rng-seed", "0"]):
        done = subprocess.run([sys.executable, "-m", "data_prep", *step], cwd=ROOT, capture_output=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "dataset"
