"""Images that could be decoded, and that a build leaves out of training all the same: hidden ones, and thin strips."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from photos import KINDS, encoded, rgb, write_photos
from PIL import Image

from data_prep.__main__ import main
from data_prep.check import check_image
from data_prep.verify_shards import NO_LIMITS
from twostage.config import AugmentConfig
from twostage.data.dataset import Dataset
from twostage.data.loader import StreamedImages
from twostage.data.schema import MAX_RATIO
from twostage.machine_config import LoaderConfig


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    write_photos(tmp_path / "photos", num=12, broken=False)
    return tmp_path / "photos"


def build(source: Path, out: Path, *options: str) -> int:
    return main(["build", str(source), str(out), "--format", "folder", "--workers", "1", *options])


def rejected(out: Path) -> dict[str, str]:
    table = pq.read_table(out / "rejected.parquet")
    return dict(zip(table["key"].to_pylist(), table["reason"].to_pylist(), strict=True))


def keys(out: Path) -> set[str]:
    return set(pq.read_table(out / "samples.parquet")["key"].to_pylist())


def test_hidden_images_are_counted_and_named_and_not_trained_on(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {path.relative_to(photos).as_posix() for path in photos.rglob("*.*")}
    hidden = {"train/dog/.trashed-1699999999-IMG.jpg", "train/cat/.thumbnails/0.jpg"}
    for number, key in enumerate(sorted(hidden)):
        (photos / key).parent.mkdir(exist_ok=True)
        (photos / key).write_bytes(KINDS["jpg"](number))
    assert build(photos, tmp_path / "o") == 0
    printed = capsys.readouterr().out
    assert "2 hidden: " in printed and ".trashed-1699999999-IMG.jpg" in printed
    assert rejected(tmp_path / "o") == dict.fromkeys(hidden, "hidden") and keys(tmp_path / "o") == good


def test_an_input_that_is_rejected_for_another_reason_is_named(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (photos / "train/cat/link").symlink_to(tmp_path / "elsewhere")
    assert build(photos, tmp_path / "o") == 0
    assert rejected(tmp_path / "o") == {"train/cat/link": "outside"}
    (photos / "train/cat/link").unlink()
    (photos / "train/cat/link").symlink_to(".")
    capsys.readouterr()
    assert build(photos, tmp_path / "o") == 2
    assert "1 images are rejected otherwise: 'train/cat/link'" in capsys.readouterr().err


def write_strips(photos: Path, long: int) -> set[str]:
    strips = {
        "train/cat/strip.png": encoded(rgb(1, width=1, height=long), "PNG"),
        "val/dog/strip.jpg": encoded(rgb(2, width=long, height=1), "JPEG"),
        "test/dog/strip.webp": encoded(rgb(3, width=long, height=1), "WEBP"),
    }
    for key, data in strips.items():
        (photos / key).parent.mkdir(exist_ok=True, parents=True)
        (photos / key).write_bytes(data)
    return set(strips)


def open_for_training(out: Path) -> None:
    """As a run does that resizes to 256."""
    StreamedImages(Dataset.open(out), AugmentConfig(resize=256), LoaderConfig(), torch.device("cpu")).close()


@pytest.mark.parametrize("options", [(), ("--check", "header"), ("--short-side", "256"), ("--encode", "png")])
def test_thin_strips_are_rejected_and_the_rest_can_be_trained_on(
    photos: Path, tmp_path: Path, options: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    strips = write_strips(photos, long=5000)
    assert build(photos, tmp_path / "o", *options) == 0
    assert f"3 too_thin: one side is more than {MAX_RATIO} times as long as the other" in capsys.readouterr().out
    assert rejected(tmp_path / "o") == dict.fromkeys(strips, "too_thin") and len(keys(tmp_path / "o")) == 12
    open_for_training(tmp_path / "o")


@pytest.mark.parametrize("options", [(), ("--check", "header"), ("--short-side", "256"), ("--encode", "png")])
def test_the_thinnest_that_are_accepted_can_be_trained_on(
    photos: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    strips = write_strips(photos, long=MAX_RATIO)
    wide = Image.new("RGB", (3 * MAX_RATIO, 3))
    (photos / "train/cat/wide.png").write_bytes(encoded(wide, "PNG"))
    assert build(photos, tmp_path / "o", *options) == 0
    assert strips | {"train/cat/wide.png"} <= keys(tmp_path / "o")
    open_for_training(tmp_path / "o")


def test_verify_takes_strips_of_a_dataset_that_has_them_already(photos: Path) -> None:
    for key in write_strips(photos, long=5000):
        assert check_image((photos / key).read_bytes(), NO_LIMITS).width in (1, 5000)
