"""Runs commands in parallel, so that they can be stopped and started again at any instant.

A job's log is also its lock: the command holds it open, so as long as anything of a job is alive, no second one like it
begins, even when the scheduler was killed. Whether a job is done is never remembered but looked up.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Final

from twostage.data.schema import InputError

POLL: Final = 0.05              # seconds
GRACE: Final = 60.0             # seconds between asking a command to stop and killing it: it may write a checkpoint
LOCKED: Final = "locked"
EARLY: Final = "early"
TAIL: Final = 1 << 16           # bytes of a log that are searched for its last error
DIE_WITH_PARENT: Final = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execvp(sys.argv[2], sys.argv[2:])
"""


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Job:
    """Commands that are run one after the other until one fails."""

    name: str
    commands: Sequence[Sequence[str]]
    log: Path
    """gets what the commands print; also the lock"""
    done: Callable[[], bool]
    """whether nothing is left to do"""
    after: str | None = None
    """name of a job that must be done first"""
    prepare: Callable[[], None] = _nothing
    """called when the job begins, in this process"""


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    name: str
    code: int
    """0: done; else the exit code of the command that failed, negative for a signal"""
    error: str = ""
    """the last line that says why"""
    seconds: float = 0.0
    """this time; 0 where nothing was left to do"""


