"""Small made-up CIFAR-10 batches in the layouts of the original: python pickles and binary, folders and archives."""

from __future__ import annotations

import hashlib
import struct
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

PER_BATCH = 7
NAMES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")


def make_content(rng_seed: int = 0) -> dict[str, tuple[npt.NDArray[np.uint8], list[int]]]:
    """(images, 32, 32, 3) pixels and labels by batch."""
    rng = np.random.default_rng(rng_seed)
    return {
        name: (rng.integers(0, 256, (PER_BATCH, 32, 32, 3), dtype=np.uint8), rng.integers(0, 10, PER_BATCH).tolist())
        for name in NAMES
    }


def rows_of(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """(images, 3072): all red bytes of an image, then all green ones, then all blue ones."""
    return np.stack([np.concatenate([image[..., channel].ravel() for channel in range(3)]) for image in images])


def python2_pickle(images: npt.NDArray[np.uint8], labels: list[int]) -> bytes:
    """A batch as Python 2 pickled it in the original: protocol 2, texts of bytes, numpy's names of then."""
    rows = rows_of(images)

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    numbers = b"".join(b"K" + bytes([label]) for label in labels)
    shape = b"M" + struct.pack("<H", rows.shape[0]) + b"M" + struct.pack("<H", rows.shape[1]) + b"\x86"
    dtype = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R(K\x03" + text(b"|") + b"NNN" + b"J\xff\xff\xff\xff" * 2
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R(K\x01" + shape
    array += dtype + b"K\x00tb\x89T" + struct.pack("<i", rows.nbytes) + rows.tobytes() + b"tb"
    head = text(b"batch_label") + text(b"training batch 1 of 5")
    return b"\x80\x02}(" + head + text(b"labels") + b"](" + numbers + b"e" + text(b"data") + array + b"u."


def binary(images: npt.NDArray[np.uint8], labels: list[int]) -> bytes:
    """A batch of the binary version."""
    return b"".join(bytes([label]) + row.tobytes() for label, row in zip(labels, rows_of(images), strict=True))


def write_folder(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Writes the batches into a folder."""
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def pack(folder: Path, archive: Path) -> Path:
    """Packs a folder as the originals are packed: the batches are not in order there."""
    with tarfile.open(archive, "w:gz") as tar:
        for path in sorted(folder.rglob("*"), reverse=True):
            tar.add(path, f"{folder.name}/{path.relative_to(folder)}", recursive=False)
    return archive


def sums(files: Mapping[str, bytes]) -> dict[str, str]:
    """md5 sums by name."""
    return {name: hashlib.md5(data).hexdigest() for name, data in files.items()}
