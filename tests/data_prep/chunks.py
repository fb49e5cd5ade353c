"""PNG, WebP and JPEG files as lists of their chunks, taken apart, changed and put together again."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Sequence

from photos import pixels, with_orientation

Chunk = tuple[bytes, bytes]        # kind, data

SCAN = b"\xff\xda"
TURNED, UPRIGHT = (with_orientation(orientation)[6:] for orientation in (6, 1))
FOREIGN: dict[str, list[Chunk]] = {
    "png": [
        (b"eXIf", TURNED), (b"eXIf", UPRIGHT), (b"eXIf", b""), (b"tEXt", b"Comment\0odd"), (b"prVt", b"odd"),
        (b"ABCD", b"odd"), (b"abcd", b"odd"), (b"t1Xt", b"odd"), (b"tRNS", bytes(6)), (b"PLTE", bytes(6)),
        (b"PLTE", bytes(7)), (b"bKGD", bytes(6)), (b"bKGD", bytes(3)), (b"gAMA", bytes(4)), (b"iCCP", b"x\0\0odd"),
        (b"IDAT", b""), (b"acTL", struct.pack(">II", 2, 0)), (b"acTL", bytes(8)), (b"fdAT", bytes(6)),
        (b"fcTL", struct.pack(">5I2H2B", 0, 24, 16, 0, 0, 1, 1, 0, 0)), (b"fdAT", b"ab"),
        (b"fcTL", struct.pack(">5I2H2B", 0, 24, 16, 1, 0, 1, 1, 3, 0)), (b"IEND", b""),
        (b"IHDR", struct.pack(">IIBBBBB", 24, 16, 8, 2, 0, 0, 0)),
    ],
    "webp": [
        (b"EXIF", TURNED), (b"EXIF", UPRIGHT), (b"EXIF", b"Exif\0\0" + TURNED), (b"EXIF", b""), (b"XMP ", b"odd"),
        (b"XMP ", b"even"), (b"ICCP", b"odd"), (b"ABCD", b"odd"), (b"ABCD", b"even"), (b"ALPH", bytes(9)),
        (b"ANIM", bytes(6)), (b"VP8X", struct.pack("<I", 8) + b"\x17\0\0\x0f\0\0"),
    ],
    "jpeg": [
        (b"\xff\xe1", b"Exif\0\0" + TURNED), (b"\xff\xe1", b"Exif\0\0" + UPRIGHT), (b"\xff\xe1", b"Exif\0\0"),
        (b"\xff\xe1", b"http://ns.adobe.com/xap/1.0/\0<x/>"), (b"\xff\xfe", b"comment"), (b"\xff\xe5", b""),
        (b"\xff\xee", b"Adobe\0\x64\0\0\0\0\x01"), (b"\xff\xdd", bytes(2)), (b"\xff\xe2", b"ICC_PROFILE\0\x01\x01"),
    ],
}


def parsed(data: bytes) -> tuple[str, list[Chunk]]:
    """Format and chunks; of a JPEG, what follows the first scan's header belongs to that."""
    chunks: list[Chunk] = []
    if data.startswith(b"\x89PNG"):
        position = 8
        while position < len(data):
            length, kind = struct.unpack_from(">I4s", data, position)
            chunks.append((kind, data[position + 8 : position + 8 + length]))
            position += 12 + length
        return "png", chunks
    if data.startswith(b"RIFF"):
        position = 12
        while position < len(data):
            kind, length = struct.unpack_from("<4sI", data, position)
            chunks.append((kind, data[position + 8 : position + 8 + length]))
            position += 8 + length + length % 2
        return "webp", chunks
    position = 2
    while True:
        marker, length = struct.unpack_from(">2sH", data, position)
        end = len(data) if marker == SCAN else position + 2 + length
        chunks.append((marker, data[position + 4 : end]))
        if end == len(data):
            return "jpeg", chunks
        position = end


def assembled(image_format: str, chunks: Sequence[Chunk]) -> bytes:
    """The file, with right lengths and check sums."""
    if image_format == "png":
        parts = [struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
                 for kind, data in chunks]
        return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
    if image_format == "webp":
        body = b"WEBP" + b"".join(kind + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)
                                  for kind, data in chunks)
        return b"RIFF" + struct.pack("<I", len(body)) + body
    lengths = [6 + 2 * data[0] if kind == SCAN and data else 2 + len(data) for kind, data in chunks]
    parts = [kind + struct.pack(">H", length) + data for (kind, data), length in zip(chunks, lengths, strict=True)]
    return b"\xff\xd8" + b"".join(parts)


def changed(data: bytes, rng: random.Random) -> bytes:
    """One or two things that a program may do to an image's chunks; each chunk is then well formed by itself."""
    image_format, chunks = parsed(data)
    for _ in range(rng.choice((1, 1, 2))):
        place = rng.randrange(len(chunks))
        kind, content = chunks[place]
        match rng.randrange(7):
            case 0:
                chunks.insert(place, chunks[rng.randrange(len(chunks))])
            case 1:
                del chunks[place]
            case 2:
                chunks.insert(rng.randrange(len(chunks)), chunks.pop(place))
            case 3 | 4:
                chunks.insert(rng.randrange(len(chunks) + 1), rng.choice(FOREIGN[image_format]))
            case 5:
                length = rng.randrange(len(content) + 1)
                chunks[place] = kind, content[: rng.choice((length, len(content) - 1, len(content) - 4))]
            case 6 if content:
                at = rng.randrange(min(len(content), 13))
                chunks[place] = kind, content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
        if not chunks:
            break
    return assembled(image_format, chunks)


def interlaced_png(number: int, width: int = 24, height: int = 16) -> bytes:
    """Adam7, which Pillow reads and does not write."""
    image = pixels(number, width, height)
    passes = [image[top::down, left::across] for left, top, across, down in
              ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))]
    raw = b"".join(b"\0" + row.tobytes() for part in passes if part.size for row in part)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 1)
    return assembled("png", [(b"IHDR", header), (b"IDAT", zlib.compress(raw)), (b"IEND", b"")])
