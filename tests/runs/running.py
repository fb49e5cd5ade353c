"""Commands that train on small real images in seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[2]
SETTINGS = {
    "data.labels": "noisy",
    "data.clean_labels": "given",
    "data.holdout": "0.1",
    "model.name": "mlp",
    "model.dropout": "0.2",
    "model.input_noise": "0.1",
    "augment.channels": "gray",
    "augment.resize": "null",
    "augment.size": "32",
    "augment.shift": "1",
    "augment.flip": "false",
    "augment.mean": "[0.3]",
    "augment.std": "[0.35]",
    "pretrain.epochs": "4",
    "pretrain.batch_size": "64",
    "pretrain.optimizer.lr": "0.003",
    "train.sub_epochs": "4",
    "train.batch_size": "64",
    "train.consistency_weight": "3",
    "train.ramp_up": "2",
    "train.optimizer.lr": "0.001",
    "runtime.log_steps": "5",
}


def environment() -> dict[str, str]:
    """One thread for each process: the tests share two cores."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1"}


def command(verb: str, dataset: Path, run_dir: Path, **settings: str) -> list[str]:
    """`python -m twostage VERB ...`; a setting is written `section__field`."""
    given = {**SETTINGS, "data.dataset": str(dataset), "run.dir": str(run_dir)}
    given |= {name.replace("__", "."): value for name, value in settings.items()}
    return [sys.executable, "-m", "twostage", verb, *(f"--{name}={value}" for name, value in given.items())]


def call(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)


def ranking(run_dir: Path) -> pa.Table:
    """All parts of a run's ranking, by sample index."""
    return pq.read_table([str(path) for path in (run_dir / "rank").glob("part-*.parquet")]).sort_by("index")


def succeed(arguments: Sequence[str]) -> str:
    done = call(arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
