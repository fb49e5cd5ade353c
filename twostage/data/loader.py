"""From a plan to batches on the device: bytes are read ahead, a few batches are being decoded, damage gets a name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeAlias

import numpy as np
import pyarrow.parquet as pq
import torch

from twostage.config import AugmentConfig
from twostage.data.augment import (
    MAX_SIDE,
    NUM_CHANNELS,
    NUM_DRAWS,
    Draws,
    Ints,
    Pixels,
    check_augment,
    resized_shape,
    window,
)
from twostage.data.cache import CachedImages, scale_tensors
from twostage.data.dataset import Dataset
from twostage.data.pipeline import DecodePipeline, Fed, Window, choose_backend
from twostage.data.plan import Indices
from twostage.data.reader import ReadAhead, ShardReader
from twostage.data.schema import InputError
from twostage.data.waiting import WaitMeter
from twostage.machine_config import LoaderConfig

MAX_PIXELS: Final = MAX_SIDE**2
"""of one image after resizing; a strip of 10 × 100,000 pixels would grow to gigabytes"""
FILL_BATCH: Final = 256
"""samples that are decoded at once into the cache, fewer where they are large"""
FILL_BYTES: Final = 64 << 20
"""decoded bytes of one batch into the cache"""


class StreamedImages:
    """Batches of images from the shards, decoded anew each time; a few batches are always under way."""

    def __init__(
        self,
        dataset: Dataset,
        augment: AugmentConfig,
        loader: LoaderConfig,
        device: torch.device,
        *,
        half: bool = False,
        mean_image: Pixels | None = None,
    ) -> None:
        """Reads the image sizes. Threads and pipelines begin with the first batch.

        Args:
            half: whether batches are float16 instead of float32.
            mean_image: (channels, size, size) on the scale 0..255, where `augment.mean` is `image`.

        Raises:
            InputError: an option makes no sense, or an image would be enormous after resizing.
        """
        check_augment(augment)
        check_loader(loader)
        self._dataset, self._augment, self._loader, self._device = dataset, augment, loader, device
        table = pq.read_table(dataset.path / "samples.parquet", columns=["height", "width"])
        self._stored = np.stack([table["height"].to_numpy(), table["width"].to_numpy()], axis=1).astype(np.int64)
        self._size = np.stack(resized_shape(self._stored[:, 0], self._stored[:, 1], augment.resize), axis=1)
        largest = int(self._size.prod(axis=1).argmax())
        if self._size[largest].prod() > MAX_PIXELS:
            raise InputError(
                f"{_place(dataset, largest)} has {_by(self._stored[largest])} pixels, {_by(self._size[largest])} after "
                f"augment.resize {augment.resize}, which is too large; leave it out and build the dataset again"
            )
        self._resizes = bool((self._size != self._stored).any())
        self._half = half
        self._centre = None if mean_image is None else scale_tensors(augment, mean_image, device)
        self._backend = choose_backend(device, loader)
        self.kind = f"dali-{self._backend}"
        self._reader = ShardReader(dataset, loader.read_threads)
        self._meter = WaitMeter()
        self._pipelines: dict[tuple[bool, int], DecodePipeline] = {}

    @property
    def data_wait(self) -> float:
        """Share of the wall time since the last reset that the consumer waited for images, 0..1."""
        return self._meter.share

    def reset_meters(self) -> None:
        """Measures from now on. A training pass does so itself when it begins."""
        self._meter.reset()

    def batches(
        self,
        plan: Indices | Sequence[Indices],
        *,
        training: bool,
        num_views: int = 1,
        draws: Callable[[int], Draws] | None = None,
        first_step: int = 0,
    ) -> Iterator[tuple[tuple[torch.Tensor, ...], torch.Tensor]]:
        """Makes one pass over a plan.

        A consumer may stop early; batches under way are then dropped. A second pass of the same kind ends the first.

        Args:
            plan: (steps, b) sample indices, or one array for each step, of this process.
            training: whether windows and mirroring are drawn; else centres, and one view.
            num_views: how often each decoded image is augmented, independently.
            draws: where training, gives (num_views, b, 5) in [0, 1) for a step of the plan.
            first_step: where to begin.

        Yields:
            (images, index) for each step: num_views tensors (b, channels, size, size), normalised, float32 or where
            asked float16, in channels-last order on a GPU, and (b,) int64; on the device, and the consumer's own for
            as long as it likes.

        Raises:
            InputError: an image cannot be read or decoded, or has not the size that samples.parquet says.
        """
        assert (draws is not None) == training and (training or num_views == 1)
        if training:
            self._meter.reset()

        def windows(step: int, index: Indices) -> list[Window]:
            views = draws(step) if draws is not None else (None,)
            assert len(views) == num_views and all(v is None or v.shape == (len(index), NUM_DRAWS) for v in views)
            return [window(self._size[index, 0], self._size[index, 1], view, self._augment) for view in views]

        for index, images in self._run((training, num_views), plan, first_step, windows):
            on_device = torch.from_numpy(np.array(index)).to(self._device, non_blocking=True)
            yield tuple(self._finished(view) for view in images), on_device

    def decoded(self, indices: Indices) -> Iterator[tuple[Indices, torch.Tensor]]:
        """Decodes and resizes samples of equal size, once each: (indices, uint8 (b, height, width, channels))."""
        image_bytes = int(self._size[indices[0]].prod()) * NUM_CHANNELS[self._augment.channels]
        batch_size = max(1, min(FILL_BATCH, FILL_BYTES // image_bytes))
        plan = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
        for index, images in self._run((False, 0), plan, 0, lambda step, index: []):
            yield index, images[0].to(self._device)

    def common_size(self) -> tuple[int, int] | None:
        """Height and width of all images after resizing, None where they differ."""
        height, width = self._size[0].tolist() if len(self._size) else (0, 0)
        return (height, width) if (self._size == (height, width)).all() else None

    def close(self) -> None:
        """Ends all threads and frees what pipelines hold. Batches that were handed out stay valid."""
        for pipeline in self._pipelines.values():
            pipeline.drain()
        self._pipelines.clear()
        self._reader.close()

    def _run(
        self,
        kind: tuple[bool, int],
        plan: Indices | Sequence[Indices],
        first_step: int,
        windows: Callable[[int, Indices], list[Window]],
    ) -> Iterator[tuple[Indices, list[torch.Tensor]]]:
        if first_step >= len(plan):
            return
        pipeline = self._pipeline(kind, max(len(index) for index in plan))
        ahead = ReadAhead(self._reader, self._dataset, plan, first_step, self._loader.prefetch)
        turn = pipeline.begin()

        def top_up(*, wait: bool) -> None:
            while len(pipeline.in_flight) < self._loader.prefetch and ahead.ready(wait=wait and not pipeline.in_flight):
                step, index, data = ahead.take()
                pipeline.feed(Fed(index, data), self._size[index], windows(step, index))

        try:
            for _ in range(first_step, len(plan)):
                with self._meter.waiting():
                    if pipeline.turn != turn:
                        raise RuntimeError("a later pass over the same images has ended this one")
                    top_up(wait=True)
                    fed, images = self._take(pipeline)
                    top_up(wait=False)
                yield fed.index, images
        finally:
            ahead.cancel()
            if pipeline.turn == turn:
                pipeline.drain()

    def _pipeline(self, kind: tuple[bool, int], batch_size: int) -> DecodePipeline:
        pipeline = self._pipelines.get(kind)
        if pipeline is None or pipeline.failed or pipeline.max_batch_size < batch_size:
            pipeline = self._new_pipeline(*kind, batch_size)
            self._pipelines[kind] = pipeline
        return pipeline

    def _new_pipeline(self, training: bool, num_views: int, batch_size: int) -> DecodePipeline:
        return DecodePipeline(
            self._augment,
            self._loader,
            self._backend,
            self._device,
            resizes=self._resizes,
            num_views=num_views,
            shifts=training and self._augment.shift > 0,
            max_batch_size=batch_size,
            half=self._half and self._centre is None,
        )

    def _finished(self, view: torch.Tensor) -> torch.Tensor:
        """What DALI leaves to do: the mean image, and the way to a GPU that it cannot use."""
        view = view.to(self._device, memory_format=torch.channels_last)
        if self._centre is None:
            return view
        mean, inverse_std = self._centre
        view = view.sub_(mean).mul_(inverse_std)
        return view.half() if self._half else view

    def _take(self, pipeline: DecodePipeline) -> tuple[Fed, list[torch.Tensor]]:
        fed = pipeline.in_flight[0]
        try:
            images, decoded = pipeline.take()
        except RuntimeError as error:
            raise self._named(fed, error) from error
        wrong = np.flatnonzero((decoded != self._stored[fed.index]).any(axis=1))
        if wrong.size:
            slot = int(wrong[0])
            index = int(fed.index[slot])
            raise InputError(
                f"{_place(self._dataset, index)} has {_by(decoded[slot])} pixels, but samples.parquet says "
                f"{_by(self._stored[index])}; {_remedy(self._dataset)}"
            )
        return fed, images

    def _named(self, fed: Fed, error: RuntimeError) -> Exception:
        """Decodes the samples of a failed batch one by one, as DALI does not say which one it was."""
        pipeline = self._new_pipeline(False, 0, 1)
        for slot, index in enumerate(fed.index.tolist()):
            pipeline.feed(Fed(fed.index[slot : slot + 1], [fed.data[slot]]), self._size[[index]], [])
            try:
                pipeline.take()
            except RuntimeError:
                return InputError(
                    f"{_place(self._dataset, index)} cannot be decoded; {_remedy(self._dataset)}. If it is not "
                    "damaged, DALI cannot read its kind: build the dataset again with --encode jpeg"
                )
        return RuntimeError(f"DALI failed on samples {fed.index.tolist()}, on none of them alone: {error}")


ImageLoader: TypeAlias = StreamedImages | CachedImages
"""The two have one interface: `kind`, `batches`, `data_wait`, `reset_meters`, `close`"""


def open_loader(
    dataset: Dataset,
    augment: AugmentConfig,
    loader: LoaderConfig,
    device: torch.device,
    *,
    half: bool = False,
    mean_image: Pixels | None = None,
    on_progress: Callable[[], None] = lambda: None,
) -> ImageLoader:
    """Chooses between streaming and the cache by `loader.cache` and `loader.cache_gib`; arguments as `StreamedImages`.

    Args:
        on_progress: is called now and then while the cache is filled, which may take many minutes before a batch comes.

    Raises:
        InputError: an option makes no sense, or `loader.cache` is `always` and the images differ in size.
    """
    streamed = StreamedImages(dataset, augment, loader, device, half=half, mean_image=mean_image)
    if loader.cache == "never":
        return streamed
    common = streamed.common_size()
    if common is None:
        if loader.cache == "auto":
            return streamed
        raise InputError(
            f"loader.cache: always, but the images of {dataset.path} differ in size after augment.resize "
            f"{augment.resize}; set loader.cache to auto, or build the dataset with square images"
        )
    needed = len(dataset) * common[0] * common[1] * NUM_CHANNELS[augment.channels]
    if loader.cache == "auto" and needed > loader.cache_gib * 2**30:
        return streamed
    scale = scale_tensors(augment, mean_image, device)

    def decoded(indices: Indices) -> Iterator[tuple[Indices, torch.Tensor]]:
        for batch in streamed.decoded(indices):
            on_progress()
            yield batch

    return CachedImages(len(dataset), *common, augment, scale, half, device, decoded, streamed.close)


def check_loader(loader: LoaderConfig) -> None:
    """Refuses, by InputError, values of the section `loader` that are out of range."""
    for name in ("read_threads", "decode_threads", "prefetch"):
        if getattr(loader, name) < 1:
            raise InputError(f"loader.{name}: {getattr(loader, name)}: must be at least 1")
    if not 0 <= loader.hw_decoder_load <= 1:
        raise InputError(f"loader.hw_decoder_load: {loader.hw_decoder_load} is not a share between 0 and 1")


def _place(dataset: Dataset, index: int) -> str:
    key = pq.read_table(dataset.path / "samples.parquet", columns=["key"])["key"][index].as_py()
    where = f"{dataset.shard_paths[dataset.shard[index]]}, {dataset.size[index]} bytes at {dataset.offset[index]}"
    return f"sample {index} ({key!r}; {where})"


def _remedy(dataset: Dataset) -> str:
    return f"run `python -m data_prep verify {dataset.path}`"


def _by(size: Ints) -> str:
    """height and width, as people write them."""
    return f"{size[1]} × {size[0]}"
