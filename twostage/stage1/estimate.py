"""The transition matrix that a ranking implies, for the loss corrections of Table 3 (Patrini et al., CVPR 2017)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from twostage.data.schema import InputError, file_digest, write_json
from twostage.transition import PERCENTILE, Mode, estimate_transition, num_outliers


def estimate_from_ranking(rank_dir: Path, folder: Path, *, mode: Mode, write: bool) -> torch.Tensor:
    """Estimates T from what a ranked cross-entropy network predicts, held-out samples included, as its authors do.

    Args:
        rank_dir: a complete ranking; all its parts.
        folder: gets `transition.json`, where `write`.

    Returns:
        (num_classes, num_classes) float64 on the CPU.

    Raises:
        InputError: the ranking is empty, or a class has no anchor in it.
    """
    parts = sorted(rank_dir.glob("part-*.parquet"))
    rows = []
    for part in parts:
        for batch in pq.ParquetFile(part).iter_batches(columns=["probs"]):
            column = batch.column(0)
            rows.append(column.flatten().to_numpy().reshape(len(column), -1))
    try:
        probs = torch.from_numpy(np.concatenate(rows)) if rows else torch.empty(0, 0)
        transition = estimate_transition(probs, mode=mode)
    except ValueError as error:
        raise InputError(f"{rank_dir}: no transition matrix can be estimated: {error}") from error
    path = folder / "transition.json"
    if write:
        _warn_of_small_classes(probs, mode)
        folder.mkdir(parents=True, exist_ok=True)
        source = {part.name: file_digest(part) for part in parts}
        record: dict[str, Any] = {"transition": transition.tolist(), "mode": mode, "from": source}
        if not path.exists() or json.loads(path.read_bytes()) != record:
            write_json(path, record)
    return transition


def _warn_of_small_classes(probs: torch.Tensor, mode: Mode) -> None:
    if mode == "by_class":
        return
    for c, column in enumerate(probs.T):
        outliers, labelled = num_outliers(column, PERCENTILE, by_class=False), float(column.sum())
        if outliers >= labelled:
            print(
                f"warning: class {c}: {outliers} samples are taken for outliers, and only some {labelled:.0f} are "
                f"labelled so; if it is a small class, its row of the transition matrix is another's: set "
                "run.transition_mode: by_class",
                file=sys.stderr,
                flush=True,
            )
