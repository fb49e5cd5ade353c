"""A chain of jobs on scanned digits, two nodes with one process each, by launch/slurm/submit.sh."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tests.slurm.cluster import Cluster

ROOT = Path(__file__).parents[2]
SUBMIT = str(ROOT / "launch" / "slurm" / "submit.sh")

# Small enough for seconds on two cores.
CONFIG = """\
data: {labels: noisy, clean_labels: given, holdout: 0.1}
model: {name: mlp, dropout: 0.2, input_noise: 0.1}
augment: {channels: gray, resize: null, size: 32, shift: 1, flip: false, mean: [0.3], std: [0.35]}
pretrain: {epochs: 4, batch_size: 64, optimizer: {lr: 0.003}}
train: {sub_epochs: 4, batch_size: 64, consistency_weight: 3, ramp_up: 2, optimizer: {lr: 0.001}}
runtime: {log_steps: 5, checkpoint_steps: 5}
"""
NOISE = ("--name", "noisy", "--kind", "asymmetric", "--flips", "mnist", "--rate", "0.4", "--rng-seed", "0")

SEARCH_PATH = f"{Path(sys.executable).parent}:$PATH"        # for bash: the programs beside this python come first


@dataclass
class Chain:
    """Settings of a chain; everything lies in `folder`."""

    cluster: Cluster
    folder: Path
    dataset: Path
    options: tuple[str, ...] = ()
    """of twostage"""
    settings: dict[str, str] = field(default_factory=dict)
    """lines of the settings file that differ, as bash reads them"""

    @property
    def run_dir(self) -> Path:
        return self.folder / "run"

    def write(self, **more: str) -> Path:
        """Writes the settings file: the template with other values, `more` for this once."""
        config = self.folder / "config.yaml"
        config.write_text(CONFIG)
        values = {
            "CONFIG": str(config),
            "DATASET": str(self.dataset),
            "RUN_DIR": str(self.run_dir),
            "OPTIONS": f"({shlex.join(self.options)})",
            "PREP_PARTS": "2",
            "PREP_OPTIONS": "(--format folder --shard-size 256)",
            "PREP_JOBS": "(--cpus-per-task=1)",
            "GPU_JOBS": "(--nodes=2 --ntasks-per-node=1)",
            "PATH": SEARCH_PATH,
            **self.settings,
            **more,
        }
        text = (ROOT / "launch" / "slurm" / "settings.sh").read_text()
        for name, value in values.items():
            text, count = re.subn(rf"(?m)^{name}=.*$", lambda _, n=name, v=value: f"{n}={v}", text)
            assert count == 1, name
        path = self.folder / "settings.sh"
        path.write_text(text)
        return path

    def without_slurm(self, verb: str, run_dir: Path) -> None:
        """The same verb in two processes of this machine."""
        self.write()
        command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "launch/accelerate/cpu-2.yaml",
                   "-m", "twostage", verb, "--config", str(self.folder / "config.yaml"), "--data.dataset",
                   str(self.dataset), "--run.dir", str(run_dir), *self.options]
        done = subprocess.run(command, cwd=ROOT, env=self.cluster.environment, capture_output=True, text=True,
                              check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def submit(self, *arguments: str) -> dict[str, str]:
        """Calls submit.sh; returns the job numbers of the stages that it submitted."""
        printed = self.call(*arguments)
        assert printed.returncode == 0, printed.stdout + printed.stderr
        return dict(re.findall(r"(?m)^(\w+): submitted as job (\d+)$", printed.stdout))

    def call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.cluster.call([SUBMIT, str(self.write()), *arguments])

    def log(self, stage: str) -> str:
        """All that the jobs of a stage have printed."""
        return "".join(path.read_text() for path in sorted((self.run_dir / "slurm").glob(f"{stage}-*.out")))

    def finish(self, jobs: dict[str, str], *, seconds: float = 240) -> None:
        """Waits until all jobs have ended, well."""
        for stage, number in jobs.items():
            self.cluster.wait_for(number, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", seconds=seconds)
            assert self.cluster.state(number) == "COMPLETED", self.log(stage)


def stub(folder: Path, name: str, script: str) -> Path:
    """A program in a folder of its own, to come before another one of the same name."""
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path
