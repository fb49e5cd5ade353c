"""Thumbnails: only of images that a dataset may hold, upright, small, and none where there is nothing to show."""

from __future__ import annotations

import base64
import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from twostage.report import gallery as module
from twostage.report.collect import Run, collect
from twostage.report.gallery import gallery, thumbnail_uri


def encoded(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def decoded(uri: str) -> Image.Image:
    head, _, data = uri.partition(",")
    assert head in ("data:image/png;base64", "data:image/jpeg;base64")
    return Image.open(io.BytesIO(base64.b64decode(data)))


def gradient(width: int, height: int) -> Image.Image:
    """Dark on the left, light on the right, red below."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([y, x, x], axis=2).astype(np.uint8))


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_a_photo_becomes_a_small_jpeg(image_format: str) -> None:
    image = decoded(thumbnail_uri(encoded(gradient(900, 600), image_format)))
    assert image.format == "JPEG" and image.size == (module.MAX_SIDE, module.MAX_SIDE * 2 // 3)
    pixels = np.asarray(image, dtype=float)
    assert pixels[:, -5:, 1].mean() > 240 > 20 > pixels[:, :5, 1].mean()


def test_a_tiny_image_keeps_every_pixel() -> None:
    original = gradient(28, 20)
    image = decoded(thumbnail_uri(encoded(original, "PNG")))
    assert image.format == "PNG" and (np.asarray(image) == np.asarray(original)).all()
    gray = decoded(thumbnail_uri(encoded(original.convert("L"), "PNG")))
    assert gray.mode == "L" and gray.size == (28, 20)
    palette = decoded(thumbnail_uri(encoded(original.convert("P"), "PNG")))
    assert palette.mode == "RGB"
    see_through = decoded(thumbnail_uri(encoded(original.convert("RGBA"), "PNG")))
    assert see_through.mode == "RGB"


def test_sixteen_bits_are_scaled_as_the_network_sees_them() -> None:
    values = np.array([[0, 128, 129, 255], [256, 30_000, 65_406, 65_535]], np.uint16)
    image = decoded(thumbnail_uri(encoded(Image.fromarray(values), "PNG")))
    assert image.mode == "L" and np.asarray(image).tolist() == [[0, 0, 1, 1], [1, 117, 254, 255]]


def test_a_photo_taken_sideways_is_shown_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6            # to be turned clockwise
    image = decoded(thumbnail_uri(encoded(gradient(400, 200), "JPEG", exif=exif)))
    assert image.size == (module.MAX_SIDE // 2, module.MAX_SIDE)
    pixels = np.asarray(image.convert("RGB"), dtype=float)
    assert pixels[:5, :, 1].mean() < 20 and pixels[-5:, :, 1].mean() > 235, "what was left is not above"
    assert not decoded(thumbnail_uri(encoded(gradient(400, 200), "JPEG", exif=exif))).getexif()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (encoded(gradient(30, 30), "BMP"), "not a JPEG, PNG or WebP image"),
        (encoded(gradient(30, 30), "GIF"), "not a JPEG, PNG or WebP image"),
        (b"<svg onload='alert(1)'/>", "not a JPEG, PNG or WebP image"),
        (b"", "not a JPEG, PNG or WebP image"),
        (encoded(gradient(300, 300), "JPEG")[:2000], "truncated"),
        (encoded(Image.new("1", (9000, 9000)), "PNG"), "9000×9000 pixels are more than 40,000,000"),
        (encoded(Image.new("1", (30000, 30000)), "PNG"), "exceeds limit|pixels are more than 40,000,000"),
        (encoded(gradient(30, 30), "PNG")[:-30], "truncated|broken"),
    ],
    ids=["bmp", "gif", "svg", "nothing", "half a photo", "many pixels", "bomb", "half a picture"],
)
def test_anything_else_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        thumbnail_uri(data)


def opened(run_dir: Path) -> Run:
    run = collect(run_dir)
    assert run.ranking is not None and run.dataset is not None
    return run


def test_nothing_kept_and_nothing_rejected(run_dir: Path) -> None:
    run = opened(run_dir)
    assert run.ranking is not None and run.dataset is not None
    everything = dataclasses.replace(run.ranking, kept=np.ones(len(run.ranking.index), bool))
    (strip,) = gallery(run, everything, run.dataset, [1])
    assert strip.class_name == "hat" and len(strip.kept) == module.MAX_PER_CLASS and strip.rejected == []
    nothing = dataclasses.replace(run.ranking, kept=np.zeros(len(run.ranking.index), bool))
    (strip,) = gallery(run, nothing, run.dataset, [1])
    assert strip.kept == [] and len(strip.rejected) == module.MAX_PER_CLASS
    assert gallery(run, nothing, run.dataset, []) == []


def test_what_is_known_of_a_label(run_dir: Path) -> None:
    run = opened(run_dir)
    ranking = run.ranking
    assert ranking is not None and ranking.truth is not None and run.dataset is not None
    (strip,) = gallery(run, ranking, run.dataset, [2])
    for shot in strip.rejected:
        row = int(np.flatnonzero(ranking.index == int(shot.key.removeprefix("photos/").removesuffix(".png")))[0])
        assert shot.score == ranking.score[row] and shot.confidence == ranking.confidence[row]
        assert shot.predicted == run.class_name(int(ranking.predicted[row]))
        assert shot.truth == run.class_name(int(ranking.truth[row])) and shot.label_right == (ranking.truth[row] == 2)
    unknown = dataclasses.replace(ranking, truth=None)
    (strip,) = gallery(run, unknown, run.dataset, [2])
    assert {(shot.truth, shot.label_right) for shot in strip.rejected} == {(None, None)}


def test_thumbnails_end_where_the_page_would_grow_too_large(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = opened(run_dir)
    assert run.ranking is not None and run.dataset is not None
    monkeypatch.setattr(module, "MAX_BYTES", 1000)
    strips = gallery(run, run.ranking, run.dataset, [0, 1])
    assert strips[0].kept and not (strips[0].rejected or strips[1].kept or strips[1].rejected)


def test_a_size_that_cannot_be_is_not_read(run_dir: Path) -> None:
    run = opened(run_dir)
    assert run.ranking is not None and run.dataset is not None
    for size in (0, -5, 1 << 40):
        odd = dataclasses.replace(run.dataset, size=np.full(len(run.dataset), size))
        (strip,) = gallery(run, run.ranking, odd, [0])
        assert {shot.problem for shot in strip.kept} == {f"{size} bytes"}
        assert all(shot.picture is None for shot in strip.kept)
