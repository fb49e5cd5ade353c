"""Reads what the finished cells of a grid hold, and keeps it as one table. What counts is said in done.py."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from twostage.data.dataset import Dataset
from twostage.data.schema import GIVEN_LABELS, NO_LABEL, InputError, write_table
from twostage.reproduce.done import is_tested
from twostage.reproduce.grid import OURS, ROWS, UNLESS, model_folders
from twostage.reproduce.labels import STATES, Ceiling, Floats, ceiling, label_shares, transition_counts
from twostage.rows import BASELINES
from twostage.stage1.parts import read_parts

STAGE1: Final = ("pretrain", "rank", "mine")
RESULTS_SCHEMA: Final = pa.schema(
    [
        ("dataset", pa.string()),
        ("noise", pa.string()),
        ("run", pa.int64()),
        ("rng_seed", pa.int64()),
        ("min_share", pa.float64()),
        ("row", pa.string()),
        ("accuracy", pa.float64()),              # 0..1, of all test samples
        ("per_class", pa.list_(pa.float64())),   # 0..1; null for a class without test samples
        ("num_test", pa.int64()),
        ("seconds", pa.float64()),               # of its training; null where that was interrupted
        ("seed_kept", pa.int64()),               # training labels that stage 1 kept
        ("seed_images", pa.int64()),
        ("seed_purity", pa.float64()),           # 0..1
        ("seed_coverage", pa.float64()),         # 0..1
        ("config_digest", pa.string()),          # of all settings that the runs share
        ("code_commit", pa.string()),
        ("folder", pa.string()),                 # below the grid's own
    ]
)
LABELS_SCHEMA: Final = pa.schema(
    [
        ("dataset", pa.string()),
        ("noise", pa.string()),
        ("run", pa.int64()),
        ("labels", pa.string()),                 # given, argmax, sampling, stage1
        ("class", pa.string()),                  # null: all classes
        ("correct", pa.float64()),               # 0..1
        ("incorrect", pa.float64()),
        ("none", pa.float64()),
    ]
)


@dataclass(frozen=True)
class Result:
    """One row of Table 3 in one cell. Shares are 0..1; what is unknown is None."""

    row: str
    accuracy: float
    per_class: tuple[float | None, ...]
    num_test: int
    seconds: float | None


@dataclass(frozen=True)
class CellResults:
    """What a cell holds so far."""

    dataset: str
    noise: str
    run: int
    folder: Path
    labels: str
    """name of its label column"""
    min_share: float
    rng_seed: int
    config_digest: str
    code_commit: str | None
    class_names: tuple[str, ...]
    results: tuple[Result, ...]
    seeds: dict[str, Any] = field(default_factory=dict)
    """totals of `mine`: kept, images, purity, coverage, and the same for the validation samples with val_"""
    classes: tuple[dict[str, Any], ...] = ()
    """rows of mine/classes.parquet"""

    def result(self, row: str) -> Result | None:
        """The result of a row, None where it is not there."""
        return next((result for result in self.results if result.row == row), None)


def settings(config: dict[str, Any]) -> dict[str, Any]:
    """What all runs of a grid have in common, flat, out of a whole configuration; not what changes no result.

    Of the machine's sections, what changes a result only where it is not the default is left out where it is.
    """
    kept: dict[str, Any] = {}
    own = {"run": ("dir", "rng_seed", "baselines", "two_stage"), "data": ("dataset", "labels")}
    only: dict[str, tuple[str, ...]] = {
        "loader": ("window_shards", "fancy_upsampling"),
        "runtime": ("precision", "compile", "micro_batch", "sync_batch_norm"),
        "noise_model": (),
    }

    def add(prefix: str, tree: dict[str, Any]) -> None:
        for key, value in tree.items():
            if isinstance(value, dict):
                add(f"{prefix}{key}.", value)
            else:
                kept[prefix + key] = value

    for section, values in config.items():
        wanted = {k: v for k, v in values.items() if k not in own.get(section, ()) and k in only.get(section, values)}
        add(f"{section}.", wanted)
    kept = {key: value for key, value in kept.items() if key not in UNLESS or value != UNLESS[key]}
    plain: dict[str, Any] = json.loads(json.dumps(kept, default=str))
    return plain


def digest(values: dict[str, Any]) -> str:
    """Twelve hex digits that say whether two settings are the same."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def is_done(folder: Path, rows: Sequence[str], *, stage1_balanced: bool) -> bool:
    """Whether a run folder holds all these rows, trained and tested."""
    return all(_tested(folder, row, stage1_balanced) is not None for row in rows)


def collect(out: Path, dataset: str) -> list[CellResults]:
    """All that the cells of a data set hold, sorted by noise, run and share.

    Raises:
        InputError: a file in a cell's folder is damaged.
    """
    found = []
    for marker in sorted((out / "runs").glob("*/cell.json")):
        try:
            cell = json.loads(marker.read_text())
            results = _read_cell(marker.parent, cell) if cell["dataset"] == dataset else None
        except (ValueError, KeyError, TypeError, OSError, yaml.YAMLError, pa.ArrowException) as error:
            raise InputError(
                f"{marker.parent} cannot be read ({error!r}): delete that folder and run the same command again"
            ) from error
        if results is not None:
            found.append(results)
    return sorted(found, key=lambda cell: (cell.noise, cell.run, cell.min_share))


