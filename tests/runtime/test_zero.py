"""DeepSpeed's engine in two gloo processes, beside torch's own optimizer; both report to the tests below."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from twostage.config import OptimizerConfig
from twostage.data.schema import InputError
from twostage.machine_config import RuntimeConfig
from twostage.runtime import checkpoint, snapshot
from twostage.runtime.checkpoint import load_newest
from twostage.runtime.optimizers import make_optimizer
from twostage.runtime.world import World, gather_strings
from twostage.runtime.zero import prepare

FILES = Path(__file__).parents[2] / "launch" / "deepspeed"
CPU = torch.device("cpu")
OPTIMIZERS = {
    "adamw": OptimizerConfig(name="adamw", lr=1e-2, weight_decay=0.1),
    "adam": OptimizerConfig(name="adam", lr=1e-2, momentum=0.8),
    "sgd": OptimizerConfig(name="sgd", lr=0.05, weight_decay=1e-2),
}


def new_model(seed: int) -> nn.Module:
    """Without BatchNorm, so that a batch may come in pieces; sizes that do not divide by two."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 36, 7))
    with torch.no_grad():
        model[3].bias[0] = -0.0
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def slots(step: int, rank: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(10 * step + rank)
    return torch.randn(8, 1, 8, 8, generator=generator), torch.randint(0, 7, (8,), generator=generator)


def loss_of(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(network(images), labels)


def message(action: Callable[[], object]) -> str:
    try:
        action()
    except InputError as error:
        return str(error)
    return "no error"


class Trained:
    """A network under ZeRO."""

    def __init__(self, seed: int, config: OptimizerConfig, world: World, stage: int, pieces: int = 1) -> None:
        self.model, self.world, self.pieces = new_model(seed), world, pieces
        self.network, self.optimizer = prepare(
            self.model, make_optimizer(self.model, config), FILES / f"zero{stage}.json",
            batch_size=8 * world.size, pieces=pieces, runtime=RuntimeConfig(), world=world,
        )

    def step(self, number: int) -> None:
        images, labels = slots(number, self.world.rank)
        for part in torch.arange(8).chunk(self.pieces):
            self.optimizer.descend(loss_of(self.network, images[part], labels[part]))

    def state(self) -> str:
        """Weights and the optimizer's whole state, as hex: equal strings are equal bits."""
        tensors, rest = snapshot.optimizer_state(self.optimizer.gathered(), self.model)
        return (snapshot.to_bytes(tensors, rest) + snapshot.to_bytes(snapshot.model_tensors(self.model))).hex()

    def save(self, folder: Path, step: int) -> Path:
        return checkpoint.save(
            folder, step=step, model=self.model, optimizer=self.optimizer, extra_tensors={}, state={"rng_seed": 1},
            world=self.world, keep=2,
        )


def plain_steps(config: OptimizerConfig, steps: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The same steps by torch alone: the mean of both ranks' losses."""
    model = new_model(1)
    optimizer = make_optimizer(model, config)
    for step in range(steps):
        loss = sum(loss_of(model, *slots(step, rank)) for rank in range(2)) / 2
        assert isinstance(loss, Tensor)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def largest_difference(zero: Trained, model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    """Over weights and the optimizer's state."""
    ours, _ = snapshot.optimizer_state(zero.optimizer.gathered(), zero.model)
    theirs, _ = snapshot.optimizer_state(optimizer, model)
    assert ours.keys() == theirs.keys()
    pairs = [(ours[name], theirs[name]) for name in ours]
    own = snapshot.model_tensors(model)
    pairs += [(value, own[name]) for name, value in snapshot.model_tensors(zero.model).items()]
    return max(float((a - b).abs().max()) for a, b in pairs)


def goes_on(config: OptimizerConfig, world: World, stage: int, folder: Path) -> dict[str, Any]:
    """Three steps, a checkpoint, two steps more; and again from the checkpoint, in another engine."""
    found: dict[str, Any] = {}
    first = Trained(1, config, world, stage)
    for step in range(3):
        first.step(step)
    found["difference"] = largest_difference(first, *plain_steps(config, 3))
    found["files"] = sorted(path.name for path in first.save(folder, 3).iterdir())
    for step in (3, 4):
        first.step(step)
    second = Trained(2, config, world, stage)
    saved = load_newest(folder, world)
    assert saved is not None
    saved.restore(second.model, second.optimizer, world)
    for step in (3, 4):
        second.step(step)
    found["goes on alike"] = first.state() == second.state()
    found["all ranks alike"] = len(set(gather_strings(first.state(), world))) == 1
    found["lr"] = [group["lr"] for group in second.optimizer.param_groups]
    return found


def pieces(world: World) -> dict[str, Any]:
    found: dict[str, Any] = {}
    config = OPTIMIZERS["adam"]
    for stage in (1, 2):
        cut = Trained(1, config, world, stage, pieces=4)
        for step in range(3):
            cut.step(step)
        found[f"difference {stage}"] = largest_difference(cut, *plain_steps(config, 3))
        images, labels = slots(99, world.rank)
        undisturbed = cut.state()
        cut.optimizer.descend(loss_of(cut.network, images[:2] * 100, labels[:2]))
        cut.optimizer.discard()
        cut.optimizer.discard()
        found[f"discarded {stage}"] = cut.state() == undisturbed
        cut.step(3)
        found[f"difference after {stage}"] = largest_difference(cut, *plain_steps(config, 4))
    return found


def rank_main(rank: int, folder: Path) -> None:
    """Everything that one of the two processes does; its findings go to `<rank>.json`."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", OMP_NUM_THREADS="1")
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=2)
    world = World(rank=rank, size=2, device=CPU)
    found: dict[str, Any] = {}
    for stage in (1, 2):
        for name, config in OPTIMIZERS.items():
            found[f"{name} {stage}"] = goes_on(config, world, stage, folder / f"{name}-{stage}")
    found["pieces"] = pieces(world)
    from_one = Trained(5, OPTIMIZERS["adamw"], world, 2)
    saved = load_newest(folder / "one", world)      # written by the test's own process, without DeepSpeed
    assert saved is not None
    saved.restore(from_one.model, from_one.optimizer, world)
    found["from one"] = from_one.state()
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What each rank found, and the checkpoints of all."""
    folder = tmp_path_factory.mktemp("zero")
    model, optimizer = plain_steps(OPTIMIZERS["adamw"], 2)
    alone = World(rank=0, size=1, device=CPU)
    checkpoint.save(
        folder / "one", step=2, model=model, optimizer=optimizer, extra_tensors={}, state={"rng_seed": 1}, world=alone,
        keep=1,
    )
    torch.multiprocessing.spawn(rank_main, args=(folder,), nprocs=2)  # type: ignore[no-untyped-call]
    return folder


def findings(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"{rank}.json").read_bytes()) for rank in range(2)]


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_are_those_of_torch_and_a_checkpoint_goes_on_bit_for_bit(folder: Path, name: str, stage: int) -> None:
    for rank, found in enumerate(findings(folder)):
        one = found[f"{name} {stage}"]
        assert one["difference"] < 1e-6, "not clipped, not scaled, and weight decay only where it belongs"
        assert one["goes on alike"], f"rank {rank}"
        assert one["all ranks alike"]
        assert one["lr"] == [OPTIMIZERS[name].lr] * 2
        assert not [name for name in one["files"] if not name.endswith((".safetensors", ".json"))], "no pickles"


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_one_process_without_deepspeed_goes_on_with_a_checkpoint_of_two(folder: Path, name: str) -> None:
    saved = load_newest(folder / f"{name}-1")
    assert saved is not None
    model = new_model(3)
    optimizer = make_optimizer(model, OPTIMIZERS[name])
    saved.restore(model, optimizer, World(rank=0, size=1, device=CPU))
    reference, its_optimizer = plain_steps(OPTIMIZERS[name], 3)
    ours, theirs = (snapshot.optimizer_state(*pair)[0] for pair in ((optimizer, model), (its_optimizer, reference)))
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[name], theirs[name], rtol=0, atol=1e-6) for name in ours)


