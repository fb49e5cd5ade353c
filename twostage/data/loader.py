"""From a plan to batches on the device: bytes from the shards, DALI decodes and augments, torch takes over without a copy.

The only file that imports DALI. DALI decides nothing: which sample stands where, which window is cut out and what is
mirrored comes in as data, so its pipelines have no state, and one of them serves every epoch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import pyarrow.parquet as pq
import torch
from nvidia.dali import Pipeline, fn, types

from twostage.config import AugmentConfig, LoaderConfig
from twostage.data.augment import NUM_CHANNELS, NUM_DRAWS, Draws, Ints, check_augment, resized_shape, window
from twostage.data.cache import CachedImages
from twostage.data.dataset import Dataset
from twostage.data.plan import Indices
from twostage.data.reader import Bytes, PendingRead, ShardReader
from twostage.data.schema import InputError
from twostage.data.waiting import WaitMeter

READ_AHEAD: Final = 64 << 20
"""bytes of coming samples that the kernel is told about"""
MAX_PIXELS: Final = 1 << 28
"""of one image after resizing; a strip of 10 × 100,000 pixels would grow to gigabytes"""
FILL_BATCH: Final = 256
"""samples that are decoded at once into the cache, fewer where they are large"""
FILL_BYTES: Final = 64 << 20
"""decoded bytes of one batch into the cache"""


class StreamedImages:
    """Batches of images from the shards, decoded anew each time; a few batches are always under way."""

    def __init__(self, dataset: Dataset, augment: AugmentConfig, loader: LoaderConfig, device: torch.device) -> None:
        """Reads the image sizes. Threads and pipelines begin with the first batch.

        Raises:
            InputError: an option makes no sense, or an image would be enormous after resizing.
        """
        check_augment(augment)
        _check_loader(loader)
        self.kind = "dali-mixed" if device.type == "cuda" else "dali-cpu"
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
        self._reader = ShardReader(dataset, loader.read_threads)
        self._meter = WaitMeter()
        self._graphs: dict[tuple[bool, int], _Graph] = {}

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
            (images, index) for each step: num_views tensors (b, channels, size, size), float32 and normalised, in
            channels-last order on a GPU, and (b,) int64; on the device, and the consumer's own for as long as it likes.

        Raises:
            InputError: an image cannot be read or decoded, or has not the size that samples.parquet says.
        """
        assert (draws is not None) == training and (training or num_views == 1)
        if training:
            self._meter.reset()

        def windows(step: int, index: Indices) -> list[_Window]:
            views = draws(step) if draws is not None else (None,)
            assert len(views) == num_views and all(v is None or v.shape == (len(index), NUM_DRAWS) for v in views)
            return [window(self._size[index, 0], self._size[index, 1], view, self._augment) for view in views]

        for index, images in self._run((training, num_views), plan, first_step, windows):
            on_device = torch.from_numpy(np.array(index)).to(self._device, non_blocking=True)
            if self._device.type == "cuda":         # HWC memory seen as CHW: channels-last without a copy
                images = [view.permute(0, 3, 1, 2) for view in images]
            yield tuple(images), on_device

    def decoded(self, indices: Indices) -> Iterator[tuple[Indices, torch.Tensor]]:
        """Decodes and resizes samples of equal size, once each: (indices, uint8 (b, height, width, channels))."""
        image_bytes = int(self._size[indices[0]].prod()) * NUM_CHANNELS[self._augment.channels]
        batch_size = max(1, min(FILL_BATCH, FILL_BYTES // image_bytes))
        plan = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
        for index, images in self._run((False, 0), plan, 0, lambda step, index: []):
            yield index, images[0]

    def common_size(self) -> tuple[int, int] | None:
        """Height and width of all images after resizing, None where they differ."""
        height, width = self._size[0].tolist() if len(self._size) else (0, 0)
        return (height, width) if (self._size == (height, width)).all() else None

    def close(self) -> None:
        """Ends all threads and frees what pipelines hold. Batches that were handed out stay valid."""
        for graph in self._graphs.values():
            graph.drain()
        self._graphs.clear()
        self._reader.close()

    def _run(
        self,
        kind: tuple[bool, int],
        plan: Indices | Sequence[Indices],
        first_step: int,
        windows: Callable[[int, Indices], list[_Window]],
    ) -> Iterator[tuple[Indices, list[torch.Tensor]]]:
        if first_step >= len(plan):
            return
        graph = self._graph(kind, max(len(index) for index in plan))
        ahead = _Ahead(self._reader, self._dataset, plan, first_step, self._loader.prefetch)
        turn = graph.begin()

        def top_up(*, wait: bool) -> None:
            while len(graph.in_flight) < self._loader.prefetch and ahead.ready(wait=wait and not graph.in_flight):
                step, index, data = ahead.take()
                graph.feed(_Fed(index, data), self._size[index], windows(step, index))

        try:
            for _ in range(first_step, len(plan)):
                with self._meter.waiting():
                    if graph.turn != turn:
                        raise RuntimeError("a later pass over the same images has ended this one")
                    top_up(wait=True)
                    fed, images = self._take(graph)
                    top_up(wait=False)
                yield fed.index, images
        finally:
            ahead.cancel()
            if graph.turn == turn:
                graph.drain()

    def _graph(self, kind: tuple[bool, int], batch_size: int) -> _Graph:
        graph = self._graphs.get(kind)
        if graph is None or graph.failed or graph.max_batch_size < batch_size:
            resizes = bool((self._size != self._stored).any())
            graph = _Graph(self._augment, self._loader, self._device, resizes, kind[1], batch_size)
            self._graphs[kind] = graph
        return graph

    def _take(self, graph: _Graph) -> tuple[_Fed, list[torch.Tensor]]:
        fed = graph.in_flight[0]
        try:
            images, decoded = graph.take()
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

    def _named(self, fed: _Fed, error: RuntimeError) -> Exception:
        """Decodes the samples of a failed batch one by one, as DALI does not say which one it was."""
        resizes = bool((self._size != self._stored).any())
        graph = _Graph(self._augment, self._loader, self._device, resizes, 0, 1)
        for slot, index in enumerate(fed.index.tolist()):
            graph.feed(_Fed(fed.index[slot : slot + 1], [fed.data[slot]]), self._size[[index]], [])
            try:
                graph.take()
            except RuntimeError:
                return InputError(
                    f"{_place(self._dataset, index)} cannot be decoded; {_remedy(self._dataset)}. If it is not damaged, "
                    "DALI cannot read its kind: build the dataset again with --format jpeg"
                )
        return RuntimeError(f"DALI failed on samples {fed.index.tolist()}, on none of them alone: {error}")


ImageLoader: TypeAlias = StreamedImages | CachedImages
"""The two have one interface: `kind`, `batches`, `data_wait`, `reset_meters`, `close`"""


def open_loader(
    dataset: Dataset, augment: AugmentConfig, loader: LoaderConfig, device: torch.device
) -> ImageLoader:
    """Chooses between streaming and the cache by `loader.cache` and `loader.cache_gib`.

    Raises:
        InputError: an option makes no sense, or `loader.cache` is `always` and the images differ in size.
    """
    streamed = StreamedImages(dataset, augment, loader, device)
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
    return CachedImages(len(dataset), *common, augment, device, streamed.decoded, streamed.close)


_Window: TypeAlias = tuple[Ints, Ints, Any]
"""top, left, mirror of a batch"""


@dataclass(frozen=True)
class _Fed:
    """A batch under way."""

    index: Indices
    data: list[Bytes]


class _Graph:
    """A DALI pipeline that decodes once and cuts `num_views` windows; with none, it gives the resized images."""

    def __init__(
        self,
        augment: AugmentConfig,
        loader: LoaderConfig,
        device: torch.device,
        resizes: bool,
        num_views: int,
        max_batch_size: int,
    ) -> None:
        self.in_flight: deque[_Fed] = deque()
        self.max_batch_size = max_batch_size
        self.turn = 0
        self.failed = False
        self._resizes = resizes
        self._device = device
        on_gpu = device.type == "cuda"
        device_id = (torch.cuda.current_device() if device.index is None else device.index) if on_gpu else None
        # The dynamic executor runs as many batches as were scheduled. All that a depth does there is to make the very
        # first schedule_run start so many at once, which fails where a plan has fewer.
        self._pipe = Pipeline(
            batch_size=max_batch_size,
            num_threads=loader.decode_threads,
            device_id=device_id,
            prefetch_queue_depth=1,
            exec_dynamic=True,
        )
        scale = {"mean": [255 * m for m in augment.mean], "std": [255 * s for s in augment.std]}
        with self._pipe:
            encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
            images = fn.decoders.image(
                encoded,
                device="mixed" if on_gpu else "cpu",
                output_type={"rgb": types.RGB, "gray": types.GRAY}[augment.channels],
                **({"hw_decoder_load": loader.hw_decoder_load} if on_gpu else {}),
            )
            if resizes:
                size = fn.external_source(name="size", dtype=types.FLOAT, ndim=1)
                images = fn.resize(images, size=size, interp_type=types.INTERP_LINEAR, antialias=True)
            views = []
            for view in range(num_views):
                start = fn.external_source(name=f"start{view}", dtype=types.INT32, ndim=1)
                mirror = fn.external_source(name=f"mirror{view}", dtype=types.INT32, ndim=0)
                square = fn.slice(
                    images, start=start, shape=[augment.size] * 2, axes=[0, 1], out_of_bounds_policy="pad", fill_values=0
                )
                layout = "HWC" if on_gpu else "CHW"
                views.append(
                    fn.crop_mirror_normalize(square, mirror=mirror, dtype=types.FLOAT, output_layout=layout, **scale)
                )
            self._pipe.set_outputs(*(views or [images]), fn.peek_image_shape(encoded))
        self._pipe.build()

    def begin(self) -> int:
        """Begins a pass: drops what an earlier one left behind, and returns the number by which to know one's own."""
        self.drain()
        self.turn += 1
        return self.turn

    def feed(self, fed: _Fed, size: Ints, windows: Sequence[_Window]) -> None:
        """Starts on a batch; `size` is (b, 2) heights and widths after resizing."""
        self._pipe.feed_input("encoded", fed.data)
        if self._resizes:
            self._pipe.feed_input("size", size.astype(np.float32))
        for view, (top, left, mirror) in enumerate(windows):
            self._pipe.feed_input(f"start{view}", np.stack([top, left], axis=1).astype(np.int32))
            self._pipe.feed_input(f"mirror{view}", mirror.astype(np.int32))
        self._pipe.schedule_run()
        self.in_flight.append(fed)

    def take(self) -> tuple[list[torch.Tensor], Ints]:
        """Waits for the oldest batch; returns its tensors and the (b, 2) heights and widths that the headers say."""
        stream = torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None
        self.in_flight.popleft()
        try:
            *outputs, shapes = self._pipe.outputs(cuda_stream=stream)
        except RuntimeError:
            self.failed = True          # DALI goes on after an error, but says itself that it does not vouch for it
            raise
        # DALI's executor gives each batch memory of its own, which the tensor keeps alive
        return [torch.from_dlpack(output.as_tensor()) for output in outputs], np.array(shapes.as_tensor())[:, :2]

    def drain(self) -> None:
        """Waits for what is under way and drops it; an error in a batch that nobody asked for is nobody's."""
        while self.in_flight:
            try:
                self.take()
            except RuntimeError:
                continue


class _Ahead:
    """Reads the bytes of a plan's coming batches, and tells the kernel of those that come later."""

    def __init__(
        self, reader: ShardReader, dataset: Dataset, plan: Indices | Sequence[Indices], first_step: int, depth: int
    ) -> None:
        self._reader, self._plan, self._depth = reader, plan, depth
        self._reads: deque[tuple[int, Indices, PendingRead]] = deque()
        self._next = self._advised = first_step
        batch_bytes = max(1, int(dataset.size[plan[first_step]].sum()))
        self._horizon = max(2 * depth, READ_AHEAD // batch_bytes)

    def ready(self, *, wait: bool) -> bool:
        """Whether the next batch's bytes are there; where `wait`, whether there is a next batch at all."""
        self._advise()
        while len(self._reads) < self._depth and self._next < len(self._plan):
            index = np.asarray(self._plan[self._next])
            self._reads.append((self._next, index, self._reader.submit(index)))
            self._next += 1
        return bool(self._reads) and (wait or self._reads[0][2].done())

    def take(self) -> tuple[int, Indices, list[Bytes]]:
        """Step, indices and bytes of the next batch. Raises what ShardReader.read raises."""
        step, index, read = self._reads.popleft()
        return step, index, read.result()

    def cancel(self) -> None:
        """Drops what is not yet read."""
        for _, _, read in self._reads:
            read.cancel()

    def _advise(self) -> None:
        if self._advised - self._next > self._horizon // 2:
            return
        stop = min(len(self._plan), self._next + self._horizon)
        if stop > self._advised:
            self._reader.advise(np.concatenate([self._plan[step] for step in range(self._advised, stop)]))
            self._advised = stop


def _check_loader(loader: LoaderConfig) -> None:
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
