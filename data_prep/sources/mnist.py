"""MNIST and its relatives (Fashion-MNIST, KMNIST, ...): four idx files, gzipped or not."""

from __future__ import annotations

import argparse
import gzip
import hashlib
import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from data_prep.check import RejectionError
from data_prep.sources import Input, Listing, Stamp, read_class_names, to_batches
from data_prep.sources.arrays import png_bytes
from twostage.data.schema import SPLITS, InputError

OPTIONS = ("class_names",)
PARTS: Final = {"train": ("train", "noisy_train"), "test": ("t10k", "test")}      # key prefix -> file prefix, split
IMAGES, LABELS = 0x803, 0x801           # magic numbers: unsigned bytes, in three dimensions and in one


def add_arguments(group: argparse._ArgumentGroup) -> None:
    """Has no options of its own."""
    group.description = (
        "SOURCE holds train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-..., t10k-labels-..., each with or "
        "without .gz. train becomes noisy_train, t10k becomes test; keys are train/00000, test/00000 in the original "
        "order. Classes are 0 to 9 unless --class-names names others."
    )


def list_inputs(source: Path, args: argparse.Namespace) -> Listing:
    """See `Source.list_inputs`."""
    if not source.is_dir():
        raise InputError(f"{source}: {'not a folder' if source.exists() else 'no such folder'}")
    names = tuple("0123456789") if args.class_names is None else read_class_names(args.class_names)
    images: dict[str, Path] = {}
    labels: dict[str, npt.NDArray[np.uint8]] = {}
    containers: dict[str, str] = {}
    for part, (prefix, _) in PARTS.items():
        images[part] = _find(source, prefix, "images", 3)
        path = _find(source, prefix, "labels", 1)
        pixels, digest = _read_idx(images[part], IMAGES)
        containers[images[part].name] = digest
        labels[part], containers[path.name] = _read_idx(path, LABELS)
        if len(pixels) != len(labels[part]):
            raise InputError(f"{images[part]} has {len(pixels)} images, {path} has {len(labels[part])} labels")
        wrong = np.flatnonzero(labels[part] >= len(names))
        if wrong.size:
            raise InputError(
                f"{path}: label {labels[part][wrong[0]]} of image {wrong[0]} is out of range 0..{len(names) - 1} "
                f"({wrong.size} such labels); --class-names names the classes"
            )
    return Listing(
        class_names=names, batches=to_batches(_rows(labels)), reader=IdxReader(images), containers=containers
    )


class IdxReader:
    """Encodes images of idx files as PNG; a place is b"train 123"."""

    def __init__(self, paths: dict[str, Path]) -> None:
        """Opens nothing yet. `paths`: the images' idx files by part."""
        self._paths = paths
        self._pixels: dict[str, npt.NDArray[np.uint8]] = {}

    def read(self, place: bytes, max_bytes: int) -> tuple[bytes, Stamp]:
        """See `Reader.read`."""
        part, number = place.decode().split()
        if part not in self._pixels:
            self._pixels[part], _ = _read_idx(self._paths[part], IMAGES)
        data = png_bytes(self._pixels[part][int(number)])
        if len(data) > max_bytes:
            raise RejectionError("too_large", f"{len(data)} bytes, the limit is {max_bytes}")
        return data, self.stamp(place)

    def stamp(self, place: bytes) -> Stamp:
        """See `Reader.stamp`: the files' digests say it."""
        return Stamp(0, 0)


def _rows(labels: dict[str, npt.NDArray[np.uint8]]) -> Iterator[Input]:
    for part, (_, split) in PARTS.items():
        for number, label in enumerate(labels[part].tolist()):
            yield Input(f"{part}/{number:05d}", f"{part} {number}".encode(), SPLITS.index(split), label)


def _find(source: Path, prefix: str, kind: str, dimensions: int) -> Path:
    """The idx file in one of the spellings that are around."""
    names = [f"{prefix}-{kind}{dot}idx{dimensions}-ubyte{end}" for end in ("", ".gz") for dot in "-."]
    for name in names:
        if (source / name).is_file():
            return source / name
    present = ", ".join(sorted(path.name for path in source.iterdir())[:10])
    raise InputError(f"{source}: no {names[0]} or {names[2]}; there are: {present or 'no files'}")


def _read_idx(path: Path, magic: int) -> tuple[npt.NDArray[np.uint8], str]:
    """The array of an idx file, (n, height, width) or (n,), and the SHA-256 of the file as it lies there."""
    raw = path.read_bytes()
    digest = hashlib.sha256(raw).hexdigest()
    try:
        data = gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} is damaged ({error}): get it again") from error
    num_dimensions = magic & 0xFF
    start = 4 + 4 * num_dimensions
    if len(data) < start or struct.unpack_from(">I", data)[0] != magic:
        raise InputError(f"{path} is no idx file of this kind: it should begin with the bytes {magic:08x}")
    shape = struct.unpack_from(f">{num_dimensions}I", data, 4)
    size, found = math.prod(shape), len(data) - start
    if found != size:
        raise InputError(f"{path} should hold {size} bytes ({' x '.join(map(str, shape))}), it holds {found}")
    if 0 in shape[1:]:
        raise InputError(f"{path} holds images without pixels ({' x '.join(map(str, shape))}): get it again")
    return np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape), digest
