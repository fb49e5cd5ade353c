"""Small datasets of chosen images, and what the loader should make of them by numpy and Pillow alone."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image, ImageOps

from tests.data_prep.tiny_dataset import write_given, write_marker, write_samples, write_shard
from twostage.config import AugmentConfig
from twostage.data import schema
from twostage.data.dataset import Dataset

Pixels = npt.NDArray[np.uint8]


def noise(number: int, height: int, width: int, channels: int = 3) -> Pixels:
    """An image of which no two pixels are alike; (height, width) where it has one channel."""
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)


def smooth(number: int, height: int, width: int) -> Pixels:
    """An RGB image as smooth as a photo, which JPEG and resizing change little."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def encoded(pixels: Pixels, kind: str = "png", orientation: int | None = None, **options: object) -> bytes:
    """Image file with these stored pixels, and an EXIF orientation where asked for."""
    buffer = io.BytesIO()
    if orientation is not None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    Image.fromarray(pixels).save(buffer, format=kind, **options)
    return buffer.getvalue()


def opened(data: bytes) -> Image.Image:
    """By Pillow, turned as its EXIF orientation says."""
    image = Image.open(io.BytesIO(data))
    turned = ImageOps.exif_transpose(image)
    turned.format = image.format
    return turned


def write_images(
    path: Path,
    images: Sequence[bytes],
    *,
    per_shard: int = 5,
    splits: Sequence[str] | None = None,
    class_names: Sequence[str] = ("cat", "dog"),
    labels: Sequence[int] | None = None,
    sizes: dict[int, tuple[int, int]] | None = None,
) -> Dataset:
    """Writes and opens a dataset of these files in this order.

    Args:
        splits: of each image; all `noisy_train` by default.
        labels: of each image, by turns by default.
        sizes: height and width to note for an image that Pillow cannot open, or to note wrongly.
    """
    (path / "shards").mkdir(parents=True)
    splits = splits or ["noisy_train"] * len(images)
    rows: list[list[object]] = []
    for first in range(0, len(images), per_shard):
        members = []
        for index in range(first, min(first + per_shard, len(images))):
            height, width, kind = _described(images[index], (sizes or {}).get(index))
            members.append((schema.member_name(index, kind), images[index]))
            row = [index, f"photos/{index}", splits[index], first // per_shard, 0, len(images[index])]
            rows.append([*row, width, height, kind, hashlib.sha256(images[index]).digest()])
        offsets = write_shard(path / "shards" / schema.shard_name(first // per_shard), members)
        for row, offset in zip(rows[first:], offsets, strict=True):
            row[4] = offset
    columns = [
        pa.array(list(column), type=field.type)
        for column, field in zip(zip(*rows, strict=True), schema.SAMPLES_SCHEMA, strict=True)
    ]
    write_samples(path, pa.table(columns, schema=schema.SAMPLES_SCHEMA))
    digest = schema.file_digest(path / "samples.parquet")
    write_given(path, len(images), class_names, digest, labels)
    counts = {split: list(splits).count(split) for split in schema.SPLITS}
    write_marker(path, counts, (len(images) - 1) // per_shard + 1, digest)
    return Dataset.open(path)


def _described(data: bytes, size: tuple[int, int] | None) -> tuple[int, int, str]:
    if size is not None:
        return (*size, "jpeg")
    image = opened(data)
    return image.height, image.width, str(image.format).lower()


def decoded(data: bytes, augment: AugmentConfig) -> Pixels:
    """(height, width, channels) by Pillow, resized as `augment` says."""
    image = opened(data).convert({"rgb": "RGB", "gray": "L"}[augment.channels])
    if augment.resize is not None:
        shorter = min(image.size)
        width, height = (int(side * augment.resize / shorter + 0.5) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def expected(data: bytes, draw: npt.NDArray[np.float32] | None, augment: AugmentConfig) -> npt.NDArray[np.float64]:
    """(channels, size, size) that the network should see of one image, pixel by pixel; `draw` is (5,) or None."""
    pixels, size = decoded(data, augment), augment.size
    corner, mirror = [0, 0], False
    for axis in (0, 1):
        slack = pixels.shape[axis] - size
        corner[axis] = slack // 2
        if draw is not None:
            if slack >= 0 and augment.crop == "random":
                corner[axis] = int(float(draw[axis]) * (slack + 1))
            corner[axis] += int(float(draw[2 + axis]) * (2 * augment.shift + 1)) - augment.shift
    if draw is not None and augment.flip:
        mirror = bool(draw[4] < 0.5)
    seen = np.zeros((augment.size, augment.size, pixels.shape[2]))
    for y in range(size):
        for x in range(size):
            row, column = corner[0] + y, corner[1] + x
            if 0 <= row < pixels.shape[0] and 0 <= column < pixels.shape[1]:
                seen[y, size - 1 - x if mirror else x] = pixels[row, column]
    assert isinstance(augment.mean, list)
    return np.moveaxis((seen / 255 - augment.mean) / augment.std, 2, 0)
