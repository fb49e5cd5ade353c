"""The mean image: what numpy says it is, computed once, the same bits for any number of processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_prep.__main__ import main as data_prep
from tests.data.images import decoded, encoded, expected, noise, write_images
from twostage.config import AugmentConfig, Config, DataConfig, RunConfig
from twostage.data.dataset import Dataset
from twostage.data.loader import open_loader
from twostage.data.schema import InputError
from twostage.data.views import Views, open_views
from twostage.machine_config import LoaderConfig
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


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Training and validation photos of 24 x 20 and 20 x 22 pixels, built with a mean image of 20 x 20."""
    root = tmp_path_factory.mktemp("built")
    for number in range(40):
        split, size = ("train", "train", "train", "val")[number % 4], ((24, 20), (20, 22))[number % 3 == 0]
        path = root / "photos" / split / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        smooth = Image.fromarray(np.random.default_rng(number).integers(0, 256, (3, 4, 3), dtype=np.uint8))
        smooth.resize((3 * size[0], 3 * size[1]), Image.Resampling.BICUBIC).save(path, quality=95)
    command = ["build", str(root / "photos"), str(root / "d"), "--format", "folder", "--workers", "1"]
    assert data_prep([*command, "--short-side", "20"]) == 0
    return Dataset.open(root / "d")


@pytest.mark.parametrize("augment", [AugmentConfig(resize=size, size=16, mean="image") for size in (20, None)])
def test_the_dataset_s_own_mean_is_taken_and_is_nearly_the_same(
    built: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, augment: AugmentConfig
) -> None:
    run = config(built, tmp_path, augment)
    right = module._computed(run, views(built, run), ALONE)
    monkeypatch.setattr(module, "_computed", None)
    mean = mean_image(run, views(built, run), ALONE)
    assert mean.shape == (3, 16, 16) and mean.dtype == np.float32
    assert np.abs(mean - right).mean() < 1
    assert np.abs(right - np.roll(right, 1, axis=2)).mean() > 3, "a mean that is moved by a pixel would pass as well"
    (built.path / "mean.parquet").rename(tmp_path / "away")
    assert np.array_equal(mean_image(run, views(built, run), ALONE), mean), "not kept in the run folder"
    with pytest.raises(InputError, match=r"mean.parquet is damaged or missing .*data_prep verify"):
        mean_image(config(built, tmp_path / "other", augment), views(built, run), ALONE)
    (tmp_path / "away").rename(built.path / "mean.parquet")


@pytest.mark.parametrize(
    ("augment", "holdout"),
    [
        (AugmentConfig(resize=20, size=16, mean="image"), 0.2),         # other images
        (AugmentConfig(resize=18, size=16, mean="image"), None),        # another size
        (AugmentConfig(resize=20, size=15, mean="image"), None),        # centres that lie half a pixel apart
        (AugmentConfig(resize=20, size=24, mean="image"), None),        # with a margin that is black
        (AugmentConfig(resize=20, size=16, mean="image", channels="gray", std=[0.2]), None),
    ],
)
def test_it_is_computed_where_the_dataset_s_own_is_another(
    built: Dataset, tmp_path: Path, augment: AugmentConfig, holdout: float | None
) -> None:
    run = config(built, tmp_path, augment, holdout)
    right = module._computed(run, views(built, run), ALONE)
    assert np.array_equal(mean_image(run, views(built, run), ALONE), right)


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
