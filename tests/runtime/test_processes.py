"""What several processes do together: two gloo processes, started once, report to the tests below."""

from __future__ import annotations

import errno
import json
import os
import platform
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from fake_loader import FakeLoader, new_model
from torch import nn

from twostage.config import OptimizerConfig
from twostage.data.schema import InputError
from twostage.machine_config import RuntimeConfig
from twostage.runtime import manifest, stage
from twostage.runtime.checkpoint import load_newest, save
from twostage.runtime.evaluation import accuracy_on, predict
from twostage.runtime.optimizers import make_optimizer
from twostage.runtime.snapshot import model_tensors, to_bytes
from twostage.runtime.world import (
    World,
    _check_gpus,
    _check_launch,
    agree,
    all_reduce_sum,
    average_batchnorm,
    barrier,
    gather_strings,
    start,
    synchronise_batchnorm,
)

VIEW = np.random.default_rng(0).permutation(53).astype(np.int64)
LABELS = np.arange(53, dtype=np.int64) % 4
CPU = torch.device("cpu")


def message(action: Callable[[], object]) -> str:
    """What an action fails with."""
    try:
        action()
    except (InputError, OSError) as error:
        return f"{type(error).__name__} {error}"
    return "no error"


def draws() -> list[float]:
    return [torch.rand(1).item(), random.random(), float(np.random.rand())]


def take_steps(network: nn.Module, optimizer: torch.optim.Optimizer, world: World) -> None:
    for _ in range(3):
        images = torch.randn(4, 3, 8, 8) + world.rank
        loss = network(images).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def save_simply(folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, world: World) -> Path:
    return save(
        folder, step=step, model=model, optimizer=optimizer, extra_tensors={"rank": torch.tensor(world.rank)},
        state={"rng_seed": 5}, world=world, keep=2,
    )


def rank_main(rank: int, folder: Path) -> None:
    """Everything that one of the two processes does; its findings go to `<rank>.json`."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", OMP_NUM_THREADS="1")
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=2)
    accelerator, world = start(RuntimeConfig(device="cpu"))
    found: dict[str, Any] = {"world": [world.rank, world.size, str(world.device), world.is_main]}

    tensor = torch.tensor([1.0, rank])
    found["sum"] = all_reduce_sum(tensor, world).tolist() + tensor.tolist()
    found["strings"] = [gather_strings(value, world) for value in (f"rank {rank} Ω" * (rank + 1), "", "x" * rank)]
    agree("same", "dataset", world)
    found["differs"] = message(lambda: agree(f"text {rank}", "note", world))
    found["keys differ"] = message(lambda: agree(json.dumps({"a": 1, "b": rank, "c": [rank]}), "configuration", world))

    model = new_model(1)
    optimizer = make_optimizer(model, OptimizerConfig(name="adamw", lr=1e-2))
    network, prepared = accelerator.prepare(model, optimizer)
    found["ddp"] = type(network).__name__
    torch.manual_seed(rank), random.seed(rank), np.random.seed(rank)
    take_steps(network, prepared, world)
    weights = to_bytes({n: p for n, p in model_tensors(network).items() if "running" not in n})
    found["weights agree"] = len(set(gather_strings(weights.hex(), world))) == 1
    found["statistics"] = model[1].running_mean.tolist()
    average_batchnorm(network, world)
    found["averaged"] = model[1].running_mean.tolist()
    found["buffers agree"] = len(set(gather_strings(to_bytes(model_tensors(network)).hex(), world))) == 1

    path = save_simply(folder / "two", 3, network, prepared, world)
    found["files"] = sorted(p.name for p in path.iterdir())
    found["next draws"] = draws()
    again = new_model(70 + rank)
    again_optimizer = make_optimizer(again, OptimizerConfig(name="adamw", lr=1e-2))
    checkpoint = load_newest(folder / "two", world)
    assert checkpoint is not None
    checkpoint.restore(again, again_optimizer, world)
    found["draws after"] = draws()
    found["extra"] = int(checkpoint.tensors()["rank"])
    found["restored"] = to_bytes(model_tensors(again)) == to_bytes(model_tensors(network))
    checkpoint.restore(again, again_optimizer, world)
    network_again, prepared_again = accelerator.prepare(again, again_optimizer)
    take_steps(network_again, prepared_again, world)
    checkpoint.restore(model, optimizer, world)
    take_steps(network, prepared, world)
    found["goes on alike"] = to_bytes(model_tensors(again)) == to_bytes(model_tensors(network))

    alone = load_newest(folder / "one", world)      # written by the test's own process
    assert alone is not None
    for name in ("from one", "from one again"):
        alone.restore(model, torch.optim.SGD(model.parameters(), lr=0.1), world)
        found[name] = draws()

    def full(path: Path, data: bytes) -> dict[str, Any]:
        raise OSError(errno.ENOSPC, "No space left on device")

    real = manifest.write_synced
    if rank == 1:
        manifest.write_synced = full
    found["full"] = message(lambda: save_simply(folder / "two", 4, network, prepared, world))
    manifest.write_synced = real
    barrier(world)
    found["left"] = sorted(p.name for p in (folder / "two").iterdir())
    barrier(world)
    if rank == 0:
        shutil.copytree(folder / "two", folder / "broken")
        (folder / "broken" / path.name / "rng-1.safetensors").unlink()
    barrier(world)
    found["none valid"] = message(lambda: load_newest(folder / "broken", world))
    found["none"] = load_newest(folder / "three", world) is None

    stage.begin(folder / "stage", {"a": 1}, world)
    stage.finish(folder / "stage", {"a": 1}, {}, world)
    found["done"] = stage.done(folder / "stage", {"a": 1})

    scorer = new_model(3)
    loader = FakeLoader()
    _, probs = predict(scorer, loader, VIEW, world=world, batch_size=6, num_classes=4, accelerator=accelerator)
    found["probs"] = probs.tobytes().hex()
    found["delivered"] = loader.delivered
    found["accuracy"] = accuracy_on(
        scorer, FakeLoader(), VIEW, LABELS, accelerator=accelerator, world=world, batch_size=6
    )
    few = VIEW[:3]      # one batch: the second rank has nothing to do
    _, probs = predict(scorer, FakeLoader(), few, world=world, batch_size=6, num_classes=4, accelerator=accelerator)
    found["few"] = probs.tobytes().hex()
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank found."""
    folder = tmp_path_factory.mktemp("processes")
    model = new_model(4)
    torch.manual_seed(11), random.seed(11), np.random.seed(11)
    alone = World(rank=0, size=1, device=CPU)
    save_simply(folder / "one", 1, model, torch.optim.SGD(model.parameters(), lr=0.1), alone)
    torch.multiprocessing.spawn(rank_main, args=(folder,), nprocs=2)  # type: ignore[no-untyped-call]
    both = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
    both[0]["folder"] = str(folder)
    return both


