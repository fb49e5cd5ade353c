"""From shards to normalised batches on the CPU: our reader and plan, against DALI's own reader and shuffle buffer.

The same decoding and augmentation behind both. Our own reader stands while it is within 5 % of DALI's end to end.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types
from torch.utils.dlpack import from_dlpack

from tests.bench.contest import Contest, Scale, Target, alternate
from tests.data.images import encoded, write_images
from twostage.config import AugmentConfig, LoaderConfig
from twostage.data import plan
from twostage.data.dataset import Dataset
from twostage.data.loader import StreamedImages

NUM, SIZE, BATCH, THREADS, AHEAD = 1024, 256, 64, 2, 4
AUGMENT = AugmentConfig(resize=None, size=224)


def compare(scale: Scale, folder: Path) -> Iterator[Contest]:
    """Passes over 1,024 JPEGs of 256 × 256 pixels."""
    with dataset() as images:
        options = LoaderConfig(cache="never", decode_threads=THREADS, prefetch=AHEAD)
        loader = StreamedImages(images, AUGMENT, options, torch.device("cpu"))
        theirs = dali_reader(images)
        yield alternate(
            "1,024 JPEGs of 256 px, random crop and flip",
            unit="images/s",
            amount=NUM,
            sides={"ours": lambda: ours_pass(loader), "DALI's webdataset reader": lambda: their_pass(theirs)},
            rounds=scale.rounds,
            targets=[Target("≥ 0.95 × DALI's reader", against=("DALI's webdataset reader",), at_least=0.95)],
        )
        loader.close()


@contextmanager
def dataset() -> Iterator[Dataset]:
    """JPEGs of about 20 KB with the spectrum of photos."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(SIZE)[:, None], np.fft.rfftfreq(SIZE)[None]) + 1 / SIZE
    files = []
    for _ in range(64):
        spectrum = np.fft.rfft2(rng.normal(size=(3, SIZE, SIZE))) / frequency**1.2
        image = np.fft.irfft2(spectrum, s=(SIZE, SIZE))
        image = 128 + 50 * (image - image.mean()) / image.std()
        files.append(encoded(np.moveaxis(image, 0, 2).clip(0, 255).astype(np.uint8), "jpeg", quality=90))
    with tempfile.TemporaryDirectory() as folder:
        yield write_images(Path(folder) / "d", [files[number % 64] for number in range(NUM)], per_shard=256)


def ours_pass(loader: StreamedImages) -> None:
    """Once through all images, in an order of the plan."""
    batches = plan.epoch_batches(np.arange(NUM), batch_size=BATCH, rng_seed=0, epoch=0)

    def draws(step: int) -> Any:
        return plan.draws(BATCH, rng_seed=0, epoch=0, step=step, num_views=1)

    for _ in loader.batches(batches, training=True, draws=draws):
        pass


def dali_reader(images: Dataset) -> Any:
    """A pipeline that shuffles as DALI does, within a buffer of a quarter of the images."""
    assert isinstance(AUGMENT.mean, list)
    mean, std = [255 * value for value in AUGMENT.mean], [255 * value for value in AUGMENT.std]

    @pipeline_def(batch_size=BATCH, num_threads=THREADS, device_id=None, prefetch_queue_depth=1, exec_dynamic=True)
    def graph() -> Any:
        encoded_images = fn.readers.webdataset(
            paths=[str(path) for path in images.shard_paths],
            index_paths=[str(path.with_suffix(".idx")) for path in images.shard_paths],
            ext=["jpg"],
            missing_component_behavior="error",
            random_shuffle=True,
            initial_fill=NUM // 4,
        )
        return fn.crop_mirror_normalize(
            fn.decoders.image(encoded_images, output_type=types.RGB),
            crop=(AUGMENT.size, AUGMENT.size),
            crop_pos_x=fn.random.uniform(range=(0, 1)),
            crop_pos_y=fn.random.uniform(range=(0, 1)),
            mirror=fn.random.coin_flip(),
            dtype=types.FLOAT,
            mean=mean,
            std=std,
        )

    pipe = graph()
    pipe.build()
    return pipe


def their_pass(pipe: Any) -> None:
    """As many batches, as many of them ahead, and none under way at the end: no side works in the other's time."""
    steps = NUM // BATCH
    for _ in range(AHEAD):
        pipe.schedule_run()
    for step in range(steps):
        from_dlpack(pipe.outputs()[0].as_tensor())
        if step + AHEAD < steps:
            pipe.schedule_run()
