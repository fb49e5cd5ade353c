"""`config.yaml` and `environment.json` of a run folder: by which settings, and on what, its stages were computed.

Imports no torch by itself.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import yaml

from twostage.config import Config
from twostage.data.schema import InputError, write_aside, write_json
from twostage.runtime.stage import environment

CONFIG: Final = "config.yaml"
ENVIRONMENT: Final = "environment.json"
MARKERS: Final = ("*/inputs.json", "*/done.json", "evaluate/*/done.json")


def write_config(config: Config) -> None:
    """Writes the resolved configuration into the run folder."""
    config.run.dir.mkdir(parents=True, exist_ok=True)
    tree = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    write_aside(config.run.dir / CONFIG, yaml.safe_dump(tree, sort_keys=False).encode())


def write_environment(run_dir: Path) -> None:
    """Writes what the run is computed on: versions, hardware, the code's commit, the command line."""
    write_json(run_dir / ENVIRONMENT, environment())


@contextmanager
def kept(run_dir: Path) -> Iterator[None]:
    """Keeps both files true while a verb is at work inside.

    Readers of a run (predict, export, audit, report) go by them. So where a verb is refused before it began or ended
    any stage, a finished run with other settings for example, both are put back; and where it had nothing left to
    compute, what the run was computed on.
    """
    before = {name: _bytes(run_dir / name) for name in (CONFIG, ENVIRONMENT)}
    markers = _markers(run_dir)
    try:
        yield
    except InputError:
        if _markers(run_dir) == markers:
            _put_back(run_dir, before)
        raise
    if _markers(run_dir) == markers:
        del before[CONFIG]
        _put_back(run_dir, before)


def _put_back(run_dir: Path, before: dict[str, bytes | None]) -> None:
    if os.environ.get("RANK", "0") != "0":
        return
    for name, content in before.items():
        if content is not None and _bytes(run_dir / name) != content:
            write_aside(run_dir / name, content)


def _markers(run_dir: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for pattern in MARKERS for path in run_dir.glob(pattern)}


def _bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
