"""CIFAR-10 (Krizhevsky, 2009): the original batches, as python pickles or in the binary version, packed or unpacked."""

from __future__ import annotations

import argparse
import hashlib
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from lzma import LZMAError
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from data_prep.check import RejectionError
from data_prep.sources import Input, Listing, Stamp, read_class_names, to_batches
from data_prep.sources.arrays import png_bytes
from data_prep.sources.plain_pickle import RefusedPickleError, read_plain_pickle
from twostage.data.schema import SPLITS, InputError

OPTIONS = ("class_names", "allow_unknown_md5")
CLASS_NAMES: Final = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PYTHON_MD5: Final = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
BINARY_MD5: Final = {
    "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
}
PLACES: Final = (       # below SOURCE, in the order in which they are looked for
    ".",
    "cifar-10-batches-py",
    "cifar-10-batches-bin",
    "cifar-10-python.tar.gz",
    "cifar-10-binary.tar.gz",
)
SIDE: Final = 32                        # pixels
PIXELS: Final = 3 * SIDE * SIDE         # bytes: all red ones, all green ones, all blue ones
MAX_BATCH_BYTES: Final = 64 << 20       # an original one has 31 MB


def add_arguments(group: argparse._ArgumentGroup) -> None:
    """Adds the options that only this source has."""
    group.description = (
        "SOURCE is cifar-10-python.tar.gz or cifar-10-binary.tar.gz, or the folder that was unpacked from one of them, "
        "or a folder with one of these in it. The data batches become noisy_train, the test batch becomes test; keys "
        "are train/00000, test/00000 in the original order; images become PNG."
    )
    group.add_argument(
        "--allow-unknown-md5",
        action="store_true",
        default=None,
        help="take batches whose md5 sums are not the original ones, say with other labels; they are said and recorded",
    )


class Batch(NamedTuple):
    """Images and labels of one file."""

    images: npt.NDArray[np.uint8]
    """(images, 32, 32, 3)"""
    labels: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Batches:
    """Where the six batches lie."""

    place: Path
    """the folder or archive that they lie in"""
    md5: dict[str, str]
    """the original sums by name, in order"""

    def read(self) -> Iterator[tuple[str, bytes]]:
        """(name, bytes) of all six, in the order in which they lie there; nothing is unpacked onto the disk.

        Raises:
            InputError: one is missing, or twice there, or too large, or the archive is damaged.
        """
        seen: set[str] = set()
        for name, data in _archive(self.place, set(self.md5)) if self.place.is_file() else self._folder():
            if name in seen:
                raise InputError(f"{self.place} holds two files of the name {name}")
            seen.add(name)
            yield name, data
        if missing := sorted(self.md5.keys() - seen):
            raise InputError(f"{self.place}: {', '.join(missing)} missing")

    def where(self, name: str) -> str:
        """A batch's path, for messages."""
        return f"{self.place}: {name}" if self.place.is_file() else str(self.place / name)

    def _folder(self) -> Iterator[tuple[str, bytes]]:
        for name in self.md5:
            if (self.place / name).is_file():
                yield name, (self.place / name).read_bytes()


def list_inputs(source: Path, args: argparse.Namespace) -> Listing:
    """See `Source.list_inputs`."""
    batches = find_batches(source)
    names = CLASS_NAMES if args.class_names is None else read_class_names(args.class_names)
    labels: dict[str, list[int]] = {}
    containers: dict[str, str] = {}
    notes = []
    for name, data in batches.read():
        found = hashlib.md5(data, usedforsecurity=False).hexdigest()
        if found != batches.md5[name]:
            text = f"{batches.where(name)}: md5 {found}, expected {batches.md5[name]}"
            if not args.allow_unknown_md5:
                raise InputError(
                    f"{text}: it is damaged, or not the original. Get it again, or give --allow-unknown-md5 to take it "
                    "as it is"
                )
            notes.append(text)
        containers[name] = hashlib.sha256(data).hexdigest()
        batch = parse_batch(batches.where(name), data)
        wrong = np.flatnonzero((batch.labels < 0) | (batch.labels >= len(names)))
        if wrong.size:
            raise InputError(
                f"{batches.where(name)}: label {batch.labels[wrong[0]]} of image {wrong[0]} is out of range "
                f"0..{len(names) - 1} ({wrong.size} such labels); --class-names names the classes"
            )
        labels[name] = batch.labels.tolist()
    return Listing(
        class_names=names,
        batches=to_batches(_rows({name: labels[name] for name in batches.md5})),
        reader=CifarReader(batches, containers),
        containers={name: containers[name] for name in batches.md5},
        notes=tuple(notes),
    )


