from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from twostage.config import Config, DataConfig, RunConfig
from twostage.data.schema import InputError
from twostage.runtime import tracking
from twostage.runtime.state import Meter
from twostage.runtime.world import World

CONFIG = Config(run=RunConfig(dir=Path("r")), data=DataConfig(dataset=Path("d")))
ALONE = World(rank=0, size=1, device=torch.device("cpu"))


def report(accelerator: Accelerator, steps: range) -> None:
    """What a training would log: every second step, and twice at the end of an epoch of four steps."""
    for step in steps:
        epoch = (step - 1) // 4
        if step % 2 == 0:
            tracking.log(accelerator, {"train/loss": 1 / step}, step, epoch)
        if step % 4 == 0:
            tracking.log(accelerator, {"train/learning_rate": 0.1, "val/accuracy": step / 100}, step, epoch)


def test_a_resumed_file_equals_the_uninterrupted_one(tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True)
    tracking.start_tracking(accelerator, tmp_path / "whole", None, CONFIG)
    report(accelerator, range(1, 13))
    tracking.stop_tracking(accelerator)
    expected = (tmp_path / "whole" / "metrics.jsonl").read_text()
    assert [json.loads(line) for line in expected.splitlines()[:3]] == [
        {"step": 2, "epoch": 0, "train/loss": 0.5},
        {"step": 4, "epoch": 0, "train/loss": 0.25},
        {"step": 4, "epoch": 0, "train/learning_rate": 0.1, "val/accuracy": 0.04},
    ]
    for killed_at in range(13):
        folder = tmp_path / f"killed{killed_at}"
        tracking.start_tracking(accelerator, folder, None, CONFIG)
        report(accelerator, range(1, killed_at + 1))
        tracking.stop_tracking(accelerator)
        if killed_at % 2:
            with (folder / "metrics.jsonl").open("a") as file:
                file.write('{"step": 1, "epo')      # cut off by the kill
        checkpoint = killed_at // 4 * 4
        tracking.start_tracking(accelerator, folder, checkpoint or None, CONFIG)
        report(accelerator, range(checkpoint + 1, 13))
        tracking.stop_tracking(accelerator)
        assert (folder / "metrics.jsonl").read_text() == expected, f"killed at step {killed_at}"
        assert sorted(p.name for p in folder.iterdir()) == ["metrics.jsonl", "tensorboard"]

    events = EventAccumulator(str(tmp_path / "killed7" / "tensorboard"))
    events.Reload()
    assert [(e.step, round(e.value, 2)) for e in events.Scalars("val/accuracy")] == [(4, 0.04), (8, 0.08), (12, 0.12)]
    assert [e.step for e in events.Scalars("train/loss")] == [2, 4, 6, 8, 10, 12]


