from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from multiprocessing import forkserver, get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from twostage.config import OptimizerConfig
from twostage.data.schema import InputError
from twostage.runtime import manifest
from twostage.runtime.checkpoint import Checkpoint, load_newest, load_weights, save, save_weights
from twostage.runtime.optimizers import make_optimizer
from twostage.runtime.snapshot import model_tensors, to_bytes
from twostage.runtime.world import World

ALONE = World(rank=0, size=1, device=torch.device("cpu"))
OPTIMIZERS = [
    OptimizerConfig(name="sgd", lr=0.05, weight_decay=1e-2),
    OptimizerConfig(name="sgd", lr=0.05, momentum=0.0),
    OptimizerConfig(name="adam", lr=1e-2, momentum=0.8),
    OptimizerConfig(name="adamw", lr=1e-2, weight_decay=0.1),
    OptimizerConfig(name="adagrad", lr=0.05),
]


def new_model(seed: int, layout: torch.memory_format = torch.contiguous_format) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(6 * 36, 4)
    )
    return model.to(memory_format=layout)  # type: ignore[call-overload,no-any-return]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    """Takes steps whose data, learning rate and dropout all come from the global random states."""
    losses = []
    for _ in range(steps):
        for group in optimizer.param_groups:
            group["lr"] *= 1 + 0.1 * random.random()
        images = torch.randn(8, 3, 8, 8) + float(np.random.normal())
        loss = nn.functional.cross_entropy(model(images), torch.randint(4, (8,)))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    return losses


def save_simply(folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, keep: int = 2) -> Path:
    return save(
        folder,
        step=step,
        model=model,
        optimizer=optimizer,
        extra_tensors={"best.weight": torch.full((3,), float(step))},
        state={"rng_seed": 7, "epoch": step},
        world=ALONE,
        keep=keep,
    )


def same_bits(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and to_bytes(one) == to_bytes(two)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("config", OPTIMIZERS, ids=lambda c: f"{c.name}-{c.momentum}")
def test_resumed_training_equals_uninterrupted(
    tmp_path: Path, config: OptimizerConfig, layout: torch.memory_format
) -> None:
    model = new_model(1, layout)
    optimizer = make_optimizer(model, config)
    random.seed(3)
    np.random.seed(4)
    np.random.normal()      # so that numpy holds back one normal number
    train(model, optimizer, 3)
    path = save_simply(tmp_path, 3, model, optimizer)
    losses = train(model, optimizer, 3)
    expected = {name: value.clone() for name, value in model_tensors(model).items()}
    expected_state = json.dumps(optimizer.state_dict(), default=lambda t: [str(t.dtype), t.tolist()], sort_keys=True)

    other = new_model(99, layout)
    other_optimizer = make_optimizer(other, config)
    random.seed(33)
    np.random.seed(44)
    found = load_newest(tmp_path)
    assert found is not None and found.path == path and found.step == 3 and found.state == {"rng_seed": 7, "epoch": 3}
    assert torch.equal(found.tensors()["best.weight"], torch.full((3,), 3.0))
    found.restore(other, other_optimizer, ALONE)
    for parameter, entry in other_optimizer.state.items():
        for key, value in entry.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                assert value.stride() == parameter.stride(), f"{key} lost its memory layout"
    assert train(other, other_optimizer, 3) == losses
    assert same_bits(expected, model_tensors(other))
    again = json.dumps(other_optimizer.state_dict(), default=lambda t: [str(t.dtype), t.tolist()], sort_keys=True)
    assert again == expected_state


def test_saving_disturbs_no_random_state(tmp_path: Path) -> None:
    model = new_model(1)
    optimizer = make_optimizer(model, OPTIMIZERS[0])
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    save_simply(tmp_path, 1, model, optimizer)
    drawn = (random.random(), np.random.rand(), torch.rand(1).item())
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    assert drawn == (random.random(), np.random.rand(), torch.rand(1).item())


def test_accelerates_wrapper_and_compiled_names(tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True)
    model = new_model(1)
    optimizer = make_optimizer(model, OPTIMIZERS[2])
    network, prepared = accelerator.prepare(model, optimizer)
    train(network, prepared, 2)
    save_simply(tmp_path, 2, torch.compile(network, backend="eager"), prepared)  # type: ignore[arg-type]
    bare = new_model(2)
    bare_optimizer = make_optimizer(bare, OPTIMIZERS[2])
    found = load_newest(tmp_path)
    assert found is not None
    found.restore(bare, bare_optimizer, ALONE)
    assert same_bits(model_tensors(model), model_tensors(bare))
    state = torch.get_rng_state()
    losses = train(network, prepared, 2)
    torch.set_rng_state(state)
    found.restore(bare, bare_optimizer, ALONE)
    assert train(bare, bare_optimizer, 2) == losses


def test_gradient_scaler_state_comes_back(tmp_path: Path) -> None:
    model = new_model(1)
    optimizer = make_optimizer(model, OPTIMIZERS[0])
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**9, growth_interval=7)
    save(
        tmp_path, step=1, model=model, optimizer=optimizer, extra_tensors={}, state={"rng_seed": 0}, world=ALONE,
        keep=1, scaler_state=scaler.state_dict(),
    )
    fresh = torch.amp.GradScaler("cpu")
    found = load_newest(tmp_path)
    assert found is not None and found.tensors() == {}
    found.restore(model, optimizer, ALONE, fresh)
    assert fresh.state_dict() == scaler.state_dict()


