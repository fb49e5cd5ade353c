"""One process that stands still, or fails, ends all of them, and the log says why."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
from ranks import command, position, start

from twostage.runtime import status


def test_a_rank_that_stands_still_ends_the_run_with_all_stacks(digits: Path, tmp_path: Path) -> None:
    arguments = command("pretrain", digits, tmp_path / "run", pretrain__epochs="50", runtime__watchdog_seconds="4")
    run = start(arguments, tmp_path / "log")
    stage = tmp_path / "run" / "pretrain"
    while run.alive and not position(stage):
        time.sleep(0.01)
    stopped = time.monotonic()
    run.signal(signal.SIGSTOP, 1)
    codes = run.wait(30)
    assert time.monotonic() - stopped < 20, "it took too long"
    printed = run.log.read_text()
    assert codes == [1, 1], printed
    for rank in (0, 1):
        assert f"error: rank {rank}: nothing has moved for 4 s" in printed
    assert printed.count("most recent call first") >= 4    # of each process the main thread and the watchdog, at least
    assert printed.count("in pretrain\n") >= 2, "where the loop stands, of both"
    assert "Traceback" not in printed, "what the other's end leads to"
    assert re.search(r"rank 1 \(process \d+ on .*\) has not said where it stands", printed)
    found = status.read(tmp_path / "run")
    assert found is not None and found["state"] == "failed" and found["verb"] == "watchdog"


def test_one_ranks_error_is_the_first_and_only_one(digits: Path, tmp_path: Path) -> None:
    """An image of rank 1's that is damaged: all ranks end, and the one message names rank, sample and shard."""
    dataset = Path(shutil.copytree(digits, tmp_path / "dataset"))
    for shard in (dataset / "shards").glob("*.tar"):
        with shard.open("r+b") as file:                        # in the middle of the first image of each
            file.seek(700)
            file.write(b"X" * 8)
    arguments = command("pretrain", dataset, tmp_path / "run", loader__cache="never")
    begun = time.monotonic()
    run = start(arguments, tmp_path / "log")
    codes, printed = run.wait(60), run.log.read_text()
    assert time.monotonic() - begun < 30
    assert 0 not in codes and None not in codes, printed
    assert len(re.findall("error: rank [01]: ", printed)) == 1, printed
    assert re.search(r"error: rank ([01]): .*sample.*(\.tar|shard)", printed), printed
    assert "Traceback" not in printed


@pytest.mark.parametrize("rank", [0, 1])
def test_what_only_one_rank_finds_wrong_is_what_is_told(rank: int, digits: Path, tmp_path: Path) -> None:
    """Rank 0 keeps what the ranks look at: with its end all of that is gone. It also says that the run is running."""
    (tmp_path / "run").mkdir()
    run = start(command("pretrain", digits, tmp_path / "run"), tmp_path / "log", wrong_on=rank)
    codes, printed = run.wait(60), run.log.read_text()
    assert codes[rank] == 2 and codes[1 - rank] == 1, printed
    assert f"error: rank {rank}: these settings are wrong\n" in printed and printed.count("error: ") == 1, printed
    assert f"rank {1 - rank} ends as well" in printed
    assert "Traceback" not in printed and "frame #" not in printed, "what the first one's end leads to"
    found = status.read(tmp_path / "run")
    assert found is not None
    told = {"state": "failed", "rank": rank, "error": "these settings are wrong", "exit_code": 2}
    assert told.items() <= found.items()


def test_a_process_alone_says_its_error_without_a_rank(digits: Path, tmp_path: Path) -> None:
    run = start(command("pretrain", digits, tmp_path / "run", data__labels="noisi"), tmp_path / "log", size=1)
    assert run.wait() == [2]
    assert run.log.read_text().startswith("error: ") and "rank" not in run.log.read_text()
    assert os.path.basename(digits) in run.log.read_text()
