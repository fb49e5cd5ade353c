"""Every file in launch/accelerate is one that accelerate accepts, explains its lines, and starts what it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import ClusterConfig
from accelerate.utils import DistributedType
from launching import environment, two_machines

from twostage.runtime.zero_config import read_config

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "launch" / "accelerate").glob("*.yaml"))
SCRIPT = """
import pathlib, sys, torch
from twostage.machine_config import RuntimeConfig
from twostage.runtime.world import gather_strings, start
from twostage.runtime.zero_config import asked_for
accelerator, world = start(RuntimeConfig(precision="bf16"))
said = gather_strings(f"{world.rank}/{world.size} {world.device} {accelerator.mixed_precision} {asked_for()}", world)
if world.is_main:
    pathlib.Path(sys.argv[1]).write_text("|".join(said))
if world.size > 1:
    torch.distributed.destroy_process_group()
"""


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_accelerate_reads_it(path: Path) -> None:
    config = ClusterConfig.from_yaml_file(str(path))        # refuses unknown keys
    deepspeed, several = path.name.startswith("deepspeed"), "nodes" in path.name
    assert (config.distributed_type == DistributedType.DEEPSPEED) == deepspeed
    assert config.mixed_precision == "no", "the run's configuration says it"
    assert config.num_machines == (2 if several else 1) and config.num_processes % config.num_machines == 0
    assert (config.main_process_ip is not None) == several
    if deepspeed:
        file = ROOT / config.deepspeed_config["deepspeed_config_file"]
        read_config(file, batch_size=config.num_processes, num_processes=config.num_processes, pieces=1,
                    precision="fp32", parameters={"weight": 10})
        assert (config.deepspeed_config.get("deepspeed_multinode_launcher") == "standard") == several


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_every_line_is_explained(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert any(f"accelerate launch --config_file launch/accelerate/{path.name}" in line for line in lines)
    for line in lines:
        assert "#" in line and len(line) <= 120, f"{path.name}: {line}"
        assert len(line.partition("#")[2].strip()) > 5, f"{path.name}: {line}"


@pytest.mark.parametrize("name", ["cpu-1", "cpu-2", "deepspeed-cpu-2", "nodes", "deepspeed-nodes"])
def test_what_needs_no_gpu_starts(name: str, tmp_path: Path) -> None:
    """Files for several machines are started twice here, as two machines with one process each."""
    script, told = tmp_path / "script.py", tmp_path / "told"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", f"launch/accelerate/{name}.yaml"]
    machines = two_machines() if name.endswith("nodes") else [[]]
    started = [
        subprocess.Popen([*command, *options, str(script), str(told)], cwd=ROOT, env=environment(),
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for options in machines
    ]
    printed = [process.communicate(timeout=300)[0] for process in started]
    assert not any(process.returncode for process in started), "\n".join(printed)
    size = 1 if name == "cpu-1" else 2
    file = "launch/deepspeed/zero1.json" if "deepspeed" in name else None
    assert told.read_text().split("|") == [f"{rank}/{size} cpu bf16 {file}" for rank in range(size)]
