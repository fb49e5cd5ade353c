"""Where the data for development lies: beside the checkout, or where TWOSTAGE_SHARED says. Tests skip without it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("TWOSTAGE_SHARED") or Path(__file__).parents[2].parent / "shared")


def shared_file(name: str) -> Path:
    """A file below SHARED/data; skips the test if it is not there."""
    path = SHARED / "data" / name
    if not path.exists():
        pytest.skip(f"no {path}: set TWOSTAGE_SHARED to the folder that has data/{name}")
    return path
