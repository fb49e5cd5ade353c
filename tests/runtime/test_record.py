"""config.yaml and environment.json say by what the finished stages were made, whatever is asked for later."""

from __future__ import annotations

import dataclasses
import errno
from pathlib import Path
from typing import Any

import pytest
import yaml

from twostage.cli import parse
from twostage.config import Config
from twostage.runtime import record, stage
from twostage.runtime.preemption import Preempted
from twostage.runtime.session import flat


def given(run_dir: Path, *settings: str) -> Config:
    fields = (f"--{setting}" for setting in settings)
    return parse("run", "", ["--run.dir", str(run_dir), "--data.dataset", "dataset", *fields])


def finish(config: Config, name: str, **more: Any) -> None:
    """Marks a stage as done by this configuration."""
    shared = ("data", "model", "augment")
    inputs = flat({section: dataclasses.asdict(getattr(config, section)) for section in shared})
    del inputs["data.dataset"]
    inputs |= {"dataset.samples": "0" * 64, "run.rng_seed": config.run.rng_seed, "model.weights": "1" * 64}
    (config.run.dir / name).mkdir(exist_ok=True)
    stage.finish(config.run.dir / name, inputs | (more or stage.plain(getattr(config, name), f"{name}.")), {})


def kept_settings(run_dir: Path, *names: str) -> list[Any]:
    found = flat(yaml.safe_load((run_dir / "config.yaml").read_text()))
    return [found[name] for name in names]


def test_sections_of_finished_stages_stay(tmp_path: Path) -> None:
    first = given(tmp_path, "mine.min_score=0.8", "pretrain.optimizer.lr=0.5", "finetune.epochs=2")
    for name in ("pretrain", "mine"):
        finish(first, name)
    finish(first, "finetune", finetune=stage.plain(first.finetune))
    names = ("mine.min_score", "pretrain.optimizer.lr", "finetune.epochs", "train.sub_epochs", "model.dropout")
    record.write_config(given(tmp_path, "train.sub_epochs=7", "model.dropout=0.2"))
    assert kept_settings(tmp_path, *names) == [0.8, 0.5, 2, 7, 0.2], "of the next stages, what is given counts"
    (tmp_path / "mine" / "done.json").unlink()
    record.write_config(given(tmp_path, "mine.min_score=0.7"))
    assert kept_settings(tmp_path, *names)[:2] == [0.7, 0.5], "labels are to be mined anew"


def test_what_stages_share_stays_where_nothing_is_trained(tmp_path: Path) -> None:
    first = given(tmp_path, "data.labels=noisy", "model.dropout=0.3", "model.weights=file.pth", "run.rng_seed=4")
    for name in ("pretrain", "rank"):
        finish(first, name)
    names = ("data.labels", "model.dropout", "run.rng_seed", "model.weights", "augment.resize", "data.test_split")
    later = given(tmp_path, "augment.resize=300", "data.test_split=other", "model.weights=moved.pth", "run.rng_seed=4")
    record.write_config(later, trains=False)
    assert kept_settings(tmp_path, *names) == ["noisy", 0.3, 4, "moved.pth", 300, "other"]
    finish(given(tmp_path, "data.labels=noisy", "model.dropout=0.1"), "train")
    record.write_config(given(tmp_path, "model.dropout=0.2"), trains=False)
    assert kept_settings(tmp_path, "data.labels", "model.dropout") == ["noisy", 0.2], "there is no one value of it"


@pytest.mark.parametrize(
    "stop", [Preempted("train", None, "SIGTERM"), OSError(errno.ENOSPC, "no space left"), KeyboardInterrupt()],
    ids=["preempted", "no space", "interrupted"],
)
def test_both_files_are_put_back_however_it_ends(tmp_path: Path, stop: BaseException) -> None:
    for name in ("config.yaml", "environment.json"):
        (tmp_path / name).write_text("before")

    def work(marker: str | None) -> None:
        with pytest.raises(type(stop)), record.kept(tmp_path):
            record.write_config(given(tmp_path))
            record.write_environment(tmp_path)
            if marker is not None:
                stage.begin(tmp_path / marker, {})
            raise stop

    work(None)
    assert {(tmp_path / name).read_text() for name in ("config.yaml", "environment.json")} == {"before"}
    work("train")
    assert "before" not in {(tmp_path / name).read_text() for name in ("config.yaml", "environment.json")}
