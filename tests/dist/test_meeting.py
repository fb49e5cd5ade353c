"""Processes that do not find each other say why, soon: a port that is taken, nobody there, wrong ranks, a cut network."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
import torch
import torch.distributed as dist
from twostage.data.schema import InputError
from twostage.runtime.meeting import meet
try:
    meet(float(sys.argv[1]), 900, on_cpu=sys.argv[2] == "gloo")
except InputError as error:
    sys.exit(f"error: {error}")
total = torch.tensor(dist.get_rank() + 1)
dist.all_reduce(total)
print(f"sum {total.item()}")
assert dist.distributed_c10d._get_default_group()._get_backend(torch.device("cpu")).options._timeout.total_seconds() == 2400
dist.destroy_process_group()
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def begin(
    rank: int,
    size: int,
    port: int,
    *,
    seconds: float = 4,
    host: str = "127.0.0.1",
    inside: tuple[str, ...] = (),
    backend: str = "gloo",
) -> subprocess.Popen[str]:
    facts = {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": host, "MASTER_PORT": str(port)}
    environment = {**os.environ, **facts, "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
    if inside:
        environment["GLOO_SOCKET_IFNAME"] = cable_end(inside[-1])
    return subprocess.Popen(
        [*inside, sys.executable, "-c", SCRIPT, str(seconds), backend],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )


def cable_end(namespace: str) -> str:
    """The name of the cable's end in a namespace."""
    links = subprocess.run(["ip", "-n", namespace, "-o", "link"], capture_output=True, text=True, check=True).stdout
    return next(line.split(": ")[1].split("@")[0] for line in links.splitlines() if "@" in line)


def ends(process: subprocess.Popen[str]) -> tuple[int, str]:
    out, errors = process.communicate(timeout=60)
    return process.returncode, out + errors


def test_all_come(tmp_path: Path) -> None:
    port = free_port()
    assert [ends(process)[1] for process in [begin(rank, 3, port) for rank in (2, 0, 1)]] == ["sum 6\n"] * 3


def test_a_port_that_is_taken() -> None:
    with socket.socket(socket.AF_INET6) as busy:
        busy.bind(("::", 0))
        busy.listen()
        code, said = ends(begin(0, 2, busy.getsockname()[1]))
    assert code == 1 and "error: rank 0 cannot listen at port" in said and "set another MASTER_PORT" in said


def test_nobody_answers() -> None:
    begun = time.monotonic()
    code, said = ends(begin(1, 2, free_port(), seconds=2))
    assert code == 1 and "rank 0 has not answered at 127.0.0.1:" in said and "is it started" in said
    assert time.monotonic() - begun < 30


def test_a_rank_that_does_not_come_is_named() -> None:
    port = free_port()
    for code, said in [ends(process) for process in [begin(rank, 4, port, seconds=5) for rank in (0, 2)]]:
        assert code == 1 and "rank 1, 3 of 4 has not come within 5 s (runtime.start_seconds)" in said, said


def test_two_processes_with_one_rank() -> None:
    port = free_port()
    found = [ends(process) for process in [begin(rank, 3, port, seconds=20) for rank in (0, 1, 1)]]
    assert [code for code, _ in found] == [1, 1, 1]
    assert all("two processes are rank 1, on " in said for _, said in found)


def test_a_process_without_a_gpu_among_others_with_one_is_named() -> None:
    port = free_port()
    backends = ["nccl", "nccl", "gloo"]
    begun = time.monotonic()
    found = [ends(process) for process in [begin(rank, 3, port, backend=b) for rank, b in enumerate(backends)]]
    assert time.monotonic() - begun < 30
    assert [code for code, _ in found] == [1, 1, 1], found
    assert "rank 2 on " in found[0][1] and "sees no GPU, rank 0 on" in found[0][1], found


def test_torch_is_more_patient_than_the_watchdog() -> None:
    from twostage.runtime.meeting import patience

    assert patience(None) > timedelta(days=1)
    for seconds in (1, 900, 3600, 86_400):
        assert patience(seconds) >= timedelta(minutes=30) and patience(seconds) > timedelta(seconds=seconds + 300)


def test_rank_0_on_the_wrong_machine() -> None:
    code, said = ends(begin(0, 2, free_port(), seconds=2, host="192.0.2.1"))       # an address for documentation
    assert code == 1 and "MASTER_ADDR says 192.0.2.1, which is not this machine: a wrong rank?" in said


@pytest.mark.parametrize(
    ("facts", "message"),
    [({"MASTER_ADDR": ""}, "MASTER_ADDR is not set"), ({"RANK": "x"}, "RANK is 'x'"), ({"RANK": "2"}, "0 to 1")],
)
def test_wrong_variables(facts: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from twostage.data.schema import InputError
    from twostage.runtime.meeting import meet

    whole = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", **facts}
    for name, value in whole.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message):
        meet(1, 900, on_cpu=True)


@pytest.fixture
def hosts() -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Two network namespaces, joined by a cable: what comes before a command that is to run in each."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    names = [f"twostage-{os.getpid()}-{side}" for side in "ab"]
    ends_ = [f"ts{os.getpid() % 100000}{side}" for side in "ab"]
    try:
        for name in names:
            if subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode:
                pytest.skip("this machine allows no network namespaces")
        subprocess.run(["ip", "link", "add", ends_[0], "type", "veth", "peer", "name", ends_[1]], check=True)
        for number, (name, end) in enumerate(zip(names, ends_, strict=True), 1):
            for command in (
                f"ip link set {end} netns {name}",
                f"ip -n {name} addr add 10.77.7.{number}/24 dev {end}",
                f"ip -n {name} link set {end} up",
                f"ip -n {name} link set lo up",
            ):
                subprocess.run(command.split(), check=True)
        yield tuple(("ip", "netns", "exec", name) for name in names)  # type: ignore[misc]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def test_two_hosts_and_a_cut_cable(hosts: tuple[tuple[str, ...], tuple[str, ...]]) -> None:
    _, second = hosts
    both = [begin(rank, 2, 29500, host="10.77.7.1", inside=where, seconds=20) for rank, where in enumerate(hosts)]
    assert all("sum 3\n" in said for _, said in map(ends, both))

    subprocess.run(["ip", "-n", second[-1], "link", "set", cable_end(second[-1]), "down"], check=True)
    begun = time.monotonic()
    both = [begin(rank, 2, 29500, host="10.77.7.1", inside=where, seconds=3) for rank, where in enumerate(hosts)]
    (one, said), (other, too) = (ends(process) for process in both)
    assert one == other == 1 and time.monotonic() - begun < 60
    assert "rank 1 of 2 has not come within 3 s" in said, said
    assert "rank 1 on " in too and "rank 0 has not answered at 10.77.7.1:29500 for 3 s" in too, too
