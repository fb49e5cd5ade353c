"""Batches of images by somebody else's dataset and torch's DataLoader: random crop, flip, normalised float32.

    python -m tests.bench.theirs.load_images SOURCE DECODER WORKERS IMAGES PATH

SOURCE is webdataset, mosaic or litdata; DECODER is pillow or turbo (simplejpeg: libjpeg-turbo without Pillow between).
What is done to an image is the same in all, in numpy on uint8 up to the last step.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from tests.bench.peer import serve
from tests.bench.theirs.absent import stand_in

BATCH, SIZE = 64, 224
MEAN = np.array([0.485, 0.456, 0.406], np.float32) * 255
SCALE = 1 / (np.array([0.229, 0.224, 0.225], np.float32) * 255)


def by_pillow(data: bytes) -> Any:
    """(height, width, 3) uint8."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def by_turbo(data: bytes) -> Any:
    """(height, width, 3) uint8."""
    import simplejpeg

    return simplejpeg.decode_jpeg(data)


def augmented(pixels: Any) -> Any:
    """(224, 224, 3) uint8: cropped and flipped at random."""
    top, left = (int(torch.randint(length - SIZE + 1, ())) for length in pixels.shape[:2])
    square = pixels[top : top + SIZE, left : left + SIZE]
    return square[:, ::-1] if torch.rand(()) < 0.5 else square


def batched(images: list[Any]) -> torch.Tensor:
    """(b, 3, 224, 224) float32, normalised, by the worker, in channels-last memory."""
    pixels = np.stack(images).astype(np.float32)
    pixels -= MEAN
    pixels *= SCALE
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def webdataset(path: Path, decode: Callable[[bytes], Any]) -> Any:
    """The webdataset package, with shuffled shards and its shuffle buffer."""
    import webdataset

    shards = sorted(str(shard) for shard in path.rglob("*.tar"))
    stages = webdataset.WebDataset(shards, shardshuffle=len(shards), empty_check=False)
    return stages.shuffle(1000).map(lambda sample: augmented(decode(sample["jpg"])))


def mosaic(path: Path, decode: Callable[[bytes], Any]) -> Any:
    """MosaicML's StreamingDataset on local files."""
    stand_in("torchvision", "transformers")
    from streaming import StreamingDataset

    class Images(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, number: int) -> Any:
            return augmented(decode(super().__getitem__(number)["image"]))

    return Images(local=str(path), shuffle=True, batch_size=BATCH)


def litdata(path: Path, decode: Callable[[bytes], Any]) -> Any:
    """litdata's StreamingDataset on local files."""
    from litdata import StreamingDataset

    class Images(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, number: int) -> Any:
            return augmented(decode(super().__getitem__(number)["image"]))

    return Images(str(path), shuffle=True)


def main() -> None:
    """Serves passes."""
    source, decoder, workers, images, path = sys.argv[1:]
    decode = {"pillow": by_pillow, "turbo": by_turbo}[decoder]
    dataset = {"webdataset": webdataset, "mosaic": mosaic, "litdata": litdata}[source](Path(path), decode)
    loader_class: Any = DataLoader
    if source == "litdata":
        from litdata import StreamingDataLoader as loader_class  # noqa: N813
    loader = loader_class(
        dataset, batch_size=BATCH, num_workers=int(workers), collate_fn=batched, persistent_workers=True
    )

    def one_pass() -> None:
        found = sum(len(batch) for batch in loader)
        if not 0.9 * int(images) <= found <= 1.1 * int(images):
            raise RuntimeError(f"{found} images came instead of {images}")

    serve(one_pass)


if __name__ == "__main__":
    main()
