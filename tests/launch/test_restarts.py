"""`accelerate launch --max_restarts`: a worker is killed, and the second attempt ends with the same bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launching import environment, two_machines

from tests import digit_runs
from tests.digit_runs import ROOT
from twostage.runtime import manifest

SETTINGS = {"model.name": "mlp", "pretrain.epochs": "12", "runtime.checkpoint_steps": "3"}
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--max_restarts", "1"]


def launch(config: str, options: list[str], dataset: Path, run_dir: Path) -> subprocess.Popen[str]:
    command = [*LAUNCH, "--config_file", f"launch/accelerate/{config}.yaml", *options, "-m", "twostage"]
    return subprocess.Popen(
        [*command, *digit_runs.arguments("pretrain", dataset, run_dir, SETTINGS)],
        cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )


def workers(launcher: int) -> list[int]:
    """The launcher's children that are ranks of the run."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return [int(child) for child in children if b"twostage" in Path(f"/proc/{child}/cmdline").read_bytes()]


@pytest.fixture(scope="module")
def undisturbed(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("undisturbed")
    launcher = launch("cpu-2", [], digits, run_dir)
    printed = launcher.communicate(timeout=240)[0]
    assert launcher.returncode == 0, printed
    return run_dir


@pytest.mark.parametrize(("config", "victim"), [("cpu-2", 0), ("nodes", 1)])
def test_a_killed_worker_is_started_again_and_goes_on(
    config: str, victim: int, undisturbed: Path, digits: Path, tmp_path: Path
) -> None:
    """With two machines, which are this one twice, the launcher of the other notices as its worker ends too."""
    machines = two_machines() if config == "nodes" else [[]]
    launchers = [launch(config, options, digits, tmp_path) for options in machines]
    checkpoints = tmp_path / "pretrain" / "checkpoints"
    try:
        while all(launcher.poll() is None for launcher in launchers) and not manifest.committed(checkpoints):
            time.sleep(0.002)
        ranks = [worker for launcher in launchers for worker in workers(launcher.pid)]
        os.kill(ranks[victim], signal.SIGKILL)
        printed = "\n".join(launcher.communicate(timeout=240)[0] for launcher in launchers)
    finally:
        for launcher in launchers:
            launcher.terminate()        # it ends its workers too; nothing where all went well
    assert not any(launcher.returncode for launcher in launchers), printed

    assert json.loads((tmp_path / "status.json").read_text())["restarts"] == 1, printed
    assert "pretrain: goes on after step" in printed
    weights = [(run_dir / "pretrain" / "model.safetensors").read_bytes() for run_dir in (undisturbed, tmp_path)]
    assert weights[0] == weights[1]
