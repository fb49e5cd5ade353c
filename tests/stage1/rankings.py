"""Rankings made by hand, and what must be kept of them, worked out the slow way."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from twostage.data.schema import NO_LABEL
from twostage.stage1.parts import Indices, Mask, Scores


def kept_one_by_one(
    label: Sequence[int], predicted: Sequence[int], score: Sequence[np.float32], index: Sequence[int],
    *, num_classes: int, min_score: float, min_share: str,
) -> set[int]:
    """Indices of the labels that section 3.1 keeps, class by class and image by image; `min_share` as a decimal."""
    kept: set[int] = set()
    for c in range(num_classes):
        images = [row for row in range(len(label)) if label[row] == c]
        ranking = sorted((row for row in images if predicted[row] == c), key=lambda row: (-score[row], index[row]))
        certain = 0
        while certain < len(ranking) and score[ranking[certain]] >= np.float32(min_score):
            certain += 1
        wanted = 0
        while wanted < Fraction(min_share) * len(images):
            wanted += 1
        kept |= {index[row] for row in ranking[: max(certain, wanted)]}
    return kept


def random_ranking(
    num: int, num_classes: int, rng_seed: int = 0, unlabeled: float = 0.1
) -> tuple[Indices, Indices, Indices, Scores, Mask]:
    """(index, label, predicted, score, held_out), each (num,), by index; with equal scores and gaps in the index."""
    rng = np.random.default_rng(rng_seed)
    index = np.sort(rng.choice(3 * num, num, replace=False))
    label = rng.integers(0, num_classes, num)
    predicted = np.where(rng.random(num) < 0.6, label, rng.integers(0, num_classes, num))
    label[rng.random(num) < unlabeled] = NO_LABEL
    score = np.round(rng.beta(2, 1.2, num), 2).astype(np.float32)
    score[label == NO_LABEL] = 0
    return index, label, predicted, score, rng.random(num) < 0.2


def part_table(
    index: Indices, label: Indices, predicted: Indices, score: Scores, held_out: Mask, num_classes: int = 0
) -> pa.Table:
    """The columns of a part; with the probabilities of `num_classes` classes, which nobody reads here."""
    columns = {"index": index, "label": label, "predicted": predicted, "score": score}
    if num_classes:
        probs = pa.array(np.full(len(index) * num_classes, 1 / num_classes, np.float32))
        columns["probs"] = pa.FixedSizeListArray.from_arrays(probs, num_classes)
    return pa.table({**columns, "held_out": held_out})


def write_parts(folder: Path, table: pa.Table, cuts: Sequence[int] = ()) -> list[Path]:
    """Writes the rows as len(cuts) + 1 parts, cut at these rows."""
    folder.mkdir(parents=True, exist_ok=True)
    ends = [0, *cuts, len(table)]
    paths = []
    for number, (start, stop) in enumerate(pairwise(ends)):
        paths.append(folder / f"part-{number:05d}-of-{len(cuts) + 1:05d}.parquet")
        pq.write_table(table.slice(start, stop - start), paths[-1])
    return paths
