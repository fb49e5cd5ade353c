"""Every label that stage 1 judged, as a table: what was given, what is predicted, how likely, kept or not, and why."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import yaml

from twostage.data.dataset import Dataset
from twostage.data.schema import NO_LABEL, InputError, LabelColumn, write_aside, write_table
from twostage.report.ranking import Ranking, read_ranking
from twostage.runtime.stage import read_inputs
from twostage.stage1.parts import Indices

REASONS: Final = (
    "certain",          # kept: as likely as mine.min_score
    "filled up",        # kept: among the best mine.min_share of its class
    "accepted",         # kept by its class's classifier (mine.rule: clean_filter)
    "uncertain",        # not kept: agrees with the prediction, but is less likely than those above
    "disagrees",        # not kept: the prediction is another class
    "refused",          # not kept by its class's classifier
    "held out",         # kept out of training, and not mined
    "no label",
)
AUDIT_SCHEMA: Final = pa.schema(
    [
        ("index", pa.int64()),
        ("key", pa.string()),                # the source's own name of the image
        ("label", pa.int64()),               # as given; null without one
        ("label_name", pa.string()),
        ("predicted", pa.int64()),           # by stage 1
        ("predicted_name", pa.string()),
        ("score", pa.float32()),             # probability of the given label; null without one
        ("confidence", pa.float32()),        # probability of the predicted class
        ("doubt", pa.float32()),             # confidence - score: how much more likely the prediction is than the label
        ("rank_in_class", pa.int64()),       # 1 is the most likely of the labels of its class
        ("labels_in_class", pa.int64()),     # how many there are
        ("kept", pa.bool_()),
        ("reason", pa.string()),             # one of REASONS
        ("held_out", pa.bool_()),            # not trained on; ranked and mined apart from the others
        ("clean", pa.int64()),               # the truth; null where unknown
        ("clean_name", pa.string()),
    ]
)


@dataclass(frozen=True)
class Judged:
    """A finished stage 1 with its dataset."""

    run_dir: Path
    dataset: Dataset
    labels: LabelColumn
    """as given"""
    ranking: Ranking
    min_score: float
    by_classifiers: bool
    """whether the labels were kept by a classifier per class (mine.rule: clean_filter)"""
    refined: bool
    """whether the held-out samples were mined, too"""


def open_judged(run_dir: Path) -> Judged:
    """Opens what stage 1 left in a run folder.

    Raises:
        InputError: no run is there, its ranking or mining is not done or damaged, its dataset is gone or has changed.
    """
    config = _read_config(run_dir)
    try:
        dataset_path, labels_name = Path(str(config["data"]["dataset"])), str(config["data"].get("labels", "given"))
        clean_name, mine = config["data"].get("clean_labels"), config.get("mine", {})
        min_score, by_classifiers = float(mine.get("min_score", 0.9)), mine.get("rule") == "clean_filter"
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{run_dir / 'config.yaml'} is not the configuration of a run ({error!r})") from error
    for stage, verb in (("rank", "rank"), ("mine", "mine")):
        if not (run_dir / stage / "done.json").exists():
            raise InputError(f"{run_dir} holds no finished `{verb}`: run `twostage run` or `twostage {verb}` first")
    dataset = Dataset.open(dataset_path)
    recorded = (read_inputs(run_dir / "rank" / "done.json") or {}).get("dataset.samples", dataset.digest)
    if recorded != dataset.digest:
        raise InputError(
            f"{dataset_path} is not the dataset that {run_dir} was made from (SHA-256 of samples.parquet "
            f"{dataset.digest[:12]}…, the run recorded {str(recorded)[:12]}…)"
        )
    labels = dataset.labels(labels_name)
    seeds, val = run_dir / "mine" / "seeds.parquet", run_dir / "mine" / "val.parquet"
    kept = np.concatenate([_indices(path) for path in (seeds, val) if path.exists() or path is seeds])
    ranking = read_ranking(run_dir / "rank", kept)
    if ranking.num_classes != len(labels.class_names) or (len(ranking.index) and ranking.index[-1] >= len(dataset)):
        raise InputError(f"the ranking in {run_dir} does not belong to {dataset_path}: run `twostage rank` again")
    truth = dataset.labels(str(clean_name)).dense(len(dataset))[ranking.index] if clean_name else None
    return Judged(run_dir, dataset, labels, ranking.with_truth(truth), min_score, by_classifiers, val.exists())


def audit_table(judged: Judged) -> pa.Table:
    """One row for each scored sample, by sample index; columns as in AUDIT_SCHEMA."""
    ranking = judged.ranking
    names = pa.array([*judged.labels.class_names])
    keys = pq.read_table(judged.dataset.path / "samples.parquet", columns=["key"])["key"].combine_chunks()
    unlabeled = ranking.label == NO_LABEL
    place, size = ranks_in_class(ranking)
    truth = np.full(len(ranking.index), NO_LABEL) if ranking.truth is None else ranking.truth
    label = pa.array(ranking.label, mask=unlabeled)
    clean = pa.array(truth, mask=truth == NO_LABEL)
    columns = [
        pa.array(ranking.index),
        keys.take(pa.array(ranking.index)),
        label,
        names.take(label),
        pa.array(ranking.predicted),
        names.take(pa.array(ranking.predicted)),
        pa.array(ranking.score, mask=unlabeled),
        pa.array(ranking.confidence),
        pa.array(ranking.confidence - ranking.score, mask=unlabeled),
        pa.array(place, mask=unlabeled),
        pa.array(size, mask=unlabeled),
        pa.array(ranking.kept),
        pa.array(_reasons(judged)),
        pa.array(ranking.held_out),
        clean,
        names.take(clean),
    ]
    return pa.table(columns, schema=AUDIT_SCHEMA)


def ranks_in_class(ranking: Ranking) -> tuple[Indices, Indices]:
    """(rows,) each: place among the labels of the same class, 1 for the highest score, and how many labels it has.

    Of equal scores the smaller sample index comes first, as in `mine`. Held-out samples are ranked by themselves.
    """
    order = np.lexsort((ranking.index, -ranking.score, ranking.label, ranking.held_out))
    group = 2 * (ranking.label[order] + 1) + ranking.held_out[order]
    starts = np.flatnonzero(np.r_[True, group[1:] != group[:-1]]) if len(order) else np.zeros(0, np.int64)
    sizes = np.diff(np.r_[starts, len(order)])
    place, size = np.empty(len(order), np.int64), np.empty(len(order), np.int64)
    place[order] = np.arange(len(order)) - np.repeat(starts, sizes) + 1
    size[order] = np.repeat(sizes, sizes)
    return place, size


def audit_paths(run_dir: Path) -> tuple[Path, Path]:
    """The two files of a run's audit."""
    return run_dir / "labels_audit.parquet", run_dir / "labels_audit.csv"


