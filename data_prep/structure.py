"""What DALI minds in an image file and Pillow does not, found by decoding damaged files with both.

Pure functions on the bytes of a file.
"""

from __future__ import annotations

import struct
import zlib
from typing import Final, NamedTuple

_EXIF_HEADER: Final = b"Exif\0\0"
_ORIENTATION: Final = 0x0112
_SEGMENT: Final = struct.Struct(">HH").unpack_from   # marker, length
_FRAME: Final = struct.Struct(">BHHB").unpack_from   # precision, height, width, number of components
_USUAL_FRAMES: Final = (0xFFC0, 0xFFC1, 0xFFC2)      # baseline, extended, progressive; all with Huffman codes
_PASSED_OVER: Final = frozenset((0xFFC4, 0xFFDB, 0xFFDD, 0xFFE0, 0xFFE2, 0xFFED, 0xFFEE, 0xFFFE))    # tables, APPn, COM
_SHORTS: Final = (_ORIENTATION, 0x0128, 0x0213)
_RATIONALS: Final = {0x011A: 1, 0x011B: 1, 0x013E: 2, 0x013F: 6, 0x0211: 3, 0x0214: 6}      # tag: how many of them
_TEXTS: Final = (0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x8298)


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
        elif marker == 0xFFE1 and data.startswith(_EXIF_HEADER, position + 4):
            if exif is not None:
                return JpegStart("more than one EXIF segment")
            exif = data[position + 4 : position + 2 + length]
        position += 2 + length
    return JpegStart("ends before the first scan")


def png_fault(data: bytes) -> str:
    """Says which needed chunk of a PNG file is damaged or missing, or ""; Pillow does not read the last ones.

    Of an animation, DALI shows the first frame, but only where all chunks are sound.
    """
    position, is_animated = 8, False
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data):
            break
        is_animated |= kind == b"acTL"
        if is_animated or kind[:1].isupper():        # a chunk that a decoder needs
            (crc,) = struct.unpack_from(">I", data, end - 4)
            if zlib.crc32(memoryview(data)[position + 4 : end - 4]) != crc:
                return f"the check sum of the chunk at byte {position} is wrong"
            if kind == b"IEND":
                return ""
        position = end
    return "ends before the IEND chunk"


def webp_fault(data: bytes) -> str:
    """Says where an extended WebP file's header and chunks contradict each other, which Pillow does not mind, or ""."""
    if data[12:16] != b"VP8X":
        return ""
    kinds = set()
    position = 12
    while position + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, position)
        kinds.add(kind)
        position += 8 + length + length % 2
    if data[20] & 0x08 and b"EXIF" not in kinds:
        return "no EXIF chunk, but its header says there is one"
    if not data[20] & 0x10 and b"ALPH" in kinds:
        return "an ALPH chunk, but its header says there is none"
    return ""


def is_cut(data: bytes) -> bool:
    """Whether a file that cannot be read ends before it should, by what its header says."""
    if data.startswith(b"\xff\xd8"):
        return jpeg_start(data).fault.startswith("ends")
    if data.startswith(b"\x89PNG"):
        return png_fault(data).startswith("ends")
    return data.startswith(b"RIFF") and int.from_bytes(data[4:8], "little") + 8 > len(data)


def exif_orientation(exif: object) -> int:
    """EXIF orientation, 1..8, that DALI applies, of an EXIF block as Pillow hands it out; 1 if there is none.

    Not by Pillow's `getexif`, which minds an entry's type and looks into XMP. DALI takes two bytes whatever the type,
    reads any unknown byte order as big-endian, and reads no orientation at all where one of the entries that it knows
    (OpenCV's list) points outside of the block.
    """
    if not isinstance(exif, bytes):
        return 1
    tiff = exif.removeprefix(_EXIF_HEADER)
    order = "<" if tiff.startswith(b"II") else ">"
    orientation: int | None = None
    try:
        if struct.unpack_from(order + "H", tiff, 2) != (42,):
            return 1
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (num_entries,) = struct.unpack_from(order + "H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * num_entries, 12):
            (tag,) = struct.unpack_from(order + "H", tiff, entry)
            if tag in _SHORTS:
                (value,) = struct.unpack_from(order + "H", tiff, entry + 8)
                if tag == _ORIENTATION and orientation is None:
                    orientation = value
            elif tag in _RATIONALS:
                (place,) = struct.unpack_from(order + "I", tiff, entry + 8)
                struct.unpack_from(f"{8 * _RATIONALS[tag]}x", tiff, place)
            elif tag in _TEXTS:
                length, place = struct.unpack_from(order + "II", tiff, entry + 4)
                struct.unpack_from(f"{length}x", tiff, place if length > 4 else 8)
    except struct.error:                             # beyond the end
        return 1
    return orientation if orientation is not None and 1 <= orientation <= 8 else 1
