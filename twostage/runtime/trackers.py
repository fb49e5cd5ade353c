"""Where metrics go besides `metrics.jsonl`: TensorBoard's files, or MLflow or Weights & Biases (`runtime.tracker`).

mlflow: to the server or database in MLFLOW_TRACKING_URI, else to files in RUN/mlflow (`mlflow ui --backend-store-uri`).
wandb: as `wandb login` says; with WANDB_MODE=offline, to files in the stages' folders (`wandb sync`). Both come with
pip install 'twostage[tracking]'.

A stage is one run of the tracker, whatever interrupts it: its id is kept in the stage's folder. Steps that are done
again after an interruption have the same values; MLflow lists these twice, Weights & Biases takes the first.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
from pathlib import Path
from typing import Any, Final

from accelerate.tracking import GeneralTracker, MLflowTracker, TensorBoardTracker, WandBTracker

from twostage.config import Config
from twostage.data.schema import InputError, write_json
from twostage.runtime import stage

PROJECT: Final = "twostage"
"""MLflow's experiment and Weights & Biases' project, unless MLFLOW_EXPERIMENT_NAME or WANDB_PROJECT names another"""
TRACKERS: Final = {"mlflow": "mlflow", "wandb": "wandb"}
"""package that a tracker needs"""


def check_tracker(name: str) -> None:
    """Raises InputError where the package of a tracker is not installed."""
    package = TRACKERS.get(name)
    if package is not None and importlib.util.find_spec(package) is None:
        raise InputError(f"runtime.tracker is {name}, which is not installed: pip install 'twostage[tracking]'")


def make_tracker(folder: Path, config: Config, first_step: int) -> list[GeneralTracker]:
    """The tracker of the stage in `folder`; none where `runtime.tracker` is none.

    Args:
        first_step: what TensorBoard's earlier files say from this step on is not shown.

    Raises:
        InputError: its package is not installed.
    """
    name = config.runtime.tracker
    check_tracker(name)
    if name == "none":
        return []
    if name == "tensorboard":       # which cannot remove anything, but shows nothing that a later file purged
        return [TensorBoardTracker("", folder / "tensorboard", purge_step=first_step)]
    title = f"{config.run.dir.resolve().name}/{folder.name}"
    settings = stage.plain(config)
    return [_mlflow(folder, title, settings) if name == "mlflow" else _wandb(folder, title, settings)]


class _MLflow(MLflowTracker):  # type: ignore[misc]
    """Notes MLflow's id of a new run, and its settings, in its folder."""

    def __init__(self, marker: Path, title: str, settings: dict[str, Any]) -> None:
        found = json.loads(marker.read_text())["run_id"] if marker.exists() else None
        super().__init__(experiment_name=PROJECT, run_name=title, run_id=found)
        self.marker, self.settings, self.is_new = marker, settings, found is None

    def start(self) -> None:
        super().start()
        if self.is_new:
            write_json(self.marker, {"run_id": self.active_run.info.run_id})
            self.store_init_configuration(self.settings)


def _mlflow(folder: Path, title: str, settings: dict[str, Any]) -> GeneralTracker:
    """By MLFLOW_TRACKING_URI a server or database; without it, files in the run folder."""
    import mlflow

    if "MLFLOW_TRACKING_URI" not in os.environ:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")    # newer versions ask for it
        mlflow.set_tracking_uri((folder.parent / "mlflow").resolve().as_uri())
    return _MLflow(folder / "mlflow.json", title, settings)


def _wandb(folder: Path, title: str, settings: dict[str, Any]) -> GeneralTracker:
    """Online where somebody is logged in; WANDB_MODE=offline writes files into the run folder for `wandb sync`."""
    marker = folder / "wandb.json"
    if not marker.exists():
        write_json(marker, {"run_id": secrets.token_hex(8)})
    run_id = json.loads(marker.read_text())["run_id"]
    project = os.environ.get("WANDB_PROJECT", PROJECT)
    return WandBTracker(project, id=run_id, resume="allow", name=title, dir=str(folder), config=settings)
