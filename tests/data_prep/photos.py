"""Small image files of every kind that is accepted, and of every kind that is not: what build is tested on."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def pixels(number: int, width: int = 24, height: int = 16, channels: int = 3) -> np.ndarray:
    """Soft blots of random colours: no two numbers give the same image, and JPEG keeps them apart and recognisable."""
    coarse = np.random.default_rng(number).integers(0, 256, (channels, 3, 4), dtype=np.uint8)
    planes = [Image.fromarray(plane).resize((width, height), Image.Resampling.BICUBIC) for plane in coarse]
    return np.stack([np.asarray(plane) for plane in planes], axis=-1) if channels > 1 else np.asarray(planes[0])


def encoded(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def with_orientation(orientation: int, byte_order: str = ">", kind: str = "H") -> bytes:
    """An EXIF block that says nothing but the orientation; `kind` is the struct code it is stored as."""
    code = {"B": 1, "H": 3, "I": 4}[kind]
    value = struct.pack(byte_order + kind, orientation).ljust(4, b"\0")
    magic = b"MM\0*" if byte_order == ">" else b"II*\0"
    entry = struct.pack(byte_order + "HHHI", 1, 0x0112, code, 1) + value
    return b"Exif\0\0" + magic + struct.pack(byte_order + "I", 8) + entry + bytes(4)


def png_bomb(width: int = 30_000, height: int = 30_000) -> bytes:
    """A PNG of a few hundred bytes whose header promises 900 million pixels."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(4096))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content


def rgb(number: int, **size: int) -> Image.Image:
    return Image.fromarray(pixels(number, **size))


KINDS: dict[str, Callable[[int], bytes]] = {
    "jpg": lambda n: encoded(rgb(n), "JPEG"),
    "progressive.jpg": lambda n: encoded(rgb(n), "JPEG", progressive=True, quality=85),
    "444.jpg": lambda n: encoded(rgb(n), "JPEG", subsampling="4:4:4", optimize=True),
    "gray.jpg": lambda n: encoded(rgb(n).convert("L"), "JPEG"),
    "cmyk.jpg": lambda n: encoded(rgb(n).convert("CMYK"), "JPEG"),
    "turned.jpg": lambda n: encoded(rgb(n), "JPEG", exif=with_orientation(n // 16 % 8 + 1)),
    "png": lambda n: encoded(rgb(n), "PNG"),
    "gray.png": lambda n: encoded(rgb(n).convert("L"), "PNG"),
    "rgba.png": lambda n: encoded(Image.fromarray(pixels(n, channels=4)), "PNG"),
    "palette.png": lambda n: encoded(rgb(n).quantize(32), "PNG"),
    "animated.png": lambda n: encoded(rgb(n), "PNG", save_all=True, append_images=[rgb(n + 1000), rgb(n + 2000)]),
    "bits.png": lambda n: encoded(rgb(n).convert("1"), "PNG"),
    "16.png": lambda n: encoded(Image.fromarray(pixels(n, channels=1).astype(np.uint16) * 257), "PNG"),
    "webp": lambda n: encoded(rgb(n), "WEBP", quality=80),
    "lossless.webp": lambda n: encoded(rgb(n), "WEBP", lossless=True),
    "rgba.webp": lambda n: encoded(Image.fromarray(pixels(n, channels=4)), "WEBP"),
}
BROKEN: dict[str, tuple[str, bytes]] = {        # file name: reason, bytes
    "cut.jpg": ("truncated", KINDS["jpg"](1)[:-60]),
    "cut.png": ("truncated", KINDS["png"](2)[:-40]),
    "cut.webp": ("truncated", KINDS["webp"](3)[:-30]),
    "empty.jpg": ("empty", b""),
    "text.jpg": ("format", b"this is no image, whatever its name says\n"),
    "page.png": ("format", b"<!DOCTYPE html><html>404</html>"),
    "animation.gif": ("format", encoded(rgb(4), "GIF")),
    "bomb.png": ("too_many_pixels", png_bomb()),
    "large.jpg": ("too_large", KINDS["jpg"](5) + bytes(200_000)),
    "damaged.png": ("damaged", KINDS["png"](6)[:60] + b"\0" * 8 + KINDS["png"](6)[68:]),
}
LIMITS = ("--max-bytes", "100000", "--max-pixels", "1000000")       # what makes "large" and "bomb" so


def write_photos(root: Path, num: int = 60, broken: bool = True, classes: Sequence[str] = ("cat", "dog", "frog"),
                 splits: Sequence[str] = ("train", "train", "train", "val", "test")) -> dict[str, str]:
    """Writes `num` good images of all kinds into root/split/class/, and one of each broken kind.

    Returns:
        reason by key of the ones that are not to be accepted
    """
    kinds = list(KINDS.items())
    for number in range(num):
        name, make = kinds[number % len(kinds)]
        split, class_name = splits[number % len(splits)], classes[number % len(classes)]
        path = root / split / class_name / f"{number:04d}.{name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(make(number + 100))
    reasons = {}
    for number, (name, (reason, data)) in enumerate(BROKEN.items() if broken else ()):
        path = root / splits[number % len(splits)] / classes[number % len(classes)] / name
        path.write_bytes(data)
        reasons[path.relative_to(root).as_posix()] = reason
    return reasons


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 by relative path of a dataset's files, without the work folder."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and ".build" not in path.parts]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
