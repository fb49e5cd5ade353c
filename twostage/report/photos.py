"""Loose image files as a dataset, so that they take the same way to the network as others; the broken ones apart."""

from __future__ import annotations

import os
import stat
import struct
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, Final

import numpy as np
import pyarrow as pa
import torch
from PIL import Image, UnidentifiedImageError

from twostage.config import AugmentConfig
from twostage.data.augment import resized_shape
from twostage.data.dataset import Dataset
from twostage.data.loader import MAX_PIXELS as MAX_RESIZED
from twostage.data.pipeline import DecodePipeline, Fed
from twostage.data.schema import InputError, nearest, write_table
from twostage.machine_config import LoaderConfig

MAX_BYTES: Final = 64 << 20
"""of a file; as `data_prep build` has it"""
MAX_PIXELS: Final = 100_000_000
"""of an image by its header, before anything is decoded; as `data_prep build` has it"""
IMAGES: Final = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp"})
OTHER_IMAGES: Final = frozenset({".avif", ".bmp", ".gif", ".heic", ".heif", ".tif", ".tiff"})
"""taken for images that cannot be read, rather than passed over"""
SIGNATURES: Final = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF")


@dataclass(frozen=True)
class Found:
    """What given paths lead to."""

    files: tuple[Path, ...]
    """each once, in the order of the paths, within a folder by name"""
    passed_over: Counter[str]
    """how many other files lie in the folders, by their names' endings"""


@dataclass(frozen=True)
class Header:
    """What the pipeline has to know of an image beforehand."""

    num_bytes: int
    height: int
    """pixels; from `inspect`, after EXIF orientation as DALI applies it"""
    width: int


@dataclass(frozen=True)
class LooseFiles(Dataset):
    """Image files as a dataset: each is a shard of its own."""

    files: list[Path]

    @property
    def image_digests(self) -> None:
        """Not known: nobody has seen the files before."""
        return None

    @property
    def shard_paths(self) -> list[Path]:
        """The files."""
        return self.files


def find(paths: Sequence[Path]) -> Found:
    """All images that are named or lie below a named folder; links to folders are not followed, hidden files left out.

    Raises:
        InputError: a path does not exist (names the nearest), or there is no image at all.
    """
    files: dict[Path, None] = {}
    passed_over: Counter[str] = Counter()
    for path in paths:
        if path.is_dir():
            for file in _below(path):
                if file.suffix.lower() in IMAGES | OTHER_IMAGES and not file.name.startswith("."):
                    files[file] = None
                else:
                    passed_over[file.suffix.lower() or file.name] += 1
        elif path.exists():
            files[path] = None
        else:
            siblings = [p.name for p in path.parent.iterdir() if p.name[0] != "."] if path.parent.is_dir() else []
            raise InputError(f"no file or folder {path}; {nearest(path.name, siblings[:1000])}")
    if not files:
        told = f", only {passed_over.total():,} other files" if passed_over else ""
        raise InputError(f"no image (.jpg, .png, .webp) in {', '.join(str(path) for path in paths)}{told}")
    return Found(tuple(files), passed_over)


def _below(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder, onerror=_not_listed):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent) / name for name in sorted(names))


def _not_listed(error: OSError) -> None:
    raise error                     # os.walk would leave the folder out without a word


def inspect(files: Sequence[Path], augment: AugmentConfig, threads: int) -> Iterator[Header | str]:
    """Decodes each file by Pillow and by DALI; yields what is known of it, or what is wrong with it.

    By DALI one by one: where a file in a larger batch is damaged, DALI 2.4 may bring down the whole process.
    """
    single = _Single(augment)
    with warnings.catch_warnings(), ThreadPoolExecutor(threads, thread_name_prefix="inspect") as pool:
        warnings.simplefilter("ignore")         # of oddities in metadata, and of sizes that are checked here
        found = pool.map(lambda file: _inspected(file, augment), files)
        for file, header in zip(files, found, strict=True):
            yield header if isinstance(header, str) else single.decoded(file, header)