Ranks = list[dict[str, Any]]


def test_start_finds_the_ranks(ranks: Ranks) -> None:
    assert [found["world"] for found in ranks] == [[0, 2, "cpu", True], [1, 2, "cpu", False]]
    assert all(found["ddp"] == "DistributedDataParallel" and found["weights agree"] for found in ranks)


def test_sums_and_strings(ranks: Ranks) -> None:
    for rank, found in enumerate(ranks):
        assert found["sum"] == [2.0, 1.0, 1.0, rank], "the sum is new, the tensor untouched"
        assert found["strings"] == [["rank 0 Ω", "rank 1 Ωrank 1 Ω"], ["", ""], ["", "x"]]


def test_agree_names_rank_and_difference_on_every_rank(ranks: Ranks) -> None:
    for found in ranks:
        assert "rank 1 was started with another note than rank 0: 'text 0' on rank 0 and 'text 1'" in found["differs"]
        assert (
            "InputError rank 1 was started with another configuration than rank 0: b is 0 on rank 0 and 1 on rank 1, "
            "c is [0] on rank 0 and [1] on rank 1;" in found["keys differ"]
        )


def test_batchnorm_statistics_are_averaged(ranks: Ranks) -> None:
    first, second = (np.array(found["statistics"], dtype=np.float32) for found in ranks)
    assert np.abs(first - second).max() > 1e-3
    np.testing.assert_allclose(ranks[0]["averaged"], (first + second) / 2, rtol=1e-6)
    assert all(found["buffers agree"] for found in ranks)


def test_checkpoint_of_two(ranks: Ranks) -> None:
    for rank, found in enumerate(ranks):
        assert {"rng-0.safetensors", "rng-1.safetensors", "manifest.json"} < set(found["files"])
        assert found["restored"] and found["goes on alike"] and found["extra"] == 0
        assert found["draws after"] == found["next draws"] != ranks[1 - rank]["next draws"]


