"""Small sets: every image is decoded once and stays in device memory as uint8; batches are cut out of that table."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import numpy as np
import torch
import torch.distributed
import torch.nn.functional as F  # noqa: N812
from tqdm import tqdm

from twostage.config import AugmentConfig
from twostage.data.augment import NUM_CHANNELS, Bools, Draws, Ints, Pixels, pixel_scale, window
from twostage.data.plan import Indices
from twostage.data.schema import InputError
from twostage.data.waiting import WaitMeter

Decode = Callable[[Indices], Iterator[tuple[Indices, torch.Tensor]]]

SHOW_AFTER: Final = 2.0
"""seconds of decoding before a terminal shows a bar"""
LINE_EVERY: Final = 60.0
"""seconds between two plain lines where there is no terminal"""


class CachedImages:
    """Batches of images out of device memory; the same images as `StreamedImages` gives, under the same interface.

    The table is filled on first need: a pass first decodes what it will touch and is not there yet.
    """

    kind = "cache"

    def __init__(
        self,
        num_samples: int,
        height: int,
        width: int,
        augment: AugmentConfig,
        scale: tuple[torch.Tensor, torch.Tensor],
        half: bool,
        device: torch.device,
        decode: Decode,
        close_source: Callable[[], None],
    ) -> None:
        """Takes no memory yet.

        Args:
            height, width: of every image, after resizing.
            scale: of `scale_tensors`.
            half: whether batches are float16 instead of float32.
            decode: gives (indices, uint8 (b, height, width, channels) on the device) for indices, in any order.
            close_source: ends what `decode` draws from; called once nothing is left to decode, and by `close`.
        """
        self._shape = (num_samples, height, width, NUM_CHANNELS[augment.channels])
        self._augment = augment
        self._whole = (height, width) == (augment.size, augment.size)
        self._still = not (augment.flip or augment.shift) and (self._whole or augment.crop == "center")
        self._device = device
        self._decode = decode
        self._close_source = close_source
        self._present = np.zeros(num_samples, dtype=np.bool_)
        self._table: torch.Tensor | None = None
        self._meter = WaitMeter()
        self._mean, self._inverse_std = scale
        self._half = half

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
        """As `StreamedImages.batches`."""
        assert (draws is not None) == training and (training or num_views == 1)
        if training:
            self._meter.reset()
        with self._meter.waiting():
            table = self._filled([np.asarray(index) for index in plan[first_step:]])
        for step in range(first_step, len(plan)):
            with self._meter.waiting():
                index = torch.from_numpy(np.ascontiguousarray(plan[step])).to(self._device, non_blocking=True)
                stored = table.index_select(0, index).permute(0, 3, 1, 2)     # channels-last without a copy
                # Where nothing can come of them, draws are not made: for a tiny network they are a tenth of a step.
                views = draws(step) if draws is not None and not self._still else (None,) * num_views
                assert len(views) == num_views
                images = tuple(self._view(stored, draw) for draw in views)
            yield images, index

    def close(self) -> None:
        """Frees the memory."""
        self._table = None
        self._present[:] = False
        self._close_source()

    def _view(self, stored: torch.Tensor, draws: Draws | None) -> torch.Tensor:
        pixels = stored
        if draws is not None or not self._whole:
            height, width = stored.shape[2:]
            top, left, mirror = window(np.full(len(stored), height), np.full(len(stored), width), draws, self._augment)
            pixels = mirrored(cut(stored, top, left, self._augment.size), mirror)
        images = pixels.to(torch.float32, memory_format=torch.channels_last)
        images = images.sub_(self._mean).mul_(self._inverse_std)
        return images.half() if self._half else images

    def _filled(self, plan: Sequence[Indices]) -> torch.Tensor:
        if self._table is None:
            self._table = self._allocate()
        needed = np.zeros_like(self._present)
        for index in plan:
            needed[index] = True
        missing = np.flatnonzero(needed & ~self._present)
        if len(missing):
            for index, images in shown(self._decode(missing), len(missing)):
                rows = torch.from_numpy(index).to(self._device)
                self._table[rows] = images
                self._present[index] = True
            if self._present.all():
                self._close_source()
        return self._table

    def _allocate(self) -> torch.Tensor:
        try:
            return torch.empty(self._shape, dtype=torch.uint8, device=self._device)
        except RuntimeError as error:
            raise InputError(
                f"loader.cache: no {np.prod(self._shape) / 2**30:.1f} GiB on {self._device} for {self._shape[0]} "
                f"images of {self._shape[1]} × {self._shape[2]} pixels; set loader.cache to never"
            ) from error


def scale_tensors(
    augment: AugmentConfig, mean_image: Pixels | None, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """`pixel_scale` on the device; the mean image, (1, channels, size, size), in the memory order of batches."""
    mean, inverse_std = (torch.from_numpy(values)[None].to(device) for values in pixel_scale(augment, mean_image))
    return mean.contiguous(memory_format=torch.channels_last), inverse_std


def cut(images: torch.Tensor, top: Ints, left: Ints, size: int) -> torch.Tensor:
    """Cuts one square out of each image; black where it lies outside.

    Args:
        images: (b, C, H, W) uint8 on any device.
        top, left: (b,) corner of each square, on the host; may be negative or too large.

    Returns:
        (b, C, size, size), of which the elements may be shared with `images`.
    """
    height, width = images.shape[2:]
    above, before = max(0, -int(top.min())), max(0, -int(left.min()))
    below, after = max(0, int(top.max()) + size - height), max(0, int(left.max()) + size - width)
    if above or before or below or after:
        images = F.pad(images, (before, after, above, below))
    top, left = top + above, left + before
    if (top == top[0]).all() and (left == left[0]).all():
        return images[:, :, top[0] : top[0] + size, left[0] : left[0] + size]
    slots = torch.arange(len(images), device=images.device)
    corners = torch.from_numpy(np.stack([top, left])).to(images.device, non_blocking=True)
    # All windows as a view without a copy: (b, C, possible tops, possible lefts, size, size)
    return images.unfold(2, size, 1).unfold(3, size, 1)[slots, :, corners[0], corners[1]]


def mirrored(images: torch.Tensor, mirror: Bools) -> torch.Tensor:
    """Mirrors the chosen ones of (b, C, H, W) images left to right; the others are changed in nothing."""
    if not mirror.any():
        return images
    chosen = torch.from_numpy(np.flatnonzero(mirror)).to(images.device, non_blocking=True)
    return images.index_copy(0, chosen, images.index_select(0, chosen).flip(3))


def shown(decoded: Iterator[tuple[Indices, torch.Tensor]], total: int) -> Iterator[tuple[Indices, torch.Tensor]]:
    """Passes batches through and shows on stderr how far decoding is, if it takes long; on the main process only."""
    alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
    main = alone or torch.distributed.get_rank() == 0
    terminal = sys.stderr.isatty()
    done, last = 0, time.monotonic()
    hidden = not (main and terminal)
    with tqdm(total=total, desc="decoding", unit="image", delay=SHOW_AFTER, leave=False, disable=hidden) as bar:
        for index, images in decoded:
            yield index, images
            done += len(index)
            bar.update(len(index))
            if main and not terminal and time.monotonic() - last >= LINE_EVERY:
                last = time.monotonic()
                print(f"decoding into memory: {done} of {total} images", file=sys.stderr, flush=True)
