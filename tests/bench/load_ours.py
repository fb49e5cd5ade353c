"""Our loader, and DALI without it, each in a process of its own.

    python -m tests.bench.load_ours MODE DATASET

Modes: ours; dali-reader (DALI's own webdataset reader and shuffle buffer); memory (our pipeline fed with bytes that are
in memory); one-decode and two-decodes (two views of each image).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types
from torch.utils.dlpack import from_dlpack

from tests.bench.peer import serve
from twostage.config import AugmentConfig
from twostage.data import plan
from twostage.data.augment import window
from twostage.data.dataset import Dataset
from twostage.data.loader import StreamedImages
from twostage.data.pipeline import DecodePipeline, Fed
from twostage.data.plan import Indices
from twostage.data.reader import ShardReader
from twostage.machine_config import LoaderConfig

BATCH, THREADS, AHEAD = 64, 2, 4
AUGMENT = AugmentConfig(resize=None, size=224)
OPTIONS = LoaderConfig(cache="never", decode_threads=THREADS, prefetch=AHEAD)


def ours(dataset: Dataset, *, num_views: int = 1, decodes: int = 1) -> Callable[[], None]:
    """Once through all images, in an order of the plan, another one each time."""
    loader = StreamedImages(dataset, AUGMENT, OPTIONS, torch.device("cpu"))
    epochs = count()

    def one_pass() -> None:
        epoch = next(epochs)
        batches = plan.epoch_batches(np.arange(len(dataset)), batch_size=BATCH, rng_seed=0, epoch=epoch)
        batches = np.concatenate([batches] * decodes, axis=1)

        def draws(step: int) -> Any:
            return plan.draws(batches.shape[1], rng_seed=0, epoch=epoch, step=step, num_views=num_views)

        for _ in loader.batches(batches, training=True, num_views=num_views, draws=draws):
            pass

    return one_pass


def from_memory(dataset: Dataset) -> Callable[[], None]:
    """The same graph and the same windows, and nothing that reads, plans or waits."""
    pipeline = DecodePipeline(
        AUGMENT, OPTIONS, "cpu", torch.device("cpu"),
        resizes=False, num_views=1, shifts=False, max_batch_size=BATCH, half=False,
    )
    reader = ShardReader(dataset, 1)
    batches = plan.epoch_batches(np.arange(len(dataset)), batch_size=BATCH, rng_seed=0, epoch=0)
    data = [reader.read(index) for index in batches]
    size = np.full((BATCH, 2), 256)

    def feed(step: int, index: Indices) -> None:
        drawn = plan.draws(BATCH, rng_seed=0, epoch=0, step=step, num_views=1)[0]
        pipeline.feed(Fed(index, data[step]), size, [window(size[:, 0], size[:, 1], drawn, AUGMENT)])

    return lambda: _ahead(batches, feed, pipeline.take)


def dali_reader(dataset: Dataset) -> Callable[[], None]:
    """A pipeline that shuffles as DALI does, within a buffer of a quarter of the images."""
    assert isinstance(AUGMENT.mean, list)
    mean, std = [255 * value for value in AUGMENT.mean], [255 * value for value in AUGMENT.std]

    @pipeline_def(batch_size=BATCH, num_threads=THREADS, device_id=None, prefetch_queue_depth=1, exec_dynamic=True)
    def graph() -> Any:
        encoded_images = fn.readers.webdataset(
            paths=[str(path) for path in dataset.shard_paths],
            index_paths=[str(path.with_suffix(".idx")) for path in dataset.shard_paths],
            ext=["jpg"],
            missing_component_behavior="error",
            random_shuffle=True,
            initial_fill=len(dataset) // 4,
        )
        return fn.crop_mirror_normalize(
            fn.decoders.image(encoded_images, output_type=types.RGB),
            crop=(AUGMENT.size, AUGMENT.size),
            crop_pos_x=fn.random.uniform(range=(0, 1)),
            crop_pos_y=fn.random.uniform(range=(0, 1)),
            mirror=fn.random.coin_flip(),
            dtype=types.FLOAT,
            output_layout="HWC",
            mean=mean,
            std=std,
        )

    pipe = graph()
    pipe.build()
    steps = [np.empty(0, np.int64)] * (len(dataset) // BATCH)

    def take() -> torch.Tensor:
        return from_dlpack(pipe.outputs()[0].as_tensor())

    return lambda: _ahead(steps, lambda step, index: pipe.schedule_run(), take)


def _ahead(batches: Sequence[Indices], feed: Callable[[int, Indices], object], take: Callable[[], object]) -> None:
    """As many batches ahead as ours, and none under way at the end: no side works in the other's time."""
    for step in range(AHEAD):
        feed(step, batches[step])
    for step in range(len(batches)):
        take()
        if step + AHEAD < len(batches):
            feed(step + AHEAD, batches[step + AHEAD])


def main() -> None:
    """Serves passes."""
    mode, dataset = sys.argv[1], Dataset.open(Path(sys.argv[2]))
    assert len(dataset) % BATCH == 0
    passes = {
        "ours": lambda: ours(dataset),
        "memory": lambda: from_memory(dataset),
        "dali-reader": lambda: dali_reader(dataset),
        "one-decode": lambda: ours(dataset, num_views=2),
        "two-decodes": lambda: ours(dataset, decodes=2),
    }
    serve(passes[mode]())


if __name__ == "__main__":
    main()