def test_lines_are_there_at_once_and_are_valid_json(tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True)
    tracking.start_tracking(accelerator, tmp_path, None, CONFIG)
    tracking.log(accelerator, {"train/loss": math.nan, "val/accuracy": 0.5}, 3, 1)
    line = (tmp_path / "metrics.jsonl").read_text()
    tracking.stop_tracking(accelerator)
    assert line == '{"step": 3, "epoch": 1, "train/loss": null, "val/accuracy": 0.5}\n'
    tracking.log(accelerator, {"train/loss": 1.0}, 4, 1)        # after the end: goes nowhere
    assert (tmp_path / "metrics.jsonl").read_text() == line


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"step": 1}\n{"ste\n{"step": 2}\n')
    with pytest.raises(InputError, match=r"m\.jsonl, line 2 is damaged"):
        tracking.forget_after(tmp_path / "m.jsonl", 1)


@pytest.fixture(autouse=True)
def nobody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    """A watchdog that a run in this process has left would take these clocks for standstill."""
    monkeypatch.setattr(tracking.watchdog, "feed", lambda: None)


class Clock:
    now = 100.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(tracking.time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(tracking.sys.stderr, "isatty", lambda: False, raising=False)
    return clock


def test_plain_lines_now_and_then(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    progress = tracking.Progress("pretrain", 3, "epoch", ALONE, interval=30)
    for epoch in range(2):
        progress.start_epoch(epoch, 100, 40 if epoch == 0 else 0)
        for _ in range(60 if epoch == 0 else 100):
            clock.now += 1
            progress.step(256, 0.125)
        clock.now += 50         # validation counts neither as training nor as waiting
        progress.end_epoch({"train/loss": 9.0, "train/learning_rate": 3e-4, "val/accuracy": 0.875},
                           {"train/loss": 0.123456})
        clock.now += 10         # a checkpoint
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "pretrain epoch 1/3: step 70/100, 256 images/s, 12 % of the time waiting for them, about 4 min left",
        "pretrain epoch 1/3: step 100/100, 256 images/s, 12 % of the time waiting for them, about 3 min left",
        "pretrain epoch 1/3: loss 0.1235, learning rate 0.0003, val accuracy 0.875; "
        "256 images/s, 12 % of the time waiting for them, at most about 5 min left",
        "pretrain epoch 2/3: step 20/100, 256 images/s, 12 % of the time waiting for them, at most about 5 min left",
        "pretrain epoch 2/3: step 50/100, 256 images/s, 12 % of the time waiting for them, at most about 4 min left",
        "pretrain epoch 2/3: step 80/100, 256 images/s, 12 % of the time waiting for them, at most about 4 min left",
        "pretrain epoch 2/3: loss 0.1235, learning rate 0.0003, val accuracy 0.875; "
        "256 images/s, 12 % of the time waiting for them, at most about 3 min left",
    ]


def test_the_time_left_counts_validation_and_checkpoints(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """Where they take longer than the steps, most of the time that is left is theirs."""
    progress = tracking.Progress("train", 5, "sub-epoch", ALONE, interval=1)
    begun = clock.now
    for epoch in range(5):
        progress.start_epoch(epoch, 10, 0)
        for _ in range(10):
            clock.now += 1
            progress.step(8)
        clock.now += 30
        progress.end_epoch({"val/accuracy": 0.5})
        clock.now += 20
    whole = clock.now - begun
    lines = [line.rsplit(", ", 1)[1] for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "about 49 s left", "nothing is known of validation yet"
    assert lines[11] == f"at most about {tracking.duration(whole - 61)} left", "the first step of the second sub-epoch"
    assert lines[-2:] == ["at most about 50 s left", "at most about 0 s left"]


def test_rates_since_the_last_call(clock: Clock) -> None:
    progress = tracking.Progress("train", 1, "sub-epoch", ALONE)
    progress.start_epoch(0, 10, 0)
    for seconds in (1, 1, 4):
        clock.now += seconds
        progress.step(12, 0.5)
        if seconds == 1:
            assert progress.rates() == {"train/images_per_second": 12.0, "train/data_wait": 0.5}
    assert progress.rates() == {"train/images_per_second": 3.0, "train/data_wait": 0.5}
    assert tuple(progress.rates()) == tracking.NONREPRODUCIBLE_KEYS


def test_other_ranks_are_silent(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    progress = tracking.Progress("train", 1, "epoch", World(rank=1, size=2, device=torch.device("cpu")), interval=0)
    progress.start_epoch(0, 1, 0)
    progress.step(8)
    progress.end_epoch({"train/loss": 1.0})
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(tracking.sys.stderr, "isatty", lambda: True, raising=False)
    progress = tracking.Progress("train", 2, "epoch", ALONE, interval=0)
    progress.start_epoch(0, 4, 1)
    for _ in range(3):
        progress.step(8)
    progress.end_epoch({"train/loss": 1.0})
    out, err = capsys.readouterr()
    assert "train epoch 1/2" in err and "1/4" in err and err.endswith("\r"), "drawn, and taken away"
    assert out.count("\n") == 1 and out.startswith("train epoch 1/2: loss 1; ")


def test_a_count_says_a_line_a_minute(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with tracking.Count("predict", 2000, "image") as count:
        for _ in range(20):
            clock.now += 6.5
            count.add(100)
    assert capsys.readouterr().out.splitlines() == [
        "predict: 1,000 of 2,000 images, 15 images/s, about 65 s left",
        "predict: 2,000 of 2,000 images, 15 images/s, about 0 s left",
    ]


def test_duration() -> None:
    assert [tracking.duration(s) for s in (3.4, 89, 600, 7200)] == ["3 s", "89 s", "10 min", "2.0 h"]


def test_an_epoch_that_ends_with_a_logged_step_has_a_loss(capsys: pytest.CaptureFixture[str]) -> None:
    meter, progress = Meter(("train/loss",), torch.device("cpu")), tracking.Progress("train", 2, "epoch", ALONE)
    for losses in ([8.0, 4.0], [2.0, 2.0]):
        for loss in losses:
            meter.add(torch.tensor(loss))
        logged = meter.means(ALONE)
    assert logged == {"train/loss": 2.0} and meter.means(ALONE) == {}, "since the last look"
    progress.end_epoch({"val/accuracy": 0.5}, meter.epoch_means())
    assert "train epoch 1/2: loss 4, val accuracy 0.5; " in capsys.readouterr().out
    meter.add(torch.tensor(1.0))
    meter.means(ALONE)
    assert meter.epoch_means() == {"train/loss": 1.0}, "the next epoch"
