"""What a checkpoint is made of: network, optimizer and random state as named tensors and JSON, and back, bit for bit.

Everything is known by name, never by position: names of parameters and buffers as the bare network has them, without
what DistributedDataParallel or torch.compile put in front.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from twostage.data.schema import InputError

# how an optimizer computes, not what: these stay as the running program chose them for its device
HEADER_LENGTH = 8           # bytes; of a safetensors file's first number, and what its header is padded to
HOW = ("foreach", "fused", "capturable", "differentiable")


def bare(model: nn.Module) -> nn.Module:
    """The network without the wrappers for several processes or compilation."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif isinstance(compiled := getattr(model, "_orig_mod", None), nn.Module):
            model = compiled        # its class is not asked for: that would import the whole compiler
        else:
            return model


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The network's parameters and persistent buffers by name; they share memory with the network.

    Raises:
        InputError: the network keeps state that is not a tensor.
    """
    tensors = {}
    for name, value in bare(model).state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor):
            raise InputError(f"the network's state {name!r} is a {type(value).__name__}; only tensors can be saved")
        tensors[_clean(name)] = value.detach()
    return tensors


def restore_model(model: nn.Module, saved: dict[str, Tensor], where: str) -> None:
    """Copies saved tensors into the network, in place; nothing is changed unless all fit.

    Raises:
        InputError: names, shapes or dtypes differ; names the first ones.
    """
    own = model_tensors(model)
    problems = [f"{where} lacks {name}" for name in own if name not in saved]
    problems += [f"the network lacks {name}" for name in saved if name not in own]
    problems += [
        f"{name} is {_kind(saved[name])} in {where} and {_kind(value)} in the network"
        for name, value in own.items()
        if name in saved and (saved[name].shape, saved[name].dtype) != (value.shape, value.dtype)
    ]
    if problems:
        more = f" and {len(problems) - 3} more differences" if len(problems) > 3 else ""
        raise InputError(f"the saved weights do not fit the configured network: {'; '.join(problems[:3])}{more}")
    for name, value in own.items():
        value.copy_(saved[name])


def optimizer_state(optimizer: torch.optim.Optimizer, model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The optimizer's state: tensors by `parameter/key`, and everything else as JSON."""
    names = _parameter_names(model)
    tensors: dict[str, Tensor] = {}
    values: dict[str, dict[str, Any]] = {}
    for parameter, entry in optimizer.state.items():
        name = names[id(parameter)]
        for key, value in entry.items():
            if isinstance(value, Tensor):
                tensors[f"{name}/{key}"] = value.detach()
            else:
                values.setdefault(name, {})[key] = value
    groups = [
        {
            "parameters": [names[id(p)] for p in group["params"]],
            "options": {k: v for k, v in group.items() if k not in ("params", *HOW)},
        }
        for group in optimizer.param_groups
    ]
    return tensors, {"name": _optimizer_name(optimizer), "groups": groups, "values": values}


def restore_optimizer(
    optimizer: torch.optim.Optimizer, model: nn.Module, tensors: dict[str, Tensor], rest: dict[str, Any]
) -> None:
    """Gives the optimizer back what `optimizer_state` took from it, learning rates included.

    Raises:
        InputError: it is another optimizer, or its groups hold other parameters.
    """
    if _optimizer_name(optimizer) != rest["name"]:
        raise InputError(
            f"the checkpoint was written with optimizer {rest['name']}, configured is {_optimizer_name(optimizer)}"
        )
    names = _parameter_names(model)
    now = [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]
    then = [group["parameters"] for group in rest["groups"]]
    if [sorted(group) for group in now] != [sorted(group) for group in then]:
        changed = {(n, i) for i, g in enumerate(now) for n in g} ^ {(n, i) for i, g in enumerate(then) for n in g}
        raise InputError(f"the checkpoint's optimizer has other parameter groups; they differ in {min(changed)[0]}")

    parameters = {names[id(p)]: p for group in optimizer.param_groups for p in group["params"]}
    state: dict[str, dict[str, Any]] = {name: dict(entry) for name, entry in rest["values"].items()}
    for full_name, tensor in tensors.items():
        name, _, key = full_name.rpartition("/")
        state.setdefault(name, {})[key] = _laid_out_like(parameters[name], tensor)
    position: dict[str, int] = {}
    groups = []
    for group, saved, numbered in zip(
        optimizer.param_groups, rest["groups"], optimizer.state_dict()["param_groups"], strict=True
    ):
        options = {key: _typed_like(group.get(key), value) for key, value in saved["options"].items()}
        groups.append({**{k: v for k, v in group.items() if k in HOW}, **options, "params": numbered["params"]})
        position |= {names[id(p)]: number for p, number in zip(group["params"], numbered["params"], strict=True)}
    # torch's own method puts the state on the right device, step counters included
    optimizer.load_state_dict({"state": {position[n]: entry for n, entry in state.items()}, "param_groups": groups})


