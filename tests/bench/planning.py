"""Planning a pass over a million samples, against what PyTorch's samplers take for the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import RandomSampler, WeightedRandomSampler

from tests.bench.contest import Contest, Scale, Target, alternate
from twostage.data import plan

NUM = 1_000_000
NUM_CLASSES = 14


def compare(scale: Scale, folder: Path) -> Iterator[Contest]:
    """All global batches of an epoch of a million samples."""
    rng = np.random.default_rng(0)
    view, labels = np.arange(NUM), rng.integers(0, NUM_CLASSES, NUM)
    shard = (view // 1000).astype(np.int32)
    weights = torch.from_numpy(1 / np.bincount(labels)[labels])

    def shuffled() -> None:
        plan.epoch_batches(view, batch_size=256, rng_seed=0, epoch=0)

    def windowed() -> None:
        plan.epoch_batches(view, batch_size=256, rng_seed=0, epoch=0, shard=shard, window_shards=16)

    def balanced() -> None:
        plan.epoch_batches(view, batch_size=256, rng_seed=0, epoch=0, labels=labels)

    def halves() -> None:
        plan.labeled_unlabeled_batches(
            view[: NUM // 2], view[NUM // 2 :], batch_size=256, rng_seed=0, epoch=3, labeled_labels=labels
        )

    def random_sampler() -> None:
        list(RandomSampler(range(NUM)))  # type: ignore[arg-type]

    def weighted_sampler() -> None:
        list(WeightedRandomSampler(weights, NUM))  # type: ignore[arg-type]

    fast = Target("under 100 ms", at_least=NUM / 0.1)
    ten = Target("≥ 10 × WeightedRandomSampler", against=("WeightedRandomSampler",), at_least=10)
    for title, ours, name, theirs, targets in (
        ("shuffled", shuffled, "RandomSampler", random_sampler, [fast]),
        ("shuffled in windows of 16 of 1,000 shards", windowed, "RandomSampler", random_sampler, [fast]),
        ("classes balanced", balanced, "WeightedRandomSampler", weighted_sampler, [fast]),
        ("half labeled and balanced, half unlabeled", halves, "WeightedRandomSampler", weighted_sampler, [fast, ten]),
    ):
        yield alternate(
            f"plan of 1 M samples: {title}",
            unit="samples/s",
            amount=NUM,
            sides={"ours": ours, name: theirs},
            rounds=scale.rounds,
            targets=targets,
        )
