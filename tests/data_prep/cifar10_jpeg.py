"""CIFAR-10 from the data for development, as image files with a table.

There it is JPEG-encoded (quality 75, 4:2:0; median PSNR 30.5 dB): not the original pixels, and figures from it must
say so. Labels and order are the original ones. Also a script:

    python -m tests.data_prep.cifar10_jpeg OUT [--num N]
    python -m data_prep build OUT/table.csv data/cifar10-jpeg --format table
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np

from tests.data_prep.shared_data import SHARED

PER_FOLDER = 1000


def write_cifar10_jpeg(source: Path, out: Path, num: int | None = None) -> Path:
    """Writes OUT/train/00/00000.jpg ..., OUT/test/... and OUT/table.csv (path, label, split); returns the table.

    Args:
        source: folder with cifar10_jpeg_train.npz and cifar10_jpeg_test.npz.
        out: folder to write; finished files are left as they are.
        num: only the first so many of each split.
    """
    rows = []
    for split in ("train", "test"):
        with np.load(source / f"cifar10_jpeg_{split}.npz", allow_pickle=False) as file:
            content, offsets, labels = (file[name] for name in ("jpeg_bytes", "offsets", "labels"))
            classes = [str(name) for name in file["classes"]]
        for number in range(len(labels) if num is None else min(num, len(labels))):
            path = out / split / f"{number // PER_FOLDER:02d}" / f"{number:05d}.jpg"
            rows.append((path.relative_to(out).as_posix(), classes[labels[number]], split))
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                aside = path.with_suffix(".tmp")
                aside.write_bytes(content[offsets[number] : offsets[number + 1]].tobytes())
                aside.replace(path)
    table = out / "table.csv"
    with table.with_suffix(".tmp").open("w", newline="") as text:
        csv.writer(text, lineterminator="\n").writerows([("path", "label", "split"), *rows])
    table.with_suffix(".tmp").replace(table)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--num", type=int, help="only the first so many of each split")
    parser.add_argument("--source", type=Path, default=SHARED / "data" / "cifar10", help="(%(default)s)")
    args = parser.parse_args()
    print(write_cifar10_jpeg(args.source, args.out, args.num))


if __name__ == "__main__":
    main()