def random_state(device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """This process's random state: torch (CPU, and the GPU in use), Python, numpy's global generator."""
    version, words, gauss = random.getstate()
    generator = np.random.get_state(legacy=False)
    assert isinstance(generator, dict)
    tensors = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor(words, dtype=torch.int64),
        "numpy": torch.from_numpy(generator["state"]["key"].astype(np.int64)),
    }
    if device.type == "cuda":
        tensors["cuda"] = torch.cuda.get_rng_state(device)
    rest = {
        "python": [version, gauss],
        "numpy": [generator["bit_generator"], generator["state"]["pos"], generator["has_gauss"], generator["gauss"]],
    }
    return tensors, rest


def restore_random_state(device: torch.device, tensors: dict[str, Tensor], rest: dict[str, Any]) -> None:
    """Goes back to what `random_state` took."""
    torch.set_rng_state(tensors["torch"])
    if device.type == "cuda" and "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"], device)
    version, gauss = rest["python"]
    random.setstate((version, tuple(tensors["python"].tolist()), gauss))
    name, position, has_gauss, gauss = rest["numpy"]
    np.random.set_state((name, tensors["numpy"].numpy().astype(np.uint32), position, has_gauss, gauss))


def derive_random_state(*facts: int) -> None:
    """Seeds torch, Python and numpy from some numbers, where there is no state to go back to."""
    seed = int.from_bytes(hashlib.sha256(repr(facts).encode()).digest()[:7], "little")
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def to_parts(tensors: dict[str, Tensor], metadata: dict[str, Any] | None = None) -> Iterator[bytes | memoryview]:
    """A safetensors file's content in pieces: the header, then each tensor's bytes, on a CPU without a copy.

    Byte for byte what safetensors.torch.save makes, which copies everything twice. It still says how dtypes are
    called and which tensor comes first: by what it makes of empty tensors. One that shares memory with another is
    written once more under its own name.
    """
    # one key only: safetensors writes several in another order each time, and the same state must give the same bytes
    about = None if metadata is None else {"twostage": json.dumps(metadata)}
    empty = safetensors.torch.save({name: torch.empty(0, dtype=value.dtype) for name, value in tensors.items()}, about)
    header = json.loads(empty[HEADER_LENGTH:])
    end = 0
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = end, end + tensors[name].nbytes
            entry |= {"shape": list(tensors[name].shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % HEADER_LENGTH)
    yield len(text).to_bytes(HEADER_LENGTH, "little") + text
    for name in header:
        if name != "__metadata__" and tensors[name].numel():
            value = tensors[name].detach().cpu().contiguous().reshape(-1)
            yield value.view(torch.uint8).numpy().data


def to_bytes(tensors: dict[str, Tensor], metadata: dict[str, Any] | None = None) -> bytes:
    """A safetensors file's content as a whole."""
    return b"".join(to_parts(tensors, metadata))


def from_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; they lie in the file itself, so copy what outlives it.

    Raises:
        InputError: it is not such a file.
    """
    try:
        return dict(sorted(safetensors.torch.load_file(path).items()))
    except (safetensors.SafetensorError, ValueError) as error:
        raise InputError(f"{path} is not a safetensors file, or a damaged one ({error})") from error


def from_bytes(data: bytes, where: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        InputError: it is not such a file.
    """
    try:
        return dict(sorted(safetensors.torch.load(data).items()))       # safetensors' own order changes
    except (safetensors.SafetensorError, ValueError) as error:
        raise InputError(f"{where} is not a safetensors file, or a damaged one ({error})") from error


def _clean(name: str) -> str:
    """Without what torch.compile puts into the names of parts that were compiled by themselves."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def _parameter_names(model: nn.Module) -> dict[int, str]:
    return {id(parameter): _clean(name) for name, parameter in bare(model).named_parameters()}


def _optimizer_name(optimizer: torch.optim.Optimizer) -> str:
    return type(getattr(optimizer, "optimizer", optimizer)).__name__      # accelerate wraps it


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def _laid_out_like(parameter: Tensor, value: Tensor) -> Tensor:
    """The same values with the parameter's strides (channels-last, say), which the file does not know."""
    if value.shape != parameter.shape or value.stride() == parameter.stride():
        return value
    return torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)


def _typed_like(current: Any, value: Any) -> Any:
    """JSON knows no tuples, and torch wants Adam's betas as one."""
    return tuple(value) if isinstance(current, tuple) and isinstance(value, Iterable) else value
