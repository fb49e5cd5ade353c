"""Checkpoints that survive a kill, a full disk or a flipped bit at any instant.

The protocol: everything is written aside into `.step-00000123.tmp`, each file and the folder brought to the disk, a
manifest with every file's size and SHA-256 last; then the folder is renamed to `step-00000123`; only then are older
checkpoints removed. What bears the final name is therefore complete, and one valid checkpoint exists at all times
after the first. A folder that exists already is never overwritten: the newer one is called `step-00000123.1`.

    model.safetensors, optimizer.safetensors, extra.safetensors    by parameter name; written by rank 0
    state.json                                                     position, learning rates, scaler: the rest
    rng-<rank>.safetensors                                         random state and `own_tensors`; written by each rank
    manifest.json                                                  written last
"""

from __future__ import annotations

import errno
import json
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from twostage.data.schema import InputError, write_aside
from twostage.runtime import manifest, snapshot
from twostage.runtime.world import World, agree, gather_strings
from twostage.runtime.zero import ZeroOptimizer

WRITERS = 4
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
OWN = "own."
Contents = dict[str, Callable[[], manifest.Data]]


def save(
    folder: Path,
    *,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | ZeroOptimizer,
    extra_tensors: dict[str, Tensor],
    state: dict[str, Any],
    world: World,
    keep: int,
    scaler_state: dict[str, Any] | None = None,
    own_tensors: dict[str, Tensor] | None = None,
) -> Path:
    """Writes the checkpoint of a step and removes all but the newest `keep`; called by every rank together.

    Args:
        folder: holds all checkpoints of one stage; on a file system that all ranks see.
        step: steps taken so far, over the whole stage.
        extra_tensors: whatever else is needed to go on; rank 0's are kept.
        state: JSON values; rank 0's are kept. `rng_seed` must be among them: it serves ranks that join later.
        scaler_state: of the gradient scaler, for fp16.
        own_tensors: what is this rank's alone; every rank's are kept.

    Returns:
        the folder of the new checkpoint.

    Raises:
        OSError: it could not be written, on every rank alike; the checkpoints before it are untouched.
        InputError: the network holds state that is not a tensor.
    """
    assert "rng_seed" in state and keep >= 1
    aside = folder / f".step-{step:08d}.tmp"
    contents = _contents(model, optimizer, extra_tensors, state, scaler_state, own_tensors or {}, world)
    _together(world, aside, lambda: _make_aside(aside) if world.is_main else "")
    parts = _together(world, aside, lambda: _write_files(aside, contents))
    files: manifest.Files = {name: entry for part in parts for name, entry in json.loads(part).items()}
    names = _together(
        world, aside, lambda: manifest.commit(aside, step, world.size, files).name if world.is_main else ""
    )
    path = folder / names[0]
    if world.is_main:
        manifest.remove_older(path, keep)
    return path


def _contents(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | ZeroOptimizer,
    extra_tensors: dict[str, Tensor],
    state: dict[str, Any],
    scaler_state: dict[str, Any] | None,
    own_tensors: dict[str, Tensor],
    world: World,
) -> Contents:
    """This rank's files. Each tensor of a GPU is copied only when it is written, those of a CPU never."""
    weights = snapshot.model_tensors(model)
    whole = optimizer.gathered() if isinstance(optimizer, ZeroOptimizer) else optimizer
    moments, rest = snapshot.optimizer_state(whole, model)
    record = json.dumps({"state": state, "optimizer": rest, "scaler": scaler_state}).encode()
    random_tensors, random_rest = snapshot.random_state(world.device)
    random_tensors |= {OWN + name: tensor for name, tensor in own_tensors.items()}
    own: Contents = {_rng_name(world.rank): lambda: snapshot.to_parts(random_tensors, random_rest)}
    if not world.is_main:
        return own
    return own | {
        "model.safetensors": lambda: snapshot.to_parts(weights),
        "optimizer.safetensors": lambda: snapshot.to_parts(moments),
        "extra.safetensors": lambda: snapshot.to_parts(extra_tensors),
        "state.json": lambda: record,
    }


