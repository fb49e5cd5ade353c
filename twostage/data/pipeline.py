"""The DALI pipeline: decodes a batch once, cuts windows out of it, and hands them to torch.

The only file that imports DALI. DALI decides nothing: what is decoded, which window is cut out and what is mirrored
comes in as data, so a pipeline has no state, and one serves every epoch (to build it again and again leaks GPU memory).
"""

from __future__ import annotations

import io
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, types
from PIL import Image
from torch.utils.dlpack import from_dlpack

from twostage.config import AugmentConfig
from twostage.data.augment import Bools, Ints, dali_scale
from twostage.data.plan import Indices
from twostage.data.reader import Bytes
from twostage.machine_config import LoaderConfig

Backend: TypeAlias = Literal["mixed", "hybrid", "cpu"]
"""mixed: the GPU decodes and augments; hybrid: the CPU decodes, the GPU augments; cpu: the CPU does both"""
Window: TypeAlias = tuple[Ints, Ints, Bools]
"""top, left, mirror of a batch"""
COPY_ON_GPU = True
"""DALI may write into memory that was let go of while torch's stream still has to read it: nothing orders the two.
A copy within the GPU, a thousandth of a training step, makes a batch an ordinary tensor. On a CPU there is no copy."""


@dataclass(frozen=True)
class Fed:
    """A batch under way."""

    index: Indices
    data: list[Bytes]


class DecodePipeline:
    """Decodes once and cuts `num_views` windows; with none, it gives the resized images as they are."""

    def __init__(
        self,
        augment: AugmentConfig,
        loader: LoaderConfig,
        backend: Backend,
        device: torch.device,
        *,
        resizes: bool,
        num_views: int,
        shifts: bool,
        max_batch_size: int,
        half: bool,
    ) -> None:
        """Builds the pipeline; on a GPU that takes about a second.

        Args:
            resizes: whether a size is fed with each batch, to which its images are resized.
            num_views: windows cut out of each image.
            shifts: whether windows may be moved beyond the image's edge; if not, one operator less is needed.
            half: whether views are float16 instead of float32.
        """
        self.in_flight: deque[Fed] = deque()
        self.max_batch_size = max_batch_size
        self.turn = 0
        self.failed = False
        self._lent: deque[tuple[torch.cuda.Event, list[torch.Tensor]]] = deque()
        self._resizes = resizes
        self._num_views = num_views
        self._shifts = shifts
        self._window_size = augment.size
        self._device = device if backend != "cpu" else torch.device("cpu")
        # The dynamic executor runs as many batches as were scheduled. All that a depth does there is to make the very
        # first schedule_run start so many at once, which fails where a plan has fewer.
        self._pipe = Pipeline(
            batch_size=max_batch_size,
            num_threads=loader.decode_threads,
            device_id=_device_id(device) if backend != "cpu" else None,
            prefetch_queue_depth=1,
            exec_dynamic=True,
        )
        with self._pipe:
            encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
            images = _decoded(encoded, augment, loader, backend)
            # To read the headers once more, as peek_image_shape does, takes a tenth of a CPU's time.
            shapes = fn.peek_image_shape(encoded) if backend == "mixed" else images.shape()
            if backend == "hybrid":
                images = images.gpu()
            if resizes:
                size = fn.external_source(name="size", dtype=types.FLOAT, ndim=1)
                images = fn.resize(images, size=size, interp_type=types.INTERP_LINEAR, antialias=True)
            views = [_view(images, number, augment, shifts, half) for number in range(num_views)]
            self._pipe.set_outputs(*(views or [images]), shapes)
        self._pipe.build()

    def begin(self) -> int:
        """Begins a pass: drops what an earlier one left behind, and returns the number by which to know one's own."""
        self.drain()
        self.turn += 1
        return self.turn

    def feed(self, fed: Fed, size: Ints, windows: Sequence[Window]) -> None:
        """Starts on a batch; `size` is (b, 2) heights and widths after resizing."""
        self._pipe.feed_input("encoded", fed.data)
        if self._resizes:
            self._pipe.feed_input("size", size.astype(np.float32))
        for view, (top, left, mirror) in enumerate(windows):
            corner = np.stack([top, left], axis=1)
            if self._shifts:
                self._pipe.feed_input(f"corner{view}", corner.astype(np.int32))
            else:                       # as a share of where it can lie, 0..1, from which DALI rounds to the same pixel
                slack = size - self._window_size
                share = (corner / np.where(slack == 0, 1, slack)).astype(np.float32)
                self._pipe.feed_input(f"y{view}", np.ascontiguousarray(share[:, 0]))
                self._pipe.feed_input(f"x{view}", np.ascontiguousarray(share[:, 1]))
            self._pipe.feed_input(f"mirror{view}", mirror.astype(np.int32))
        self._pipe.schedule_run()
        self.in_flight.append(fed)

    def take(self) -> tuple[list[torch.Tensor], Ints]:
        """Waits for the oldest batch.

        Returns:
            Its views, (b, channels, size, size), in channels-last memory where a GPU made them; or, without views, the
            images, uint8 (b, height, width, channels). And the (b, 2) heights and widths before resizing.

        Raises:
            RuntimeError: an image cannot be decoded; which one, DALI does not say.
        """
        stream = torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None
        self.in_flight.popleft()
        try:
            *outputs, shapes = self._pipe.outputs(cuda_stream=stream)       # the stream waits for DALI, not the host
        except RuntimeError:
            self.failed = True          # DALI goes on after an error, but says itself that it does not vouch for it
            raise
        # DALI's executor gives each batch memory of its own, which the tensor keeps alive
        tensors = [from_dlpack(output.as_tensor()) for output in outputs]
        if stream is not None and COPY_ON_GPU:
            tensors = self._copied(tensors, stream)
        if self._num_views:
            tensors = [view.permute(0, 3, 1, 2) for view in tensors]    # HWC memory seen as CHW is channels-last
        return tensors, np.array(shapes.as_tensor())[:, :2]

    def drain(self) -> None:
        """Waits for what is under way and drops it; an error in a batch that nobody asked for is nobody's."""
        while self.in_flight:
            try:
                self.take()
            except RuntimeError:
                continue
        for copied, _ in self._lent:
            copied.synchronize()
        self._lent.clear()

    def _copied(self, tensors: list[torch.Tensor], stream: torch.cuda.Stream) -> list[torch.Tensor]:
        """Copies in torch's memory; DALI's is kept until the GPU has copied."""
        copies = [tensor.clone() for tensor in tensors]
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(stream)
        self._lent.append((event, tensors))
        while self._lent and self._lent[0][0].query():  # type: ignore[no-untyped-call]
            self._lent.popleft()
        return copies


