"""A folder that is whole or does not count: its manifest, how it comes to bear its name, and how it goes.

`checkpoint` says what is in such a folder; here is only how it stays safe. A folder is written aside as
`.step-00000123.tmp`, the manifest with every file's size and SHA-256 last, and then renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

from twostage.data.schema import file_digest

FORMAT = "twostage-checkpoint"
VERSION = 1
COMMITTED = re.compile(r"step-(\d{8,})(?:\.(\d+))?")
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
Files = dict[str, dict[str, Any]]
Data: TypeAlias = bytes | Iterable[bytes | memoryview]
BLOCK = 1 << 20             # bytes that are worth a thread's attention
BEHIND = 128 << 20          # bytes that may be written and not yet hashed
DIGEST_THREADS = 4


def committed(folder: Path) -> list[Path]:
    """Checkpoints by name, newest first; whether they are valid is not looked at."""
    found = []
    for path in folder.glob("step-*"):
        if match := COMMITTED.fullmatch(path.name):
            found.append(((int(match[1]), int(match[2] or 0)), path))
    return [path for _, path in sorted(found, reverse=True)]


def write_synced(path: Path, data: Data) -> dict[str, Any]:
    """Writes a file and brings it to the disk; returns its entry for the manifest.

    Another thread hashes it meanwhile, which takes longer than to write it, but less than to bring it to the disk, too.
    """
    size, digest = 0, hashlib.sha256()
    behind: deque[tuple[int, Future[None]]] = deque()       # blocks that are not hashed yet, and so still in memory
    with path.open("wb", buffering=0) as file, ThreadPoolExecutor(1) as pool:
        for block in _blocks(data):
            rest = memoryview(block)
            size += rest.nbytes
            behind.append((size, pool.submit(digest.update, block)))
            while rest:
                rest = rest[file.write(rest) :]
            while behind[0][0] < size - BEHIND:
                behind.popleft()[1].result()
        os.fsync(file.fileno())
    for _, future in behind:
        future.result()
    return {"size": size, "sha256": digest.hexdigest()}


def size_of(data: Data) -> int:
    """Bytes that `write_synced` would write."""
    return sum(memoryview(block).nbytes for block in _blocks(data))


def _blocks(data: Data) -> Iterator[bytes | memoryview]:
    """The pieces, small ones put together."""
    if isinstance(data, bytes):
        yield data
        return
    small: list[bytes | memoryview] = []
    pending = 0
    for piece in data:
        if len(piece) >= BLOCK:
            yield b"".join(small)
            yield piece
            small, pending = [], 0
            continue
        small.append(piece)
        pending += len(piece)
        if pending >= BLOCK:
            yield b"".join(small)
            small, pending = [], 0
    yield b"".join(small)


def commit(aside: Path, step: int, num_ranks: int, files: Files) -> Path:
    """Gives what lies aside its manifest and its name; returns the new path.

    A name that is taken is left alone: its folder is an invalid checkpoint that was skipped, or one of the same step.
    """
    manifest = {"format": FORMAT, "version": VERSION, "step": step, "num_ranks": num_ranks, "files": files}
    write_synced(aside / "manifest.json", encode(manifest))
    _sync_folder(aside)
    name, repeat = f"step-{step:08d}", 0
    while (aside.parent / name).exists():
        repeat += 1
        name = f"step-{step:08d}.{repeat}"
    path = aside.rename(aside.parent / name)
    _sync_folder(aside.parent)
    return path


def verify(path: Path) -> dict[str, Any]:
    """Checks every file of a folder against its manifest, and returns the manifest.

    Raises:
        ValueError: names the file that is missing or not as it was written.
        OSError: a file cannot be read.
    """
    manifest = read(path)
    if not path.name.startswith(f"step-{manifest['step']:08d}"):
        raise ValueError(f"manifest.json is of step {manifest['step']}")
    sound = []
    for name, entry in manifest["files"].items():
        if not FILE_NAME.fullmatch(name):
            raise ValueError(f"manifest.json names {name!r}, which is not a file name")
        file = path / name
        if not file.is_file():
            raise ValueError(f"{name} is missing")
        size = file.stat().st_size
        if size != entry["size"]:
            raise ValueError(f"{name} has {size:,} bytes instead of {entry['size']:,}")
        sound.append(file)
    with ThreadPoolExecutor(DIGEST_THREADS) as pool:
        for file, digest in zip(sound, pool.map(file_digest, sound), strict=True):
            if digest != manifest["files"][file.name]["sha256"]:
                raise ValueError(f"{file.name} is not what was written (SHA-256 differs)")
    return manifest


def read(path: Path) -> dict[str, Any]:
    """The manifest of a folder.

    Raises:
        ValueError: it is missing, damaged, or of another format.
    """
    file = path / "manifest.json"
    if not file.is_file():
        raise ValueError("manifest.json is missing")
    data = file.read_bytes()
    try:
        manifest: dict[str, Any] = json.loads(data)
        del manifest["sha256"]
        kind = (manifest["format"], manifest["version"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"manifest.json is damaged ({error!r})") from error
    if kind != (FORMAT, VERSION):
        raise ValueError(f"manifest.json is of format {kind[0]!r} version {kind[1]!r}, not {FORMAT!r} {VERSION}")
    if data != encode(manifest):
        raise ValueError("manifest.json is not what was written")
    return manifest


def encode(manifest: dict[str, Any]) -> bytes:
    """The manifest's bytes, with a SHA-256 of its own, as nothing else vouches for it."""
    digest = hashlib.sha256(json.dumps(manifest).encode()).hexdigest()
    return (json.dumps({**manifest, "sha256": digest}, indent=2) + "\n").encode()


def remove_older(newest: Path, keep: int) -> None:
    """Keeps `newest` and the `keep - 1` before it. Later steps can only be left from what was given up as invalid."""
    paths = committed(newest.parent)
    kept = paths[paths.index(newest) :][:keep]
    for path in paths:
        if path not in kept:
            aside = path.with_name(f".{path.name}.tmp")
            try:
                path.rename(aside)      # so that a kill leaves no part of a checkpoint under its name
            except OSError as error:
                print(f"warning: cannot remove {path}: {error}", file=sys.stderr, flush=True)
            else:
                remove(aside)


def remove_strays(folder: Path) -> None:
    """Removes what an interrupted save or removal left aside."""
    for stray in folder.glob(".step-*.tmp"):
        remove(stray)


def remove(path: Path) -> None:
    """Removes a folder; says so where it cannot, as a run need not end for it."""
    try:
        shutil.rmtree(path)
    except OSError as error:
        print(f"warning: cannot remove {path}: {error}", file=sys.stderr, flush=True)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