def _rng_name(rank: int) -> str:
    return f"rng-{rank}.safetensors"


def _together(world: World, aside: Path, action: Callable[[], str]) -> list[str]:
    """Does something on every rank and returns all results, by rank; when it fails on one, it fails on all."""
    failed: OSError | None = None
    result = ""
    try:
        result = action()
    except OSError as error:
        failed = error
    outcomes = gather_strings(f"error {failed.strerror or failed}" if failed else f"ok {result}", world)
    problems = [(rank, o.removeprefix("error ")) for rank, o in enumerate(outcomes) if o.startswith("error ")]
    if not problems:
        return [outcome.removeprefix("ok ") for outcome in outcomes]
    if world.is_main and aside.exists():
        manifest.remove(aside)
    rank, problem = problems[0]
    where = f"rank {rank}: " if world.size > 1 else ""
    code = failed.errno if failed and failed.errno else errno.EIO
    raise OSError(code, f"{where}{problem}; earlier checkpoints in {aside.parent} are untouched") from failed


def _make_aside(aside: Path) -> str:
    try:
        aside.parent.mkdir(parents=True, exist_ok=True)
        manifest.remove_strays(aside.parent)
        aside.mkdir()
    except OSError as error:
        raise OSError(error.errno, f"cannot make the folder {aside}: {error.strerror}") from error
    return ""