class CifarReader:
    """Encodes images of the batches as PNG; a place is b"data_batch_1 123"."""

    def __init__(self, batches: Batches, digests: dict[str, str]) -> None:
        """Opens nothing yet. `digests`: SHA-256 of the batches as they were listed."""
        self._batches = batches
        self._digests = digests
        self._images: dict[str, npt.NDArray[np.uint8]] = {}

    def read(self, place: bytes, max_bytes: int) -> tuple[bytes, Stamp]:
        """See `Reader.read`."""
        if not self._images:            # all at once: the samples' order is random, and an archive has one way through
            for name, data in self._batches.read():
                if hashlib.sha256(data).hexdigest() != self._digests[name]:
                    raise InputError(f"{self._batches.where(name)} was changed while the dataset was built")
                self._images[name] = parse_batch(self._batches.where(name), data).images
        name, number = place.decode().split()
        encoded = png_bytes(self._images[name][int(number)])
        if len(encoded) > max_bytes:
            raise RejectionError("too_large", f"{len(encoded)} bytes, the limit is {max_bytes}")
        return encoded, self.stamp(place)

    def stamp(self, place: bytes) -> Stamp:
        """See `Reader.stamp`: the files' digests say it."""
        return Stamp(0, 0)


def find_batches(source: Path) -> Batches:
    """Finds out what SOURCE is.

    Raises:
        InputError: no batches of either version there, or not all six.
    """
    if not source.exists():
        raise InputError(f"{source}: no such file or folder")
    for place in [source] if source.is_file() else [source / name for name in PLACES]:
        if place.is_dir():
            names = {path.name for path in place.iterdir()}
        elif place.is_file():
            names = _names_in_archive(place)
        else:
            continue
        for md5 in (PYTHON_MD5, BINARY_MD5):
            if names & md5.keys():
                if missing := sorted(md5.keys() - names):
                    raise InputError(f"{place}: {', '.join(missing)} missing; it should hold {', '.join(md5)}")
                return Batches(place, md5)
    raise InputError(
        f"{source} holds no CIFAR-10: expected is cifar-10-python.tar.gz or cifar-10-binary.tar.gz, or the folder "
        "unpacked from it (cifar-10-batches-py, cifar-10-batches-bin), or a folder with one of these; "
        "`data_prep download cifar10 DIR` gets it"
    )


def parse_batch(where: str, data: bytes) -> Batch:
    """Images and labels of a batch of either version.

    Raises:
        InputError: it is not what it should be: a pickle that names a foreign class, another shape, ...
    """
    if where.endswith(".bin"):
        if not data or len(data) % (PIXELS + 1):
            raise InputError(f"{where}: {len(data)} bytes are not a multiple of {PIXELS + 1} (a label and its pixels)")
        rows = np.frombuffer(data, np.uint8).reshape(-1, PIXELS + 1)
        return Batch(_to_images(rows[:, 1:]), rows[:, 0].astype(np.int64))
    try:
        content = read_plain_pickle(data)
    except RefusedPickleError as error:
        raise InputError(f"{where} is not read: {error}") from error
    pixels, labels = _entry(content, "data"), _entry(content, "labels")
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != PIXELS:
        raise InputError(f"{where}: its entry 'data' should be bytes of the shape (images, {PIXELS})")
    try:
        numbers = np.asarray(labels)
        whole = np.asarray(numbers, dtype=np.int64)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{where}: its entry 'labels' should be a list of whole numbers") from None
    if whole.shape != (len(pixels),) or numbers.dtype.kind not in "iu":
        raise InputError(f"{where}: its entry 'labels' should be {len(pixels)} whole numbers, one for each image")
    return Batch(_to_images(pixels), whole)


def _entry(content: Any, name: str) -> Any:
    """An entry of a batch's dict, whose keys are bytes if Python 2 wrote it."""
    if not isinstance(content, dict):
        return None
    return content.get(name.encode(), content.get(name))


def _to_images(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(pixels.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1))


def _rows(labels: dict[str, list[int]]) -> Iterator[Input]:
    counts = {"train": 0, "test": 0}
    for name, numbers in labels.items():
        part, split = ("test", "test") if name.startswith("test") else ("train", "noisy_train")
        for number, label in enumerate(numbers):
            yield Input(f"{part}/{counts[part]:05d}", f"{name} {number}".encode(), SPLITS.index(split), label)
            counts[part] += 1


def _names_in_archive(path: Path) -> set[str]:
    return {name for name, _ in _archive(path, PYTHON_MD5.keys() | BINARY_MD5.keys())}


def _archive(path: Path, wanted: set[str]) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of an archive's files of these names, in whatever folder they lie."""
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                if name not in wanted or not member.isfile():
                    continue
                if member.size > MAX_BATCH_BYTES:
                    raise InputError(f"{path}: {name} has {member.size} bytes, more than a batch can have")
                file = archive.extractfile(member)
                assert file is not None
                yield name, file.read()
    except (tarfile.TarError, EOFError, zlib.error, LZMAError, OSError) as error:
        if isinstance(error, OSError) and not isinstance(error, tarfile.TarError) and error.errno is not None:
            raise                       # the machine failed; says nothing of the archive
        raise InputError(f"{path} is no whole tar archive ({error}): get it again") from error
