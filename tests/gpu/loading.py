"""How the parts open the loader and walk through it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from tests.gpu.part import Part, Row
from twostage.config import AugmentConfig
from twostage.data import plan
from twostage.data.dataset import Dataset
from twostage.data.loader import StreamedImages
from twostage.machine_config import LoaderConfig

FULL = AugmentConfig(resize=None, size=224)
TOY = AugmentConfig(resize=None, size=32)


def augment(part: Part) -> AugmentConfig:
    """Random crop and flip, from stored pixels."""
    return TOY if part.toy else FULL


def batch_size(part: Part) -> int:
    return 8 if part.toy else 256


def open_streamed(part: Part, dataset: Dataset, *, half: bool = False, **options: Any) -> StreamedImages:
    """The loader for the part's device with these options of the section `loader`."""
    return StreamedImages(dataset, augment(part), LoaderConfig(cache="never", **options), part.device, half=half)


def one_pass(
    loader: StreamedImages, num_samples: int, size: int, *, num_views: int = 1, epoch: int = 0, steps: int | None = None
) -> Iterator[tuple[tuple[torch.Tensor, ...], torch.Tensor]]:
    """A training pass in random order over the first samples, or its first steps."""
    batches = plan.epoch_batches(np.arange(num_samples), batch_size=size, rng_seed=0, epoch=epoch)[:steps]

    def draws(step: int) -> Any:
        return plan.draws(size, rng_seed=0, epoch=epoch, step=step, num_views=num_views)

    return loader.batches(batches, training=True, num_views=num_views, draws=draws)


def best_options(part: Part) -> dict[str, Any]:
    """The options of the section `loader` that decoded fastest, from the part `decoding`; the defaults without it."""
    rows: list[Row] = [row for row in part.earlier("decoding") if row.get("ok") and "options" in row]
    if not rows:
        return {} if part.toy else {"decode_threads": 8}
    best: dict[str, Any] = max(rows, key=lambda row: row["images_per_second"])["options"]
    return best
