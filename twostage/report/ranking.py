"""Stage 1's ranking as the report needs it: given label, prediction, score, kept or not, and the truth where known."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from twostage.data.schema import NO_LABEL, InputError
from twostage.stage1.parts import Indices, Mask, Scores, read_parts

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Ranking:
    """Stage 1's scores; arrays are (rows,), sorted by sample index."""

    index: Indices
    label: Indices
    """as given, NO_LABEL where there is none"""
    predicted: Indices
    score: Scores
    """probability of the given label, 0 without one"""
    confidence: Scores
    """probability of the predicted class"""
    confident: Indices
    """the class that a sample is confidently counted as (see `read_ranking`), NO_LABEL where there is none"""
    held_out: Mask
    """whether the sample was kept out of training"""
    kept: Mask
    """whether its label was kept, in the seed set or in the refined validation set"""
    truth: Indices | None = None
    """clean labels, NO_LABEL where there is none; None where the run names no clean labels"""
    num_classes: int = 0

    def where(self, rows: Mask) -> Ranking:
        """The same for some of the rows."""
        columns = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        chosen: dict[str, Any] = {n: column[rows] for n, column in columns.items() if isinstance(column, np.ndarray)}
        return dataclasses.replace(self, **chosen)

    def with_truth(self, truth: Indices | None) -> Ranking:
        """The same with clean labels, (rows,)."""
        return dataclasses.replace(self, truth=truth)

    def trained_on(self) -> Ranking:
        """Only the samples that stage 1 was trained on with a label."""
        return self.where((self.label != NO_LABEL) & ~self.held_out)


def read_ranking(folder: Path, kept: npt.ArrayLike) -> Ranking:
    """Reads all parts of a ranking.

    A sample is confidently of class c where P(c | image) is at least the mean of that probability over the samples
    labelled c, and the largest of those that are (Northcutt et al., Confident Learning, JAIR 2021, equation 1).

    Args:
        folder: the run's `rank` folder.
        kept: indices of the samples whose labels were kept.

    Raises:
        InputError: a part is missing or damaged (see `read_parts`).
        OSError, ValueError, KeyError: its probabilities cannot be read (pyarrow's errors are of these kinds).
    """
    num_classes = _num_classes(folder)
    ranked, held_out = read_parts(folder, num_classes)
    labeled = (ranked.label != NO_LABEL) & ~held_out
    images = np.bincount(ranked.label[labeled], minlength=num_classes)
    sums = np.bincount(ranked.label[labeled], ranked.score[labeled].astype(np.float64), num_classes)
    thresholds = np.where(images > 0, sums / np.maximum(1, images), np.inf)

    confidence = np.zeros(len(ranked.index), dtype=np.float32)
    confident = np.full(len(ranked.index), NO_LABEL, dtype=np.int64)
    for index, probs in _probabilities(folder):
        rows = np.searchsorted(ranked.index, index)
        confidence[rows] = probs.max(axis=1)
        above = np.where(probs >= thresholds, probs, -1.0)
        confident[rows] = np.where(above.max(axis=1) >= 0, above.argmax(axis=1), NO_LABEL)
    return Ranking(
        index=ranked.index,
        label=ranked.label,
        predicted=ranked.predicted,
        score=ranked.score,
        confidence=confidence,
        confident=confident,
        held_out=held_out,
        kept=np.isin(ranked.index, kept),
        num_classes=num_classes,
    )


def counts(rows: Indices, columns: Indices, num_classes: int) -> Indices:
    """(num_classes, num_classes) how often each pair of class numbers occurs; pairs with NO_LABEL are left out."""
    known = (rows != NO_LABEL) & (columns != NO_LABEL)
    table = np.bincount(rows[known] * num_classes + columns[known], minlength=num_classes**2)
    return table.reshape(num_classes, num_classes).astype(np.int64)


def estimated_joint(ranking: Ranking) -> Floats:
    """How many samples are of class i and labelled j, as stage 1 would have it: the calibrated confident joint.

    The pairs (confident class, given label) are counted, and each column is scaled to the number of labels j that
    there are (Confident Learning, equation 3), so samples that are not confidently of any class are spread likewise.

    Returns:
        (num_classes, num_classes) float64, row = class that it probably is, column = given label.
    """
    found = counts(ranking.confident, ranking.label, ranking.num_classes).astype(np.float64)
    labels = np.bincount(ranking.label[ranking.label != NO_LABEL], minlength=ranking.num_classes)
    unseen = np.flatnonzero((found.sum(axis=0) == 0) & (labels > 0))
    found[unseen, unseen] = 1
    scaled: Floats = found / np.maximum(1, found.sum(axis=0)) * labels
    return scaled


def _num_classes(folder: Path) -> int:
    """From the width of the probabilities in any part; 0 where there is none, which `read_parts` then says."""
    for part in sorted(folder.glob("part-*.parquet")):
        try:
            return int(pq.read_schema(part).field("probs").type.list_size)
        except (pa.ArrowException, KeyError, AttributeError) as error:
            raise InputError(f"{part} is damaged ({error}): delete its folder and run `rank` again") from error
    return 0


def _probabilities(folder: Path) -> Iterator[tuple[Indices, npt.NDArray[np.float32]]]:
    """(index, probs) batch by batch, so that a million samples need little memory."""
    for part in sorted(folder.glob("part-*.parquet")):
        for batch in pq.ParquetFile(part).iter_batches(columns=["index", "probs"]):
            flat: npt.NDArray[Any] = batch.column("probs").flatten().to_numpy(zero_copy_only=False)
            if len(batch):
                yield batch.column("index").to_numpy(), flat.reshape(len(batch), -1)
