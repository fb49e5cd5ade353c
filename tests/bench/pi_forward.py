"""The Π-model's step: both inputs in one forward pass over 2N images, against two passes over N."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import nn

from tests.bench.contest import Contest, Scale, alternate
from twostage.losses import consistency, cross_entropy
from twostage.models import build_model
from twostage.stage2.pi_model import PiModel


def two_passes(network: nn.Module, a: torch.Tensor, b: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The loss of stage 2 by one forward pass for each input."""
    logits_a, logits_b = network(a), network(b)
    return cross_entropy(logits_a, labels) + consistency(logits_a, logits_b, reduction="sum")


def one_pass(network: nn.Module, a: torch.Tensor, b: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The loss of stage 2 itself."""
    return sum(PiModel("sum").losses(network, (a, b), torch.arange(len(a)), labels), torch.zeros(()))


def compare(scale: Scale, folder: Path) -> Iterator[Contest]:
    """Steps, forward and backward, of two networks of the paper."""
    for name, channels, size, batch in (("mlp", 1, 28, 256), ("resnet14", 3, 32, 128)):
        network = build_model(name, num_classes=10, in_channels=channels, image_size=size, dropout=0.2)
        a, b = torch.randn(2, batch, channels, size, size)
        labels = torch.randint(0, 10, (batch,))
        labels[1::2] = -1

        def step(loss, network=network, a=a, b=b, labels=labels):  # type: ignore[no-untyped-def]
            network.zero_grad()
            loss(network, a, b, labels).backward()

        yield alternate(
            f"Π step of the {name}, N = {batch}",
            unit="images/s",
            amount=batch,
            sides={"one pass over 2N": partial(step, one_pass), "two passes over N": partial(step, two_passes)},
            rounds=scale.rounds,
        )
