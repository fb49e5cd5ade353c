"""What counts as there: a network that is trained, and a test that is of its weights as they are now."""

from __future__ import annotations

from pathlib import Path

from twostage.runtime.current import is_of


def is_tested(run_dir: Path, model: str) -> bool:
    """Whether a network of a run is trained and its test is of these weights; of ours, whether its seeds are there."""
    needed = [model, f"evaluate/{model}", *(["mine"] if model == "train" else [])]
    if not all((run_dir / name / "done.json").exists() for name in needed):
        return False
    return is_of(run_dir / "evaluate" / model, "weights", run_dir / model / "model.safetensors")
