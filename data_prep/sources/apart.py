"""Keeps splits apart: an image whose bytes are in validation or test too must not get into what comes before them."""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from data_prep.check import Limits, RejectionError, check_image
from data_prep.sources import HELD_OUT, Reader, Stamp
from twostage.data.schema import SPLITS, InputError

READERS: Final = 8      # threads; they wait for the disk, and hashing holds no lock


def keep_apart(reader: Reader, batches: Iterable[pa.RecordBatch], args: argparse.Namespace) -> ApartReader:
    """A reader that rejects what has the bytes of an image of val or test; `batches` list all inputs."""
    numbers = pa.array([SPLITS.index(split) for split in HELD_OUT], pa.int8())
    places: list[tuple[bytes, str, int]] = []
    for batch in batches:
        held_out = batch.filter(pc.and_(pc.is_null(batch["reason"]), pc.is_in(batch["split"], numbers)))
        places += zip(*(held_out[name].to_pylist() for name in ("place", "key", "split")), strict=True)
    limits = Limits(max_bytes=args.max_bytes, max_pixels=args.max_pixels, decode=False)
    return ApartReader(reader, places, limits, drop=True)


class ApartReader:
    """Reads by another reader, and finds images with the bytes of one that is held out.

    A split yields to every one that is later in schema.SPLITS: training to validation, both to test.
    """

    def __init__(self, reader: Reader, places: Sequence[tuple[bytes, str, int]], limits: Limits, drop: bool) -> None:
        """Reads and hashes all images that are held out; those that will be rejected are none.

        Args:
            reader: reads the images.
            places: (place, key, position in SPLITS) of the images that are held out.
            limits: what is accepted, judged here by an image's header.
            drop: reject the others' copies, instead of stopping.
        """
        self._reader, self._drop = reader, drop
        self._splits = {place: split for place, _, split in places}
        self._held_out: dict[bytes, tuple[int, str]] = {}
        with ThreadPoolExecutor(READERS) as pool:
            digests = pool.map(lambda place: self._digest(place[0], limits), places)
            hidden = not sys.stderr.isatty()
            for (_, key, split), digest in zip(
                places, tqdm(digests, "hashing val and test", len(places), unit="image", disable=hidden), strict=True
            ):
                if digest is not None:
                    self._held_out[digest] = max(self._held_out.get(digest, (-1, "")), (split, key))
        self.num_hashed = len(self._held_out)
        """different images that are held out"""

    def read(self, place: bytes, max_bytes: int) -> tuple[bytes, Stamp]:
        """See `Reader.read`.

        Raises:
            InputError: a leak, and none are to be dropped.
        """
        data, stamp = self._reader.read(place, max_bytes)
        found = self._held_out.get(hashlib.sha256(data).digest())
        if found is not None and found[0] > (own := self._splits.get(place, 0)):
            split, key = found
            if self._drop:
                raise RejectionError("leak", f"the same bytes as {key} of {SPLITS[split]}")
            name = place.decode("utf-8", "backslashreplace")
            raise InputError(
                f"a leak between splits: {name} ({SPLITS[own] if own else 'train'}) has the same bytes as {key} "
                f"({SPLITS[split]}). --drop-leaks leaves such images out of the former: run the same command with it, "
                "what is done is kept"
            )
        return data, stamp

    def stamp(self, place: bytes) -> Stamp:
        """See `Reader.stamp`."""
        return self._reader.stamp(place)

    def _digest(self, place: bytes, limits: Limits) -> bytes | None:
        try:
            data, _ = self._reader.read(place, limits.max_bytes)
            check_image(data, limits)       # two copies of "404: not found" are no leak
        except RejectionError:
            return None
        return hashlib.sha256(data).digest()
