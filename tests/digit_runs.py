"""Runs on scanned digits that take seconds: the settings that all tests of whole runs have in common."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
SETTINGS: Mapping[str, str] = {
    "data.labels": "noisy",
    "data.holdout": "0.1",
    "model.dropout": "0.2",
    "augment.channels": "gray",
    "augment.resize": "null",
    "augment.size": "32",
    "augment.shift": "1",
    "augment.flip": "false",
    "augment.mean": "[0.3]",
    "augment.std": "[0.35]",
    "pretrain.batch_size": "64",
    "pretrain.optimizer.lr": "0.003",
    "train.batch_size": "64",
    "train.consistency_weight": "3",
    "train.optimizer.lr": "0.001",
    "runtime.log_steps": "5",
}


def arguments(verb: str, dataset: Path, run_dir: Path, settings: Mapping[str, str], **changes: str) -> list[str]:
    """Arguments of `python -m twostage`.

    Args:
        settings: besides SETTINGS, and before them.
        changes: before these, written `section__field`.
    """
    given = {**SETTINGS, **settings, "data.dataset": str(dataset), "run.dir": str(run_dir)}
    given |= {name.replace("__", "."): value for name, value in changes.items()}
    return [verb, *(f"--{name}={value}" for name, value in given.items())]