def test_two_processes_with_deepspeed_go_on_with_a_checkpoint_of_one_without(folder: Path) -> None:
    model, optimizer = plain_steps(OPTIMIZERS["adamw"], 2)
    tensors, rest = snapshot.optimizer_state(optimizer, model)
    expected = snapshot.to_bytes(tensors, rest) + snapshot.to_bytes(snapshot.model_tensors(model))
    assert [found["from one"] for found in findings(folder)] == [expected.hex()] * 2


def test_batches_in_pieces(folder: Path) -> None:
    for found in findings(folder):
        for stage in (1, 2):
            assert found["pieces"][f"difference {stage}"] < 1e-6
            assert found["pieces"][f"discarded {stage}"], "a piece that is thrown away leaves no trace"
            assert found["pieces"][f"difference after {stage}"] < 1e-6


@pytest.mark.parametrize(
    ("config", "runtime", "text"),
    [
        (OptimizerConfig(name="adagrad"), RuntimeConfig(), "adagrad loses its options under DeepSpeed"),
        (OptimizerConfig(), RuntimeConfig(compile="default"), "runtime.compile: default is not available"),
        (OptimizerConfig(), RuntimeConfig(precision="fp16"), "fp16 is not available with DeepSpeed"),
    ],
)
def test_what_does_not_go_with_deepspeed(config: OptimizerConfig, runtime: RuntimeConfig, text: str) -> None:
    model = new_model(1)
    optimizer = make_optimizer(model, config)
    alone = World(rank=0, size=1, device=CPU)
    found = message(
        lambda: prepare(
            model, optimizer, FILES / "zero1.json", batch_size=4, pieces=1, runtime=runtime, world=alone
        )
    )
    assert text in found


