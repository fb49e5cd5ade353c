"""`status.json` in a run folder: how far the last command there came, for the script or the scheduler that started it.

Launchers do not hand on what their processes exit with, so a batch script reads this file instead. Every key stands on
a line of its own, `state` first, so that a shell needs no JSON parser:

    sed -n 's/^ *"state": "\\([a-z]*\\)".*/\\1/p' RUN/status.json

`state` is one word:

    running     a command is at work; where none is alive any more, it was killed: the same command goes on
    preempted   it was asked to stop (SIGTERM, SIGUSR2), saved everything and left with exit code 0: run it again
    done        the command ended well
    failed      it ended with an error, which the same command would most likely meet again: `error` says which

The other keys: `verb`; `rank`, the process that wrote the file; `processes`, their number; `restarts`, how often the
launcher (`--max_restarts`) has started them anew; `time`, UTC. Preempted has `stage` (the folder below the run's),
`step` (taken in it; null: none yet) and `signal`. Failed has `error` (one line) and `exit_code`: 1 the machine's or the
program's failure, 2 wrong input.

A batch script removes the file before it starts a command, as a command that fails before it has read its configuration
cannot write one. The file is written aside and renamed, so it is never half there. Imports no torch.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from twostage.data.schema import InputError, write_json
from twostage.runtime import failure, run_folder
from twostage.runtime.preemption import Preempted

NAME: Final = "status.json"
WRONG_INPUT: Final = 2
APART: Final = datetime.timedelta(seconds=10)       # in which the ranks of one start begin


@contextmanager
def reported(run_dir: Path, verb: str) -> Iterator[None]:
    """Keeps `status.json` while a verb is at work inside; exceptions pass through.

    Rank 0 says that it runs, ended well or was preempted; the rank that fails first says so.
    """
    is_main, begun = _rank() == 0, _now()
    try:
        if is_main and run_dir.exists():
            run_folder.occupy(run_dir, verb)
            write(run_dir, "running", verb)
        with _told(run_dir, verb, begun):
            yield
    finally:
        run_folder.leave()


@contextmanager
def _told(run_dir: Path, verb: str, begun: datetime.datetime) -> Iterator[None]:
    is_main = _rank() == 0
    try:
        yield
    except run_folder.InUseError:        # the file is the other command's
        raise
    except Preempted as stop:
        if is_main:
            write(run_dir, "preempted", verb, stage=stop.stage, step=stop.step, signal=stop.signal_name)
        raise
    except Exception as error:
        line = " ".join(str(error).split()) or type(error).__name__
        code = WRONG_INPUT if isinstance(error, InputError) else 1
        first = failure.is_first()
        if first is False or (first is None and not is_main and _has_failed(run_dir, begun - APART)):
            raise
        with suppress(OSError):         # a full disk, most likely: what is told is the first error
            write(run_dir, "failed", verb, error=line, exit_code=code)
        raise
    if is_main:
        keep_failed(run_dir, "done", verb)


def keep_failed(run_dir: Path, state: str, verb: str) -> None:
    """Rank 0 says how far it is, unless another rank has said since the start that it failed."""
    if not _has_failed(run_dir):
        write(run_dir, state, verb)


def _has_failed(run_dir: Path, since: datetime.datetime | None = None) -> bool:
    with suppress(OSError, ValueError, KeyError):
        found = read(run_dir) or {"state": ""}
        late = since is None or datetime.datetime.fromisoformat(found["time"]) >= since
        return bool(found["state"] == "failed" and late)
    return False


def write(run_dir: Path, state: str, verb: str, **facts: Any) -> None:
    """Writes the file, where the folder exists."""
    if not run_dir.is_dir():
        return
    record = {
        "state": state,
        "verb": verb,
        **facts,
        "rank": _rank(),
        "processes": _number("WORLD_SIZE", 1),
        "restarts": _number("TORCHELASTIC_RESTART_COUNT", 0),
        "time": _now().isoformat(timespec="seconds"),
    }
    write_json(run_dir / NAME, record)


def read(run_dir: Path) -> dict[str, Any] | None:
    """What the file says; None where there is none."""
    try:
        record: dict[str, Any] = json.loads((run_dir / NAME).read_text())
    except FileNotFoundError:
        return None
    return record


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _rank() -> int:
    return _number("RANK", 0)


def _number(name: str, default: int) -> int:
    value = os.environ.get(name, str(default))
    if not value.isdecimal():
        raise InputError(f"{name} is {value!r}, which is no number")
    return int(value)
