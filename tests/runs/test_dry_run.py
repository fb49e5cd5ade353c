"""--dry-run of the verbs that train: everything is checked, nothing is written; Ctrl-C ends a run cleanly."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest
from running import ROOT, command, environment

from twostage.__main__ import main
from twostage.verbs import VERBS


def rehearsed(verb: str, dataset: Path, run_dir: Path, **settings: str) -> int:
    return main([*command(verb, dataset, run_dir, **settings)[3:], "--dry-run"])


def test_nothing_is_written_whatever_the_verb(
    digits: Path, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for verb in VERBS:
        possible = verb not in ("clean_filter", "finetune")
        assert rehearsed(verb, digits, run_dir, run__baselines="[cross_entropy]") == (0 if possible else 2)
        told, errors = capsys.readouterr()
        if not possible:
            assert "clean_train" in errors
            continue
        assert "10 classes; trained on 1,167 images with the labels 'noisy', validated on 130 held out" in told
        assert "mlp: " in told and "nothing was written" in told
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before

    assert rehearsed("run", digits, run_dir) == 0
    lines = {line.split()[0]: line.split(maxsplit=1)[1] for line in capsys.readouterr().out.splitlines()[2:6]}
    assert lines == dict.fromkeys(("pretrain", "rank", "mine"), "is done") | {"train": "would be done"}
    assert rehearsed("train", digits, tmp_path / "new") == 0
    assert "goes on from mine, which is not done" in capsys.readouterr().out
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data__labels": "nosy"}, "did you mean 'noisy'?"),
        ({"data__dataset": "nowhere"}, "is not a dataset"),
        ({"model__name": "resnet15"}, "model.name"),
        ({"mine__min_share": "2"}, "min_share"),
        ({"data__val_split": "noisy_train", "data__holdout": "null"}, "noisy_train"),
        ({"run__two_stage": "false"}, "nothing to run"),
    ],
)
def test_what_is_wrong_is_found(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: dict[str, str], message: str
) -> None:
    assert rehearsed("run", digits, tmp_path / "new", **settings) == 2
    assert message in capsys.readouterr().err


def test_ctrl_c_ends_with_one_line_and_the_same_command_goes_on(digits: Path, tmp_path: Path) -> None:
    arguments = command("pretrain", digits, tmp_path / "run", pretrain__epochs="400")
    process = subprocess.Popen(
        arguments, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("pretrain epoch 2/"):
            break
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert told.splitlines() == ["interrupted; the same command goes on where this one stopped"]
    assert main([*arguments[3:], "--dry-run"]) == 0
    assert list((tmp_path / "run" / "pretrain" / "checkpoints").glob("step-*"))
