"""Planning a pass over a million samples, against what PyTorch's samplers take for the same."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import RandomSampler, WeightedRandomSampler

from tests.bench.timing import Comparison, alternate
from twostage.data import plan

NUM = 1_000_000
NUM_CLASSES = 14


def compare() -> list[Comparison]:
    """Seconds for all global batches of an epoch; they should be under 0.2."""
    rng = np.random.default_rng(0)
    view, labels = np.arange(NUM), rng.integers(0, NUM_CLASSES, NUM)
    shard = (view // 1000).astype(np.int32)
    weights = torch.from_numpy(1 / np.bincount(labels)[labels])

    def shuffled() -> object:
        return plan.epoch_batches(view, batch_size=256, rng_seed=0, epoch=0)

    def windowed() -> object:
        return plan.epoch_batches(view, batch_size=256, rng_seed=0, epoch=0, shard=shard, window_shards=16)

    def balanced() -> object:
        return plan.epoch_batches(view, batch_size=256, rng_seed=0, epoch=0, labels=labels)

    def halves() -> object:
        return plan.labeled_unlabeled_batches(
            view[: NUM // 2], view[NUM // 2 :], batch_size=256, rng_seed=0, epoch=3, labeled_labels=labels
        )

    def random_sampler() -> object:
        return list(RandomSampler(range(NUM)))  # type: ignore[arg-type]

    def weighted_sampler() -> object:
        return list(WeightedRandomSampler(weights, NUM))  # type: ignore[arg-type]

    title = "plan of 1 M samples, {}: ours / PyTorch's {}"
    return [
        alternate(title.format("shuffled", "RandomSampler"), shuffled, random_sampler),
        alternate(title.format("shuffled in windows of 16 of 1000 shards", "RandomSampler"), windowed, random_sampler),
        alternate(title.format("classes balanced", "WeightedRandomSampler"), balanced, weighted_sampler),
        alternate(title.format("half labeled, half unlabeled", "RandomSampler"), halves, random_sampler),
    ]
