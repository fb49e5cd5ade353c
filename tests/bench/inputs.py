"""Photos to compare with: made up by `data_prep synth`, or the real ones of development where they are at hand."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

from tests.bench.peer import ROOT
from tests.data_prep.shared_data import SHARED

DISTINCT = 1000         # made-up images; more files are these again, each with another comment in it
CLASSES = 10
PER_FOLDER = 1000
REAL = SHARED / "data" / "clothing" / "clothing-dataset-small.train.tar"


def made_up(num: int, size: str, work: Path) -> list[bytes]:
    """JPEGs that compress and decode like photos; no two are equal."""
    folder = work / f"synth-{size}"
    data_prep(["synth", str(folder), "--num", str(min(num, DISTINCT)), "--size", size])
    return multiplied([path.read_bytes() for path in sorted(folder.rglob("*.jpg"))], num)


def real(num: int) -> list[bytes] | None:
    """3,068 photos of clothes, about 400 × 533 pixels and 28 KB; None where they are not at hand."""
    if not REAL.exists():
        return None
    with tarfile.open(REAL) as archive:
        members = [member for member in archive if member.name.endswith(".jpg")]
        return multiplied([archive.extractfile(member).read() for member in members], num)  # type: ignore[union-attr]


def multiplied(images: Sequence[bytes], num: int) -> list[bytes]:
    """As many JPEGs, each with its number as a comment after the first marker."""
    return [
        b"\xff\xd8\xff\xfe\x00\x0b%09d" % number + images[number % len(images)][2:] for number in range(num)
    ]


def write_files(images: Sequence[bytes], folder: Path) -> list[tuple[Path, int]]:
    """Writes class folders with at most a thousand files each; returns paths and labels."""
    written = []
    for number, image in enumerate(images):
        label = number % CLASSES
        path = folder / f"class_{label}" / f"{number // CLASSES // PER_FOLDER:05d}" / f"{number:09d}.jpg"
        if number // CLASSES % PER_FOLDER == 0:
            path.parent.mkdir(parents=True)
        path.write_bytes(image)
        written.append((path, label))
    return written


def data_prep(arguments: Sequence[str]) -> str:
    """Runs a verb of data_prep, and returns what it says."""
    command = [sys.executable, "-m", "data_prep", *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
