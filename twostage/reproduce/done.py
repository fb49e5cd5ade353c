"""What counts as there: a network that is trained, and a test that is of its weights as they are now."""

from __future__ import annotations

import functools
from pathlib import Path

from twostage.data.schema import InputError, file_digest
from twostage.runtime.stage import read_inputs


def is_tested(run_dir: Path, model: str) -> bool:
    """Whether a network of a run is trained and its test is of these weights; of ours, whether its seeds are there."""
    needed = [model, f"evaluate/{model}", *(["mine"] if model == "train" else [])]
    if not all((run_dir / name / "done.json").exists() for name in needed):
        return False
    return is_of(run_dir / "evaluate" / model, "weights", run_dir / model / "model.safetensors")


def is_of(folder: Path, name: str, weights: Path) -> bool:
    """Whether the stage in `folder` was done with these weights, which it recorded under `name`."""
    try:
        recorded = (read_inputs(folder / "done.json") or {}).get(name)
    except InputError:              # damaged: the run says so, and what to do
        return False
    return recorded is not None and recorded == _digest_of(weights)


def _digest_of(weights: Path) -> str | None:
    try:
        found = weights.stat()
        return _digest(weights, found.st_ino, found.st_size, found.st_mtime_ns)
    except FileNotFoundError:
        return None


@functools.cache
def _digest(weights: Path, *_state: int) -> str:
    """Read once as long as the file is the same: a table asks for all of them whenever a run has ended."""
    return file_digest(weights)
