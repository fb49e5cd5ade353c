"""A ranking of two processes leaves soon when one of them is asked to, and the same command ends it."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path

from ranks import command, start

from twostage.runtime import status


def test_a_ranking_stops_when_one_rank_is_asked_to(digits: Path, ranked: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(ranked / "pretrain", run_dir / "pretrain")
    arguments = command("rank", digits, run_dir, model__name="ranks:slow_factory")
    run = start(arguments, tmp_path / "log")
    while run.alive and not list((run_dir / "rank").glob(".part-*")):
        time.sleep(0.01)
    run.signal(signal.SIGTERM, 1)
    assert run.wait(30) == [0, 0], run.log.read_text()
    found = status.read(run_dir)
    assert found is not None and (found["state"], found["signal"]) == ("preempted", "SIGTERM")
    assert list((run_dir / "rank").iterdir()) == [run_dir / "rank" / "inputs.json"], "no part was whole yet"
    start(arguments, tmp_path / "log").succeed()
    parts = sorted((run_dir / "rank").glob("part-*"))
    assert len(parts) == 2
    assert [part.read_bytes() for part in parts] == [(ranked / "rank" / part.name).read_bytes() for part in parts]