def write_audit(table: pa.Table, run_dir: Path) -> tuple[Path, Path]:
    """Writes labels_audit.parquet and labels_audit.csv into a run folder; the same table gives the same bytes.

    Raises:
        OSError: a file cannot be written.
    """
    parquet, csv = audit_paths(run_dir)
    sink = pa.BufferOutputStream()
    pyarrow.csv.write_csv(table, sink)
    write_table(parquet, table)
    write_aside(csv, sink.getvalue().to_pybytes())
    return parquet, csv


def _reasons(judged: Judged) -> npt.NDArray[np.str_]:
    ranking = judged.ranking
    kept = np.where(ranking.score >= np.float32(judged.min_score), "certain", "filled up")
    rejected = np.where(ranking.label == ranking.predicted, "uncertain", "disagrees")
    if judged.by_classifiers:
        kept, rejected = np.full_like(kept, "accepted"), np.full_like(rejected, "refused")
    reasons = np.where(ranking.kept, kept, rejected)
    if not judged.refined:
        reasons = np.where(ranking.held_out, "held out", reasons)
    return np.where(ranking.label == NO_LABEL, "no label", reasons)


def _read_config(run_dir: Path) -> dict[str, Any]:
    path = run_dir / "config.yaml"
    if not path.exists():
        raise InputError(f"{run_dir} holds no run (no config.yaml): name the folder that `twostage run` wrote")
    try:
        config = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    return config if isinstance(config, dict) else {}


def _indices(path: Path) -> Indices:
    try:
        index: Indices = pq.read_table(path, columns=["index"])["index"].to_numpy()
    except (pa.ArrowException, OSError, KeyError) as error:
        raise InputError(f"{path} is missing or damaged ({error}): delete its folder and run `mine` again") from error
    return index
