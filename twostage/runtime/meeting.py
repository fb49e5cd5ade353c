"""All processes of a run find each other at the start, or each says within a minute who is missing, and where.

torch waits for half an hour. This is for processes that a scheduler has started one by one, with RANK, WORLD_SIZE,
MASTER_ADDR and MASTER_PORT in the environment. Under `accelerate launch` and `torchrun` the launchers have met before
(their own limit is `--rdzv_conf timeout=30`) and keep what the processes look at.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Final

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from twostage.data.schema import InputError

NAMES: Final = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
LEAST_PATIENCE: Final = 1800.0
LINGER: Final = 2.0     # seconds that rank 0, which keeps what all look at, stays for the others to see why it goes


def meet(seconds: float, watchdog_seconds: float | None, *, on_cpu: bool) -> None:
    """Joins the process group, unless there is one or this process is alone.

    Args:
        seconds: how long processes wait for each other.
        watchdog_seconds: how long they may stand still later on, before the watchdog ends them with its reasons.
        on_cpu: they talk by gloo, else by NCCL.

    Raises:
        InputError: a variable is missing or wrong, the first process cannot be reached or its port is taken, two
            processes have the same rank, some have not come in time (names them), or some see a GPU and some none.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1" or dist.is_initialized():
        return
    rank, size, host, port = _facts()
    store = _common_store(rank, size, host, port, seconds)
    # a static rendezvous keeps the launcher's store over --max_restarts: without a name for each attempt, the second
    # would read the addresses of the first one's processes, and connect to the dead
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    meeting = PrefixStore(f"attempt {attempt}", store)
    backend = "gloo" if on_cpu else "nccl"
    _take_seat(meeting, rank, backend)
    _wait_for_all(meeting, rank, size, seconds)
    limit = patience(watchdog_seconds)
    store.set_timeout(limit)        # by the store NCCL's processes find each other, but not before they first talk
    group = PrefixStore("group", meeting)
    dist.init_process_group(backend, store=group, rank=rank, world_size=size, timeout=limit)


def patience(watchdog_seconds: float | None) -> timedelta:
    """How long torch lets a process wait for the others: longer than the watchdog, as it ends them without a reason.

    Its own limit with NCCL is 10 minutes, which a rank that downloads weights or mines for all may need.
    """
    if watchdog_seconds is None:
        return timedelta(days=7)
    return timedelta(seconds=max(LEAST_PATIENCE, 2 * watchdog_seconds + 600))


def _facts() -> tuple[int, int, str, int]:
    missing = [name for name in NAMES if not os.environ.get(name)]
    if missing:
        raise InputError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {', '.join(missing)} is not set: start the processes by "
            "`accelerate launch`, or set " + ", ".join(NAMES)
        )
    numbers = {name: os.environ[name] for name in NAMES if name != "MASTER_ADDR"}
    for name, value in numbers.items():
        if not value.isdecimal():
            raise InputError(f"{name} is {value!r}, which is no number")
    rank, size, port = map(int, numbers.values())
    if rank >= size:
        raise InputError(f"RANK is {rank}, but WORLD_SIZE {size}: ranks are 0 to {size - 1}")
    return rank, size, os.environ["MASTER_ADDR"], port


def _common_store(rank: int, size: int, host: str, port: int, seconds: float) -> TCPStore:
    try:
        is_master = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        return TCPStore(host, port, size, is_master, timedelta(seconds=seconds), wait_for_workers=False)
    except (RuntimeError, OSError) as error:        # torch's own errors are RuntimeErrors
        reason = str(error).partition("\n")[0].partition(" Exception raised from")[0]
        if rank == 0 and _is_own(host):
            raise InputError(
                f"rank 0 cannot listen at port {port} of {_here()}: {reason}; another program, or an earlier run, may "
                "have it: set another MASTER_PORT for all processes"
            ) from error
        if rank == 0:
            raise InputError(
                f"rank 0 is on {_here()}, but MASTER_ADDR says {host}, which is not this machine: a wrong rank?"
            ) from error
        raise InputError(
            f"rank {rank} on {_here()}: rank 0 has not answered at {host}:{port} for {seconds:g} s: {reason}; is it "
            "started, is MASTER_ADDR its address, and the port open between the machines?"
        ) from error


def _take_seat(store: Store, rank: int, backend: str) -> None:
    if store.add(f"taken/{rank}", 1) == 1:
        store.set(f"backend/{rank}", backend)
        store.set(f"seat/{rank}", _here())
        return
    other = store.get(f"seat/{rank}").decode()
    refusal = f"two processes are rank {rank}, on {other} and on {_here()}: give each machine its own rank"
    store.set("refusal", refusal)
    raise InputError(refusal)


def _wait_for_all(store: Store, rank: int, size: int, seconds: float) -> None:
    until = time.monotonic() + seconds
    seats = [f"seat/{other}" for other in range(size)]
    try:
        while not store.check(seats):
            if store.check(["refusal"]):
                raise InputError(f"rank {rank}: {store.get('refusal').decode()}")
            if time.monotonic() > until:
                missing = [other for other in range(size) if not store.check([f"seat/{other}"])]
                refusal = f"{_listed(missing)} of {size} has not come within {seconds:g} s (runtime.start_seconds)"
                store.set("refusal", refusal)
                raise InputError(f"rank {rank} on {_here()}: {refusal}; is it started, with this MASTER_ADDR?")
            time.sleep(0.05)
        _check_backends(store, size)
        store.add("met", 1)
        while rank == 0 and store.add("met", 0) < size:     # its store must not go before all have looked
            time.sleep(0.01)
    except InputError:
        if rank == 0:
            time.sleep(LINGER)
        raise
    except RuntimeError as error:
        raise InputError(f"rank {rank} on {_here()}: rank 0 ended before all had come; it said why") from error


def _check_backends(store: Store, size: int) -> None:
    """Each process chooses by the GPUs that it sees, and those that choose differently would never meet."""
    by_backend: dict[str, int] = {}
    for rank in range(size):
        by_backend.setdefault(store.get(f"backend/{rank}").decode(), rank)
    if len(by_backend) > 1:
        without, with_gpu = by_backend["gloo"], by_backend["nccl"]
        places = [store.get(f"seat/{rank}").decode() for rank in (without, with_gpu)]
        raise InputError(
            f"rank {without} on {places[0]} sees no GPU, rank {with_gpu} on {places[1]} does: look at nvidia-smi and "
            "CUDA_VISIBLE_DEVICES there, or set runtime.device: cpu for all"
        )


def _is_own(host: str) -> bool:
    """Whether an address belongs to this machine."""
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    except OSError:
        return False
    for family, kind, _, _, address in found:
        with socket.socket(family, kind) as probe:
            try:
                probe.bind(address)
            except OSError:
                continue
            return True
    return False


def _listed(ranks: Sequence[int]) -> str:
    return f"rank {', '.join(map(str, ranks[:8]))}" + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")


def _here() -> str:
    return f"{os.uname().nodename} (process {os.getpid()})"
