"""Stage 1 in two processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from ranks import command, start


@pytest.fixture(scope="session")
def ranked(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with stage 1 done in two processes; to be copied."""
    folder = tmp_path_factory.mktemp("ranked")
    for verb in ("pretrain", "rank", "mine"):
        size = 1 if verb == "mine" else 2
        start(command(verb, digits, folder / "run"), folder / "log", size=size).succeed()
    return folder / "run"
