"""Commands that train on small real images in seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests import digit_runs
from tests.digit_runs import ROOT

SETTINGS = {
    "data.clean_labels": "given",
    "model.name": "mlp",
    "model.input_noise": "0.1",
    "pretrain.epochs": "4",
    "train.sub_epochs": "4",
    "train.ramp_up": "2",
}


def environment() -> dict[str, str]:
    """One thread for each process: the tests share two cores."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1"}


def command(verb: str, dataset: Path, run_dir: Path, **settings: str) -> list[str]:
    """`python -m twostage VERB ...`; a setting is written `section__field`."""
    return [sys.executable, "-m", "twostage", *digit_runs.arguments(verb, dataset, run_dir, SETTINGS, **settings)]


def call(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)


def ranking(run_dir: Path) -> pa.Table:
    """All parts of a run's ranking, by sample index."""
    return pq.read_table([str(path) for path in (run_dir / "rank").glob("part-*.parquet")]).sort_by("index")


def succeed(arguments: Sequence[str]) -> str:
    done = call(arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
