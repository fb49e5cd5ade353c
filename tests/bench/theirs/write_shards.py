"""Files into somebody else's shards.

    python -m tests.bench.theirs.write_shards WRITER FILES OUT WORKERS

FILES is a text file with `path TAB label` a line; each pass writes a new folder below OUT.
"""

from __future__ import annotations

import importlib
import multiprocessing
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import TypeAlias

from tests.bench.peer import serve
from tests.bench.theirs.absent import stand_in

Inputs: TypeAlias = list[tuple[str, int]]
PER_SHARD = 4096
SHARD_BYTES = 64 << 20


def webdataset(inputs: Inputs, out: Path) -> None:
    """webdataset's ShardWriter, as in its documentation: an image and its label, keyed by number."""
    from webdataset import ShardWriter

    with ShardWriter(f"{out}/%06d.tar", maxcount=PER_SHARD, verbose=0) as sink:
        for number, (path, label) in enumerate(inputs):
            sink.write({"__key__": f"{number:09d}", "jpg": Path(path).read_bytes(), "cls": label})


def mosaic(inputs: Inputs, out: Path) -> None:
    """MosaicML's MDSWriter with its default shard size; SHA-256 of each shard, as our shards have one of each image."""
    from streaming import MDSWriter

    with MDSWriter(out=str(out), columns={"image": "bytes", "label": "int"}, hashes=["sha256"]) as sink:
        for path, label in inputs:
            sink.write({"image": Path(path).read_bytes(), "label": label})


def one_sample(item: tuple[str, int]) -> dict[str, object]:
    """For litdata, which calls it in its workers."""
    return {"image": Path(item[0]).read_bytes(), "label": item[1]}


def litdata(inputs: Inputs, out: Path, workers: int) -> None:
    """litdata's optimize, which has workers of its own."""
    from litdata import optimize

    optimize(fn=one_sample, inputs=inputs, output_dir=str(out), chunk_bytes=SHARD_BYTES, num_workers=workers)


def img2dataset(inputs: Inputs, out: Path, workers: int, short_side: int | None) -> None:
    """img2dataset, its output in webdataset's format; `file://` addresses are its way to local files."""
    import pandas
    from img2dataset import download

    out.mkdir(parents=True)
    addresses = pandas.DataFrame({"url": [f"file://{path}" for path, _ in inputs], "label": [x for _, x in inputs]})
    addresses.to_parquet(out / "addresses.parquet")
    download(
        url_list=str(out / "addresses.parquet"),
        input_format="parquet",
        url_col="url",
        save_additional_columns=["label"],
        output_format="webdataset",
        output_folder=str(out / "shards"),
        number_sample_per_shard=max(256, min(PER_SHARD, len(inputs) // (2 * workers))),
        processes_count=workers,
        thread_count=4,
        disable_all_reencoding=short_side is None,
        image_size=short_side or 256,
        resize_mode="no" if short_side is None else "keep_ratio",
        resize_only_if_bigger=True,
        encode_quality=90,
        compute_hash="sha256",
        enable_wandb=False,
        disallowed_header_directives=[],
    )


def _shared(write: Callable[[Inputs, Path], None], inputs: Inputs, out: Path, workers: int) -> None:
    """A writer that knows one process only, in several, each with an equal share and a folder of its own."""
    for number in range(workers):
        (out / str(number)).mkdir(parents=True)
    if workers == 1:
        write(inputs, out / "0")
        return
    context = multiprocessing.get_context("fork")
    shares = [(inputs[number::workers], out / str(number)) for number in range(workers)]
    processes = [context.Process(target=write, args=share) for share in shares]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        if process.exitcode:
            raise RuntimeError(f"a writer ended with {process.exitcode}")


def main() -> None:
    """Serves passes."""
    writer, files, out, workers = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    short_side = int(sys.argv[5]) if len(sys.argv) > 5 else None
    rows = (line.split("\t") for line in files.read_text().splitlines())
    inputs = [(path, int(label)) for path, label in rows]
    numbers = count()
    if writer == "mosaic":
        stand_in("torchvision", "transformers")
    if writer in ("webdataset", "mosaic"):      # before it forks
        importlib.import_module({"webdataset": "webdataset", "mosaic": "streaming"}[writer])

    def one_pass() -> None:
        folder = out / f"pass-{next(numbers)}"
        if writer in ("webdataset", "mosaic"):
            _shared(webdataset if writer == "webdataset" else mosaic, inputs, folder, workers)
        elif writer == "litdata":
            litdata(inputs, folder, workers)
        else:
            img2dataset(inputs, folder, workers, short_side)
    serve(one_pass)


if __name__ == "__main__":
    main()
