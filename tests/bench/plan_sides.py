"""One epoch's plan of many samples, in a process of its own, so that its memory is its own.

    python -m tests.bench.plan_sides SIDE SAMPLES

Sides: shuffled, windows, balanced, halves (ours); RandomSampler, WeightedRandomSampler, DistributedSampler (torch's).
Ours makes all global batches, one array; torch's hand out every index, as a DataLoader asks for them.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils.data import DistributedSampler, RandomSampler, WeightedRandomSampler

from tests.bench.peer import serve
from twostage.data import plan

NUM_CLASSES, PER_SHARD, WINDOW, PROCESSES = 14, 1000, 16, 8
SAME: dict[str, Any] = {"batch_size": 256, "rng_seed": 0}


def prepared(side: str, num: int) -> Callable[[], object]:
    """What makes one pass."""
    match side:
        case "RandomSampler":
            return lambda: deque(RandomSampler(range(num)), maxlen=0)
        case "DistributedSampler":
            one = DistributedSampler(range(num), PROCESSES, rank=0)
            return lambda: deque(one, maxlen=0)
    view = np.arange(num)
    if side == "shuffled":
        return lambda: plan.epoch_batches(view, epoch=0, **SAME)
    if side == "windows":
        shard = (view // PER_SHARD).astype(np.int32)
        return lambda: plan.epoch_batches(view, epoch=0, shard=shard, window_shards=WINDOW, **SAME)
    labels = np.random.default_rng(0).integers(0, NUM_CLASSES, num)
    match side:
        case "balanced":
            return lambda: plan.epoch_batches(view, epoch=0, labels=labels, **SAME)
        case "halves":
            labeled, unlabeled = view[: num // 2], view[num // 2 :]
            return lambda: plan.labeled_unlabeled_batches(labeled, unlabeled, epoch=3, labeled_labels=labels, **SAME)
        case "WeightedRandomSampler":
            weights = torch.from_numpy(1 / np.bincount(labels)[labels])
            return lambda: deque(WeightedRandomSampler(weights, num), maxlen=0)
    raise ValueError(side)


if __name__ == "__main__":
    serve(prepared(sys.argv[1], int(sys.argv[2])))
