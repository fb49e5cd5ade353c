"""What DALI minds in a JPEG or WebP file and Pillow does not, found by decoding damaged files with both.

Pure functions on the bytes of a file.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from data_prep.exif import EXIF_PREFIX
from data_prep.png import png_fault

_SEGMENT: Final = struct.Struct(">HH").unpack_from   # marker, length
_FRAME: Final = struct.Struct(">BHHB").unpack_from   # precision, height, width, number of components
_USUAL_FRAMES: Final = (0xFFC0, 0xFFC1, 0xFFC2)      # baseline, extended, progressive; all with Huffman codes
_MAX_WEBP_SIDE: Final = 1 << 20                      # OpenCV's; only animations can be that large
_PASSED_OVER: Final = frozenset((0xFFC4, 0xFFDB, 0xFFDD, 0xFFE0, 0xFFE2, 0xFFED, 0xFFEE, 0xFFFE))    # tables, APPn, COM


class JpegStart(NamedTuple):
    """What the marker segments of a JPEG file up to its first scan say."""

    fault: str = ""
    """what is wrong with them, or "" """
    scan: int = 0
    """where the first scan begins"""
    width: int = 0
    """pixels as stored, before EXIF orientation; 0 if there is no frame header of a usual kind"""
    height: int = 0
    exif: bytes | None = None


def jpeg_start(data: bytes) -> JpegStart:
    """Reads the marker segments up to the first scan.

    libjpeg skips bytes between segments, DALI's parser fails. Two EXIF segments with different orientations
    make DALI 2.4 crash (the shape is taken from one, the pixels from the other).
    """
    position, width, height, end = 2, 0, 0, len(data) - 4
    exif: bytes | None = None
    while position <= end:
        marker, length = _SEGMENT(data, position)
        if marker in _PASSED_OVER and length >= 2:   # nearly all, so first
            position += 2 + length
            continue
        if marker in _USUAL_FRAMES and position <= end - 6 and length >= 2:
            precision, stored_height, stored_width, components = _FRAME(data, position + 4)
            if precision == 8 and components in (1, 3, 4):
                width, height = stored_width, stored_height
        elif marker < 0xFF00:
            return JpegStart(f"no marker at byte {position}")
        elif marker == 0xFFFF:                       # fill byte
            position += 1
            continue
        elif marker < 0xFFC0 or 0xFFD0 <= marker <= 0xFFD9:     # stands alone, so not between these segments
            return JpegStart(f"marker 0x{marker:04x} at byte {position}, before the first scan")
        elif length < 2:
            return JpegStart(f"a segment of length {length} at byte {position}")
        elif marker == 0xFFDA:                       # start of scan
            return JpegStart("", position, width, height, exif)
        elif marker == 0xFFE1 and data.startswith(EXIF_PREFIX, position + 4):
            if exif is not None:
                return JpegStart("more than one EXIF segment")
            exif = data[position + 4 : position + 2 + length]
        position += 2 + length
    return JpegStart("ends before the first scan")


def webp_fault(data: bytes) -> str:
    """Says where an extended WebP file's header and chunks contradict each other, which Pillow does not mind, or "".

    A chunk of odd length is followed by a byte that does not count. DALI 2.4, on its way to the EXIF chunk, takes it
    for the beginning of the next chunk, and finds none from there on.
    """
    if data[12:16] != b"VP8X":
        return ""
    kinds: list[bytes] = []
    odd = ""
    position = 12
    while position + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, position)
        kinds.append(kind)
        if length % 2 and not odd and b"EXIF" not in kinds:
            odd = f"DALI cannot pass over a chunk of odd length ({kind!r}) before EXIF: build with --encode"
        position += 8 + length + length % 2
    if data[20] & 0x08 and b"EXIF" not in kinds:
        return "no EXIF chunk, but its header says there is one"
    if not data[20] & 0x10 and b"ALPH" in kinds:
        return "an ALPH chunk, but its header says there is none"
    if max(int.from_bytes(data[24:27], "little"), int.from_bytes(data[27:30], "little")) >= _MAX_WEBP_SIDE:
        return f"DALI cannot decode a side of more than {_MAX_WEBP_SIDE} pixels"
    return odd if data[20] & 0x08 else ""


def is_cut(data: bytes) -> bool:
    """Whether a file that cannot be read ends before it should, by what its header says."""
    if data.startswith(b"\xff\xd8"):
        return jpeg_start(data).fault.startswith("ends")
    if data.startswith(b"\x89PNG"):
        return png_fault(data).startswith("ends")
    return data.startswith(b"RIFF") and int.from_bytes(data[4:8], "little") + 8 > len(data)
