"""Stage 1's ranking as the report needs it: given label, prediction, score, kept or not, and the truth where known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from twostage.data.schema import NO_LABEL

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Ranking:
    """Stage 1's scores of the samples that it trained on; arrays are (rows,), sorted by sample index."""

    index: Indices
    label: Indices
    """as given"""
    predicted: Indices
    score: npt.NDArray[np.float32]
    """probability of the given label"""
    confidence: npt.NDArray[np.float32]
    """probability of the predicted class"""
    kept: npt.NDArray[np.bool_]
    """whether the sample is in the seed set"""
    truth: Indices | None = None
    """clean labels, NO_LABEL where there is none; None where the run names no clean labels"""


def read_ranking(folder: Path, seeds: Indices | None) -> Ranking | None:
    """All parts of a ranking, without held-out samples and those without a label; None where there is no part.

    Args:
        folder: the run's `rank` folder.
        seeds: indices of the samples whose labels were kept, None where nothing has been mined yet.

    Raises:
        OSError, ValueError, KeyError: a part is damaged (pyarrow's errors are of these kinds).
    """
    tables = [_part(part) for part in sorted(folder.glob("part-*.parquet"))]
    if not tables:
        return None
    columns = {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
    rows = np.argsort(columns["index"], kind="stable")
    rows = rows[(columns["label"][rows] != NO_LABEL) & ~columns["held_out"][rows]]
    return Ranking(
        index=columns["index"][rows],
        label=columns["label"][rows],
        predicted=columns["predicted"][rows],
        score=columns["score"][rows],
        confidence=columns["confidence"][rows],
        kept=np.isin(columns["index"][rows], [] if seeds is None else seeds),
    )


def _part(path: Path) -> dict[str, npt.NDArray[Any]]:
    """One part; probabilities are reduced batch by batch, so that a million samples need little memory."""
    confidence, file = [], pq.ParquetFile(path)
    table = file.read(columns=[name for name in file.schema_arrow.names if name != "probs"])
    for batch in file.iter_batches(columns=["probs"]):
        flat = batch.column(0).flatten().to_numpy(zero_copy_only=False)
        confidence.append(flat.reshape(len(batch), -1).max(axis=1) if len(batch) else flat)
    columns = {name: table[name].to_numpy() for name in ("index", "label", "predicted", "score")}
    held_out = table["held_out"].to_numpy() if "held_out" in table.column_names else np.zeros(len(table), dtype=bool)
    return {**columns, "held_out": held_out, "confidence": np.concatenate([np.zeros(0, np.float32), *confidence])}