class StoppedError(Exception):
    """A signal asked for the end; all commands have ended."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@dataclass
class _Running:
    job: Job
    file: IO[bytes]
    """the log, locked"""
    first_byte: int
    """of the log, where this attempt begins"""
    started: float
    commands: list[Sequence[str]]
    process: subprocess.Popen[bytes] | None = None


@dataclass
class _Board:
    """Which jobs wait, run and have ended."""

    waiting: list[Job]
    ended: Callable[[Outcome], None]
    running: dict[int, _Running] = field(default_factory=dict)
    """by slot"""
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    locked: set[str] = field(default_factory=set)
    """names of jobs that another process was found at work on"""

    def end(self, outcome: Outcome) -> None:
        """Notes how a job ended."""
        self.outcomes[outcome.name] = outcome
        self.ended(outcome)


@dataclass
class _Stop:
    """Signals that have come in."""

    numbers: list[int] = field(default_factory=list)

    def note(self, number: int, frame: FrameType | None) -> None:
        self.numbers.append(number)


def run_jobs(
    jobs: Sequence[Job],
    *,
    num_parallel: int,
    environment: Callable[[int], Mapping[str, str]],
    say: Callable[[str], None],
    ended: Callable[[Outcome], None],
    grace: float = GRACE,
) -> list[Outcome]:
    """Runs what is not done yet, at most `num_parallel` jobs at a time, and waits for all.

    A job that fails does not stop the others, but those that come after it fail too. A job that another process is at
    work on is waited for.

    Args:
        environment: of the commands, by slot 0..num_parallel-1.
        say: told in words what begins, and what is waited for.
        ended: told when a job has ended.

    Returns:
        One outcome per job, in the order of `jobs`.

    Raises:
        StoppedError: SIGINT or SIGTERM came; all commands were asked to stop and have ended. A second signal kills
            them.
        Whatever `say` or `ended` raise, after all commands have ended in the same way.
    """
    board = _Board(list(jobs), ended)
    with _signals() as stop:
        try:
            while board.waiting or board.running:
                if stop.numbers:
                    raise StoppedError(stop.numbers[0])
                for slot, state in list(board.running.items()):
                    outcome = _advance(state, environment(slot))
                    if outcome is not None:
                        state.file.close()
                        del board.running[slot]
                        board.end(outcome)
                _fill(board, num_parallel, say)
                time.sleep(POLL if board.running or board.waiting else 0)
        finally:
            _stop_all(list(board.running.values()), stop, grace)
    return [board.outcomes[job.name] for job in jobs]


def last_error(text: str) -> str:
    """The last line of a log that says why it failed: the last `error: …`, else the last line that is not blank."""
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error:")]
    return (errors or lines or ["nothing was printed"])[-1]


def _fill(board: _Board, num_parallel: int, say: Callable[[str], None]) -> None:
    """Begins jobs, in their order, until all slots are taken."""
    for job in list(board.waiting):
        slot = next((slot for slot in range(num_parallel) if slot not in board.running), -1)
        if slot < 0:
            return
        begun = _begin(job, board.outcomes)
        if isinstance(begun, Outcome):
            board.waiting.remove(job)
            board.end(begun)
        elif isinstance(begun, _Running):
            board.waiting.remove(job)
            board.running[slot] = begun
            say(f"{job.name}: begun")
        elif begun == LOCKED and job.name not in board.locked:
            board.locked.add(job.name)
            say(f"{job.name}: another process is at work on it (it holds {job.log}); waiting for its end")


def _begin(job: Job, outcomes: Mapping[str, Outcome]) -> _Running | Outcome | str:
    """Takes the lock and prepares; LOCKED where the lock is taken, EARLY where another job has to end first."""
    if job.after is not None and job.after not in outcomes:
        return EARLY
    if job.after is not None and outcomes[job.after].code != 0:
        return Outcome(job.name, 1, f"needs {job.after}, which failed")
    job.log.parent.mkdir(parents=True, exist_ok=True)
    file = job.log.open("ab", buffering=0)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return LOCKED
    if job.done():                                  # looked up with the lock held: another process may just have ended
        file.close()
        return Outcome(job.name, 0)
    try:
        job.prepare()
    except (InputError, OSError) as error:
        file.close()
        return Outcome(job.name, 1, f"error: {error}")
    return _Running(job, file, os.fstat(file.fileno()).st_size, time.monotonic(), list(job.commands))


def _advance(state: _Running, environment: Mapping[str, str]) -> Outcome | None:
    """Starts the next command when there is none or it has ended well; the outcome when the job has ended."""
    code = 0 if state.process is None else state.process.poll()
    if code is None:
        return None
    seconds = time.monotonic() - state.started
    if code != 0:
        return Outcome(state.job.name, code, _why(state, code), seconds)
    if state.commands:
        command = state.commands.pop(0)
        state.file.write(f"$ {' '.join(command)}\n".encode())
        state.process = _start(command, state.file, environment)
        return None
    if not state.job.done():
        why = f"all commands ended well, but results are missing: {_why(state, 0)}"
        return Outcome(state.job.name, 1, why, seconds)
    return Outcome(state.job.name, 0, seconds=seconds)


def _start(command: Sequence[str], log: IO[bytes], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """In a session of its own, so that Ctrl-C reaches it through this process alone; on Linux it ends with this one."""
    guard = (sys.executable, "-c", DIE_WITH_PARENT, str(os.getpid())) if sys.platform == "linux" else ()
    return subprocess.Popen(
        [*guard, *command],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=dict(environment),
        start_new_session=True,
    )


def _why(state: _Running, code: int) -> str:
    with state.job.log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(state.first_byte, size - TAIL))
        line = last_error(file.read().decode(errors="replace"))
    return f"killed by {signal.Signals(-code).name}, after: {line}" if code < 0 else line


@contextlib.contextmanager
def _signals() -> Iterator[_Stop]:
    """Notes SIGINT and SIGTERM instead of acting on them."""
    stop = _Stop()
    before = {number: signal.signal(number, stop.note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop_all(running: Sequence[_Running], stop: _Stop, grace: float) -> None:
    processes = [state.process for state in running if state.process is not None]
    _send(processes, signal.SIGTERM)
    seen, deadline = len(stop.numbers), time.monotonic() + grace
    while any(process.poll() is None for process in processes):
        if len(stop.numbers) > seen or time.monotonic() > deadline:
            _send(processes, signal.SIGKILL)
        time.sleep(POLL)
    for state in running:
        state.file.close()


def _send(processes: Sequence[subprocess.Popen[bytes]], number: int) -> None:
    for process in processes:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