def _write_files(aside: Path, contents: Contents) -> str:
    """Writes this rank's files to the disk; returns their manifest entries as JSON."""
    if not aside.exists():
        raise OSError(
            errno.ENOENT, f"{aside}, made by rank 0, is not there: run.dir must be on a file system that all ranks see"
        )
    with ThreadPoolExecutor(WRITERS) as pool:       # one file is hashed while another one waits for the disk
        writing = {name: pool.submit(manifest.write_synced, aside / name, part()) for name, part in contents.items()}
    files: manifest.Files = {}
    for name, future in writing.items():
        try:
            files[name] = future.result()
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise OSError(error.errno, f"cannot write {aside / name}: {error.strerror}") from error
            needed = sum(manifest.size_of(content()) for content in contents.values())
            free = shutil.disk_usage(aside).free + sum(file.stat().st_size for file in aside.iterdir())
            message = f"no space left for {aside / name}: the checkpoint needs {needed:,} bytes, {free:,} were free"
            raise OSError(error.errno, message) from error
    return json.dumps(files)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files were found valid."""

    path: Path
    step: int
    num_ranks: int
    """processes that wrote it"""
    record: dict[str, Any]
    """content of state.json"""

    @property
    def state(self) -> dict[str, Any]:
        """The JSON values that were saved."""
        state: dict[str, Any] = self.record["state"]
        return state

    def tensors(self) -> dict[str, Tensor]:
        """The extra tensors that were saved, on the CPU."""
        return self._tensors("extra.safetensors")

    def own_tensors(self, world: World) -> dict[str, Tensor]:
        """What this rank saved as its own; nothing, on any rank, where another number of processes saved it."""
        if world.size != self.num_ranks:
            return {}
        tensors = self._tensors(_rng_name(world.rank))
        return {name.removeprefix(OWN): tensor for name, tensor in tensors.items() if name.startswith(OWN)}

    def restore(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | ZeroOptimizer,
        world: World,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        """Brings everything back bit for bit: weights and buffers, optimizer, and this rank's random state.

        A rank that did not exist when the checkpoint was written gets a random state that follows from rng_seed, its
        rank and the step; one printed line says so.

        Raises:
            InputError: the network or the optimizer is another one, or ranks found different checkpoints.
        """
        agree(self.path.name, "checkpoint", world)
        snapshot.restore_model(model, snapshot.from_file(self.path / "model.safetensors"), str(self.path))
        moments = self._tensors("optimizer.safetensors")
        whole = optimizer.whole() if isinstance(optimizer, ZeroOptimizer) else optimizer
        snapshot.restore_optimizer(whole, model, moments, self.record["optimizer"])
        if isinstance(optimizer, ZeroOptimizer):
            optimizer.take_over(whole)
        if scaler is not None and self.record["scaler"] is not None:
            scaler.load_state_dict(self.record["scaler"])
        if world.is_main and world.size != self.num_ranks:
            anew = f"; the random state of rank {self.num_ranks} and above follows from rng_seed"
            print(
                f"{self.path}: written by {self.num_ranks} process(es), resumed by {world.size}"
                + (anew if world.size > self.num_ranks else ""),
                flush=True,
            )
        if world.rank < self.num_ranks:
            name = _rng_name(world.rank)
            with safetensors.safe_open(self.path / name, "pt") as file:
                rest = json.loads(file.metadata()["twostage"])
            snapshot.restore_random_state(world.device, self._tensors(name), rest)
        else:
            snapshot.derive_random_state(self.state["rng_seed"], world.rank, self.step)

    def _tensors(self, name: str) -> dict[str, Tensor]:
        return {key: value.clone() for key, value in snapshot.from_file(self.path / name).items()}


def load_newest(folder: Path, world: World | None = None) -> Checkpoint | None:
    """Finds the newest valid checkpoint; None where there is none at all. Invalid ones are named in a warning.

    With a `world`, rank 0 looks and all ranks take what it found.

    Raises:
        InputError: there are checkpoints, but none is valid.
    """
    if world is None or world.size == 1:
        return _newest_valid(folder)
    found: Checkpoint | None = None
    problem = ""
    if world.is_main:
        try:
            found = _newest_valid(folder)
        except InputError as error:
            problem = str(error)
    problem, name = json.loads(gather_strings(json.dumps([problem, found.path.name if found else ""]), world)[0])
    if problem:
        raise InputError(problem)
    return _open(folder / name) if name else None


def _newest_valid(folder: Path) -> Checkpoint | None:
    paths = manifest.committed(folder)
    reasons = []
    for path in paths:
        try:
            manifest.verify(path)
        except (OSError, ValueError) as error:
            reasons.append(f"{path.name}: {error}")
            print(f"warning: checkpoint {path} is not valid and is skipped: {error}", file=sys.stderr, flush=True)
        else:
            return _open(path)
    if not paths:
        return None
    raise InputError(
        f"{folder} holds {len(paths)} checkpoint(s), but none is valid ({'; '.join(reasons)}); to do this stage again "
        f"from its beginning, delete {folder}"
    )


def _open(path: Path) -> Checkpoint:
    facts = manifest.read(path)
    record = json.loads((path / "state.json").read_bytes())
    return Checkpoint(path=path, step=facts["step"], num_ranks=facts["num_ranks"], record=record)


def save_weights(path: Path, weights: nn.Module | dict[str, Tensor], metadata: dict[str, Any] | None = None) -> None:
    """Writes a network's weights (or some by name) as safetensors, aside and renamed; `metadata` is JSON."""
    tensors = snapshot.model_tensors(weights) if isinstance(weights, nn.Module) else weights
    write_aside(path, snapshot.to_bytes(tensors, metadata))


def load_weights(path: Path, model: nn.Module) -> dict[str, Any]:
    """Copies the weights in a file into a network, and returns the file's metadata.

    Raises:
        InputError: no such file, a damaged one, or the weights of another network.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist: train the network that it should hold first")
    data = path.read_bytes()
    snapshot.restore_model(model, snapshot.from_bytes(data, str(path)), str(path))
    with safetensors.safe_open(path, "pt") as file:
        metadata: dict[str, Any] = json.loads((file.metadata() or {}).get("twostage", "{}"))
    return metadata
