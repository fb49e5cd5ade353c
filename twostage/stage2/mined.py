"""What stage 1 left for stage 2: the kept labels and the validation view, by `mine` or a program of the user's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from twostage.config import DataConfig
from twostage.data.plan import Indices
from twostage.data.schema import NO_LABEL, InputError
from twostage.data.views import Views


@dataclass(frozen=True)
class Mined:
    """Stage 2's labels; tables are (num_samples,) int64 by sample index, NO_LABEL where there is none."""

    seeds: Indices
    val: Indices
    """validation view"""
    val_labels: Indices


def read_mined(folder: Path, views: Views, data: DataConfig) -> Mined:
    """Reads `seeds.parquet` and, where validation labels are noisy, `val.parquet`: tables of index and label.

    Raises:
        InputError: the folder is not complete; a file is no such table; a label or an index is out of range or comes
            twice; or a kept label is of a sample that is not trained on, a test image for example.
    """
    if not (folder / "done.json").exists():
        raise InputError(
            f"{folder} holds no mined labels: run `twostage mine` first; or, if seeds.parquet there is your own, write "
            '{"inputs": {}, "results": {}} to done.json beside it'
        )
    trained = [views.train]
    if data.clean_split in views.dataset.marker["splits"] and data.clean_split != data.test_split:
        trained.append(views.dataset.split_indices(data.clean_split))
    seeds = _dense(folder / "seeds.parquet", views, np.concatenate(trained), "the training view")
    if not (folder / "val.parquet").exists():
        return Mined(seeds, views.val, views.labels)
    val_labels = _dense(folder / "val.parquet", views, np.setdiff1d(np.arange(len(views.dataset)), views.test), "")
    return Mined(seeds, np.flatnonzero(val_labels != NO_LABEL), val_labels)


def _dense(path: Path, views: Views, allowed: Indices, what: str) -> Indices:
    try:
        table = pq.read_table(path, columns=["index", "label"])
        columns = [table[name].cast(pa.int64()) for name in ("index", "label")]
    except (pa.ArrowException, KeyError, OSError) as error:
        raise InputError(f"{path}: not a Parquet table with integer columns index and label ({error})") from error
    if any(column.null_count for column in columns):
        raise InputError(f"{path}: has rows without an index or without a label; leave them out")
    index, label = (column.to_numpy() for column in columns)
    _refuse(path, index, (label < 0) | (label >= views.num_classes), f"labels outside of 0..{views.num_classes - 1}")
    _refuse(path, index, (index < 0) | (index >= len(views.dataset)), f"no sample of {views.dataset.path}")
    order = np.sort(index)
    _refuse(path, order[1:], order[1:] == order[:-1], "a sample twice")
    _refuse(path, index, ~np.isin(index, allowed), f"samples outside of {what or 'what may be validated on'}")
    dense = np.full(len(views.dataset), NO_LABEL, dtype=np.int64)
    dense[index] = label
    return dense


def _refuse(path: Path, index: Indices, wrong: np.ndarray[tuple[int], np.dtype[np.bool_]], what: str) -> None:
    if wrong.any():
        some = ", ".join(map(str, index[wrong][:3]))
        raise InputError(f"{path}: {int(wrong.sum())} rows have {what}; the first are of index {some}")
