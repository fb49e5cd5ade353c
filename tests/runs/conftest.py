"""Small real datasets, and runs begun on them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from running import command, succeed


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
