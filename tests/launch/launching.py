"""What the tests of `accelerate launch` share: a clean environment, and two machines, which are both this one."""

from __future__ import annotations

import os
import socket

from tests.digit_runs import ROOT


def environment() -> dict[str, str]:
    """CPU only, also on a machine with GPUs; one thread for each process."""
    own = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    return own | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}


def two_machines() -> list[list[str]]:
    """Options of the launcher on each of two machines, which meet at a free port of this one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = ["--num_processes", "2", "--main_process_ip", "127.0.0.1", "--main_process_port", port]
    return [[*shared, "--machine_rank", str(machine)] for machine in range(2)]
