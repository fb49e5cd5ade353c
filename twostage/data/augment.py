"""From random draws to windows: what is cut out of an image, and whether it is mirrored.

All that is random about augmentation is decided here, in numpy, from draws that the plan made; DALI and the cache only
obey. So a resumed run, another number of processes or another decoder never changes what the network sees.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from twostage.config import AugmentConfig
from twostage.data.schema import InputError

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Draws = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.float32]

NUM_CHANNELS: Final = {"rgb": 3, "gray": 1}
MAX_SIDE: Final = 1 << 14
"""pixels of a square that is cut out"""
NUM_DRAWS: Final = 5
"""crop_y, crop_x, shift_y, shift_x, flip"""


def check_augment(augment: AugmentConfig) -> None:
    """Checks that the section makes sense.

    Raises:
        InputError: names the field, its value and what it may be.
    """
    channels = NUM_CHANNELS[augment.channels]
    for name in ("mean", "std"):
        values = getattr(augment, name)
        if values != "image" and len(values) != channels:
            raise InputError(
                f"augment.{name}: {values} has {len(values)} values, but augment.channels {augment.channels!r} "
                f"needs {channels}"
            )
    if min(augment.std) <= 0:
        raise InputError(f"augment.std: {augment.std}: every value must be more than 0, as pixels are divided by it")
    if augment.size < 1:
        raise InputError(f"augment.size: {augment.size}: the network needs to see at least one pixel")
    if augment.size > MAX_SIDE:
        raise InputError(f"augment.size: {augment.size}: at most {MAX_SIDE} pixels; no larger image is decoded, either")
    if augment.resize is not None and augment.resize < 1:
        raise InputError(f"augment.resize: {augment.resize}: must be at least 1, or null to keep the stored size")
    if augment.shift < 0:
        raise InputError(f"augment.shift: {augment.shift}: must be 0 or more")


def resized_shape(height: npt.ArrayLike, width: npt.ArrayLike, resize: int | None) -> tuple[Ints, Ints]:
    """Heights and widths after the shorter side was resized to `resize` pixels; the longer one is rounded, halves up.

    Where `resize` is None, the sizes stay.
    """
    height, width = np.asarray(height, dtype=np.int64), np.asarray(width, dtype=np.int64)
    if resize is None:
        return height, width
    shorter = np.minimum(height, width)
    return (2 * height * resize + shorter) // (2 * shorter), (2 * width * resize + shorter) // (2 * shorter)


def window(
    height: npt.ArrayLike, width: npt.ArrayLike, draws: Draws | None, augment: AugmentConfig
) -> tuple[Ints, Ints, Bools]:
    """Which square of `augment.size` pixels is cut out of images of these sizes, and which are mirrored afterwards.

    Along each axis, with slack = length - size:
        centre:  floor(slack / 2); also where the image is smaller than the square (slack < 0)
        random:  floor(draw · (slack + 1)), which takes each of 0..slack equally often
        shift:   plus floor(draw · (2 · shift + 1)) - shift, each of -shift..shift equally often
    What of the square lies outside the image is black: 0 before normalisation. Mirrored where the flip draw is < 0.5.

    Args:
        height, width: (b,) pixels, after resizing.
        draws: (b, 5) in [0, 1): crop_y, crop_x, shift_y, shift_x, flip; None for evaluation: the centre, neither
            shifted nor mirrored.

    Returns:
        (top, left, mirror), each (b,); top and left may be negative.
    """
    height, width = np.asarray(height, dtype=np.int64), np.asarray(width, dtype=np.int64)
    if draws is None:
        top, left = (height - augment.size) // 2, (width - augment.size) // 2
        return top, left, np.zeros(top.shape, dtype=np.bool_)
    # In float32 a product can round up to a whole number that it does not reach; in float64 it is exact.
    exact = draws.astype(np.float64)
    shift = np.floor(exact[:, 2:4] * (2 * augment.shift + 1)).astype(np.int64) - augment.shift
    top = _corner(height - augment.size, exact[:, 0], augment) + shift[:, 0]
    left = _corner(width - augment.size, exact[:, 1], augment) + shift[:, 1]
    return top, left, (draws[:, 4] < 0.5) & augment.flip


def _corner(slack: Ints, draws: npt.NDArray[np.float64], augment: AugmentConfig) -> Ints:
    centre = slack // 2
    if augment.crop == "center":
        return centre
    corner: Ints = np.where(slack < 0, centre, np.floor(draws * (slack + 1)).astype(np.int64))
    return corner


def dali_scale(augment: AugmentConfig) -> tuple[list[float], list[float]]:
    """(mean, std), each one value per channel on the scale 0..255, as DALI takes them.

    With the mean image, which DALI cannot subtract, they leave the pixels as they are.
    """
    if augment.mean == "image":
        channels = NUM_CHANNELS[augment.channels]
        return [0.0] * channels, [1.0] * channels
    return [255 * value for value in augment.mean], [255 * value for value in augment.std]


def pixel_scale(augment: AugmentConfig, mean_image: Pixels | None = None) -> tuple[Pixels, Pixels]:
    """(mean, 1 / std) on the scale 0..255, rounded exactly as DALI rounds them: (channels, 1, 1) each.

    `(pixel - mean) * inverse`, in float32 and in this order, is then DALI's own result bit for bit. With `mean_image`,
    (channels, size, size), the mean is that.
    """
    std: Any = np.array([255 * value for value in augment.std], dtype=np.float32)[:, None, None]
    if augment.mean == "image":
        assert mean_image is not None and mean_image.dtype == np.float32
        return mean_image, np.float32(1) / std
    mean: Any = np.array([255 * value for value in augment.mean], dtype=np.float32)[:, None, None]
    return mean, np.float32(1) / std
