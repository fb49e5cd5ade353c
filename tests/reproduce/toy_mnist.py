"""A few made-up digits in MNIST's files, easy to learn: each class is a bright square in its own place."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np


def write_toy_mnist(folder: Path, *, num_train: int = 300, num_test: int = 100) -> Path:
    """Writes the four idx files; all ten classes are equally frequent."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for prefix, num in (("train", num_train), ("t10k", num_test)):
        label = rng.permutation(np.arange(num) % 10).astype(np.uint8)
        pixels = rng.integers(0, 60, (num, 28, 28), dtype=np.uint8)
        for row, c in enumerate(label):
            top, left = 2 + 14 * (c // 5), 2 + 5 * (c % 5)
            pixels[row, top : top + 10, left : left + 4] += 180
        header = struct.pack(">4I", 0x803, num, 28, 28)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, num) + label.tobytes())
    return folder
