"""Thumbnails of labels that stage 1 kept and of labels that it rejected, read straight from the shards."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps, UnidentifiedImageError

from twostage.data.dataset import Dataset
from twostage.data.schema import NO_LABEL
from twostage.report.collect import Run
from twostage.report.figures import Picture
from twostage.report.ranking import Ranking
from twostage.stage1.parts import Indices

MAX_IMAGES: Final = 480             # in one report
MAX_PER_CLASS: Final = 12           # of either kind
MAX_BYTES: Final = 5_000_000        # of all thumbnails together, before base64 makes them a third larger
MAX_SIDE: Final = 168               # pixels of a thumbnail: sharp on a phone, where it is half as large
MAX_SOURCE_BYTES: Final = 64 << 20
MAX_SOURCE_PIXELS: Final = 40_000_000


@dataclass(frozen=True)
class Thumbnail:
    """One image of the gallery, with what is known of its label."""

    picture: Picture | None
    """None where the image could not be read"""
    problem: str
    """why not"""
    key: str
    """the source's own name of the image"""
    score: float
    """probability of the given label"""
    predicted: str
    confidence: float
    """probability of the predicted class"""
    truth: str | None
    """name of the true class, None where unknown"""
    label_right: bool | None
    """whether the given label is the true one, None where unknown"""


@dataclass(frozen=True)
class Strip:
    """One class of the gallery."""

    class_name: str
    kept: list[Thumbnail] = field(default_factory=list)
    """highest scores first"""
    rejected: list[Thumbnail] = field(default_factory=list)
    """lowest scores first"""


def gallery(run: Run, ranking: Ranking, dataset: Dataset, classes: Sequence[int]) -> list[Strip]:
    """One strip for each of `classes`: the most certain labels that were kept, the least likely that were rejected."""
    count = int(np.clip(MAX_IMAGES // (2 * max(1, len(classes))), 1, MAX_PER_CLASS))
    chosen = {number: _choose(ranking, number, count) for number in classes}
    rows = np.concatenate([np.zeros(0, np.int64), *(r for pair in chosen.values() for r in pair)])
    keys = _keys(dataset, ranking.index[rows])
    spent, strips = 0, []
    for number, pair in chosen.items():
        thumbnails: list[list[Thumbnail]] = []
        for one_kind in pair:
            made = [] if spent > MAX_BYTES else [_thumbnail(run, ranking, dataset, row, keys) for row in one_kind]
            spent += sum(len(t.picture.src) * 3 // 4 for t in made if t.picture)
            thumbnails.append(made)
        strips.append(Strip(run.class_name(number), *thumbnails))
    return strips


def thumbnail_uri(data: bytes) -> str:
    """Decodes an image file and returns a small copy as a data URI; small originals stay as sharp as they are.

    Raises:
        ValueError: not an image of a format that a dataset holds, too many pixels, or damaged.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image:
            if image.width * image.height > MAX_SOURCE_PIXELS:
                raise ValueError(f"{image.width}×{image.height} pixels are more than {MAX_SOURCE_PIXELS:,}")
            image.draft("RGB", (2 * MAX_SIDE, 2 * MAX_SIDE))
            upright = ImageOps.exif_transpose(image)        # the network, too, sees it upright
            if upright.mode.startswith("I"):        # 16 bits, of which convert() would clip all above 255
                upright = Image.fromarray(((np.asarray(upright, np.int32) + 128) // 257).astype(np.uint8))
            small = upright.convert("L" if upright.mode in ("1", "L") else "RGB")
    except UnidentifiedImageError as error:
        raise ValueError("not a JPEG, PNG or WebP image") from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:      # SyntaxError: Pillow's for broken PNGs
        raise ValueError(str(error)) from error
    tiny = max(small.size) <= MAX_SIDE // 2
    small.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if tiny:
        small.save(buffer, "PNG", optimize=True)
    else:
        small.save(buffer, "JPEG", quality=80)
    kind = "png" if tiny else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _choose(ranking: Ranking, number: int, count: int) -> tuple[Indices, Indices]:
    """Rows of the `count` best kept and of the `count` worst rejected labels of a class."""
    ours = ranking.label == number
    kept, rejected = np.flatnonzero(ours & ranking.kept), np.flatnonzero(ours & ~ranking.kept)
    best = kept[np.argsort(-ranking.score[kept], kind="stable")[:count]]
    worst = rejected[np.argsort(ranking.score[rejected], kind="stable")[:count]]
    return best, worst


def _keys(dataset: Dataset, index: Indices) -> dict[int, str]:
    column = pq.read_table(dataset.path / "samples.parquet", columns=["key"])["key"]
    return dict(zip(index.tolist(), column.take(pa.array(index)).to_pylist(), strict=True))


def _thumbnail(run: Run, ranking: Ranking, dataset: Dataset, row: int, keys: dict[int, str]) -> Thumbnail:
    index, label, predicted = (int(column[row]) for column in (ranking.index, ranking.label, ranking.predicted))
    truth = NO_LABEL if ranking.truth is None else int(ranking.truth[row])
    words = f"{keys[index]}: labelled {run.class_name(label)}, stage 1 says {run.class_name(predicted)}"
    picture, problem = None, ""
    try:
        picture = Picture(thumbnail_uri(_image_bytes(dataset, index)), words)
    except (OSError, ValueError) as error:
        problem = " ".join(str(error).split())
    return Thumbnail(
        picture=picture,
        problem=problem,
        key=keys[index],
        score=float(ranking.score[row]),
        predicted=run.class_name(predicted),
        confidence=float(ranking.confidence[row]),
        truth=None if truth == NO_LABEL else run.class_name(truth),
        label_right=None if truth == NO_LABEL else truth == label,
    )


def _image_bytes(dataset: Dataset, index: int) -> bytes:
    size = int(dataset.size[index])
    if not 0 < size <= MAX_SOURCE_BYTES:
        raise ValueError(f"{size} bytes")
    with dataset.shard_paths[int(dataset.shard[index])].open("rb") as shard:
        shard.seek(int(dataset.offset[index]))
        return shard.read(size)
