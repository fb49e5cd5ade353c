"""Checks of one image before it is accepted, and its re-encoding where that is asked for.

One image that cannot be decoded ends a whole DALI pipeline, and one small file can decode to gigabytes. So the
caps are checked from the header, before a pixel is decoded, and what is accepted here DALI decodes as well.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from data_prep.exif import EXIF_PREFIX, exif_orientation
from data_prep.mean import PixelSums
from data_prep.png import png_exif, png_fault, png_pixels_fault
from data_prep.structure import is_cut, jpeg_start, webp_fault
from twostage.data.schema import MAX_RATIO

Image.MAX_IMAGE_PIXELS = None            # Pillow's own cap cannot be set per call; ours is checked from the header

REASONS: Final = {
    "missing": "there is no such file",
    "no_class": "a file that lies in no class folder",
    "hidden": "its name, or that of a folder it lies in below the class folder, begins with a dot",
    "outside": "the path, or a link in it, leads out of SOURCE (see --allow-outside)",
    "unreadable": "not a regular file, or no permission to read it",
    "empty": "0 bytes",
    "too_large": "more bytes than --max-bytes",
    "too_many_pixels": "more pixels than --max-pixels, by its header; nothing was decoded",
    "too_thin": f"one side is more than {MAX_RATIO} times as long as the other",
    "format": "not a JPEG, PNG or WebP image",
    "truncated": "the image data ends too early",
    "damaged": "the image data cannot be decoded",
    "unsupported": "DALI cannot read this kind of image; built with --encode, it is accepted",
    "leak": "the same image is in a split that is kept apart, by its key or its bytes",
    "not_encodable": "the image cannot be written in the format of --encode",
}
_FORMATS: Final = {"JPEG": "jpeg", "MPO": "jpeg", "PNG": "png", "WEBP": "webp"}
_SIGNATURES: Final = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF")
_FAULTS: Final[dict[str, Callable[[bytes], str]]] = {
    "jpeg": lambda data: jpeg_start(data).fault,
    "png": png_fault,
    "webp": webp_fault,
}
_TRANSPOSE: Final = {                   # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class RejectionError(Exception):
    """An input that is not accepted: `reason` is a key of REASONS, `detail` is for people."""

    def __init__(self, reason: str, detail: str) -> None:
        assert reason in REASONS, reason
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What is accepted."""

    max_bytes: int
    max_pixels: int
    decode: bool
    """decode each image completely; else only its header is read, and a JPEG without its end marker is decoded"""
    max_ratio: float = MAX_RATIO
    """of the longer side to the shorter one"""
    whole: bool = True
    """the bytes are a whole file; if not, a missing end is no fault"""


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How accepted images are written anew."""

    image_format: Literal["jpeg", "png", "webp"]
    short_side: int | None
    """pixels; a larger image is reduced to this, a smaller one keeps its size"""
    quality: int
    """1..100, of JPEG and WebP"""


class CheckedImage(NamedTuple):
    """An accepted image."""

    data: bytes
    image_format: str
    """as in schema.EXTENSIONS"""
    width: int
    """pixels, after EXIF orientation"""
    height: int


def check_image(
    data: bytes, limits: Limits, encoding: Encoding | None = None, sums: PixelSums | None = None
) -> CheckedImage:
    """Checks an image's bytes; keeps them as they are, or encodes the image anew with EXIF orientation applied.

    Args:
        sums: an accepted image is added to them, as it is before it is encoded; needs `encoding` or `limits.decode`.

    Raises:
        RejectionError: the image is not accepted, and why.
        MemoryError: says nothing of the image, so it is not a rejection.
    """
    if not data:
        raise RejectionError("empty", "0 bytes")
    if len(data) > limits.max_bytes:
        raise RejectionError("too_large", f"{len(data)} bytes, the limit is {limits.max_bytes}")
    if encoding is None and not limits.decode and (checked := _check_jpeg_header(data, limits)):
        return checked
    # Pillow warns of oddities in metadata, of which nobody could say in which of a million images they are
    with warnings.catch_warnings(action="ignore"), _open(data) as image:
        width, height = image.size
        _check_pixels(width, height, limits)
        image_format = _FORMATS[str(image.format)]
        if encoding is not None:
            written = _plain(image, data, encoding.short_side, _orientation(image, data, kept=False))
            checked = CheckedImage(_encoded(written, encoding), encoding.image_format, written.width, written.height)
            if sums is not None:
                sums.add(written)
            return checked
        plain: Image.Image | None = None
        if limits.decode or (image_format == "jpeg" and limits.whole and not _has_end(data, jpeg_start(data).scan)):
            if sums is not None:
                plain = _plain(image, data, sums.size, _orientation(image, data, kept=True))
            else:
                # A JPEG's integrity lies in its entropy code, which is decoded in full at any scale; at 1/8 the rest
                # (inverse DCT, colour) costs little.
                image.draft(None, (1, 1))
                _decode(image, data)
        if text := _FAULTS[image_format](data):
            raise _fault(text)
        if _orientation(image, data, kept=True) >= 5:
            width, height = height, width
        if sums is not None and plain is not None:
            sums.add(plain)
        return CheckedImage(data, image_format, width, height)


def _check_jpeg_header(data: bytes, limits: Limits) -> CheckedImage | None:
    """The same answer from the marker segments alone, five times as fast; None where Pillow had better look at it."""
    if not data.startswith(b"\xff\xd8\xff"):
        return None
    fault, scan, width, height, exif = jpeg_start(data)
    if fault or not width or not height or (limits.whole and not _has_end(data, scan)):
        return None
    _check_pixels(width, height, limits)
    if exif is not None and exif_orientation(exif) >= 5:
        width, height = height, width
    return CheckedImage(data, "jpeg", width, height)


def _has_end(data: bytes, start: int) -> bool:
    """Whether a JPEG's end marker stands anywhere; bytes may follow it."""
    return data.endswith(b"\xff\xd9") or data.find(b"\xff\xd9", start) >= 0


