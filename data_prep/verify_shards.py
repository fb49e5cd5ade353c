"""Checks one shard against its rows of samples.parquet: tar headers, offsets, bytes, image headers, and its index.

Nothing is extracted: headers are read where the walk through the tar file arrives, images where they lie. The walk
goes on after a damaged header, at the place that samples.parquet gives, so that one damage is one finding.
"""

from __future__ import annotations

import hashlib
import math
import os
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_prep.check import Limits, RejectionError, check_image
from data_prep.findings import BUILD_COMMAND, Finding
from twostage.data.schema import EXTENSIONS, member_name, shard_name

BLOCK: Final = 512                   # a tar file is made of such blocks
HEAD: Final = 1 << 16                # bytes that nearly always hold an image's header
NO_LIMITS: Final = Limits(max_bytes=1 << 62, max_pixels=1 << 62, max_ratio=math.inf, decode=False)

Ints = npt.NDArray[np.int64]
Report = Callable[[int | None, str], None]  # (row, or None for the whole file; problem)


@dataclass(frozen=True, kw_only=True)
class ShardRows:
    """The rows of samples.parquet that belong to one shard, in order of their index."""

    number: int
    index: Ints
    offset: Ints
    size: Ints
    width: Ints
    height: Ints
    image_format: list[str]
    sha256: list[bytes]
    key: list[str]

    @classmethod
    def from_table(cls, number: int, table: pa.Table) -> ShardRows:
        """Rows of a table in samples.parquet's schema."""
        names = ("index", "offset", "size", "width", "height")
        numbers = {name: table[name].to_numpy().astype(np.int64) for name in names}
        texts = {"image_format": table["format"], "sha256": table["sha256"], "key": table["key"]}
        return cls(number=number, **numbers, **{name: column.to_pylist() for name, column in texts.items()})

    def __len__(self) -> int:
        return len(self.index)

    def name(self, row: int) -> str:
        """Name of the row's member in the tar file."""
        return member_name(int(self.index[row]), self.image_format[row])


def shard_remedy(number: int) -> str:
    """How to get a shard written anew."""
    name = shard_name(number)
    return f"remove shards/{name}, shards/{name.removesuffix('.tar')}.idx and dataset.json, {BUILD_COMMAND}"


def check_shard(dataset: Path, rows: ShardRows, quick: bool) -> list[Finding]:
    """All findings of one shard and its index; `quick` leaves out the images' hashes."""
    path = dataset / "shards" / shard_name(rows.number)
    findings: list[Finding] = []

    def report(row: int | None, problem: str) -> None:
        findings.append(_finding(path, rows, row, problem))

    places = list(zip(rows.offset.tolist(), rows.size.tolist(), strict=True))
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        problem = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be opened ({error.strerror})"
        report(None, f"{problem}; it holds samples {rows.index[0]} to {rows.index[-1]}")
    else:
        try:
            _walk(descriptor, rows, quick, places, report)
        except OSError as error:
            report(None, f"cannot be read ({error.strerror}); it holds samples {rows.index[0]} to {rows.index[-1]}")
        finally:
            os.close(descriptor)
    return findings + _check_index(path.with_suffix(".idx"), rows, places)


def _walk(descriptor: int, rows: ShardRows, quick: bool, places: list[tuple[int, int]], report: Report) -> None:
    """Goes from header to header; corrects `places` (offset, size by row) to where the tar file has the members."""
    end = os.fstat(descriptor).st_size
    position = 0
    for row in range(len(rows)):
        header = _header(descriptor, position)
        offset, size = places[row]
        sound = isinstance(header, tarfile.TarInfo) and header.name == rows.name(row)
        if isinstance(header, tarfile.TarInfo) and sound:
            offset, size = places[row] = (position + BLOCK, header.size)
        if max(position + BLOCK, offset + size) > end:
            lost = "" if row == len(rows) - 1 else f" and the {len(rows) - 1 - row} samples after it"
            report(row, f"the file ends at byte {end}: this sample{lost} are cut off")
            return
        if not sound:
            found = f"a member {header.name!r}" if isinstance(header, tarfile.TarInfo) else header
            report(row, f"at byte {position} there should be the tar header of {rows.name(row)}, there is {found}")
        elif (offset, size) != (rows.offset[row], rows.size[row]):
            report(
                row,
                f"the tar file holds it at byte {offset} with {size} bytes, samples.parquet says byte "
                f"{rows.offset[row]} with {rows.size[row]} bytes",
            )
        else:
            problem = _check_member(descriptor, rows, row, quick)
            if problem:
                report(row, problem)
        position = offset + size + -size % BLOCK
    problem = _check_end(descriptor, position)
    if problem:
        report(len(rows) - 1, problem)


