"""`twostage runs`: states and figures against what lies in the folders."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from twostage.__main__ import main


def copied(run_dir: Path, path: Path, age: float = 3600) -> Path:
    """A copy of a run whose files are all so many seconds old."""
    shutil.copytree(run_dir, path)
    config = yaml.safe_load((path / "config.yaml").read_text())
    config["run"]["baselines"] = ["cross_entropy"]
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    grow_old(path, age)
    return path


def grow_old(path: Path, age: float) -> None:
    for file in [path, *path.rglob("*")]:
        os.utime(file, (time.time() - age, time.time() - age))


def listed(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, dict[str, Any]]:
    capsys.readouterr()
    assert main(["runs", *map(str, arguments), "--json"]) == 0
    return {Path(state["path"]).name: state for state in json.loads(capsys.readouterr().out)}


def test_states_and_figures(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = copied(run_dir, tmp_path / "a" / "whole")
    begun = copied(run_dir, tmp_path / "a" / "b" / "begun")
    (begun / "train" / "done.json").unlink()
    (begun / "train" / "inputs.json").write_text("{}")
    shutil.rmtree(begun / "evaluate")
    grow_old(begun, 3600)
    missing = copied(run_dir, tmp_path / "missing")
    shutil.rmtree(missing / "baseline_cross_entropy")
    grow_old(missing, 3600)
    more = copied(run_dir, tmp_path / "more")                           # begun, though the configuration has it not
    (more / "finetune").mkdir()
    (more / "finetune" / "inputs.json").write_text("{}")
    grow_old(more, 3600)
    states = listed(capsys, tmp_path)
    assert {name: state["state"] for name, state in states.items()} == {
        "begun": "unfinished", "missing": "unfinished", "more": "unfinished", "whole": "done",
    }
    assert states["missing"]["missing"] == ["baseline_cross_entropy"]
    assert states["begun"]["missing"] == ["train", "evaluate"] and states["begun"]["test_accuracy"] == {}
    last = json.loads((begun / "train" / "metrics.jsonl").read_text().splitlines()[-1])
    assert states["begun"]["at"] == f"train, epoch {last['epoch'] + 1}", "metrics count from 0, people from 1"
    lines = [json.loads(line) for line in (begun / "train" / "metrics.jsonl").read_text().splitlines()]
    assert states["begun"]["val_accuracy"] == max(line["val/accuracy"] for line in lines if "val/accuracy" in line)
    tests = whole.glob("evaluate/*/test.json")
    accuracies = {path.parent.name: json.loads(path.read_text())["accuracy"] for path in tests}
    assert states["whole"]["test_accuracy"] == accuracies
    assert accuracies[states["whole"]["best"]] == max(accuracies.values())
    mined = json.loads((whole / "mine" / "done.json").read_text())["results"]
    assert [states["whole"][name] for name in ("kept", "labels", "purity")] == [
        mined["kept"], mined["images"], mined["purity"]]

    with (begun / "train" / "metrics.jsonl").open("a") as file:       # it goes on, and is writing a line
        file.write('{"step": 9')
    assert listed(capsys, tmp_path / "a")["begun"]["state"] == "running"
    grow_old(begun, 120)
    assert listed(capsys, begun)["begun"]["state"] == "running"
    assert listed(capsys, begun, "--recent", 1)["begun"]["state"] == "unfinished"

    assert main(["runs", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "4 runs: 1 done, 1 running, 2 unfinished" in printed
    row = next(line for line in printed.splitlines() if line.startswith(f"{whole} "))
    assert f"{100 * max(accuracies.values()):.2f} % two-stage" in row
    assert f"{mined['kept']:,} of {mined['images']:,}" in row
    assert "1 h ago" in row


def test_without_a_test_split_a_run_can_be_done(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(run_dir, tmp_path / "run")
    shutil.rmtree(run / "evaluate")
    models = {name: {"val_accuracy": 0.9} for name in ("baseline_cross_entropy", "pretrain")}
    (run / "summary.json").write_text(json.dumps({"models": models}))
    grow_old(run, 3600)
    assert listed(capsys, run)["run"]["missing"] == ["evaluate"], "the last model was not validated"
    (run / "summary.json").write_text(json.dumps({"models": {**models, "train": {"val_accuracy": 0.95}}}))
    grow_old(run, 3600)
    state = listed(capsys, run)["run"]
    assert state["state"] == "done" and state["missing"] == [] and state["test_accuracy"] == {}


def test_a_test_of_earlier_weights_does_not_count(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(run_dir, tmp_path / "run")
    before = listed(capsys, run)["run"]
    assert before["state"] == "done" and "train" in before["test_accuracy"]
    (run / "train" / "model.safetensors").write_text("trained again")
    after = listed(capsys, run)["run"]
    assert after["missing"] == ["evaluate"] and after["state"] != "done"
    assert after["test_accuracy"] == {k: v for k, v in before["test_accuracy"].items() if k != "train"}
    (run / "summary.json").write_text(json.dumps({"models": {"train": {"val_accuracy": 0.9}}}))
    (run / "train" / "done.json").write_text(json.dumps({"inputs": {}, "results": {"val_accuracy": 0.8}}))
    assert listed(capsys, run)["run"]["missing"] == ["evaluate"], "the validation accuracy is of earlier weights too"


def test_without_a_test_split_the_figure_is_that_of_the_last_stage_and_no_baseline(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(run_dir, tmp_path / "run")
    shutil.rmtree(run / "evaluate")
    for name, accuracy in (("baseline_cross_entropy", 0.875), ("pretrain", 0.75), ("train", 0.625)):
        (run / name / "metrics.jsonl").write_text(json.dumps({"step": 1, "epoch": 0, "val/accuracy": accuracy}) + "\n")
    for gone, accuracy in ((None, 0.625), ("train", 0.75), ("pretrain", 0.875)):
        if gone is not None:
            shutil.rmtree(run / gone)
        assert listed(capsys, run)["run"]["val_accuracy"] == accuracy
        assert main(["runs", str(run)]) == 0
        assert f" {100 * accuracy:.2f} % on validation" in capsys.readouterr().out


def test_stage_one_is_called_balanced_where_it_is(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for balance, title in ((True, "balanced cross-entropy (stage 1)"), (False, "cross-entropy (stage 1)")):
        run = copied(run_dir, tmp_path / str(balance))
        config = yaml.safe_load((run / "config.yaml").read_text())
        config["pretrain"] = {"balance": balance}
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        for test in run.glob("evaluate/*/test.json"):
            test.write_text(json.dumps({"accuracy": 0.9 if test.parent.name == "pretrain" else 0.5}))
        assert main(["runs", str(run)]) == 0
        assert f" 90.00 % {title}" in capsys.readouterr().out


def test_damage_is_named_and_nothing_else_is_lost(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(run_dir, tmp_path / "ru\x1bn")
    (run / "evaluate" / "train" / "test.json").write_text("{")
    (run / "config.yaml").write_text("a: [b")
    assert main(["runs", str(run)]) == 0
    printed = capsys.readouterr().out
    assert "test.json cannot be read" in printed and "config.yaml cannot be read" in printed
    assert "1 runs:" in printed and "\x1b" not in printed.splitlines()[1]


def test_no_run_and_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(tmp_path)]) == 0
    assert "no runs in" in capsys.readouterr().out
    (tmp_path / "first").mkdir()
    assert main(["runs", str(tmp_path / "fisrt")]) == 2
    assert "did you mean 'first'?" in capsys.readouterr().err
    assert main(["runs", str(tmp_path), "--recent", "0"]) == 2


def test_it_needs_no_torch() -> None:
    code = "import sys, twostage.report.runs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("verb", ["predict", "export", "runs"])
def test_help_teaches_by_examples(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    printed = capsys.readouterr().out
    assert stop.value.code == 0 and f"  twostage {verb} runs" in printed
