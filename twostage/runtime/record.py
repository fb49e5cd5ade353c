"""`config.yaml` and `environment.json` of a run folder: by which settings, and on what, its stages were computed.

Imports no torch by itself.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import yaml

from twostage.config import Config
from twostage.data.schema import write_aside, write_json
from twostage.runtime.stage import environment, read_inputs

CONFIG: Final = "config.yaml"
ENVIRONMENT: Final = "environment.json"
MARKERS: Final = ("*/inputs.json", "*/done.json", "evaluate/*/done.json")
STAGES: Final = ("pretrain", "clean_filter", "rank", "mine", "train", "finetune")
"""each by the section of its name"""
SHARED: Final = ("run.rng_seed", "data.", "model.", "augment.", "loader.window_shards")
"""what stages note besides"""
NOT_SHARED: Final = (
    "model.weights",            # noted by its digest
    *(f"data.{name}" for name in ("test_split", "clean_labels")),                           # of tests, too, and these
    *(f"augment.{name}" for name in ("channels", "resize", "size", "mean", "std")),         # may be made anew
)


def write_config(config: Config, *, trains: bool = True) -> None:
    """Writes the resolved configuration into the run folder.

    The sections of stages that are finished stay as they were done, whatever is given for them now. Where the verb is
    not one that trains or ranks, so does what stages have in common, unless they were done differently.

    Raises:
        InputError: the marker of a finished stage is damaged.
    """
    config.run.dir.mkdir(parents=True, exist_ok=True)
    tree = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    for key, value in _settled(config.run.dir, shared=not trains).items():
        *sections, name = key.split(".")
        branch = functools.reduce(lambda found, section: found.get(section, {}), sections, tree)
        if name in branch:
            branch[name] = value
    write_aside(config.run.dir / CONFIG, yaml.safe_dump(tree, sort_keys=False).encode())


def write_environment(run_dir: Path) -> None:
    """Writes what the run is computed on: versions, hardware, the code's commit, the command line."""
    write_json(run_dir / ENVIRONMENT, environment())


@contextmanager
def kept(run_dir: Path) -> Iterator[None]:
    """Keeps both files true while a verb is at work inside.

    Readers of a run (predict, export, audit, report) go by them. So where a verb is refused before it began or ended
    any stage, a finished run with other settings for example, or is stopped, both are put back; and where it had
    nothing left to compute, what the run was computed on.
    """
    before = {name: _bytes(run_dir / name) for name in (CONFIG, ENVIRONMENT)}
    markers = _markers(run_dir)
    try:
        yield
    except BaseException:
        with suppress(OSError):         # what is told is why it ended
            if _markers(run_dir) == markers:
                _put_back(run_dir, before)
        raise
    if _markers(run_dir) == markers:
        del before[CONFIG]
        _put_back(run_dir, before)


def _settled(run_dir: Path, *, shared: bool) -> dict[str, Any]:
    """Settings by which finished stages were done, by full name."""
    done = {path.parent.name: _noted(path) for path in run_dir.glob("*/done.json")}
    values: dict[str, list[Any]] = {}
    for inputs in done.values() if shared else ():
        for key, value in inputs.items():
            if key.startswith(SHARED) and key not in NOT_SHARED:
                values.setdefault(key, []).append(value)
    found = {key: several[0] for key, several in values.items() if all(value == several[0] for value in several)}
    for name in STAGES:
        found |= {key: value for key, value in done.get(name, {}).items() if key.startswith(f"{name}.")}
    return found


def _noted(path: Path) -> dict[str, Any]:
    """The inputs of a finished stage; those that are a section of their own as `section.name`."""
    found: dict[str, Any] = {}
    for key, value in (read_inputs(path) or {}).items():
        found |= {f"{key}.{name}": part for name, part in value.items()} if isinstance(value, dict) else {key: value}
    return found


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
