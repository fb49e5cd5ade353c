"""The mean image: what numpy says it is, computed once, the same bits for any number of processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.images import decoded, encoded, expected, noise, write_images
from twostage.config import AugmentConfig, Config, DataConfig, LoaderConfig, RunConfig
from twostage.data.dataset import Dataset
from twostage.data.loader import open_loader
from twostage.data.views import Views, open_views
from twostage.runtime import mean_image as module
from twostage.runtime.mean_image import mean_image
from twostage.runtime.world import World

ALONE = World(rank=0, size=1, device=torch.device("cpu"))
AUGMENT = AugmentConfig(resize=None, size=8, mean="image")


@pytest.fixture(scope="module")
def files() -> list[bytes]:
    return [encoded(noise(index, 7 + index % 4, 9)) for index in range(30)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, files: list[bytes]) -> Dataset:
    splits = ["noisy_train"] * 20 + ["val"] * 5 + ["test"] * 5
    return write_images(tmp_path_factory.mktemp("mean") / "d", files, splits=splits)


def config(dataset: Dataset, run: Path, augment: AugmentConfig = AUGMENT, holdout: float | None = None) -> Config:
    return Config(run=RunConfig(dir=run), data=DataConfig(dataset=dataset.path, holdout=holdout), augment=augment)


def views(dataset: Dataset, config: Config) -> Views:
    return open_views(dataset, config.data, 0)


def test_it_is_the_mean_of_what_the_network_sees(dataset: Dataset, files: list[bytes], tmp_path: Path) -> None:
    run = config(dataset, tmp_path)
    mean = mean_image(run, views(dataset, run), ALONE)
    plain = AugmentConfig(resize=None, size=8, mean=[0.0] * 3, std=[1 / 255] * 3)
    right = np.mean([expected(files[index], None, plain) for index in range(20)], axis=0)
    assert mean.shape == (3, 8, 8) and mean.dtype == np.float32 and np.allclose(mean, right, atol=1e-4)

    loader = open_loader(dataset, AUGMENT, LoaderConfig(), torch.device("cpu"), mean_image=mean)
    (((seen,), _),) = loader.batches([np.arange(20)], training=False)
    assert decoded(files[0], plain).shape == (7, 9, 3)
    assert seen.mean(dim=0).abs().max() < 1e-5, "what is left has not the mean 0"


def test_it_is_computed_once_and_again_when_it_is_another(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []
    whole = module._computed
    monkeypatch.setattr(module, "_computed", lambda *arguments: (computed.append(1), whole(*arguments))[1])

    def mean(**options: object) -> np.ndarray:  # type: ignore[type-arg]
        run = config(dataset, tmp_path, **options)  # type: ignore[arg-type]
        return mean_image(run, views(dataset, run), ALONE)

    first = mean()
    assert np.array_equal(mean(), first) and len(computed) == 1
    assert not np.array_equal(mean(holdout=0.2), first) and len(computed) == 2
    assert mean(augment=AugmentConfig(resize=9, size=8, mean="image")).shape == (3, 8, 8) and len(computed) == 3
    kept = tmp_path / "mean_image.safetensors"
    assert np.array_equal(mean(), first)
    kept.write_bytes(kept.read_bytes()[:50])
    assert np.array_equal(mean(), first) and len(computed) == 5, "a damaged file is not made anew"


@pytest.mark.parametrize("world_size", [2, 3])
def test_any_number_of_processes_gives_the_same_bits(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world_size: int
) -> None:
    monkeypatch.setattr(module, "BATCH_SIZE", 4)
    run = config(dataset, tmp_path)
    alone = module._computed(run, views(dataset, run), ALONE)
    sums: list[torch.Tensor] = []
    monkeypatch.setattr(module, "all_reduce_sum", lambda tensor, world: sums.append(tensor) or tensor)
    for rank in range(world_size):
        module._computed(run, views(dataset, run), World(rank=rank, size=world_size, device=ALONE.device))
    together = (sum(sums).numpy() / 20).astype(np.float32)  # type: ignore[union-attr]
    assert np.array_equal(together, alone)
