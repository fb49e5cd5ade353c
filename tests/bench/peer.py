"""Sides that live in processes of their own: started once, then one pass for every line they are sent.

A side's script is a module that calls `serve(function)`; it sees the packages of `.bench/NAME` before ours, if it needs
any of these. Both ends are here, with nothing but the standard library, as a peer's packages may be of any age.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from tests.bench.contest import Failed, Missing, Pass

ROOT = Path(__file__).parents[2]
PINS = Path(__file__).parent / "peers"
PACKAGES = ROOT / ".bench"
FAILURE_LINES = 3


def own_folder(name: str) -> Path | Missing:
    """Where a peer lies that does not fit our pins, or that it is missing."""
    folder = PACKAGES / name
    if (folder / ".ready").exists() and (folder / ".ready").read_text() == (PINS / f"{name}.txt").read_text():
        return folder
    return Missing("not installed: python -m tests.bench --install")


def extra(module: str, package: str | None = None) -> Missing | None:
    """None where a module of the extra `bench` can be imported."""
    if importlib.util.find_spec(module) is not None:
        return None
    return Missing(f"{package or module} is not installed: pip install '.[bench]'")


def install() -> None:
    """Puts the peers that do not fit our pins into folders of their own; does nothing for those that are there."""
    for pins in sorted(PINS.glob("*.txt")):
        if isinstance(own_folder(pins.stem), Path):
            continue
        folder = PACKAGES / pins.stem
        print(f"installing {pins.stem} into {folder}", flush=True)
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        done = subprocess.run([*command, "--upgrade", "--target", str(folder), "-r", str(pins)], check=False)
        if done.returncode:
            print(f"{pins.stem} could not be installed, and will be named as missing", flush=True)
            continue
        (folder / ".ready").write_text(pins.read_text())


class Peer:
    """A side in a process of its own; calling it makes one pass. Start it in a `with` block, or close it."""

    def __init__(self, module: str, *arguments: object, packages: Path | None = None) -> None:
        """Starts `python -m MODULE ARGUMENTS`, which imports and prepares meanwhile.

        Args:
            packages: a folder that its process searches before all others.
        """
        self._module = module
        places = [str(place) for place in (packages, ROOT) if place is not None]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(places)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            process_group=0,                # not a session: Linux would schedule it apart from ours
        )
        os.set_blocking(self._process.stderr.fileno(), False)  # type: ignore[union-attr]

    def __call__(self) -> Pass:
        """One pass, as the process itself measured it.

        Raises:
            Failed: the process ended.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(BrokenPipeError):     # if it has ended: what it said comes below
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        for line in self._process.stdout:   # whatever the peer's own packages print is passed over
            if line.startswith("PASS "):
                return Pass(**json.loads(line.removeprefix("PASS ")))
        self._process.wait()
        said = self._process.stderr.read() if self._process.stderr else ""
        lines = [line for line in (said or "").splitlines() if line.strip()][-FAILURE_LINES:]
        raise Failed(f"{self._module} ended with {self._process.returncode}: {' / '.join(lines)}")

    def close(self) -> None:
        """Ends the process and its workers."""
        if self._process.stdin:
            self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def serve(one_pass: Callable[[], object]) -> None:
    """Makes a pass for each line that comes in, and says how long it took and how much memory there is."""
    for _ in sys.stdin:
        started = time.perf_counter()
        one_pass()
        seconds = time.perf_counter() - started
        print("PASS " + json.dumps({"seconds": seconds, "mib": largest_mib()}), flush=True)


def largest_mib() -> float:
    """The most memory that this process has held, and what its workers hold now, in MiB; shared pages count once."""
    own = Path("/proc/self/status")
    if not own.exists():
        return float("nan")
    children = [child for task in Path("/proc/self/task").iterdir() for child in _words(task / "children")]
    return (_kib(own, "VmHWM") + sum(_kib(Path("/proc") / child / "smaps_rollup", "Pss") for child in children)) / 1024


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:                         # a thread or a process that has ended
        return []


def _kib(path: Path, name: str) -> int:
    words = _words(path)
    return int(words[words.index(f"{name}:") + 1]) if f"{name}:" in words else 0
