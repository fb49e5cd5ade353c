"""The work folder of a build, OUT/.build: what is to be done, and what of it is done.

    lock, part-1-of-8.lock      held while somebody is at work; begin.lock, while the next two are written
    plan.json                   settings, class names, digest of the inputs: what decides over the dataset's bytes
    inputs.arrow                every input in the source's order; read through a memory map
    000012.tar, 000012.parquet  a chunk: an equal share of the shuffled inputs, which becomes one shard; the Parquet
                                file has a row for each of its inputs, accepted or not, and is written after the tar
    000012.sums.parquet         with --mean-size: sums of the pixels of its training images, written between the two

Once the numbers of accepted images before it are known, a chunk's tar file moves to shards/ under its final name.
The Parquet files stay, so that a lost shard can be made again alone.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.inputs import changed_inputs, some, write_inputs
from data_prep.sources import Listing
from data_prep.tar import END, padded
from twostage.data.schema import SAMPLES_SCHEMA, InputError, aside_path, shard_name, write_json

Ints = npt.NDArray[np.int64]

STREAM: Final = 0x73687566666C65        # keeps these random numbers apart from others with the same seed
CHUNK_SCHEMA: Final = pa.schema(
    [
        ("position", pa.int64()),       # row of inputs.arrow
        ("reason", pa.string()),        # null if accepted; then the next six columns are filled
        ("detail", pa.string()),
        *[SAMPLES_SCHEMA.field(name) for name in ("offset", "size", "width", "height")],
        ("format", pa.string()),
        SAMPLES_SCHEMA.field("sha256"),
        ("stamp_size", pa.int64()),     # of the input's file, see sources.Stamp
        ("stamp_mtime_ns", pa.int64()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What decides over the dataset's bytes."""

    settings: dict[str, Any]
    """arguments by name; those that are not given are left out"""
    class_names: tuple[str, ...]
    label_columns: tuple[str, ...]
    containers: dict[str, str]
    num_inputs: int
    inputs_sha256: str
    """of keys, splits, labels and rejections of all inputs, in order"""

    def differences(self, other: Plan) -> list[str]:
        """In words, what is different in `other`, the later one."""
        found = []
        for name in sorted(self.settings.keys() | other.settings.keys()):
            old, new = self.settings.get(name), other.settings.get(name)
            if old != new:
                found.append(f"--{name.replace('_', '-')} was {_shown(old)}, now it is {_shown(new)}")
        if self.class_names != other.class_names:
            found.append(f"the classes were {some(self.class_names)}, now they are {some(other.class_names)}")
        for name in sorted(self.containers.keys() | other.containers.keys()):
            if self.containers.get(name) != other.containers.get(name):
                found.append(f"the source's file {name} was changed")
        if self.label_columns != other.label_columns:
            found.append(f"label columns were {some(self.label_columns)}, now they are {some(other.label_columns)}")
        return found

    @classmethod
    def of(cls, listing: Listing, settings: dict[str, Any], num_inputs: int, digest: str) -> Plan:
        """From a listing that was run through."""
        return cls(
            settings=settings,
            class_names=listing.class_names,
            label_columns=listing.label_columns,
            containers=dict(listing.containers),
            num_inputs=num_inputs,
            inputs_sha256=digest,
        )

    @classmethod
    def read(cls, path: Path) -> Plan:
        """Reads a plan.json."""
        try:
            content = json.loads(path.read_text())
            content["class_names"] = tuple(content["class_names"])
            content["label_columns"] = tuple(content["label_columns"])
            content["settings"], content["containers"] = dict(content["settings"]), dict(content["containers"])
            return cls(**content)
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is damaged ({error}): remove {path.parent.parent} and build it anew") from error


