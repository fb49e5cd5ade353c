"""Initial weights that others trained, on ImageNet say: everything but the class layer is taken over.

Only what is done with named tensors; where they come from is runtime/initial_weights.py's matter.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn

from twostage.models.names import closest

WRAPPERS: Final = ("state_dict", "model_state_dict", "model")
"""under one of these names checkpoints of training programs keep the weights, beside an optimizer and so on"""
PREFIXES: Final = ("module.", "_orig_mod.")
"""put before every name by DistributedDataParallel and torch.compile"""
COUNTER: Final = "num_batches_tracked"
"""of BatchNorm; absent in files of torch before 0.4.1, and without effect where a momentum is set"""
SHOWN: Final = 3


def named_tensors(content: Any, where: str) -> dict[str, Tensor]:
    """The weights in what a file held: a state dictionary, or one inside a checkpoint.

    Names come without what DistributedDataParallel or torch.compile put in front of all of them.

    Raises:
        ValueError: there are none, or values that are not tensors among them (names the first).
    """
    if isinstance(content, dict):
        inner = [content[key] for key in WRAPPERS if isinstance(content.get(key), dict)]
        content = inner[0] if inner else content
    if not isinstance(content, dict) or not content:
        found = "nothing" if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{where} holds {found}, not weights by name: save `model.state_dict()`")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(
                f"{where}: {name!r} is {type(value).__name__}, not a tensor: save `model.state_dict()`, by itself or "
                f"under one of the names {', '.join(WRAPPERS)}"
            )
    tensors: dict[str, Tensor] = dict(content)
    # Each once, in either order, as compile(DDP(model)) has both. The network's own names may begin so as well.
    left = set(PREFIXES)
    while common := [prefix for prefix in left if all(name.startswith(prefix) for name in tensors)]:
        left -= {common[0]}
        tensors = {name.removeprefix(common[0]): value for name, value in tensors.items()}
    return tensors


def class_layer(model: nn.Module, num_classes: int) -> str:
    """Name of the layer that gives the logits: the last linear layer or convolution with num_classes outputs.

    Raises:
        ValueError: there is none.
    """
    layers: list[str] = [
        name
        for name, module in model.named_modules()
        if (isinstance(module, nn.Linear) and module.out_features == num_classes)
        or (isinstance(module, nn.Conv2d) and module.out_channels == num_classes)
    ]
    if not layers:
        raise ValueError(f"the network has no linear layer or convolution with {num_classes} outputs, one a class")
    return layers[-1]


def take_over(
    model: nn.Module, saved: dict[str, Tensor], *, num_classes: int, where: str, keep_class_layer: bool = False
) -> list[str]:
    """Copies saved weights into a network, in place; nothing is changed unless all fit.

    Half or double precision becomes the network's. BatchNorm's counters may be absent in `saved`.

    Args:
        where: what `saved` came from, for messages.
        keep_class_layer: take the class layer over too, from a network for the same classes; otherwise it stays as it
            is in `model`, whatever `saved` has in its place.

    Returns:
        Names of the network's tensors that stay as they were.

    Raises:
        ValueError: a tensor is missing, unknown, or of another shape (names the first few and the nearest), or a
            value is not finite.
    """
    own = model.state_dict()
    new = () if keep_class_layer else (f"{class_layer(model, num_classes)}.",)
    wanted = {name: value for name, value in own.items() if not name.startswith(new)}
    offered = {name: value for name, value in saved.items() if not name.startswith(new)}
    common = {name: (value, offered[name]) for name, value in wanted.items() if name in offered}
    missing = [name for name in wanted if name not in offered and name.rpartition(".")[2] != COUNTER]
    unknown = [name for name in offered if name not in wanted]
    other = [name for name, (a, b) in common.items() if _kind(a) != _kind(b)]
    problems = [f"it lacks {name}{_like(name, offered)}" for name in missing[:SHOWN]]
    problems += [f"the network lacks {name}{_like(name, wanted)}" for name in unknown[:SHOWN]]
    problems += [f"{name} is {_kind(common[name][1])} there, {_kind(common[name][0])} here" for name in other[:SHOWN]]
    if problems:
        left = len(missing) + len(unknown) + len(other) - len(problems)
        more = f"; and {left} more differences" if left else ""
        raise ValueError(
            f"{where} does not fit the network: {'; '.join(problems)}{more}. Are they weights of this architecture, "
            "for this number of channels?"
        )
    for name, (_, value) in common.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ValueError(f"{where}: {name} holds values that are not finite: of a training that diverged?")
    with torch.no_grad():
        for target, value in common.values():
            target.copy_(value)
    return [name for name in own if name not in common]


def _like(name: str, names: dict[str, Tensor]) -> str:
    """The nearest name on the other side, where one is near."""
    near = closest(name, names)
    return f" (nearest there: {near})" if near is not None else ""


def _kind(tensor: Tensor) -> str:
    """Shape, and what kind of numbers; precision does not matter."""
    kind = "floats" if tensor.is_floating_point() else str(tensor.dtype).removeprefix("torch.")
    return f"{'x'.join(map(str, tensor.shape)) or 'scalar'} {kind}"