def test_resumed_by_another_number(ranks: Ranks, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(11), random.seed(11), np.random.seed(11)
    own, other = ranks[0], ranks[1]
    assert own["from one"] == own["from one again"] == draws(), "rank 0 goes on with its own"
    assert other["from one"] == other["from one again"] != own["from one"], "rank 1 gets its own, always the same"

    model = new_model(1)
    found = load_newest(Path(own["folder"]) / "two")
    assert found is not None
    optimizer = make_optimizer(model, OptimizerConfig(name="adamw"))
    found.restore(model, optimizer, World(rank=0, size=1, device=CPU))
    assert draws() == own["next draws"]
    assert "step-00000003: written by 2 process(es), resumed by 1\n" in capsys.readouterr().out


def test_one_ranks_failure_is_every_ranks(ranks: Ranks) -> None:
    for found in ranks:
        assert "OSError [Errno " in found["full"] and "rank 1: no space left for " in found["full"]
        assert "rng-1.safetensors: the checkpoint needs " in found["full"]
        assert found["left"] == ["step-00000003"]
        assert "InputError" in found["none valid"] and "rng-1.safetensors is missing" in found["none valid"]
        assert found["none"] and found["done"]


def test_predictions_do_not_depend_on_the_number_of_processes(ranks: Ranks) -> None:
    alone = World(rank=0, size=1, device=CPU)
    accelerator = Accelerator(cpu=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name, view in (("probs", VIEW), ("few", VIEW[:3])):
            _, probs = predict(
                new_model(3), FakeLoader(), view, world=alone, batch_size=6, num_classes=4, accelerator=accelerator
            )
            assert all(found[name] == probs.tobytes().hex() for found in ranks)
        accuracy = accuracy_on(
            new_model(3), FakeLoader(), VIEW, LABELS, accelerator=accelerator, world=alone, batch_size=6
        )
    finally:
        torch.set_num_threads(threads)
    assert ranks[0]["accuracy"] == ranks[1]["accuracy"] == accuracy
    assert ranks[0]["delivered"] + ranks[1]["delivered"] == VIEW.tolist(), "each sample exactly once"
    assert ranks[1]["delivered"]


def test_a_launch_that_is_not_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = World(rank=0, size=1, device=CPU)
    _check_launch(alone, 0, 1)
    with pytest.raises(InputError, match=r"torch\.distributed says process 0 of 1, accelerate says process 1 of 2"):
        _check_launch(alone, 1, 2)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(InputError, match="asked for WORLD_SIZE=4, but this is process 0 of 1"):
        _check_launch(alone, 0, 1)


def test_synchronised_batchnorm_keeps_parameters_and_names() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    before = dict(model.named_parameters())
    with pytest.raises(InputError, match="sync_batch_norm needs GPUs"):
        synchronise_batchnorm(model, World(0, 2, torch.device("cpu")))
    synchronise_batchnorm(model, World(0, 2, torch.device("cuda", 0)))
    assert isinstance(model[1], torch.nn.SyncBatchNorm)
    assert all(parameter is before[name] for name, parameter in model.named_parameters()) and len(before) == 4


class NormalisedAndActive(torch.nn.BatchNorm2d):
    """As timm has them: what comes after BatchNorm is in the layer itself."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.relu(super().forward(images))


def test_synchronised_batchnorm_does_not_drop_what_a_layer_does_besides() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), NormalisedAndActive(4))
    with pytest.raises(InputError, match=r"sync_batch_norm: 1 is a .*\.NormalisedAndActive, which torch would replace"):
        synchronise_batchnorm(model, World(0, 2, torch.device("cuda", 0)))
    assert type(model[1]) is NormalisedAndActive


@pytest.mark.parametrize(
    ("local_rank", "message"),
    [(None, "LOCAL_RANK is ''"), ("x", "LOCAL_RANK is 'x'"), ("2", r"LOCAL_RANK is 2, but .* sees 2 GPU\(s\)")],
)
def test_more_processes_than_gpus(local_rank: str | None, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if local_rank is not None:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    with pytest.raises(InputError, match=message):
        start(RuntimeConfig())
    monkeypatch.setenv("LOCAL_RANK", "1")
    _check_gpus()


SCRIPT = """
import torch
from twostage.machine_config import RuntimeConfig
from twostage.data.schema import InputError
from twostage.runtime.world import gather_strings, start
accelerator, world = start(RuntimeConfig(precision="{precision}"))
said = gather_strings(f"{{world.rank}}/{{world.size}} {{world.device}} {{accelerator.mixed_precision}}", world)
if world.is_main:
    print("|".join(said))
if world.size > 1:
    torch.distributed.destroy_process_group()       # else gloo's threads sometimes abort a process that ends at once
"""


def launch(tmp_path: Path, precision: str, *command: str) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(precision=precision))
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    environment |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *command, str(script)], env=environment, capture_output=True, text=True, check=False
    )


def test_accelerate_launch_on_cpus(tmp_path: Path) -> None:
    options = "--multi_gpu --num_machines 1 --num_processes 2 --mixed_precision no --dynamo_backend no"
    port = str(random.SystemRandom().randrange(20000, 30000))
    command = ["-m", "accelerate.commands.launch", *options.split(), "--main_process_port", port]
    done = launch(tmp_path, "bf16", *command)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "0/2 cpu bf16|1/2 cpu bf16"
    assert "FutureWarning" not in done.stderr
    flags = Path("/proc/cpuinfo").read_text().split()
    emulated = platform.machine() == "x86_64" and not {"avx512_bf16", "amx_bf16"} & set(flags)
    assert done.stderr.count("bf16 is emulated") == emulated


def test_fp16_on_a_cpu_is_refused(tmp_path: Path) -> None:
    done = launch(tmp_path, "fp16")
    assert done.returncode != 0 and "fp16 needs a GPU; use bf16 or fp32 on a CPU" in done.stderr
