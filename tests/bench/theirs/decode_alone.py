"""The limit of every loader on the CPU: libjpeg-turbo decodes bytes that are in memory, nothing else.

    python -m tests.bench.theirs.decode_alone SHARDS WORKERS
"""

from __future__ import annotations

import multiprocessing
import sys
import tarfile
from pathlib import Path

import simplejpeg

from tests.bench.peer import serve

_images: list[bytes] = []


def _share(arguments: tuple[int, int]) -> int:
    number, workers = arguments
    return sum(simplejpeg.decode_jpeg(data).nbytes for data in _images[number::workers])


def main() -> None:
    """Serves passes by processes that were forked when the images were in memory."""
    workers = int(sys.argv[2])
    for shard in sorted(Path(sys.argv[1]).rglob("*.tar")):
        with tarfile.open(shard) as archive:
            _images.extend(archive.extractfile(member).read() for member in archive)  # type: ignore[union-attr]
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        serve(lambda: pool.map(_share, [(number, workers) for number in range(workers)], chunksize=1))


if __name__ == "__main__":
    main()