def test_tied_weights(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
            self.second.weight = self.first.weight
            self.register_buffer("part", self.first.bias.detach()[1:3])

    one, two = Tied(), Tied()
    save_simply(tmp_path, 1, one, torch.optim.SGD(one.parameters(), lr=1))
    found = load_newest(tmp_path)
    assert found is not None
    found.restore(two, torch.optim.SGD(two.parameters(), lr=1), ALONE)
    assert two.second.weight is two.first.weight
    assert same_bits(model_tensors(one), model_tensors(two))


def test_another_network_is_refused(tmp_path: Path) -> None:
    model = new_model(1)
    save_simply(tmp_path, 1, model, make_optimizer(model, OPTIMIZERS[0]))
    save_weights(tmp_path / "model.safetensors", model, {"classes": ["a", "b"]})
    before = to_bytes(model_tensors(model))
    wider = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(9, 4))
    found = load_newest(tmp_path)
    assert found is not None
    with pytest.raises(InputError, match=r"5\.weight is float32\[4, 216\] in .*step-00000001 and float32\[4, 9\]"):
        found.restore(wider, make_optimizer(wider, OPTIMIZERS[0]), ALONE)
    with pytest.raises(InputError, match=r"the network lacks 1\.bias; the network lacks .* and 4 more differences"):
        load_weights(tmp_path / "model.safetensors", nn.Sequential(nn.Conv2d(3, 6, 3)))
    with pytest.raises(InputError, match=r"model\.safetensors lacks 6\.weight"):
        load_weights(tmp_path / "model.safetensors", nn.Sequential(*model, nn.Linear(4, 4)))
    with pytest.raises(InputError, match="optimizer SGD, configured is Adam"):
        found.restore(model, make_optimizer(model, OPTIMIZERS[2]), ALONE)
    with pytest.raises(InputError, match=r"other parameter groups; they differ in 0\.bias"):
        found.restore(model, torch.optim.SGD(model.parameters(), lr=1), ALONE)
    assert to_bytes(model_tensors(model)) == before


