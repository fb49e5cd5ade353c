"""The transition matrix that a ranking implies, for the loss corrections of Table 3 (Patrini et al., CVPR 2017)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
import torch

from twostage.data.schema import InputError, file_digest, write_json
from twostage.transition import estimate_transition


def estimate_from_ranking(
    rank_dir: Path, folder: Path, *, mode: Literal["fixed", "faithful"], write: bool
) -> torch.Tensor:
    """Estimates T from what a ranked cross-entropy network predicts, held-out samples included, as its authors do.

    Args:
        rank_dir: a complete ranking; all its parts.
        folder: gets `transition.json`, where `write`.

    Returns:
        (num_classes, num_classes) float64 on the CPU.

    Raises:
        InputError: the ranking is empty, or predicts nothing for a class.
    """
    parts = sorted(rank_dir.glob("part-*.parquet"))
    rows = []
    for part in parts:
        for batch in pq.ParquetFile(part).iter_batches(columns=["probs"]):
            column = batch.column(0)
            rows.append(column.flatten().to_numpy().reshape(len(column), -1))
    try:
        transition = estimate_transition(torch.from_numpy(np.concatenate(rows)), mode=mode)
    except ValueError as error:
        raise InputError(f"{rank_dir}: no transition matrix can be estimated: {error}") from error
    path = folder / "transition.json"
    if write:
        folder.mkdir(parents=True, exist_ok=True)
        source = {part.name: file_digest(part) for part in parts}
        record: dict[str, Any] = {"transition": transition.tolist(), "mode": mode, "from": source}
        if not path.exists() or json.loads(path.read_bytes()) != record:
            write_json(path, record)
    return transition
