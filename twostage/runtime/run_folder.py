"""The run folder: that it can be written to, and that one command at a time is at work in it.

Rank 0 holds a lock on `.lock` there, which says where it runs. The kernel frees it however the process ends, so a run
that was killed can be started again at once. A file system that knows no locks goes without. Imports no torch.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from twostage.data.schema import InputError

NAME: Final = ".lock"
PATIENCE: Final = 2.0       # seconds that a process which is just ending has to be gone
UNWRITABLE: Final = (errno.EROFS, errno.EACCES, errno.EPERM)

_held: dict[Path, int] = {}


class InUseError(InputError):
    """Another command is at work in the run folder; its files are not to be touched."""


def occupy(run_dir: Path, verb: str) -> None:
    """Makes the folder and keeps other commands out of it until `leave`. On ranks other than 0 it only looks.

    Raises:
        InUseError: another command is at work there.
        InputError: it cannot be a folder, or nothing can be written there.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"run.dir: {run_dir} cannot be a folder, as a file is in the way: give another") from error
    except OSError as error:
        raise _refusal(run_dir, error) from error
    path = run_dir.resolve() / NAME
    if os.environ.get("RANK", "0") != "0" or path in _held:
        return
    until = time.monotonic() + PATIENCE
    try:
        while (descriptor := _lock(path)) is None:
            if time.monotonic() > until:
                raise InUseError(_who(run_dir, path))
            time.sleep(0.1)
    except OSError as error:
        if error.errno in UNWRITABLE:
            raise _refusal(run_dir, error) from error
        return                  # no locks here
    _held[path] = descriptor
    with suppress(OSError):     # a full disk: the lock holds all the same
        os.write(descriptor, f"{os.uname().nodename} {os.getpid()} {verb}\n".encode())


def leave() -> None:
    """Lets others in."""
    while _held:
        path, descriptor = _held.popitem()
        with suppress(OSError):
            path.unlink()
        os.close(descriptor)


def _lock(path: Path) -> int | None:
    """The locked file, empty; None where another process has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Who had it before has removed the file: a lock on what has no name any more keeps nobody out
        if os.path.samestat(os.fstat(descriptor), path.stat()):
            os.ftruncate(descriptor, 0)
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:
        os.close(descriptor)
        path.unlink(missing_ok=True)
        raise
    os.close(descriptor)
    return None


def _who(run_dir: Path, path: Path) -> str:
    host, pid, verb = "unknown", "unknown", "some verb"
    with suppress(OSError, ValueError):
        host, pid, verb = path.read_text().split()
    return (
        f"{run_dir} is in use by `twostage {verb}`, process {pid} on {host}: wait for it or end it, or give another "
        f"run.dir. If there is no such process, remove {path}"
    )


def _refusal(run_dir: Path, error: OSError) -> Exception:
    if error.errno not in UNWRITABLE:
        return error
    return InputError(f"run.dir: nothing can be written to {run_dir} ({error.strerror}): give another run.dir")
