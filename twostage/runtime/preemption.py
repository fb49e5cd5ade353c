"""Being asked to stop: SIGTERM or SIGUSR2 lets a run finish its step, save, and leave with exit code 0.

A handler only notes the signal, so a second one cannot disturb the save that the first one led to. Where ranks may
stop (after a step, an epoch, a ranking, between stages), all ask each other, so one that has the signal is enough, and
all stop at the same place. In a ranking each has its own batches, and listens for the others meanwhile (`Listener`).
Then `status.json` says `preempted` (see status), and the same command goes on.

Which signal, and to whom:

- SIGTERM: schedulers send it before they kill. `accelerate launch` hands it on, waits 30 s (the environment variable
  PET_SHUTDOWN_TIMEOUT changes that), kills what is left, and itself ends with exit code 1: look at `status.json`.
- SIGUSR2 to the training processes: `accelerate launch` must ignore it, or it dies at once: start it by
  `bash -c 'trap "" USR2; exec accelerate launch ...'`. Then it ends with exit code 0. Not SIGUSR1: NCCL uses that.
- Where the launcher dies all the same, its processes get SIGTERM from the kernel, save and leave.

Imports no torch, so that a signal during the start is noted too.
"""

from __future__ import annotations

import ctypes
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Final

from twostage.runtime import failure

if TYPE_CHECKING:
    from twostage.runtime.world import World

KEY: Final = "twostage/asked to stop"
SIGNALS: Final = (signal.SIGTERM, signal.SIGUSR2)
PR_SET_PDEATHSIG: Final = 1

_received: list[signal.Signals] = []        # of this process; only ever grows


class Preempted(Exception):  # noqa: N818 - not an error
    """A run left because it was asked to, with everything saved."""

    def __init__(self, stage: str, step: int | None, signal_name: str) -> None:
        where = f"at the beginning of {stage}" if step is None else f"and saved at step {step} of {stage}"
        super().__init__(f"{signal_name}: stopped {where}; the same command goes on from there")
        self.stage, self.step, self.signal_name = stage, step, signal_name


@contextmanager
def listening() -> Iterator[None]:
    """Notes SIGTERM and SIGUSR2 instead of dying of them, while inside.

    After the first they are ignored for good: a process that has saved and is about to leave with exit code 0 would
    die of the second one otherwise.
    """
    if threading.current_thread() is not threading.main_thread():       # others may not set handlers
        yield
        return
    _die_with_launcher()
    _received.clear()
    before = {number: signal.signal(number, _note) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if _received else handler)


def _note(number: int, _: FrameType | None) -> None:
    _received.append(signal.Signals(number))


def _die_with_launcher() -> None:
    """Lets the kernel send SIGTERM when the launcher dies: an orphan would go on, and write beside the next run."""
    if sys.platform == "linux" and "TORCHELASTIC_RUN_ID" in os.environ:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def asked() -> bool:
    """Whether this process has had a signal."""
    return bool(_received)


class Listener:
    """Whether any rank was asked to stop, where ranks have unequally much to do: nobody waits for anybody.

    A rank that was asked writes it into the store of all ranks, and the others look there now and then.
    """

    def __init__(self, *, interval: float = 0.5) -> None:
        """Begins to listen; looks into the store every `interval` seconds at most."""
        self._interval, self._looked = interval, -math.inf
        self._store = failure.store()

    def anyone_asked(self) -> bool:
        """True for good once a rank was asked; each rank then goes to where all leave together (`leave_if_asked`)."""
        if asked():
            if self._store is not None:
                self._store.set(KEY, "")
            return True
        if self._store is None or time.monotonic() - self._looked < self._interval:
            return False
        self._looked = time.monotonic()
        return self._store.check([KEY])


def leave_if_asked(stage: Path, step: int | None, world: World) -> None:
    """Leaves if any rank was asked to; called by all ranks together, after all that is worth it was saved.

    Args:
        stage: folder of the stage.
        step: taken in it so far; None where it has not begun to compute.

    Raises:
        Preempted: on all ranks alike.
    """
    number = _first_signal(world)
    if number:
        raise Preempted(stage.name, step, signal.Signals(number).name)


def _first_signal(world: World) -> int:
    own = _received[0] if _received else 0
    if world.size == 1:
        return own
    import torch

    from twostage.runtime.world import all_reduce_sum

    slots = torch.zeros(world.size, dtype=torch.int64, device=world.device)
    slots[world.rank] = own
    return next((number for number in all_reduce_sum(slots, world).tolist() if number), 0)
