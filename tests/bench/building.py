"""From image files to shards: the whole command of ours beside GNU tar and what others' packages offer.

Keep-bytes: header check, SHA-256, index, tables and, unlike any other here, everything brought to the disk. Theirs is
timed without the start of Python and its imports, ours with it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path

from tests.bench import inputs
from tests.bench.contest import Contest, Missing, Pass, Scale, Side, Target, alternate
from tests.bench.peer import Peer, own_folder

WORKERS = 2
SHORT_SIDE = 256
WRITERS = "tests.bench.theirs.write_shards"
TAR, TAR_SYNC, SHARD_WRITER = "GNU tar", "GNU tar, then sync", "webdataset's ShardWriter, 1 process"
IMG2DATASET = f"img2dataset, {WORKERS} processes"
LIMIT = "limit: decode, resize, encode alone"


def compare(scale: Scale, folder: Path) -> Iterator[Contest]:
    """Files of 19 KB kept as they are, then photos made smaller."""
    with ExitStack() as stack:
        yield keep_bytes(scale, folder / "keep", stack)
    shutil.rmtree(folder / "keep")
    with ExitStack() as stack:
        yield resize(scale, folder / "resize", stack)


def keep_bytes(scale: Scale, folder: Path, stack: ExitStack) -> Contest:
    """Bytes go into the shards as they are."""
    num = scale.pick(20_000, 100_000)
    files = inputs.write_files(inputs.made_up(num, "256", folder), folder / "photos")
    listed = _write_list(files, folder)
    out = folder / "out"
    whole, sharding = _ours(folder / "photos", out, ["--check", "header"])
    (folder / "names").write_text("".join(f"{path.relative_to(folder / 'photos')}\n" for path, _ in files))
    sides: dict[str, Side | Missing] = {
        "ours": whole,
        "ours, while sharding": sharding,
        TAR: partial(_tar, folder, out, sync=False),
        TAR_SYNC: partial(_tar, folder, out, sync=True),
        SHARD_WRITER: stack.enter_context(Peer(WRITERS, "webdataset", listed, out, 1)),
        f"webdataset's ShardWriter, {WORKERS} processes": stack.enter_context(
            Peer(WRITERS, "webdataset", listed, out, WORKERS)
        ),
        IMG2DATASET: _writer(stack, "img2dataset", "img2dataset", listed, out, WORKERS),
        "MosaicML's MDSWriter, 1 process": _writer(stack, "mosaicml-streaming", "mosaic", listed, out, 1),
        f"MosaicML's MDSWriter, {WORKERS} processes": _writer(
            stack, "mosaicml-streaming", "mosaic", listed, out, WORKERS
        ),
        f"litdata's optimize, {WORKERS} workers": _writer(stack, "litdata", "litdata", listed, out, WORKERS),
    }
    return alternate(
        f"{num:,} JPEGs of 256 px and 19 KB, kept byte for byte",
        unit="images/s",
        amount=num,
        sides=sides,
        rounds=scale.rounds,
        before=partial(_clear, out),
        warm_up=scale.full,             # the files were just written, so they are in the page cache
        targets=[
            Target("≥ 1.0 × GNU tar", against=(TAR,), at_least=1.0),
            Target("≥ 1.0 × GNU tar, then sync", against=(TAR_SYNC,), at_least=1.0),
            Target("≥ 4 × ShardWriter", against=(SHARD_WRITER,), at_least=4.0),
        ],
    )


def resize(scale: Scale, folder: Path, stack: ExitStack) -> Contest:
    """Photos are reduced to a shorter side of 256 pixels and encoded as JPEG of quality 90."""
    num = scale.pick(2_000, 20_000)
    photos = inputs.real(num)
    kind = "real" if photos else "made-up"
    files = inputs.write_files(photos or inputs.made_up(num, "400x533", folder), folder / "photos")
    listed = _write_list(files, folder)
    out = folder / "out"
    whole, sharding = _ours(folder / "photos", out, ["--short-side", str(SHORT_SIDE)])
    return alternate(
        f"{num:,} {kind} photos of about 400 × 533 px, reduced to a shorter side of {SHORT_SIDE} px",
        unit="images/s",
        amount=num,
        sides={
            "ours": whole,
            "ours, while sharding": sharding,
            IMG2DATASET: _writer(stack, "img2dataset", "img2dataset", listed, out, WORKERS, SHORT_SIDE),
            LIMIT: stack.enter_context(Peer("tests.bench.theirs.resize_alone", listed, WORKERS, SHORT_SIDE)),
        },
        rounds=scale.rounds,
        before=partial(_clear, out),
        warm_up=scale.full,             # the files were just written, so they are in the page cache
        targets=[
            Target("≥ 1.5 × img2dataset", against=(IMG2DATASET,), at_least=1.5),
            Target("≥ 0.9 of decode, resize, encode alone", against=(LIMIT,), at_least=0.9),
            Target("the same while sharding", against=(LIMIT,), at_least=0.9, ours="ours, while sharding"),
        ],
        notes=["img2dataset resizes by area over OpenCV, ours bicubic over Pillow; both encode at quality 90"],
    )


def _ours(photos: Path, out: Path, options: list[str]) -> tuple[Callable[[], Pass | None], Callable[[], Pass]]:
    """Two readings of one command: the second one is what it says of itself, and runs nothing."""
    said: list[float] = []
    numbers = count()

    def whole() -> None:
        dataset = out / f"ours-{next(numbers)}"
        words = inputs.data_prep(
            ["build", str(photos), str(dataset), "--format", "folder", "--workers", str(WORKERS), *options]
        )
        found = re.search(r"images in ([0-9.]+) s", words)
        assert found is not None, words
        said.append(float(found[1]))

    return whole, lambda: Pass(said[-1])


def _tar(folder: Path, out: Path, *, sync: bool) -> None:
    archive = out / "theirs.tar"
    subprocess.run(["tar", "cf", archive, "-C", folder / "photos", "-T", folder / "names"], check=True)
    if sync:
        with archive.open("rb") as file:
            os.fsync(file.fileno())


def _writer(stack: ExitStack, packages: str, writer: str, *arguments: object) -> Side | Missing:
    folder = own_folder(packages)
    return folder if isinstance(folder, Missing) else stack.enter_context(
        Peer(WRITERS, writer, *arguments, packages=folder)
    )


def _write_list(files: list[tuple[Path, int]], folder: Path) -> Path:
    path = folder / "files.txt"
    path.write_text("".join(f"{file}\t{label}\n" for file, label in files))
    return path


def _clear(out: Path) -> None:
    """What the side before wrote is gone, and nothing is under way to the disk."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    os.sync()
