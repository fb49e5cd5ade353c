"""The limit of building smaller images: Pillow decodes, resizes and encodes bytes that are in memory, nothing else.

    python -m tests.bench.theirs.resize_alone FILES WORKERS SHORT_SIDE
"""

from __future__ import annotations

import io
import multiprocessing
import sys
from pathlib import Path

from PIL import Image

from tests.bench.peer import serve

_images: list[bytes] = []


def one_image(data: bytes, short_side: int) -> bytes:
    """Bicubic, JPEG of quality 90; JPEGs are decoded at half size where that is still twice what is wanted."""
    image = Image.open(io.BytesIO(data))
    scale = min(1.0, short_side / min(image.size))
    size = (round(image.width * scale), round(image.height * scale))
    if scale < 0.5:
        image.draft("RGB", (2 * size[0], 2 * size[1]))
    buffer = io.BytesIO()
    image.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _share(arguments: tuple[int, int, int]) -> int:
    number, workers, short_side = arguments
    return sum(len(one_image(data, short_side)) for data in _images[number::workers])


def main() -> None:
    """Serves passes by processes that were forked when the images were in memory."""
    files, workers, short_side = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    _images.extend(Path(line.split("\t")[0]).read_bytes() for line in files.read_text().splitlines())
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        serve(lambda: pool.map(_share, [(number, workers, short_side) for number in range(workers)], chunksize=1))


if __name__ == "__main__":
    main()