def choose_backend(device: torch.device, loader: LoaderConfig) -> Backend:
    """Where images for `device` are decoded; says so in one line where a GPU is there but DALI cannot use it."""
    if device.type != "cuda":
        return "cpu"
    backend: Backend = "mixed" if loader.decoder == "auto" else "hybrid"
    tiny = io.BytesIO()
    Image.new("RGB", (16, 16)).save(tiny, "jpeg")
    data = [np.frombuffer(tiny.getvalue(), dtype=np.uint8)]
    try:
        what: dict[str, Any] = {"resizes": False, "num_views": 0, "shifts": False, "max_batch_size": 1, "half": False}
        trial = DecodePipeline(AugmentConfig(), loader, backend, device, **what)
        trial.feed(Fed(np.zeros(1, dtype=np.int64), data), np.array([[16, 16]]), [])
        trial.take()
    except Exception as error:          # whatever DALI, CUDA or the driver throw
        reason = str(error).strip().splitlines() or [type(error).__name__]
        print(
            f"DALI cannot use {device}: {reason[0]} Images are decoded and augmented on the CPU, which is slower; "
            "check that the driver suits the installed nvidia-dali-cuda wheel.",
            file=sys.stderr,
            flush=True,
        )
        return "cpu"
    return backend


def _decoded(encoded: Any, augment: AugmentConfig, loader: LoaderConfig, backend: Backend) -> Any:
    for_gpu: dict[str, Any] = {
        "hw_decoder_load": loader.hw_decoder_load,
        "jpeg_fancy_upsampling": loader.fancy_upsampling,      # the CPU decoder always does
    }
    return fn.decoders.image(
        encoded,
        device="mixed" if backend == "mixed" else "cpu",
        output_type={"rgb": types.RGB, "gray": types.GRAY}[augment.channels],
        **(for_gpu if backend == "mixed" else {}),
    )


def _view(images: Any, number: int, augment: AugmentConfig, shifts: bool, half: bool) -> Any:
    mean, std = dali_scale(augment)
    # Outside of the image DALI puts these numbers as they are: black, normalised and rounded like all other pixels.
    black = -np.array(mean, dtype=np.float32) * (1 / np.array(std, dtype=np.float32))
    square: dict[str, Any] = {"crop": [augment.size] * 2, "out_of_bounds_policy": "pad", "fill_values": black.tolist()}
    if shifts:
        corner = fn.external_source(name=f"corner{number}", dtype=types.INT32, ndim=1)
        images = fn.slice(
            images, start=corner, shape=square["crop"], axes=[0, 1], out_of_bounds_policy="pad", fill_values=0
        )
    else:
        square["crop_pos_y"] = fn.external_source(name=f"y{number}", dtype=types.FLOAT, ndim=0)
        square["crop_pos_x"] = fn.external_source(name=f"x{number}", dtype=types.FLOAT, ndim=0)
    return fn.crop_mirror_normalize(
        images,
        **square,
        mirror=fn.external_source(name=f"mirror{number}", dtype=types.INT32, ndim=0),
        dtype=types.FLOAT16 if half else types.FLOAT,
        output_layout="HWC",
        mean=mean,
        std=std,
    )


def _device_id(device: torch.device) -> int:
    index: Any = torch.cuda.current_device() if device.index is None else device.index
    return int(index)
