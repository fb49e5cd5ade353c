"""Batches of images by FFCV: JPEGs in its own file, random crop, flip, normalised float32.

    python -m tests.bench.theirs.load_ffcv SHARDS FILE WORKERS

Its random-resized crop is given one scale and one ratio, which makes it a crop of 224 pixels from 256.
"""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path
from typing import Any

from tests.bench.peer import serve
from tests.bench.theirs.absent import stand_in

BATCH, SIZE, STORED = 64, 224, 256


class Images:
    """What FFCV's writer indexes: (array, label)."""

    def __init__(self, shards: Path) -> None:
        self.data = []
        for shard in sorted(shards.rglob("*.tar")):
            with tarfile.open(shard) as archive:
                self.data += [archive.extractfile(member).read() for member in archive]  # type: ignore[union-attr]

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, number: int) -> tuple[Any, int]:
        from PIL import Image

        return Image.open(io.BytesIO(self.data[number])).convert("RGB"), number


def main() -> None:
    """Writes the file, then serves passes."""
    stand_in("torchvision")
    import numpy as np
    from ffcv.fields import IntField, RGBImageField
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import NormalizeImage, RandomHorizontalFlip, ToTensor, ToTorchImage
    from ffcv.writer import DatasetWriter

    shards, file, workers = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    if not Path(file).exists():
        fields = {"image": RGBImageField(write_mode="jpg", jpeg_quality=90), "label": IntField()}
        DatasetWriter(file, fields, num_workers=1).from_indexed_dataset(Images(shards))
    share = (SIZE / STORED) ** 2
    mean = np.array([0.485, 0.456, 0.406]) * 255
    std = np.array([0.229, 0.224, 0.225]) * 255
    image = [
        RandomResizedCropRGBImageDecoder((SIZE, SIZE), scale=(share, share), ratio=(1, 1)),
        RandomHorizontalFlip(),
        NormalizeImage(mean, std, np.float32),
        ToTensor(),
        ToTorchImage(convert_back_int16=False),
    ]
    loader = Loader(
        file, batch_size=BATCH, num_workers=workers, order=OrderOption.RANDOM, os_cache=True, drop_last=False,
        pipelines={"image": image, "label": None},
    )

    def one_pass() -> None:
        for _ in loader:
            pass

    serve(one_pass)


if __name__ == "__main__":
    main()
