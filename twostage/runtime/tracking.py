"""What a training reports while it runs: metrics through accelerate's trackers, and progress for people."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from tqdm import tqdm

from twostage.config import Config
from twostage.data.schema import InputError, write_aside
from twostage.runtime import watchdog
from twostage.runtime.trackers import make_tracker
from twostage.runtime.world import World

NONREPRODUCIBLE_KEYS: Final = ("train/images_per_second", "train/data_wait")
"""metrics that differ from run to run; all others of a resumed run equal those of an uninterrupted one"""


class JsonLinesTracker(GeneralTracker):  # type: ignore[misc]
    """Appends one JSON object per call to `metrics.jsonl`: step, epoch, then the values. No time stamps.

    A value that is not finite becomes null, as JSON has no word for it.
    """

    name = "jsonl"
    requires_logging_directory = False

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    @property
    def tracker(self) -> Path:
        """The file."""
        return self.path

    def log(self, values: dict[str, float], step: int | None = None, *, epoch: int, **_: Any) -> None:
        """Appends a line."""
        finite = {key: value if math.isfinite(value) else None for key, value in values.items()}
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, "epoch": epoch, **finite}) + "\n")


def start_tracking(accelerator: Accelerator, folder: Path, resumed_step: int | None, config: Config) -> None:
    """Lets `log` write to `folder`: `metrics.jsonl`, and to what `runtime.tracker` names.

    Args:
        config: of the run.
        resumed_step: step of the checkpoint that training goes on from; what was logged after it is removed, as those
            steps are done again. None for a start from the beginning.
    """
    accelerator.trackers = []
    if not accelerator.is_main_process:
        accelerator.log_with = []
        return
    folder.mkdir(parents=True, exist_ok=True)
    keep_until = -1 if resumed_step is None else resumed_step
    forget_after(folder / "metrics.jsonl", keep_until)
    trackers = make_tracker(folder, config, keep_until + 1)
    accelerator.log_with = [JsonLinesTracker(folder / "metrics.jsonl"), *trackers]
    accelerator.init_trackers(folder.name)


def log(accelerator: Accelerator, values: dict[str, float], step: int, epoch: int) -> None:
    """Reports metrics of a step; called by every rank, written by the main one."""
    accelerator.log(values, step=step, log_kwargs={"jsonl": {"epoch": epoch}})


def stop_tracking(accelerator: Accelerator) -> None:
    """Closes the files. accelerate's own `end_training` would end the process group too, and stages follow."""
    for tracker in accelerator.trackers:
        tracker.finish()
    accelerator.trackers, accelerator.log_with = [], []


class IndexLog:
    """Which samples each step was taken on: a JSON line for each piece of each rank, `step`, first `slot`, `index`.

    The lines of one step, by slot, are its global batch, whatever the number of processes was.
    """

    def __init__(self, folder: Path, world: World, resumed_step: int | None, pieces: int) -> None:
        """Begins, or goes on after a resumed step; what was written after it is removed.

        Args:
            folder: of the stage.
            pieces: in how many a rank's slots of a step come; 0 where no log is wanted.
        """
        self._path = folder / "indices" / f"rank-{world.rank:05d}.jsonl" if pieces else None
        self._rank, self._pieces, self._number = world.rank, pieces, 0
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        paths = sorted(self._path.parent.glob("rank-*.jsonl"))      # more of them, where there were more processes
        for path in [self._path, *(paths[world.size :] if world.is_main else [])]:
            forget_after(path, -1 if resumed_step is None else resumed_step)

    def note(self, index: torch.Tensor, step: int) -> None:
        """Adds the next piece of this rank's slots of a step."""
        if self._path is None:
            return
        slot = (self._rank * self._pieces + self._number) * len(index)
        self._number = (self._number + 1) % self._pieces
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, "slot": slot, "index": index.tolist()}) + "\n")


def forget_after(path: Path, step: int) -> None:
    """Removes the lines of steps after `step` from a JSON-lines file, and a last line that a kill cut off.

    Raises:
        InputError: a line is damaged in another way.
    """
    if not path.exists():
        return
    data = path.read_bytes()
    lines = data.splitlines(keepends=True)
    kept = b"".join(line for number, line in enumerate(lines) if _is_until(line, step, f"{path}, line {number + 1}"))
    if kept != data:
        write_aside(path, kept)


def _is_until(line: bytes, step: int, where: str) -> bool:
    if not line.endswith(b"\n"):
        return False
    try:
        return bool(json.loads(line)["step"] <= step)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{where} is damaged ({error!r}): remove that line and run again") from error


class Waits(Protocol):
    """What knows how long training waited for images: the loader."""

    @property
    def data_wait(self) -> float:
        """Share of the time, 0..1, that was spent waiting for images."""


