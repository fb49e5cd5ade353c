"""What DALI minds in a PNG file and Pillow does not, found by decoding changed files with both.

Pure functions on the bytes of a file. DALI's own parser, OpenCV and libpng read the chunks one after the other.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from data_prep.exif import EXIF_PREFIX, exif_orientation

_CHUNK: Final = struct.Struct(">I4s").unpack_from            # length, kind
_CRC: Final = struct.Struct(">I").unpack_from
_FRAME: Final = struct.Struct(">4x4I4xBB").unpack_from       # fcTL: width, height, left, top, disposal, blending
_LENGTHS: Final = {b"IHDR": (13,), b"acTL": (8,), b"fcTL": (26,), b"bKGD": (1, 2, 6)}
_CRITICAL: Final = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_CHANNELS: Final = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}            # by colour type
_MAX_SIDE: Final = 1_000_000                                 # libpng's limit
_MAX_LENGTH: Final = 8_000_000 - 12                          # OpenCV's, of chunks before the pixels but for these:
_ANY_LENGTH: Final = (b"IDAT", b"PLTE", b"tEXt", b"tRNS", b"fdAT")
_PASSES: Final = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_PIECE: Final = 1 << 16                                      # bytes: inflated at once, and what comes of them
_MAX_SURPLUS: Final = 1 << 24                                # bytes after the last pixel


class Chunk(NamedTuple):
    """A chunk and where it lies."""

    kind: bytes
    start: int
    """of its data"""
    length: int
    """of its data"""


class _Header(NamedTuple):
    """What the chunk IHDR says."""

    width: int = 0
    height: int = 0
    depth: int = 0
    """bits of a channel, or of an index into the palette"""
    colour_type: int = 0
    compression: int = 0
    filtering: int = 0
    interlacing: int = 0

    @classmethod
    def at(cls, data: bytes, start: int) -> _Header:
        return cls(*struct.unpack_from(">IIBBBBB", data, start))


def png_chunks(data: bytes) -> Iterator[Chunk]:
    """The chunks up to IEND, as far as they lie in the file as a whole."""
    position = 8
    while position + 12 <= len(data):
        length, kind = _CHUNK(data, position)
        if position + 12 + length > len(data):
            return
        yield Chunk(kind, position + 8, length)
        if kind == b"IEND":
            return
        position += 12 + length


def png_exif(data: bytes) -> bytes | None:
    """The EXIF block, with the prefix that it has in a JPEG file.

    Pillow finds one that follows the pixels only when it has decoded them, and none that follows an animation's.
    """
    for kind, start, length in png_chunks(data):
        if kind == b"eXIf":
            return EXIF_PREFIX + data[start : start + length]
    return None


def png_fault(data: bytes) -> str:
    """Says what is wrong with a PNG file's chunks, or ""; Pillow does not read the last ones.

    DALI 2.4 crashes where it takes the shape from one EXIF orientation and the pixels from another: of two eXIf chunks,
    or of one whose end its parser cannot read. It also does in an animation whose default image is not the first frame,
    if anything is wrong with a chunk. Of other animations it shows the first frame, if all chunks are sound.
    """
    seen: dict[bytes, int] = {}                              # where the first chunk of each kind lies
    last, header = b"", _Header()
    for chunk in png_chunks(data):
        kind, start, length = chunk
        if not seen:
            if kind != b"IHDR" or length != 13:
                return "does not begin with an IHDR chunk of 13 bytes"
            header = _Header.at(data, start)
        text = _chunk_fault(data, chunk, seen) or _palette_fault(header, chunk, seen)
        if not text and kind == b"IHDR":
            text = _header_fault(header)
        if not text and kind == b"fcTL":
            text = _frame_fault(data, start, header, seen)
        if not text and kind == b"eXIf":
            block = EXIF_PREFIX + data[start : start + length]
            if exif_orientation(block) != exif_orientation(block, partly=True):
                text = "an eXIf chunk that cannot be read to its end"
        if not text and kind == b"IDAT" and kind in seen and last != kind:
            text = f"the IDAT chunk at byte {start - 8} does not follow the one before"
        if text or kind == b"IEND":
            return text
        seen.setdefault(kind, start)
        last = kind
    return "ends before the IEND chunk"


def _chunk_fault(data: bytes, chunk: Chunk, seen: Mapping[bytes, int]) -> str:
    """Says what is wrong with one chunk after the kinds that were seen."""
    kind, start, length = chunk
    place = f"at byte {start - 8}"
    if not kind.isalpha() or kind[2:3].islower() or (kind[:1].isupper() and kind not in _CRITICAL):
        return f"DALI cannot read a chunk of the kind {kind!r} ({place}): build with --encode"
    is_needed = kind[:1].isupper() or kind == b"acTL" or b"acTL" in seen
    if is_needed and zlib.crc32(memoryview(data)[start - 4 : start + length]) != _CRC(data, start + length)[0]:
        return f"the check sum of the chunk {place} is wrong"
    if kind in (b"IHDR", b"eXIf", b"acTL") and kind in seen:
        return f"more than one {kind.decode()} chunk"
    if length not in _LENGTHS.get(kind, (length,)):
        return f"the {kind.decode()} chunk {place} has {length} bytes"
    if kind == b"IEND" and b"IDAT" not in seen:
        return "no IDAT chunk"
    if kind == b"acTL" and data[start : start + 4] == bytes(4):
        return "an animation without frames"
    if length > _MAX_LENGTH and kind not in _ANY_LENGTH and b"IDAT" not in seen:
        return f"DALI cannot read a chunk of {length} bytes ({kind.decode()}): build with --encode"
    return ""


def _header_fault(header: _Header) -> str:
    methods = (header.compression, header.filtering, header.interlacing)
    if header.colour_type not in _CHANNELS or methods not in ((0, 0, 0), (0, 0, 1)) or not header.width * header.height:
        return f"the IHDR chunk says {', '.join(map(str, header))}"
    if max(header.width, header.height) > _MAX_SIDE:
        return f"DALI cannot decode a side of more than {_MAX_SIDE} pixels"
    return ""


def _palette_fault(header: _Header, chunk: Chunk, seen: Mapping[bytes, int]) -> str:
    if header.colour_type != 3:                              # others do not need it
        return ""
    if chunk.kind == b"PLTE" and (b"PLTE" in seen or chunk.length not in range(3, 769, 3)):
        return "more than one PLTE chunk" if b"PLTE" in seen else f"a PLTE chunk of {chunk.length} bytes"
    return "no PLTE chunk before the pixels" if chunk.kind == b"IDAT" and b"PLTE" not in seen else ""


def _frame_fault(data: bytes, start: int, header: _Header, seen: Mapping[bytes, int]) -> str:
    if b"fcTL" not in seen and b"IDAT" in seen and seen.get(b"acTL", len(data)) < seen[b"IDAT"]:
        return "DALI cannot safely decode an animation whose default image is not its first frame: build with --encode"
    width, height, left, top, disposal, blending = _FRAME(data, start)
    if not 0 < width <= header.width - left or not 0 < height <= header.height - top or disposal > 2 or blending > 1:
        return f"the fcTL chunk at byte {start - 8} says {width} x {height} at {left}, {top}, {disposal}, {blending}"
    return ""


def png_pixels_fault(data: bytes) -> str:
    """Says what is wrong with the compressed pixels of a PNG file that Pillow has decoded, or "".

    Pillow leaves rows black where a sound stream ends too early.
    """
    header = _Header()
    parts: list[memoryview] = []
    for kind, start, length in png_chunks(data):
        if kind == b"IHDR" and not parts:
            header = _Header.at(data, start)
        elif kind == b"IDAT":
            parts.append(memoryview(data)[start : start + length])
    return _stream_fault(parts, _num_bytes(header))


def _num_bytes(header: _Header) -> int:
    """Bytes of the pixels before compression, each row with a byte for its filter."""
    total = 0
    for left, top, across, down in _PASSES if header.interlacing else ((0, 0, 1, 1),):
        columns, rows = -(-(header.width - left) // across), -(-(header.height - top) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + -(-columns * header.depth * _CHANNELS.get(header.colour_type, 0) // 8))
    return total


def _stream_fault(parts: Sequence[memoryview], expected: int) -> str:
    """Says whether a zlib stream holds too little; never holds more than a piece of it in memory."""
    stream = zlib.decompressobj()
    size = 0
    try:
        for part in parts:
            for start in range(0, len(part), _PIECE):
                todo: bytes | memoryview = part[start : start + _PIECE]
                while todo and not stream.eof:
                    size += len(stream.decompress(todo, _PIECE))
                    todo = stream.unconsumed_tail
                    if size > expected + _MAX_SURPLUS:
                        return f"more than {size} bytes of pixels, of {expected}"
    except zlib.error as error:
        return f"the pixels cannot be inflated: {error}"
    if not stream.eof:
        return "ends within the compressed pixels"
    return f"ends after {size} bytes of pixels, of {expected}" if size < expected else ""