class Work:
    """A build under way, or done: OUT with its work folder."""

    def __init__(self, out: Path) -> None:
        """Reads plan and inputs.

        Raises:
            InputError: there is no build here, or its files are damaged.
        """
        self.out = out
        self.folder = out / ".build"
        self.plan = Plan.read(self.folder / "plan.json")
        try:
            self.inputs = pa.ipc.open_file(pa.memory_map(str(self.folder / "inputs.arrow"))).read_all()
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{self.folder}/inputs.arrow is damaged ({error}): remove {out}, build anew") from error
        candidates = np.flatnonzero(pc.is_null(self.inputs["reason"]).to_numpy())
        seed = np.random.SeedSequence([self.plan.settings["rng_seed"], STREAM])
        # the raw stream is the part of numpy's generators that is promised never to change
        order = np.argsort(np.random.Philox(seed).random_raw(len(candidates)), kind="stable")
        self.order: Ints = candidates[order]
        """(candidates,) rows of `inputs` that are read, in the order of the shards"""
        shard_size: int = self.plan.settings.get("shard_size", _default_shard_size(len(self.order)))
        self.num_chunks = -(-len(self.order) // shard_size)

        self.mean_size: int | None = self.plan.settings.get("mean_size")
        """pixels; None if no mean image is asked for"""

    def __reduce__(self) -> tuple[type[Work], tuple[Path]]:
        """Travels to a worker as the path alone."""
        return Work, (self.out,)

    def chunk_start(self, chunk: int) -> int:
        """How many inputs all chunks before this one have."""
        return chunk * len(self.order) // max(1, self.num_chunks)

    def positions(self, chunk: int) -> Ints:
        """Rows of `inputs` that a chunk is made of."""
        return self.order[self.chunk_start(chunk) : self.chunk_start(chunk + 1)]

    def tar_path(self, chunk: int) -> Path:
        """Where a chunk's tar file lies before it is final."""
        return self.folder / f"{chunk:06d}.tar"

    def rows_path(self, chunk: int) -> Path:
        """Where a chunk's rows lie."""
        return self.folder / f"{chunk:06d}.parquet"

    def sums_path(self, chunk: int) -> Path:
        """Where the sums of a chunk's pixels lie, if the mean image is asked for."""
        return self.folder / f"{chunk:06d}.sums.parquet"

    def shard_path(self, shard: int) -> Path:
        """Where a shard lies."""
        return self.out / "shards" / shard_name(shard)

    def read_rows(self, chunk: int) -> pa.Table | None:
        """A chunk's rows, or None if there are none yet, or damaged ones."""
        try:
            table = pq.read_table(self.rows_path(chunk), schema=CHUNK_SCHEMA)
        except FileNotFoundError:
            return None
        except (pa.ArrowException, OSError, ValueError):
            self.rows_path(chunk).unlink(missing_ok=True)
            return None
        return table if np.array_equal(table["position"].to_numpy(), self.positions(chunk)) else None

    def keys(self, positions: Ints) -> list[str]:
        """Keys of some inputs."""
        keys: list[str] = self.inputs["key"].take(pa.array(positions)).to_pylist()
        return keys

    def remove_leftovers(self, chunks: Iterable[int] | None) -> None:
        """Removes what killed processes were writing aside: of these chunks, or all, while nobody else works here."""
        patterns = [f".build/.{chunk:06d}.*.tmp" for chunk in chunks or ()]
        if chunks is None:
            patterns = [".build/.*.tmp", ".*.tmp", "shards/.*.tmp", "labels/.*.tmp"]
        for pattern in patterns:
            for path in self.out.glob(pattern):
                path.unlink(missing_ok=True)


def _default_shard_size(num_images: int) -> int:
    """4096 images; fewer of a small set, so that there is something to share between workers."""
    return min(4096, max(256, -(-num_images // 16)))


def tar_size(rows: pa.Table) -> int:
    """Size of the tar file that a chunk's rows describe; 0 if none of its inputs was accepted."""
    sizes = rows["size"].drop_null().to_numpy()
    if not len(sizes):
        return 0
    return int(rows["offset"].drop_null().to_numpy()[-1]) + padded(int(sizes[-1])) + len(END)


def begin(out: Path, listing: Listing, settings: dict[str, Any]) -> Work:
    """Writes plan and inputs, or finds that they are the same as those already there.

    Raises:
        InputError: OUT was begun with other arguments or another source, and what differs; two images with one key.
    """
    folder = out / ".build"
    folder.mkdir(parents=True, exist_ok=True)
    aside = aside_path(folder / "inputs.arrow")
    try:
        num_inputs, digest = write_inputs(listing, aside)
        plan = Plan.of(listing, settings, num_inputs, digest)
        with (folder / "begin.lock").open("w") as lock:
            _lock(lock.fileno(), fcntl.LOCK_EX)     # parts begin at the same time, and one of them writes the plan
            is_first = not (folder / "plan.json").exists()
            if is_first:
                aside.replace(folder / "inputs.arrow")
                write_json(folder / "plan.json", asdict(plan))
        if not is_first:
            old = Plan.read(folder / "plan.json")
            problems = old.differences(plan)
            if not problems and old.inputs_sha256 != digest:
                problems = changed_inputs(Work(out).inputs, pa.ipc.open_file(pa.memory_map(str(aside))).read_all())
            if problems:
                raise InputError(refusal(out, problems))
    finally:
        aside.unlink(missing_ok=True)
    return Work(out)


def refusal(out: Path, problems: list[str]) -> str:
    """Says why a build cannot go on."""
    return (
        f"{out} was begun otherwise: {'; '.join(problems)}. Give the same arguments and source, or another OUT, or "
        f"remove {out} to begin anew"
    )


@contextmanager
def locked(folder: Path, part: str | None) -> Iterator[None]:
    """Holds the work folder; parts of a build may work beside each other, but not beside anything else.

    Raises:
        InputError: somebody else is at work here.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as whole, (folder / f"{part or 'whole'}.lock").open("w") as own:
        try:
            _lock(whole.fileno(), (fcntl.LOCK_EX if part is None else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            _lock(own.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            text = f"another `data_prep build` or `merge` is at work in {folder.parent}: wait for it"
            raise InputError(text) from error
        try:
            yield
        finally:
            if not (folder / "plan.json").exists():         # refused before it began: leave nothing of one's own behind
                Path(own.name).unlink(missing_ok=True)
                if part is None:                            # of a part, others may hold it
                    Path(whole.name).unlink(missing_ok=True)
                with suppress(OSError):
                    folder.rmdir()
                    folder.parent.rmdir()


def _lock(descriptor: int, kind: int) -> None:
    """Locks an open file; does nothing where the file system has no locks."""
    try:
        fcntl.flock(descriptor, kind)
    except BlockingIOError:
        raise
    except OSError:
        pass


def _shown(value: object) -> str:
    return "not given" if value is None else str(value)
