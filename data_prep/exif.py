"""The orientation that DALI reads in an EXIF block, which is not always the one that Pillow reads."""

from __future__ import annotations

import struct
from typing import Final

EXIF_PREFIX: Final = b"Exif\0\0"
"""of the block in a JPEG file"""
_ORIENTATION: Final = 0x0112
_SHORTS: Final = (_ORIENTATION, 0x0128, 0x0213)
_RATIONALS: Final = {0x011A: 1, 0x011B: 1, 0x013E: 2, 0x013F: 6, 0x0211: 3, 0x0214: 6}      # tag: how many of them
_TEXTS: Final = (0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x8298)


def exif_orientation(exif: object, partly: bool = False) -> int:
    """EXIF orientation, 1..8, that DALI applies, of an EXIF block as Pillow hands it out; 1 if there is none.

    Not by Pillow's `getexif`, which minds an entry's type and looks into XMP. DALI takes two bytes whatever the type,
    reads any unknown byte order as big-endian, and reads no orientation at all where one of the entries that it knows
    (OpenCV's list) points outside of the block.

    Args:
        partly: what stands before such an entry counts, as it does in WebP files.
    """
    if not isinstance(exif, bytes):
        return 1
    tiff = exif.removeprefix(EXIF_PREFIX)
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
        if not partly:
            return 1
    return orientation if orientation is not None and 1 <= orientation <= 8 else 1
