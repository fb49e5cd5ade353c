"""The mean image that a build computes on the way is the mean of the training images, and verify holds it to that."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from photos import LIMITS, digests, encoded, rgb, write_photos
from PIL import Image, ImageOps

from data_prep.__main__ import main
from data_prep.mean import PixelSums, centre_square
from twostage.data import schema


def build(source: Path, out: Path, *options: str) -> Path:
    assert main(["build", str(source), str(out), "--format", "folder", "--workers", "1", *LIMITS, *options]) == 0
    return out


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 good images of all kinds, 24 x 16 pixels or turned; ten that are not accepted; three splits."""
    root = tmp_path_factory.mktemp("mean") / "photos"
    write_photos(root)
    return root


def squares(dataset: Path, root: Path) -> np.ndarray:
    """(n, 16, 16, 3) centres of the training images, as Pillow decodes the source's files."""
    found = []
    for row in pq.read_table(dataset / "samples.parquet").to_pylist():
        if row["split"] != "noisy_train":
            continue
        with Image.open(root / row["key"]) as image:
            if image.mode.startswith("I"):
                image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
            pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        top, left = (pixels.shape[0] - 16) // 2, (pixels.shape[1] - 16) // 2
        found.append(pixels[top : top + 16, left : left + 16])
    return np.stack(found)


@pytest.mark.parametrize(
    "options",
    [("--mean-size", "16"), ("--short-side", "16"), ("--encode", "png", "--mean-size", "16", "--check", "header")],
)
def test_it_is_the_mean_of_the_training_images(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
) -> None:
    out = build(photos, tmp_path / "o", *options, "--shard-size", "20")
    right = squares(out, photos)
    assert len(right) == 36
    mean = schema.read_mean(out, schema.read_marker(out))
    assert mean is not None and np.array_equal(mean, right.mean(axis=0).transpose(2, 0, 1))
    told = ", ".join(f"{value / 255:.3f}" for value in right.mean(axis=(0, 1, 2)))
    assert f"mean of noisy_train: [{told}]" in capsys.readouterr().out
    assert main(["verify", str(out), "--workers", "1"]) == 0


def test_other_sizes_are_close_to_a_resized_mean(tmp_path: Path) -> None:
    for number in range(12):
        path = tmp_path / "s" / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(rgb(number, width=90 + number, height=64), "JPEG", quality=95))
    out = build(tmp_path / "s", tmp_path / "o", "--mean-size", "16")
    mean = schema.read_mean(out, schema.read_marker(out))
    assert mean is not None
    right = []
    for path in (tmp_path / "s").rglob("*.jpg"):
        with Image.open(path) as image:
            left = (image.width - 64) // 2
            right.append(np.asarray(image.crop((left, 0, left + 64, 64)).reduce(4), float))
    assert np.abs(mean - np.mean(right, axis=0).transpose(2, 0, 1)).mean() < 1.5


def test_none_without_being_asked_for_and_none_of_an_empty_split(photos: Path, tmp_path: Path) -> None:
    for number, options in enumerate([(), ("--short-side", "16", "--mean-size", "0")]):
        out = build(photos, tmp_path / str(number), *options)
        assert not (out / "mean.parquet").exists() and not list((out / ".build").glob("*.sums.parquet"))
        assert schema.read_mean(out, schema.read_marker(out)) is None
    shutil.copytree(photos / "test", tmp_path / "s/test")
    out = build(tmp_path / "s", tmp_path / "o", "--mean-size", "8")
    assert schema.read_mean(out, schema.read_marker(out)) is None
    assert main(["verify", str(out), "--workers", "1"]) == 0


def test_many_white_images_do_not_overflow() -> None:
    sums = PixelSums(2)
    for _ in range(600):
        sums.add(Image.new("L", (2, 3), 255))
    table = sums.table()
    assert table["green"].to_pylist() == [600 * 255] * 4 and table.schema.metadata[b"num_images"] == b"600"


def test_a_strip_does_not_grow() -> None:
    assert centre_square(Image.new("L", (100_000, 1), 7), 64).getextrema() == (7, 7)


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "unnamed", "count", "parent"])
def test_verify_finds_what_is_wrong_with_it(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    out = build(photos, tmp_path / "o", "--mean-size", "8")
    before, path, marker = digests(out), out / "mean.parquet", out / "dataset.json"
    content, table = json.loads(marker.read_text()), pq.read_table(path)
    data = path.read_bytes()
    match damage:
        case "flip":
            path.write_bytes(data[:99] + bytes([data[99] ^ 1]) + data[100:])
        case "cut":
            path.write_bytes(data[:-7])
        case "remove":
            path.unlink()
        case "unnamed":
            del content["mean_sha256"]
        case "count" | "parent":
            changed = {b"num_images": b"35"} if damage == "count" else {b"parent": b"0" * 64}
            buffer = io.BytesIO()
            pq.write_table(table.replace_schema_metadata({**table.schema.metadata, **changed}), buffer)
            path.write_bytes(buffer.getvalue())
            content["mean_sha256"] = schema.file_digest(path)
    if damage in ("unnamed", "count", "parent"):
        schema.write_json(marker, content)
    if damage in ("flip", "cut", "remove"):
        with pytest.raises(schema.InputError, match=r"mean.parquet is damaged or missing .*data_prep verify"):
            schema.read_mean(out, content)
    capsys.readouterr()
    assert main(["verify", str(out), "--workers", "1"]) == 1
    text = capsys.readouterr().out
    assert "1 finding" in text and {
        "flip": "is not the file", "cut": "cannot be read", "remove": "is missing", "unnamed": "does not belong",
        "count": "35 images, but noisy_train has 36", "parent": "another samples.parquet",
    }[damage] in text
    marker.unlink()                                     # as verify advises
    path.unlink(missing_ok=True)
    build(photos, out, "--mean-size", "8")
    assert digests(out) == before
