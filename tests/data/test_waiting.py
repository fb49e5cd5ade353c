"""The share of time spent waiting, on a clock that stands still unless told."""

from __future__ import annotations

import pytest

from twostage.data.waiting import WaitMeter


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("twostage.data.waiting.time.perf_counter", clock)
    return clock


def test_share_of_the_time_since_the_last_reset(clock: Clock) -> None:
    meter = WaitMeter()
    assert meter.share == 0
    clock.now += 3
    with meter.waiting():
        clock.now += 1
    assert meter.share == 0.25
    meter.reset()
    assert meter.share == 0
    with meter.waiting():
        clock.now += 2
    assert meter.share == 1


def test_an_error_ends_the_waiting_too(clock: Clock) -> None:
    meter = WaitMeter()
    with pytest.raises(OSError), meter.waiting():
        clock.now += 1
        raise OSError
    clock.now += 1
    assert meter.share == 0.5


def test_a_reset_while_waiting_counts_only_what_comes_after(clock: Clock) -> None:
    meter = WaitMeter()
    with meter.waiting():
        clock.now += 5
        meter.reset()
        clock.now += 1
    clock.now += 3
    assert meter.share == 0.25
