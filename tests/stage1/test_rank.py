"""A ranking that is stopped goes on after the parts that are there; whatever the parts, the rows are the same."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests import digit_runs
from twostage.__main__ import main
from twostage.data.plan import rank_range
from twostage.runtime import status, tracking
from twostage.runtime.preemption import SIGNALS
from twostage.runtime.world import World
from twostage.stage1 import rank as ranking
from twostage.stage1.rank import shares_of_ranks

SETTINGS = {"model.name": "mlp", "pretrain.epochs": "1", "rank.batch_size": "50", "runtime.tracker": "none"}


@given(st.integers(0, 300), st.integers(1, 9), st.integers(1, 40))
def test_parts_are_the_ranks_shares_in_order(num_batches: int, world_size: int, most: int) -> None:
    shares = shares_of_ranks(num_batches, world_size, most)
    for rank, parts in enumerate(shares):
        assert [n for part in parts for n in part] == list(rank_range(num_batches, rank, world_size))
        assert parts and all(len(part) <= most for part in parts)
        assert len(parts) == 1 or len(parts) <= -(-sum(map(len, parts)) // most)


@pytest.fixture(scope="module")
def trained(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A dataset of scanned digits, and a run folder with a network and a ranking."""
    run_dir = tmp_path_factory.mktemp("rank") / "run"
    assert run("pretrain", digits, run_dir) == 0
    assert run("rank", digits, run_dir) == 0
    return digits, run_dir


def run(verb: str, dataset: Path, run_dir: Path) -> int:
    return main(digit_runs.arguments(verb, dataset, run_dir, SETTINGS))


def other_run(trained: tuple[Path, Path], folder: Path) -> Path:
    (folder / "run").mkdir()
    (folder / "run" / "pretrain").symlink_to(trained[1] / "pretrain")
    return folder / "run"


def parts(run_dir: Path) -> list[Path]:
    return sorted((run_dir / "rank").glob("part-*"))


def test_killed_between_parts_it_scores_only_what_is_missing(
    trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, whole = trained
    run_dir = other_run(trained, tmp_path)
    monkeypatch.setattr(ranking, "SAMPLES_PER_PART", 250)          # 5 batches of 50, 26 batches in all
    scored: list[int] = []
    probabilities = ranking.probabilities

    def counted(limit: int | None) -> Callable[..., Iterator[Any]]:
        def counting(*arguments: Any, **options: Any) -> Iterator[Any]:
            for index, probs in probabilities(*arguments, **options):
                if limit is not None and len(scored) == limit:
                    raise KeyboardInterrupt
                scored.append(len(index))
                yield index, probs
        return counting

    monkeypatch.setattr(ranking, "probabilities", counted(12))
    assert run("rank", dataset, run_dir) == 130
    assert [path.name for path in parts(run_dir)] == ["part-00000-of-00006.parquet", "part-00001-of-00006.parquet"]
    kept = {path: path.stat().st_mtime_ns for path in parts(run_dir)}
    damaged = parts(run_dir)[1]
    damaged.write_bytes(damaged.read_bytes()[:-100])
    scored.clear()
    monkeypatch.setattr(ranking, "probabilities", counted(None))
    assert run("rank", dataset, run_dir) == 0
    assert parts(run_dir)[0].stat().st_mtime_ns == kept[parts(run_dir)[0]]
    assert len(scored) == 26 - 4                           # the first part has 4 batches
    assert [path.name for path in (run_dir / "rank").iterdir() if "tmp" in path.name] == []
    rows = [pq.read_table(parts(folder)) for folder in (whole, run_dir)]
    assert rows[0].sort_by("index").equals(rows[1].sort_by("index"))
    assert (np.diff(rows[1]["index"].to_numpy()) > 0).all()


def test_the_speed_is_that_of_all_processes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(tracking.watchdog, "feed", lambda: None)    # an earlier run's takes it for standstill
    monkeypatch.setattr(tracking.time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(tracking.sys.stderr, "isatty", lambda: False, raising=False)
    progress = tracking.Progress("rank", 1, "pass", World(rank=0, size=8, device=torch.device("cpu")), interval=1)
    progress.start_epoch(0, 3, 0)

    def scored() -> Iterator[pa.RecordBatch]:
        for _ in range(3):
            clock.now += 1
            yield pa.RecordBatch.from_pydict({"index": np.arange(50)})

    nobody_asked = SimpleNamespace(anyone_asked=lambda: False)
    assert len(list(ranking._until_asked(scored(), nobody_asked, progress, SimpleNamespace(data_wait=0.0)))) == 3
    assert capsys.readouterr().out.splitlines()[0] == (
        "rank pass 1/1: step 1/3, 400 images/s, 0 % of the time waiting for them, about 2 s left"
    )


@pytest.fixture
def handlers() -> Iterator[None]:
    """Puts the handlers of signals back: a program that was asked to stop ignores them for good."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
def test_asked_to_stop_it_leaves_at_once_and_goes_on_after_whole_parts(
    trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, _ = trained
    run_dir = other_run(trained, tmp_path)
    monkeypatch.setattr(ranking, "SAMPLES_PER_PART", 250)          # 4 or 5 batches of 50, 26 batches in all
    batches = 0
    probabilities = ranking.probabilities

    def asked_in_between(*arguments: Any, **options: Any) -> Iterator[Any]:
        nonlocal batches
        for found in probabilities(*arguments, **options):
            batches += 1
            if batches == 11:
                os.kill(os.getpid(), signal.SIGTERM)
            yield found

    monkeypatch.setattr(ranking, "probabilities", asked_in_between)
    assert run("rank", dataset, run_dir) == 0
    found = status.read(run_dir)
    assert found is not None and batches == 11
    assert (found["state"], found["stage"], found["step"], found["signal"]) == ("preempted", "rank", 8, "SIGTERM")
    assert [path.name for path in parts(run_dir)] == ["part-00000-of-00006.parquet", "part-00001-of-00006.parquet"]
    assert run("rank", dataset, run_dir) == 0
    assert batches == 11 + 26 - 8
    monkeypatch.undo()
    monkeypatch.setattr(ranking, "SAMPLES_PER_PART", 250)
    (tmp_path / "again").mkdir()
    undisturbed = other_run(trained, tmp_path / "again")
    assert run("rank", dataset, undisturbed) == 0
    assert [path.read_bytes() for path in parts(run_dir)] == [path.read_bytes() for path in parts(undisturbed)]


def test_parts_of_another_division_are_not_taken_for_these(
    trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, whole = trained
    run_dir = other_run(trained, tmp_path)
    monkeypatch.setattr(ranking, "SAMPLES_PER_PART", 700)
    assert run("rank", dataset, run_dir) == 0
    first, second = parts(run_dir)
    (run_dir / "rank" / "done.json").unlink()
    rows = pq.read_table(first)                            # as if the border had been elsewhere
    pq.write_table(rows.slice(0, 50), first)
    pq.write_table(rows, run_dir / "rank" / "part-00002-of-00003.parquet")
    assert run("rank", dataset, run_dir) == 0
    assert parts(run_dir) == [first, second]
    assert pq.read_table(parts(run_dir)).equals(pq.read_table(parts(whole)))