def _header(descriptor: int, position: int) -> tarfile.TarInfo | str:
    """The header at a position of a tar file, or what is there instead."""
    block = os.pread(descriptor, BLOCK, position)
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        return f"none ({error})"
    return header if header.isreg() else f"a tar entry {header.name!r} that is not a file"


def _check_member(descriptor: int, rows: ShardRows, row: int, quick: bool) -> str:
    """What is wrong with a sample's bytes, or nothing."""
    offset, size = int(rows.offset[row]), int(rows.size[row])
    data = os.pread(descriptor, min(size, HEAD) if quick else size + -size % BLOCK, offset)
    if not quick:
        data, padding = data[:size], data[size:]
        found = hashlib.sha256(data).digest()
        if found != rows.sha256[row]:
            return (
                f"the image's bytes were changed: their SHA-256 is {found.hex()[:12]}…, samples.parquet says "
                f"{rows.sha256[row].hex()[:12]}…"
            )
        if padding.strip(b"\0"):
            return f"the padding after the image, at byte {offset + size}, was changed: it should be zeros"
    try:
        try:
            image = check_image(data, replace(NO_LIMITS, whole=len(data) == size))
        except RejectionError:
            if len(data) == size:
                raise
            image = check_image(os.pread(descriptor, size, offset), NO_LIMITS)
    except RejectionError as error:
        return f"not a readable image ({error.reason}: {error.detail})"
    stated = (rows.image_format[row], rows.width[row], rows.height[row])
    if (image.image_format, image.width, image.height) != stated:
        return (
            f"the image is {image.image_format}, {image.width} x {image.height} pixels; samples.parquet says "
            f"{stated[0]}, {stated[1]} x {stated[2]}"
        )
    return ""


def _check_end(descriptor: int, position: int) -> str:
    """What is wrong after the last sample, or nothing: two blocks of zeros, and nothing but zeros."""
    header = _header(descriptor, position)
    if isinstance(header, tarfile.TarInfo):
        return f"after this sample, the last one, there is another member {header.name!r} at byte {position}"
    length = os.fstat(descriptor).st_size - position
    if length < 2 * BLOCK:
        return f"the file ends without the two blocks of zeros that close a tar file: {max(length, 0)} bytes are left"
    while chunk := os.pread(descriptor, 1 << 20, position):
        if chunk.strip(b"\0"):
            return f"after this sample, the last one, the bytes from {position} on should be zeros"
        position += len(chunk)
    return ""


def _check_index(path: Path, rows: ShardRows, places: list[tuple[int, int]]) -> list[Finding]:
    """Findings of a shard's .idx file, which is compared with the tar file."""
    expected = [f"v1.2 {len(rows)}"]
    for row, (offset, size) in enumerate(places):
        expected.append(f"{EXTENSIONS[rows.image_format[row]]} {offset} {size} {rows.name(row)}")
    try:
        with path.open("rb") as file:
            text = file.read(2 * sum(map(len, expected)) + 1024).decode(errors="replace")
    except OSError as error:
        problem = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        return [_finding(path, rows, None, problem)]
    lines = text.removesuffix("\n").split("\n")
    if len(lines) != len(expected):
        problem = f"has {len(lines)} lines, it should have {len(expected)}: a first one, and one for each sample"
        return [_finding(path, rows, None, problem)]
    findings = []
    for number, line in enumerate(expected):
        if lines[number] != line:
            problem = f"line {number + 1} is {lines[number][:80]!r}, it should be {line!r}"
            findings.append(_finding(path, rows, number - 1 if number else None, problem))
    return findings


def _finding(path: Path, rows: ShardRows, row: int | None, problem: str) -> Finding:
    return Finding(
        file=f"shards/{path.name}",
        index=None if row is None else int(rows.index[row]),
        key=None if row is None else rows.key[row],
        problem=problem,
        remedy=shard_remedy(rows.number),
    )