def test_weights_file(tmp_path: Path) -> None:
    one, two = new_model(1), new_model(2)
    path = tmp_path / "model.safetensors"
    metadata = {"classes": ["a", "b"], "size": 8, "note": "Ω"}
    save_weights(path, one, metadata)
    assert load_weights(path, two) == metadata
    assert same_bits(model_tensors(one), model_tensors(two))
    first = path.read_bytes()
    save_weights(path, model_tensors(two), metadata)
    assert path.read_bytes() == first
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    with pytest.raises(InputError, match="does not exist"):
        load_weights(tmp_path / "nothing", two)
    path.write_bytes(first[:-1])
    with pytest.raises(InputError, match=r"model\.safetensors is not a safetensors file, or a damaged one"):
        load_weights(path, two)


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """A folder with checkpoints of steps 1, 2 and 3."""
    model = new_model(1)
    optimizer = make_optimizer(model, OPTIMIZERS[2])
    for step in (1, 2, 3):
        train(model, optimizer, 1)
        save_simply(tmp_path, step, model, optimizer, keep=3)
    return tmp_path


def newest(folder: Path) -> Checkpoint:
    found = load_newest(folder)
    assert found is not None
    return found


def test_old_ones_go_only_after_the_commit(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = new_model(1)
    optimizer = make_optimizer(model, OPTIMIZERS[2])
    assert sorted(p.name for p in three.iterdir()) == ["step-00000001", "step-00000002", "step-00000003"]

    def refuse(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(manifest, "commit", refuse)
        with pytest.raises(KeyboardInterrupt):
            save_simply(three, 4, model, optimizer, keep=1)
    assert (three / ".step-00000004.tmp").exists()
    assert newest(three).step == 3 and len(manifest.committed(three)) == 3
    save_simply(three, 5, model, optimizer, keep=2)
    assert sorted(p.name for p in three.iterdir()) == ["step-00000003", "step-00000005"]
    assert load_newest(three / "nothing") is None


def test_a_step_is_never_overwritten(three: Path) -> None:
    model = new_model(1)
    optimizer = make_optimizer(model, OPTIMIZERS[2])
    (three / "step-00000003" / "state.json").unlink()
    assert newest(three).step == 2
    assert save_simply(three, 3, model, optimizer).name == "step-00000003.1"
    assert save_simply(three, 3, model, optimizer).name == "step-00000003.2"
    assert newest(three).path.name == "step-00000003.2"


def test_what_lies_ahead_of_a_resumed_run_goes(three: Path) -> None:
    model = new_model(1)
    optimizer = make_optimizer(model, OPTIMIZERS[2])
    for step in (2, 3):
        (three / f"step-{step:08d}" / "manifest.json").unlink()
    assert newest(three).step == 1
    save_simply(three, 2, model, optimizer, keep=2)
    assert newest(three).path.name == "step-00000002.1"
    assert "step-00000003" not in [p.name for p in three.iterdir()]
    save_simply(three, 3, model, optimizer, keep=2)
    assert [p.name for p in manifest.committed(three)] == ["step-00000003", "step-00000002.1"]


FILES = ["model.safetensors", "optimizer.safetensors", "extra.safetensors", "state.json", "rng-0.safetensors"]


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_damage_is_named_and_skipped(three: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = three / "step-00000003" / name
    whole = file.read_bytes()
    damages = [whole[:-1], whole[: len(whole) // 2], b"", whole + b"x"]
    draw = random.Random(5)
    for _ in range(40):
        flipped = bytearray(whole)
        flipped[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        damages.append(bytes(flipped))
    for damaged in damages:
        file.write_bytes(damaged)
        assert newest(three).step == 2
        warning = capsys.readouterr().err
        assert name in warning and "step-00000003 is not valid and is skipped" in warning and warning.count("\n") == 1
    file.unlink()
    assert newest(three).step == 2
    assert f"{name} is missing" in capsys.readouterr().err
    file.write_bytes(whole)
    assert newest(three).step == 3


def test_none_valid_is_an_error(three: Path) -> None:
    for number, name in enumerate(FILES[:3], start=1):
        (three / f"step-0000000{number}" / name).unlink()
    with pytest.raises(InputError, match=r"holds 3 checkpoint\(s\), but none is valid .*extra.safetensors is missing"):
        load_newest(three)


def test_manifest_names_cannot_lead_elsewhere(three: Path) -> None:
    path = three / "step-00000003"
    facts = manifest.read(path)
    facts["files"]["../step-00000002/state.json"] = facts["files"]["state.json"]
    (path / "manifest.json").write_bytes(manifest.encode(facts))
    with pytest.raises(ValueError, match="not a file name"):
        manifest.verify(path)


def test_a_renamed_checkpoint_is_not_valid(three: Path) -> None:
    (three / "step-00000001").rename(three / "step-00000009")
    assert newest(three).step == 3


def save_forever(folder: Path, reports: Connection) -> None:
    """Runs in a process that will be killed: saves step after step, all values being the step."""
    model = nn.Linear(200, 200)
    optimizer = torch.optim.SGD(model.parameters(), lr=1, momentum=0.9)
    found = load_newest(folder)
    step = found.step if found else 0
    while True:
        step += 1
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(step)
                optimizer.state[parameter] = {"momentum_buffer": torch.full_like(parameter, step)}
        save_simply(folder, step, model, optimizer)
        reports.send(step)


def test_sigkill_at_random_instants(tmp_path: Path) -> None:
    context = get_context("forkserver")
    forkserver._forkserver._stop()  # type: ignore[attr-defined]    # that of an earlier test would import it each time
    context.set_forkserver_preload(["pytest", "torch._dynamo", "twostage.runtime.checkpoint"])  # seconds, once
    draw = random.Random(time.time_ns())
    last, asides = 0, 0
    for _ in range(25):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=save_forever, args=(tmp_path, sender))
        process.start()
        sender.close()
        assert receiver.poll(120), "the saving process did not begin"
        time.sleep(draw.uniform(0, 0.06))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        reported = last
        try:
            while receiver.poll():
                reported = receiver.recv()
        except EOFError:
            pass
        found = newest(tmp_path)
        assert reported <= found.step <= reported + 1, "a checkpoint that was reported as written is lost"
        assert found.step > last
        last = found.step
        asides += any(tmp_path.glob(".step-*.tmp"))
        model = nn.Linear(200, 200)
        optimizer = torch.optim.SGD(model.parameters(), lr=1, momentum=0.9)
        found.restore(model, optimizer, ALONE)
        values = [*model.parameters(), *(entry["momentum_buffer"] for entry in optimizer.state.values())]
        assert len(values) == 4 and all(bool((value == last).all()) for value in values)
        assert float(found.tensors()["best.weight"][0]) == last == found.state["epoch"]
    assert asides, "no kill came while a checkpoint was being written: this test showed nothing"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("only root can mount the small disk that is to run full")
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"cannot mount the small disk that is to run full: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_no_space_left(small_disk: Path) -> None:
    folder = small_disk / "checkpoints"
    model = nn.Linear(400, 400)         # 0.64 MB, and as much again for the momentum
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(400)).sum().backward()
    optimizer.step()
    save_simply(folder, 1, model, optimizer)
    before = to_bytes(model_tensors(model))
    with pytest.raises(OSError, match=r"no space left for .*\.step-00000002\.tmp.*needs 1,\d{3},\d{3} bytes") as caught:
        save_simply(folder, 2, model, optimizer)
    assert caught.value.errno == 28
    free = int(str(caught.value).split(" bytes, ")[1].split(" were free")[0].replace(",", ""))
    assert abs(free - shutil.disk_usage(small_disk).free) < 50_000
    assert sorted(p.name for p in folder.iterdir()) == ["step-00000001"]
    assert newest(folder).step == 1
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    save_simply(folder, 2, model, optimizer)
    assert newest(folder).step == 2
    newest(folder).restore(model, optimizer, ALONE)
    assert to_bytes(model_tensors(model)) == before


def test_unwritable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    model = nn.Linear(2, 2)
    with pytest.raises(OSError, match=r"cannot make the folder .*checkpoints"):
        save_simply(tmp_path / "checkpoints", 1, model, torch.optim.SGD(model.parameters(), lr=1))
