"""From shards to normalised batches on the CPU: our reader and plan, beside DALI's own reader and other loaders.

Everybody does the same to an image: a random crop of 224 from 256 pixels, a flip, float32 normalised by channel (we
have no random *resized* crop: the paper has none). Each side is a process of its own, with two threads or workers, and
holds none of the others' data. Shuffling is each one's own: ours over everything, the others' in a buffer or a block.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from tests.bench import inputs
from tests.bench.contest import Contest, Failed, Missing, Scale, Side, Target, alternate
from tests.bench.peer import Peer, extra, own_folder

OURS, THEIRS = "tests.bench.load_ours", "tests.bench.theirs.load_images"
WORKERS = 2
READER, MEMORY = "DALI's webdataset reader", "the same graph, fed from memory"
PILLOW, TURBO = "webdataset, DataLoader, Pillow", "webdataset, DataLoader, libjpeg-turbo"
MOSAIC, LITDATA, FFCV = "MosaicML Streaming, libjpeg-turbo", "litdata, libjpeg-turbo", "FFCV"
DROP = Path("/proc/sys/vm/drop_caches")


def compare(scale: Scale, folder: Path) -> Iterator[Contest]:
    """Passes from the page cache, passes with the cache dropped before each, and two views of one image."""
    num = scale.pick(3072, 12_288)
    dataset = folder / "dataset"
    files = inputs.write_files(inputs.made_up(num, "256", folder), folder / "photos")
    listed = folder / "files.txt"
    listed.write_text("".join(f"{file}\t{label}\n" for file, label in files))
    inputs.data_prep(["build", str(folder / "photos"), str(dataset), "--format", "folder", "--check", "header"])
    with ExitStack() as stack:
        sides = _loaders(stack, num, folder, dataset, listed)
        limits: dict[str, Side | Missing] = {
            MEMORY: stack.enter_context(Peer(OURS, "memory", dataset)),
            "limit: libjpeg-turbo alone": extra("simplejpeg")
            or stack.enter_context(Peer("tests.bench.theirs.decode_alone", dataset / "shards", WORKERS)),
        }
        yield alternate(
            f"{num:,} JPEGs of 256 px from the page cache: random crop of 224, flip, normalise",
            unit="images/s",
            amount=num,
            sides=sides | limits,
            rounds=scale.rounds,
            targets=[
                Target("≥ 0.95 × DALI's own reader", against=(READER,), at_least=0.95),
                Target("≥ 1.5 × the best other loader", against=(PILLOW, TURBO, MOSAIC, LITDATA), at_least=1.5),
                Target("≥ 0.9 × the same graph fed from memory", against=(MEMORY,), at_least=0.9),
                Target("memory flat from round to round", of="growth", at_most=1.02),
            ],
        )
        if os.access(DROP, os.W_OK):
            yield alternate(
                f"{num:,} JPEGs of 256 px, the page cache dropped before each pass",
                unit="images/s",
                amount=num,
                sides=sides,
                rounds=scale.pick(2, 5),
                before=drop_cache,
                warm_up=False,
                targets=[
                    Target("≥ 0.95 × DALI's own reader", against=(READER,), at_least=0.95),
                    Target("≥ 1.5 × the best other loader", against=(PILLOW, TURBO, MOSAIC, LITDATA), at_least=1.5),
                ],
            )
    with ExitStack() as stack:
        yield alternate(
            f"{num:,} JPEGs of 256 px: two views of each image",
            unit="images/s",
            amount=num,
            sides={
                "one decode": stack.enter_context(Peer(OURS, "one-decode", dataset)),
                "two decodes": stack.enter_context(Peer(OURS, "two-decodes", dataset)),
            },
            rounds=scale.rounds,
        )


def _loaders(stack: ExitStack, num: int, folder: Path, dataset: Path, listed: Path) -> dict[str, Side | Missing]:
    """All loaders, each with the data as it wants them."""
    shards = dataset / "shards"
    sides: dict[str, Side | Missing] = {
        "ours": stack.enter_context(Peer(OURS, "ours", dataset)),
        READER: stack.enter_context(Peer(OURS, "dali-reader", dataset)),
        PILLOW: stack.enter_context(Peer(THEIRS, "webdataset", "pillow", WORKERS, num, shards)),
    }
    sides[TURBO] = extra("simplejpeg") or stack.enter_context(
        Peer(THEIRS, "webdataset", "turbo", WORKERS, num, shards)
    )
    for name, source, packages in ((MOSAIC, "mosaic", "mosaicml-streaming"), (LITDATA, "litdata", "litdata")):
        where = own_folder(packages)
        if isinstance(where, Missing):
            sides[name] = where
            continue
        try:
            with Peer("tests.bench.theirs.write_shards", source, listed, folder / source, 1, packages=where) as writer:
                writer()
        except Failed as error:
            sides[name] = Missing(str(error))
            continue
        written = folder / source / "pass-0" / ("0" if source == "mosaic" else "")
        sides[name] = stack.enter_context(Peer(THEIRS, source, "turbo", WORKERS, num, written, packages=where))
    where = own_folder("ffcv")
    sides[FFCV] = where if isinstance(where, Missing) else stack.enter_context(
        Peer("tests.bench.theirs.load_ffcv", shards, folder / "images.beton", WORKERS, packages=where)
    )
    return sides


def drop_cache() -> None:
    """Nothing of any file is in memory any more; needs root."""
    os.sync()
    DROP.write_text("3\n")
