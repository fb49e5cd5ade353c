"""Whether what a stage was done with is what is there now. Imports no torch."""

from __future__ import annotations

import functools
from pathlib import Path

from twostage.data.schema import InputError, file_digest
from twostage.rows import titles
from twostage.runtime.stage import read_inputs, read_results

WEIGHTS = "model.safetensors"


def is_of(folder: Path, name: str, weights: Path) -> bool:
    """Whether the stage in `folder` was done with these weights, which it recorded under `name`."""
    try:
        recorded = (read_inputs(folder / "done.json") or {}).get(name)
    except InputError:              # damaged: the run says so, and what to do
        return False
    return recorded is not None and recorded == digest_of(weights)


def is_test_current(run_dir: Path, model: str, *, trust_times: bool = False) -> bool:
    """Whether the test in `evaluate/MODEL` is of the weights of that model as they are now.

    Where somebody took the weights of a finished model away, and for models that are no stage's, it counts as it is.

    Args:
        trust_times: a test that was done after the weights were written is taken to be of them, unread.
    """
    weights, marker = run_dir / model / WEIGHTS, run_dir / "evaluate" / model / "done.json"
    if not weights.exists():
        return model not in titles() or (run_dir / model / "done.json").exists()
    if trust_times and marker.exists() and marker.stat().st_mtime_ns > weights.stat().st_mtime_ns:
        return True
    return is_of(marker.parent, "weights", weights)


def is_validation_current(run_dir: Path, model: str, accuracy: float) -> bool:
    """Whether a validation accuracy is what the model ended with; where it is no longer there, it counts as it is."""
    if not (run_dir / model).is_dir():
        return True
    try:
        results = read_results(run_dir / model / "done.json")
    except InputError:
        return False
    return results is not None and results.get("val_accuracy", accuracy) == accuracy


def digest_of(path: Path) -> str | None:
    """SHA-256 of a file; None where there is none."""
    try:
        found = path.stat()
        return _digest(path, found.st_ino, found.st_size, found.st_mtime_ns)
    except FileNotFoundError:
        return None


@functools.cache
def _digest(path: Path, *_state: int) -> str:
    """Read once as long as the file is the same: a table or a page asks for it more than once."""
    return file_digest(path)