def write_results(path: Path, cells: Sequence[CellResults], out: Path) -> None:
    """Writes one line per cell and row, columns as in RESULTS_SCHEMA."""
    lines = [
        {
            "dataset": cell.dataset,
            "noise": cell.noise,
            "run": cell.run,
            "rng_seed": cell.rng_seed,
            "min_share": cell.min_share,
            "row": result.row,
            "accuracy": result.accuracy,
            "per_class": list(result.per_class),
            "num_test": result.num_test,
            "seconds": result.seconds,
            **{f"seed_{name}": cell.seeds.get(name) for name in ("kept", "images", "purity", "coverage")},
            "config_digest": cell.config_digest,
            "code_commit": cell.code_commit,
            "folder": str(cell.folder.relative_to(out)),
        }
        for cell in cells
        for result in cell.results
    ]
    write_table(path, pa.Table.from_pylist(lines, schema=RESULTS_SCHEMA))


def table2_shares(cell: CellResults, dataset: Dataset) -> dict[str, Floats]:
    """Table 2 of one cell: see `labels.label_shares`. Of the samples that are trained on, not those held out.

    Raises:
        InputError: the ranking is damaged, or is of another data set.
    """
    clean = dataset.labels(GIVEN_LABELS).dense(len(dataset))
    ranked, held_out = read_parts(cell.folder / "rank", len(cell.class_names))
    known = ~held_out & (ranked.label != NO_LABEL) & (clean[ranked.index] != NO_LABEL)
    index, label = ranked.index[known], ranked.label[known]
    seeds = pq.read_table(cell.folder / "mine" / "seeds.parquet", columns=["index"])["index"].to_numpy()
    estimated = cell.folder / "baseline_forward" / "transition.json"
    transition = None
    if estimated.exists():
        transition = np.array(json.loads(estimated.read_text())["transition"], dtype=np.float64)
    return label_shares(clean[index], label, np.isin(index, seeds), transition, len(cell.class_names))


def write_labels(path: Path, shares: Sequence[tuple[CellResults, dict[str, Floats]]]) -> None:
    """Writes Table 2's figures of each cell, columns as in LABELS_SCHEMA."""
    lines = [
        [cell.dataset, cell.noise, cell.run, state, name, *(None if np.isnan(value) else float(value) for value in row)]
        for cell, table in shares
        for state in STATES
        if state in table
        for name, row in zip((*cell.class_names, None), table[state], strict=True)
    ]
    rows = [dict(zip(LABELS_SCHEMA.names, line, strict=True)) for line in lines]
    write_table(path, pa.Table.from_pylist(rows, schema=LABELS_SCHEMA))


def label_ceiling(dataset: Dataset, labels: str, *, train_split: str, test_split: str) -> Ceiling:
    """What a label column of a data set can tell of its test split; see `labels.ceiling`.

    Raises:
        InputError: a split or the label column is missing.
    """
    given = dataset.labels(GIVEN_LABELS)
    num_classes, clean = len(given.class_names), given.dense(len(dataset))
    noisy = dataset.labels(labels).dense(len(dataset))
    train, test = dataset.split_indices(train_split), dataset.split_indices(test_split)
    train = train[(clean[train] != NO_LABEL) & (noisy[train] != NO_LABEL)]
    num_test = np.bincount(clean[test][clean[test] != NO_LABEL], minlength=num_classes)
    return ceiling(transition_counts(clean[train], noisy[train], num_classes), num_test)


def _tested(folder: Path, row: str, stage1_balanced: bool) -> Path | None:
    """Folder of the test of a row, where it is done."""
    for name in model_folders(row, stage1_balanced=stage1_balanced):
        if is_tested(folder, name):
            return folder / "evaluate" / name
    return None


def _read_cell(folder: Path, cell: dict[str, Any]) -> CellResults | None:
    """What a cell holds; None before its first result, when other files may still be missing."""
    if not (folder / "config.yaml").exists():
        return None
    config = yaml.safe_load((folder / "config.yaml").read_text())
    results, class_names = [], ()
    for row in ROWS:
        tested = _tested(folder, row, bool(config["pretrain"]["balance"]))
        if tested is None:
            continue
        test = json.loads((tested / "test.json").read_text())
        class_names = tuple(test["class_names"])
        seconds = _seconds(folder, row, tested.name, cell["started"])
        results.append(Result(row, test["accuracy"], tuple(test["per_class"]), test["num_samples"], seconds))
    if not results:
        return None
    environment = json.loads((folder / "environment.json").read_text())
    mined = folder / "mine"
    is_mined = (mined / "done.json").exists()
    return CellResults(
        dataset=cell["dataset"],
        noise=cell["noise"],
        run=cell["run"],
        folder=folder,
        labels=config["data"]["labels"],
        min_share=config["mine"]["min_share"],
        rng_seed=config["run"]["rng_seed"],
        config_digest=digest(settings(config)),
        code_commit=environment["git_commit"],
        class_names=class_names,
        results=tuple(results),
        seeds=json.loads((mined / "done.json").read_text())["results"] if is_mined else {},
        classes=tuple(pq.read_table(mined / "classes.parquet").to_pylist()) if is_mined else (),
    )


def _seconds(folder: Path, row: str, model: str, started: Sequence[float]) -> float | None:
    """Wall clock of a row's training, of stage 1's too where it goes on from that; None where it was interrupted."""
    stages = [model]
    if row == OURS or BASELINES[row].stage2 is not None:        # type: ignore[index]
        stages = [*STAGE1, model]
    total = 0.0
    for stage in stages:
        first, last = folder / stage / "inputs.json", folder / stage / "done.json"
        if not (first.exists() and last.exists()):
            return None
        begin, end = first.stat().st_mtime, last.stat().st_mtime
        if any(begin < start < end for start in started):
            return None
        total += end - begin
    return total
