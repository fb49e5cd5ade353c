"""Images as most code bases load them: a map-style dataset for torch's DataLoader, Pillow, one decode for each view."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image

from twostage.config import AugmentConfig
from twostage.data.dataset import Dataset


class PillowImages(torch.utils.data.Dataset[tuple[tuple[torch.Tensor, ...], int]]):
    """(views, index): (3, size, size) float32 each, cropped and flipped at random, normalised by channel."""

    def __init__(self, dataset: Dataset, augment: AugmentConfig, num_views: int) -> None:
        self._paths = [str(path) for path in dataset.shard_paths]
        self._rows = (np.asarray(dataset.shard), np.asarray(dataset.offset), np.asarray(dataset.size))
        assert isinstance(augment.mean, list)
        self._size, self._num_views = augment.size, num_views
        self._mean = torch.tensor(augment.mean)[:, None, None]
        self._std = torch.tensor(augment.std)[:, None, None]

    def __len__(self) -> int:
        return len(self._rows[0])

    def __getitem__(self, index: int) -> tuple[tuple[torch.Tensor, ...], int]:
        shard, offset, size = (int(column[index]) for column in self._rows)
        with open(self._paths[shard], "rb") as file:            # noqa: PTH123
            file.seek(offset)
            data = file.read(size)
        return tuple(self._view(data) for _ in range(self._num_views)), index

    def _view(self, data: bytes) -> torch.Tensor:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        left, top = (int(torch.randint(length - self._size + 1, ())) for length in image.size)
        square = image.crop((left, top, left + self._size, top + self._size))
        if torch.rand(()) < 0.5:
            square = square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1).float().div(255)
        return (pixels - self._mean) / self._std