def _check_pixels(width: int, height: int, limits: Limits) -> None:
    if width * height > limits.max_pixels:
        raise RejectionError("too_many_pixels", f"{width} x {height} pixels, the limit is {limits.max_pixels}")
    if max(width, height) > limits.max_ratio * min(width, height):
        raise RejectionError("too_thin", f"{width} x {height} pixels, the limit is {limits.max_ratio} to 1")


def _open(data: bytes) -> Image.Image:
    """Reads the header."""
    try:
        return Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP"))
    except UnidentifiedImageError as error:
        if data.startswith(_SIGNATURES):
            raise _rejection("the header cannot be read", data) from error
        raise RejectionError("format", f"begins with the bytes {data[:8].hex(' ')}") from error
    except MemoryError:
        raise
    except Exception as error:
        # Pillow's readers raise nearly anything on hostile data: OSError, SyntaxError, ValueError, struct.error, ...
        raise _rejection(f"{type(error).__name__}: {error}", data) from error


def _decode(image: Image.Image, data: bytes) -> None:
    """Decodes all pixels."""
    try:
        image.load()
    except MemoryError:
        raise
    except Exception as error:
        raise _rejection(f"{type(error).__name__}: {error}", data) from error
    if image.format == "PNG" and (text := png_pixels_fault(data)):
        raise _fault(text)


def _fault(text: str) -> RejectionError:
    """What becomes of the text that says what DALI minds in a file."""
    reason = "truncated" if text.startswith("ends") else "unsupported" if text.startswith("DALI cannot") else "damaged"
    return RejectionError(reason, text)


def _rejection(text: str, data: bytes) -> RejectionError:
    return RejectionError("truncated" if "runcated" in text or is_cut(data) else "damaged", text)


def _orientation(image: Image.Image, data: bytes, kept: bool) -> int:
    """EXIF orientation, 1..8; if the bytes are kept, as DALI applies it."""
    exif = png_exif(data) if image.format == "PNG" else image.info.get("exif")
    if not kept or image.format != "WEBP":
        return exif_orientation(exif)
    if isinstance(exif, bytes) and exif.startswith(EXIF_PREFIX):    # unknown to DALI in these files
        return 1
    return exif_orientation(exif, partly=True)


def _plain(image: Image.Image, data: bytes, short_side: int | None, orientation: int) -> Image.Image:
    """Decoded, reduced, upright, RGB (or gray, if it is gray), without metadata."""
    scale = 1.0
    if short_side is not None:
        scale = min(1.0, short_side / min(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    if scale < 0.5:                      # JPEG only: decodes at 1/2, 1/4, 1/8, but no less than twice the final size
        image.draft(None, (size[0] * 2, size[1] * 2))
    _decode(image, data)
    turn = _TRANSPOSE.get(orientation)
    plain = _eight_bits(image)
    if plain.size != size:
        plain = plain.resize(size, Image.Resampling.BICUBIC)
    if turn is not None:
        plain = plain.transpose(turn)
    plain.info.clear()                   # else EXIF, ICC profile and comments would be written again
    return plain


def _encoded(image: Image.Image, encoding: Encoding) -> bytes:
    buffer = io.BytesIO()
    try:
        match encoding.image_format:
            case "jpeg":
                image.save(buffer, "JPEG", quality=encoding.quality, subsampling="4:2:0", progressive=False)
            case "webp":
                image.save(buffer, "WEBP", quality=encoding.quality, method=4)
            case "png":
                image.save(buffer, "PNG")
    except MemoryError:
        raise
    except Exception as error:           # a side of more pixels than the format can have: OSError, ValueError, ...
        text = f"{image.width} x {image.height} pixels as {encoding.image_format}: {error}"
        raise RejectionError("not_encodable", text) from error
    return buffer.getvalue()


def _eight_bits(image: Image.Image) -> Image.Image:
    """The image as RGB or L; transparency is dropped, as DALI does."""
    if image.mode.startswith("I"):       # 16-bit gray PNG: convert() would clip at 255
        return Image.fromarray(np.rint(np.asarray(image).clip(0, 65_535) / 257).astype(np.uint8))    # as DALI rounds
    if image.mode in ("L", "1", "LA"):
        return image.convert("L")
    return image.convert("RGB")
