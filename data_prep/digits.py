"""Writes scikit-learn's handwritten digits as image files: real images for a demo that downloads nothing."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from twostage.data.schema import InputError

NUM_TEST = 500      # the last ones, in scikit-learn's order
SIDE = 32           # pixels; the scans are 8 x 8
EXAMPLES: Final = """\
examples:
  python -m data_prep digits runs/demo/images
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describes the verb's arguments."""
    parser.description = (
        "Write the 1,797 scanned digits that come with scikit-learn as PNG files, OUT/train/3/0042.png and so on."
    )
    parser.epilog = EXAMPLES
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; finished files are left as they are")
    parser.add_argument("--dry-run", action="store_true", help="say what is missing, write nothing")


def main(args: argparse.Namespace) -> int:
    """Writes what is missing and returns the exit code."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError("the digits come with scikit-learn: pip install 'twostage[demo]'") from error
    digits = load_digits()
    missing = 0
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        split = "test" if number >= len(digits.images) - NUM_TEST else "train"
        path: Path = args.out / split / str(label) / f"{number:04d}.png"
        if path.exists():
            continue
        missing += 1
        if args.dry_run:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(np.uint8(np.round(pixels * (255 / 16)))).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        aside = path.with_suffix(".tmp")
        image.save(aside, format="PNG")
        aside.replace(path)
    if args.dry_run:
        print(f"dry run: {missing} of {len(digits.images)} images would be written into {args.out}")
    else:
        print(f"digits: {len(digits.images)} images in {args.out}, {missing} of them written now")
    return 0
