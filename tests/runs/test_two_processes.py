"""Two gloo processes give the ranking and the seeds of one, and train on the same global batches."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from running import command, ranking, succeed

LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "launch/accelerate/cpu-2.yaml", "-m"]


def launched(arguments: list[str]) -> list[str]:
    """The same command in two processes."""
    return [*LAUNCH, *arguments[2:]]


def test_ranking_and_seeds_of_two_processes_equal_those_of_one(digits: Path, run_dir: Path, tmp_path: Path) -> None:
    other = tmp_path / "two"
    shutil.copytree(run_dir / "pretrain", other / "pretrain")
    for verb in ("rank", "mine"):
        succeed(launched(command(verb, digits, other)) if verb == "rank" else command(verb, digits, other))
    assert len(list((other / "rank").glob("part-*.parquet"))) == 2
    assert ranking(run_dir).equals(ranking(other))
    assert (run_dir / "mine" / "seeds.parquet").read_bytes() == (other / "mine" / "seeds.parquet").read_bytes()
    assert (run_dir / "mine" / "val.parquet").read_bytes() == (other / "mine" / "val.parquet").read_bytes()


def test_the_whole_run_in_two_processes(digits: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    settings = {"train__method": "temporal_ensembling", "train__pass_over": "unlabeled", "run__baselines": "[forward]"}
    arguments = command("run", digits, run_dir, **settings)
    printed = succeed(launched(arguments))
    assert "2 process(es) on cpu" in printed
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["models"]["train"]["test_accuracy"] > 0.6
    # one process goes on with what two have left, and finds all of it done
    assert succeed(arguments).count("already done") >= 5
