"""Where metrics go: TensorBoard, MLflow's file store and offline Weights & Biases, the last two where installed."""

from __future__ import annotations

from pathlib import Path

import pytest
from accelerate import Accelerator

from twostage.config import Config, DataConfig, RunConfig
from twostage.data.schema import InputError
from twostage.machine_config import RuntimeConfig
from twostage.runtime import trackers, tracking


def config(run_dir: Path, tracker: str) -> Config:
    runtime = RuntimeConfig(tracker=tracker)                # type: ignore[arg-type]
    return Config(run=RunConfig(dir=run_dir), data=DataConfig(dataset=Path("d")), runtime=runtime)


def train(settings: Config, first: int, last: int, resumed: int | None) -> None:
    """What a stage reports of the steps first..last."""
    accelerator = Accelerator(cpu=True)
    tracking.start_tracking(accelerator, settings.run.dir / "pretrain", resumed, settings)
    for step in range(first, last + 1):
        tracking.log(accelerator, {"train/loss": 1 / step, "val/accuracy": step / 10}, step, 0)
    tracking.stop_tracking(accelerator)


def test_none(tmp_path: Path) -> None:
    train(config(tmp_path, "none"), 1, 2, None)
    assert [path.name for path in (tmp_path / "pretrain").iterdir()] == ["metrics.jsonl"]


def test_mlflow_keeps_one_run_for_a_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="the extra `tracking` is not installed")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    settings = config(tmp_path / "run", "mlflow")
    train(settings, 1, 4, None)
    train(settings, 3, 6, 2)                                # killed after step 4, and gone on with from step 2
    client = mlflow.MlflowClient((tmp_path / "run" / "mlflow").as_uri())
    (experiment,) = [e for e in client.search_experiments() if e.name == "twostage"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "run/pretrain" and run.info.status == "FINISHED"
    losses = {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, "train/loss")}
    assert losses == pytest.approx({step: 1 / step for step in range(1, 7)})
    assert run.data.params["pretrain.optimizer.lr"] == "0.0003" and run.data.params["runtime.tracker"] == "mlflow"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"], "nothing is written elsewhere"


def test_wandb_offline_keeps_one_run_for_a_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="the extra `tracking` is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    settings = config(tmp_path / "run", "wandb")
    train(settings, 1, 4, None)
    train(settings, 3, 6, 2)
    files = sorted((tmp_path / "run" / "pretrain" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert files and len({path.name for path in files}) == 1, "two ids for one stage"
    assert all(b"val/accuracy" in path.read_bytes() for path in files)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"], "nothing is written elsewhere"


def test_what_is_not_installed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "TRACKERS", {"mlflow": "not_there", "wandb": "not_there"})
    for name in ("mlflow", "wandb"):
        with pytest.raises(InputError, match=rf"runtime.tracker is {name}, .*pip install 'twostage\[tracking\]'"):
            train(config(tmp_path, name), 1, 1, None)