class Progress:
    """Shows people how far a stage is: a bar on a terminal, else a plain line now and then; on the main rank only."""

    def __init__(self, name: str, num_epochs: int, unit: str, world: World, *, interval: float = 60.0) -> None:
        """Begins a stage.

        Args:
            name: of the stage.
            num_epochs: planned number of epochs, passes or sub-epochs.
            unit: what they are called.
            interval: least seconds between two plain lines.
        """
        self.name, self.num_epochs, self.unit, self.world, self.interval = name, num_epochs, unit, world, interval
        self.epoch = self.num_steps = self.position = 0
        self.data_wait = 0.0
        self._bar: tqdm[Any] | None = None
        self._images = self._epoch_images = self._steps_taken = 0
        self._seconds = 0.0                 # of all finished epochs, validation not counted
        self._epoch_seconds = 0.0           # of the finished epoch
        self._shown = self._rates_since = self._started = self._last_step = time.monotonic()
        self._in_epoch = self._ended = False
        self._pauses = 0                    # between epochs: validation and checkpoint
        self._pause_seconds = 0.0           # of all of them

    def start_epoch(self, epoch: int, num_steps: int, first_step: int) -> None:
        """Begins an epoch of `num_steps` steps, `first_step` of which were taken before."""
        self.close()
        self.epoch, self.num_steps, self.position = epoch, num_steps, first_step
        self._images = self._epoch_images = 0
        self._started = self._rates_since = time.monotonic()
        if self._ended:
            self._pauses += 1
            self._pause_seconds += self._started - self._last_step
        self._in_epoch, self._ended = True, False
        watchdog.feed()
        if self.world.is_main and sys.stderr.isatty():
            self._bar = tqdm(total=num_steps, initial=first_step, desc=self._title(), unit="step", leave=False)

    def step(self, num_images: int, data_wait: float = 0.0) -> None:
        """Notes a step over `num_images` images of all ranks, and the loader's share of waiting."""
        watchdog.feed()
        self.position += 1
        self._steps_taken += 1
        self._images += num_images
        self._epoch_images += num_images
        self.data_wait = data_wait
        if self.position == self.num_steps:     # what comes now is validation, not training
            self._last_step = time.monotonic()
            self._epoch_seconds = self._last_step - self._started
            self._seconds += self._epoch_seconds
            self._in_epoch = False
        if not self.world.is_main:
            return
        if self._bar is not None:
            self._bar.update()
        if time.monotonic() - self._shown >= (self.interval if self._bar is None else 1.0):
            self._shown = time.monotonic()
            if self._bar is None:
                print(f"{self._title()}: step {self.position}/{self.num_steps}, {self._speed()}", flush=True)
            else:
                self._bar.set_postfix_str(self._speed())

    def rates(self, loader: Waits | None = None) -> dict[str, float]:
        """Images per second of all ranks since the last call or the epoch's start, and the share of waiting."""
        if loader is not None:
            self.data_wait = loader.data_wait
        now = time.monotonic()
        speed = self._images / max(now - self._rates_since, 1e-9)
        self._images, self._rates_since = 0, now
        return dict(zip(NONREPRODUCIBLE_KEYS, (speed, self.data_wait), strict=True))

    def end_epoch(self, values: dict[str, float], means: Mapping[str, float] | None = None) -> None:
        """Closes an epoch with its figures: always one line, with `means` over it in place of the last steps'."""
        self.close()
        self._shown, self._ended = time.monotonic(), True
        means = means or {}
        if self.world.is_main:
            figures = ", ".join(_figure(key, value) for key, value in {**means, **values, **means}.items())
            print(f"{self._title()}: {figures}; {self._speed()}", flush=True)

    def close(self) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _title(self) -> str:
        return f"{self.name} {self.unit} {self.epoch + 1}/{self.num_epochs}"

    def _speed(self) -> str:
        epoch = time.monotonic() - self._started if self._in_epoch else self._epoch_seconds
        return (
            f"{self._epoch_images / max(epoch, 1e-9):.0f} images/s, {100 * self.data_wait:.0f} % of the time waiting "
            f"for them, {self._left(self._seconds + (epoch if self._in_epoch else 0.0))} left"
        )

    def _left(self, step_seconds: float) -> str:
        """Time until the last epoch's end, of which training may stop short; `step_seconds`: of all steps taken."""
        epochs = self.num_epochs - self.epoch - 1
        steps = self.num_steps - self.position + epochs * self.num_steps
        seconds = steps * step_seconds / max(self._steps_taken, 1)
        pauses, pause_seconds = self._pauses, self._pause_seconds
        if self._ended:         # the checkpoint is still to come
            pauses, pause_seconds = pauses + 1, pause_seconds + time.monotonic() - self._last_step
        if not pauses:
            return f"about {duration(seconds)}"
        coming = epochs if self._ended else epochs + 1
        return f"at most about {duration(seconds + coming * pause_seconds / pauses)}"


class Count:
    """Counts things with a known number: a bar on a terminal, else a plain line a minute. Used as a context."""

    def __init__(self, name: str, total: int, unit: str, *, interval: float = 60.0) -> None:
        self.name, self.total, self.unit, self.interval = name, total, unit, interval
        self._bar = tqdm(total=total, desc=name, unit=unit, delay=1, leave=False, disable=not sys.stderr.isatty())
        self._count = 0
        self._begun = self._shown = time.monotonic()

    def __enter__(self) -> Count:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def add(self, number: int) -> None:
        """Notes that so many more are done."""
        self._count += number
        self._bar.update(number)
        now = time.monotonic()
        if self._bar.disable and now - self._shown >= self.interval:
            self._shown = now
            rate = self._count / (now - self._begun)
            left = duration((self.total - self._count) / max(rate, 1e-9))
            done = f"{self._count:,} of {self.total:,} {self.unit}s"
            print(f"{self.name}: {done}, {rate:.0f} {self.unit}s/s, about {left} left", flush=True)


def _figure(key: str, value: float) -> str:
    return f"{key.removeprefix('train/').replace('/', ' ').replace('_', ' ')} {value:.4g}"


def duration(seconds: float) -> str:
    """A length of time for people: 45 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
