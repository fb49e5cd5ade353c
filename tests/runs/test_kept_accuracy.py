"""The validation accuracy that a stage tells is that of the weights it keeps, also after it was cut off."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from running import command

from twostage.__main__ import main
from twostage.stage1 import pretrain
from twostage.stage2 import train

ACCURACIES = (0.5, 0.75, 0.625)         # of the epochs: the best is not the last


def validating(accuracies: tuple[float, ...]) -> Callable[..., float]:
    values = iter(accuracies)
    return lambda *_, **__: next(values)


def told(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> float:
    """What `twostage runs` says of a run that is not tested."""
    capsys.readouterr()
    assert main(["runs", str(run_dir), "--json"]) == 0
    (state,) = json.loads(capsys.readouterr().out)
    return float(state["val_accuracy"])


@pytest.mark.parametrize(("select", "expected"), [("last", 0.625), ("best", 0.75)])
@pytest.mark.parametrize("stage", [pretrain, train], ids=["pretrain", "train"])
def test_it_is_that_of_the_weights_that_are_kept(
    stage: ModuleType, select: str, expected: float, digits: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = stage.__name__.rpartition(".")[2]
    if name == "pretrain":
        run_dir = run_dir.with_name("new")
    settings = {f"{name}__select": select, "pretrain__epochs": "3" if name == "pretrain" else "4",
                "train__sub_epochs": "3"}
    arguments = command(name, digits, run_dir, **settings)[3:]

    def cut_off(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stage, "accuracy_on", validating(ACCURACIES))
    with monkeypatch.context() as once:             # after the last checkpoint, before the weights are written
        once.setattr(stage, "save_weights", cut_off)
        assert main(arguments) == 130
    monkeypatch.setattr(stage, "accuracy_on", validating(()))
    assert main(arguments) == 0
    results = json.loads((run_dir / name / "done.json").read_text())["results"]
    assert results["val_accuracy"] == expected == told(run_dir, capsys)