class _Single:
    """Decodes one file at a time as the loader does, on the CPU."""

    def __init__(self, augment: AugmentConfig) -> None:
        self._augment = augment
        self._pipeline: DecodePipeline | None = None

    def decoded(self, file: Path, header: Header) -> Header | str:
        """The header with the size that DALI says, or what is wrong."""
        try:
            data = np.frombuffer(file.read_bytes(), dtype=np.uint8)
        except OSError as error:
            return error.strerror or str(error)
        if len(data) != header.num_bytes:
            return "it is being written"
        if self._pipeline is None or self._pipeline.failed:
            plain: dict[str, Any] = {"resizes": False, "num_views": 0, "shifts": False, "half": False}
            loader = LoaderConfig(decode_threads=1)
            self._pipeline = DecodePipeline(
                self._augment, loader, "cpu", torch.device("cpu"), max_batch_size=1, **plain
            )
        size = np.array([[header.height, header.width]])
        self._pipeline.feed(Fed(np.zeros(1, dtype=np.int64), [data]), size, [])
        try:
            _, shape = self._pipeline.take()
        except RuntimeError:
            return "damaged: its header can be read, but DALI cannot decode it"
        height, width = (int(side) for side in shape[0])
        if (height, width) not in ((header.height, header.width), (header.width, header.height)):
            return f"damaged: {header.width} x {header.height} pixels, or {width} x {height}"
        return Header(header.num_bytes, height, width)


def _inspected(file: Path, augment: AugmentConfig) -> Header | str:
    try:
        found = file.stat()
        if not stat.S_ISREG(found.st_mode):
            return "not a regular file"
        if not 0 < found.st_size <= MAX_BYTES:
            return f"{found.st_size} bytes" + (f", the limit is {MAX_BYTES}" if found.st_size else "")
        with file.open("rb") as opened:
            begin = opened.read(8)
            if begin.startswith(SIGNATURES[1]) and (fault := _png_fault(opened)):
                return fault
            opened.seek(0)
            try:
                with Image.open(opened, formats=("JPEG", "PNG", "WEBP")) as image:
                    return _of_image(image, found.st_size, augment)
            except UnidentifiedImageError:
                known = begin.startswith(SIGNATURES)
                return "damaged: the header cannot be read" if known else "not a JPEG, PNG or WebP image"
            except Image.DecompressionBombError:        # before we are asked
                return f"too many pixels, the limit is {MAX_PIXELS}"
            except MemoryError:
                raise
            except Exception as error:          # Pillow's readers raise nearly anything on damaged data
                return f"damaged: {' '.join(str(error).split()) or type(error).__name__}"
    except OSError as error:
        return error.strerror or str(error)


def _png_fault(file: BinaryIO) -> str:
    """What makes DALI 2.4 crash among the chunks of a PNG file, after its signature, or "".

    data_prep/png.py knows of one more, which is not looked for here: an eXIf chunk whose entries point out of it.
    """
    seen: set[bytes] = set()
    while len(head := file.read(8)) == 8 and b"IEND" not in seen:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"eXIf" and kind in seen:
            return "damaged: more than one eXIf chunk"
        if kind == b"fcTL" and kind not in seen and b"IDAT" in seen and b"acTL" in seen:
            return "an animation whose default image is not its first frame, which DALI cannot decode safely"
        seen.add(kind)
        file.seek(length + 4, os.SEEK_CUR)
    return ""


def _of_image(image: Image.Image, num_bytes: int, augment: AugmentConfig) -> Header | str:
    width, height = image.size
    if width * height > MAX_PIXELS:
        return f"{width} x {height} pixels, the limit is {MAX_PIXELS}"
    # DALI 2.4 crashes where two EXIF segments turn an image differently
    if sum(data.startswith(b"Exif\0\0") for _, data in getattr(image, "applist", ())) > 1:
        return "damaged: more than one EXIF segment"
    if np.prod(resized_shape(height, width, augment.resize)) > MAX_RESIZED:
        return f"{width} x {height} pixels become too many when the shorter side is resized to {augment.resize}"
    image.draft(None, (1, 1))       # all of a JPEG's entropy code is decoded at any scale; the rest costs little at 1/8
    image.load()
    return Header(num_bytes, height, width)


@contextmanager
def as_dataset(files: Sequence[Path], headers: Sequence[Header]) -> Iterator[LooseFiles]:
    """The files as a dataset; sample i is file i. Its samples.parquet is a temporary file."""
    with TemporaryDirectory(prefix="twostage-") as folder:
        table = pa.table({
            "key": [name_of(file) for file in files],
            "height": pa.array([header.height for header in headers], pa.int32()),
            "width": pa.array([header.width for header in headers], pa.int32()),
        })
        write_table(Path(folder) / "samples.parquet", table)
        yield LooseFiles(
            path=Path(folder),
            marker={},
            shard=np.arange(len(files), dtype=np.int32),
            offset=np.zeros(len(files), dtype=np.int64),
            size=np.array([header.num_bytes for header in headers], dtype=np.int64),
            split=np.zeros(len(files), dtype=np.int8),
            files=list(files),
        )


def name_of(file: Path) -> str:
    """A path as text; bytes that are no text are written as \\xNN."""
    return os.fsencode(file).decode("utf-8", "backslashreplace")
