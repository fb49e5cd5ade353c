"""What a training step keeps in a process's device memory: counted from the network's shapes, without any data."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from twostage.config import Config, OptimizerConfig, PretrainConfig, TrainConfig
from twostage.data.augment import NUM_CHANNELS, resized_shape
from twostage.data.dataset import Dataset
from twostage.data.schema import InputError
from twostage.models import build_model

STATES: Final = {"sgd": 1, "adam": 2, "adamw": 2, "adagrad": 1}
"""numbers that an optimizer keeps of each parameter"""
PROBED: Final = 2               # samples: BatchNorm trains on no fewer


@dataclass(frozen=True)
class Network:
    """Sizes of a network."""

    parameters: int
    buffers: int
    """numbers that are saved and not trained, BatchNorm's statistics for one"""
    activations: int | None
    """numbers that one image leaves for the backward pass; None where that cannot be told without running it"""

    def times(self, factor: int) -> Network:
        """Several such networks, trained together."""
        activations = None if self.activations is None else factor * self.activations
        return Network(factor * self.parameters, factor * self.buffers, activations)


@dataclass(frozen=True)
class Memory:
    """Bytes in one process's device memory."""

    weights: int
    """with their gradients, and the copy of the best ones so far, and the average of them where there is one"""
    optimizer: int
    activations: int | None
    images: int
    """batches that wait, and the one that is worked on"""
    tables: int
    """labels, and what temporal ensembling remembers of each sample"""
    cache: int
    """decoded images, where they fit"""

    @property
    def total(self) -> int:
        """Of what is known."""
        return sum(getattr(self, field.name) or 0 for field in fields(self))


def measure(config: Config, num_classes: int) -> Network:
    """Builds the network on torch's meta device, which holds shapes and no numbers.

    Raises:
        InputError: no such network, or its factory does not fit.
    """
    channels, size = NUM_CHANNELS[config.augment.channels], config.augment.size
    try:
        with torch.device("meta"):
            network = build_model(config.model.name, num_classes=num_classes, in_channels=channels, image_size=size)
    except (ValueError, ImportError) as error:
        raise InputError(f"model.name: {error}") from error
    kept = 0

    def count(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal kept
        if isinstance(output, Tensor) and not getattr(module, "inplace", False) and output is not inputs[0]:
            kept += output.numel()

    for module in network.modules():
        if not list(module.children()):
            module.register_forward_hook(count)
    numbers = [sum(tensor.numel() for tensor in tensors) for tensors in (network.parameters(), network.buffers())]
    try:
        network.train()(torch.empty(PROBED, channels, size, size, device="meta"))
    except (RuntimeError, NotImplementedError):     # a network of the user's that looks at its numbers
        return Network(numbers[0], numbers[1], None)
    return Network(numbers[0], numbers[1], kept // PROBED)


def memory_of(
    config: Config,
    settings: PretrainConfig | TrainConfig,
    dataset: Dataset,
    network: Network,
    *,
    num_classes: int,
    num_views: int,
    num_processes: int,
) -> Memory:
    """What a training with `settings` takes in each process; the CUDA context and the allocator's slack not counted.

    Args:
        num_views: augmentations of each sample that one step puts through the network.
    """
    half = config.runtime.precision != "fp32"
    slots = settings.batch_size // num_processes
    images = min(slots, config.runtime.micro_batch or slots) * num_views
    average = isinstance(settings, TrainConfig) and settings.ema_decay is not None
    copies = 4 if average else 3            # weights, gradients, the best ones, their average
    tables = 8 * len(dataset)
    if isinstance(settings, TrainConfig) and settings.method == "temporal_ensembling":
        tables += len(dataset) * (num_classes * 12 + 16)
    image = NUM_CHANNELS[config.augment.channels] * config.augment.size**2
    return Memory(
        weights=4 * (copies * network.parameters + network.buffers),
        optimizer=4 * states_of(settings.optimizer) * network.parameters,
        activations=None if network.activations is None else images * network.activations * (2 if half else 4),
        images=3 * images * image * (2 if half else 4),
        tables=tables,
        cache=cache_bytes(config, dataset),
    )


def states_of(optimizer: OptimizerConfig) -> int:
    """Numbers that the optimizer keeps of each parameter."""
    return 0 if optimizer.name == "sgd" and optimizer.momentum == 0 else STATES[optimizer.name]


def cache_bytes(config: Config, dataset: Dataset) -> int:
    """Bytes of all decoded images, or 0 where they are not kept; as `data.loader.open_loader` decides."""
    if config.loader.cache == "never":
        return 0
    table = pq.read_table(dataset.path / "samples.parquet", columns=["width", "height"])
    height, width = resized_shape(table["height"].to_numpy(), table["width"].to_numpy(), config.augment.resize)
    if len(np.unique(height)) > 1 or len(np.unique(width)) > 1:
        return 0
    needed = len(dataset) * int(height[0]) * int(width[0]) * NUM_CHANNELS[config.augment.channels]
    fits = config.loader.cache == "always" or needed <= config.loader.cache_gib * 2**30
    return needed if fits else 0
