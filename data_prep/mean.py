"""The mean image of the training split, on the way: pixels are added up while images are checked.

Each chunk's sums lie beside its rows in the work folder, and are added up at the end. They are whole numbers, so
neither the order nor the number of processes, nor a chunk that is written twice, changes a bit of the result.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from twostage.data.schema import MEAN_SCHEMA, SPLITS, InputError, mean_table, write_table

SPLIT: Final = SPLITS[0]
"""whose images are added up: the training split"""
MAX_SIZE: Final = 1024
"""pixels of a side; the sums of a shard take 12 bytes a pixel"""


class PixelSums:
    """Sums of the pixels of some images, each reduced to one size."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.num_images = 0
        self._total: npt.NDArray[np.uint64] = np.zeros((size, size, 3), np.uint64)
        self._recent: npt.NDArray[np.uint16] = np.zeros((size, size, 3), np.uint16)   # four times as fast
        self._num_recent = 0

    def add(self, image: Image.Image) -> None:
        """Adds an upright image of 8 bits, RGB or gray: its centre square, after its shorter side was resized."""
        if self._num_recent == 257:                     # 257 * 255 is all that fits
            self._flush()
        square = centre_square(image, self.size)
        if square.mode != "RGB":
            square = square.convert("RGB")
        np.add(self._recent, np.asarray(square), out=self._recent)
        self._num_recent += 1
        self.num_images += 1

    def table(self) -> pa.Table:
        """In MEAN_SCHEMA."""
        self._flush()
        return mean_table(self._total.astype(np.int64), {"num_images": str(self.num_images)})

    def _flush(self) -> None:
        self._total += self._recent
        self._recent[:] = 0
        self._num_recent = 0


def centre_square(image: Image.Image, size: int) -> Image.Image:
    """What a network sees of an image in evaluation when it takes squares of this size."""
    width, height = image.size
    shorter = min(width, height)
    if shorter != size:             # never the whole of it: a strip of 1 x 70,000 pixels would grow to gigabytes
        left, top = (width - shorter) / 2, (height - shorter) / 2
        box = (left, top, left + shorter, top + shorter)
        return image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    left, top = (width - size) // 2, (height - size) // 2
    return image if width == height else image.crop((left, top, left + size, top + size))


def write_mean(path: Path, chunks: Iterable[Path], size: int, parent: str) -> tuple[str, list[float]]:
    """Adds up the sums of all chunks and writes a dataset's mean.parquet.

    Args:
        chunks: files with the sums of each.
        size: pixels of a side.
        parent: SHA-256 of samples.parquet.

    Returns:
        SHA-256 of mean.parquet; red, green and blue averaged over all pixels, on the scale 0..1, none without images.

    Raises:
        InputError: a chunk's sums cannot be read; they are removed, so that the next run makes them anew.
    """
    total = np.zeros((size**2, 3), np.int64)
    num_images = 0
    for chunk in chunks:
        try:
            table = pq.read_table(chunk)
            num_images += int(table.schema.metadata[b"num_images"])
            total += np.stack([table[name].to_numpy() for name in MEAN_SCHEMA.names], axis=1)
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
            chunk.unlink(missing_ok=True)
            raise InputError(f"{chunk} was damaged ({error}) and is removed: run the same command again") from error
    metadata = {"num_images": str(num_images), "size": str(size), "split": SPLIT, "parent": parent}
    write_table(path, mean_table(total.reshape(size, size, 3), metadata))
    means = (total.sum(axis=0) / (255 * size**2 * num_images)).tolist() if num_images else []
    return hashlib.sha256(path.read_bytes()).hexdigest(), means


def mean_problem(path: Path, marker: dict[str, Any]) -> str:
    """In words, what is wrong with a dataset's mean.parquet; empty if nothing is, or there should be none."""
    stated = marker.get("mean_sha256")
    if stated is None:
        return "does not belong to the dataset, whose dataset.json does not name it" if path.exists() else ""
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        metadata = {k.decode(): v.decode() for k, v in (pq.read_schema(path).metadata or {}).items()}
    except FileNotFoundError:
        return "is missing"
    except (pa.ArrowException, OSError, ValueError) as error:
        return f"cannot be read ({error})"
    if found != stated:
        return (
            f"is not the file that the dataset was completed with: its SHA-256 is {found[:12]}…, "
            f"dataset.json says {str(stated)[:12]}…"
        )
    num_images, splits = metadata.get("num_images"), marker.get("splits")
    expected = splits.get(SPLIT, 0) if isinstance(splits, dict) else None
    if num_images != str(expected):
        return f"is the mean of {num_images} images, but {SPLIT} has {expected}"
    if metadata.get("parent") != marker.get("samples_sha256"):
        return "was made from another samples.parquet"
    return ""
