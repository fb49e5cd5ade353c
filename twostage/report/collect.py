"""Reads the files of a run folder into plain arrays. What is missing or damaged becomes a note, never an error."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from twostage.data.dataset import Dataset
from twostage.data.schema import InputError, nearest
from twostage.report.metrics import read_metrics
from twostage.report.ranking import Floats, Ranking, read_ranking
from twostage.rows import titles
from twostage.runtime.current import WEIGHTS, digest_of, is_test_current, is_validation_current
from twostage.stage1.parts import Indices

DAMAGE = (OSError, ValueError, KeyError, TypeError, IndexError, yaml.YAMLError, pa.ArrowException)

TITLES: Final = titles()
"""models in the order of the report; other folders below evaluate/ follow under their own names"""


@dataclass(frozen=True)
class Tested:
    """What one model did on the test split. Accuracies are shares 0..1; per-class values are NaN where unknown."""

    name: str
    title: str
    accuracy: float
    num_samples: int | None = None
    per_class: Floats | None = None
    """(num_classes,)"""
    confusion: Indices | None = None
    """(num_classes, num_classes) counts, row = true class, column = predicted class"""
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class ClassRow:
    """What `mine` did with the labels of one class; threshold, purity and coverage are None where unknown."""

    number: int
    name: str
    images: int
    consistent: int
    kept: int
    threshold: float | None
    purity: float | None
    coverage: float | None


@dataclass
class Run:
    """Everything that the report shows, as far as the run folder holds it."""

    path: Path
    config: dict[str, Any] = field(default_factory=dict)
    config_text: str = ""
    environment: dict[str, Any] = field(default_factory=dict)
    tested: list[Tested] = field(default_factory=list)
    validated: dict[str, float] = field(default_factory=dict)
    """model -> validation accuracy of its weights, where the dataset had no test split"""
    curves: dict[str, dict[str, tuple[Floats, Floats]]] = field(default_factory=dict)
    """stage -> metric -> (steps, values)"""
    classes: list[ClassRow] = field(default_factory=list)
    mined: dict[str, Any] = field(default_factory=dict)
    """figures of `mine` over all classes"""
    ranking: Ranking | None = None
    """of the samples that stage 1 was trained on"""
    dataset: Dataset | None = None
    made_by: list[str] = field(default_factory=list)
    """the commands that made the dataset and the labels that are trained on"""
    digests: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """in words, for the reader: what could not be read"""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by class number, from whatever file knows them."""
        named = [model.class_names for model in self.tested if model.class_names]
        return named[0] if named else tuple(row.name for row in self.classes)

    def class_name(self, number: int) -> str:
        """A class's name, or its number in words where no file names it."""
        names = self.class_names
        return names[number] if 0 <= number < len(names) else f"class {number}"

    def read(self, path: Path, parse: Callable[[Path], Any]) -> Any:
        """parse(path), or None: silently where there is no such file, with a note where it is damaged."""
        if not path.exists():
            return None
        try:
            return parse(path)
        except (*DAMAGE, InputError) as error:
            self.notes.append(f"{_place(path, self.path)} cannot be read: {' '.join(str(error).split())}")
            return None


def collect(path: Path) -> Run:
    """Reads a run folder.

    Raises:
        InputError: there is no such folder, or it holds nothing of a run.
    """
    if not path.is_dir():
        siblings = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
        raise InputError(f"no run folder {path}; {nearest(path.name, siblings)}")
    if not any((path / name).exists() for name in ("config.yaml", "summary.json", "rank", "mine", "evaluate", *TITLES)):
        raise InputError(f"{path} holds no run (no config.yaml): `twostage run --config … --run.dir {path}` makes one")
    run = Run(path)
    run.config_text = run.read(path / "config.yaml", lambda p: p.read_text()) or ""
    config = run.read(path / "config.yaml", lambda p: yaml.safe_load(p.read_text()))
    run.config = config if isinstance(config, dict) else {}
    environment = run.read(path / "environment.json", _json)
    run.environment = environment if isinstance(environment, dict) else {}
    models = _summary(run)
    run.tested = _tested(run, models)
    run.validated = _validated(run, models)
    for stage in _ordered(p.parent.name for p in path.glob("*/metrics.jsonl")):
        run.curves[stage] = run.read(path / stage / "metrics.jsonl", read_metrics) or {}
    run.classes = run.read(path / "mine" / "classes.parquet", _classes) or []
    run.mined = run.read(path / "mine" / "done.json", lambda p: dict(_json(p)["results"])) or {}
    run.digests = _recorded_digests(run)
    run.dataset = _dataset(run)
    run.made_by = _made_by(run)
    run.ranking = _ranking(run)
    files = [*(f"{name}/{WEIGHTS}" for name in TITLES), "mine/seeds.parquet", "mine/val.parquet"]
    run.digests |= {name: digest for name in files if (digest := digest_of(path / name)) is not None}
    return run


def title_of(run: Run, model: str) -> str:
    """What a model is called in the report; stage 1's own network need not be class-balanced."""
    if model == "pretrain" and setting(run, "pretrain", "balance") is False:
        return titles(balance=False)[model]
    return TITLES.get(model, model)


def setting(run: Run, section: str, name: str) -> Any:
    """A field of config.yaml, None where it is not there."""
    values = run.config.get(section)
    return values.get(name) if isinstance(values, dict) else None


def command(run: Run) -> str:
    """How the run was started, with the program's name and not where it is installed; '' where that is not known."""
    try:
        program, *arguments = shlex.split(str(run.environment.get("command") or ""))
    except ValueError:
        return ""
    if program.endswith(("__main__.py", "/twostage")):
        program = "twostage"
    return shlex.join([program, *arguments])


def _json(path: Path) -> Any:
    return json.loads(path.read_text())


def _place(path: Path, run: Path) -> str:
    return str(path.relative_to(run)) if path.is_relative_to(run) else str(path)


def _ordered(names: Any) -> list[str]:
    order = list(TITLES)
    return sorted(set(names), key=lambda name: (order.index(name) if name in order else len(order), name))


def _summary(run: Run) -> dict[str, dict[str, Any]]:
    """Figures of each model, as the run's end noted them."""
    summary = run.read(run.path / "summary.json", _json)
    models = summary.get("models") if isinstance(summary, dict) else None
    return {k: v for k, v in models.items() if isinstance(v, dict)} if isinstance(models, dict) else {}


def _tested(run: Run, models: dict[str, dict[str, Any]]) -> list[Tested]:
    found = []
    for name in _ordered([*models, *(p.parent.name for p in run.path.glob("evaluate/*/test.json"))]):
        title, test = title_of(run, name), run.path / "evaluate" / name / "test.json"
        accuracy = models.get(name, {}).get("test_accuracy")
        tested = run.read(test, partial(_test, name, title))
        if tested is None and isinstance(accuracy, int | float):
            tested = Tested(name, title, float(accuracy))
        to_compare = test.exists() or (run.path / name / WEIGHTS).exists()
        if tested is not None and to_compare and not is_test_current(run.path, name):
            run.notes.append(f"{title}: its test is not of the weights that are there now: run `twostage evaluate`.")
        elif tested is not None:
            found.append(tested)
    return found


def _validated(run: Run, models: dict[str, dict[str, Any]]) -> dict[str, float]:
    found = {}
    for name in _ordered(models):
        accuracy = models[name].get("val_accuracy")
        if not isinstance(accuracy, int | float):
            continue
        if is_validation_current(run.path, name, accuracy):
            found[name] = float(accuracy)
        else:
            said = "the validation accuracy in summary.json is not of the weights that are there now"
            run.notes.append(f"{title_of(run, name)}: {said}: run `twostage evaluate`.")
    return found


def _test(name: str, title: str, path: Path) -> Tested:
    figures = _json(path)
    names = tuple(str(n) for n in figures.get("class_names") or ())
    per_class = np.array(figures.get("per_class") or [], dtype=np.float64)
    confusion = np.array(figures.get("confusion") or [], dtype=np.int64)
    if per_class.size and per_class.shape != (len(names),):
        raise ValueError(f"per_class has shape {per_class.shape} for {len(names)} class names")
    if confusion.size and confusion.shape != (len(names), len(names)):
        raise ValueError(f"confusion has shape {confusion.shape} for {len(names)} class names")
    return Tested(
        name=name,
        title=title,
        accuracy=float(figures["accuracy"]),
        num_samples=int(figures["num_samples"]) if figures.get("num_samples") else None,
        per_class=per_class if per_class.size else None,
        confusion=confusion if confusion.size else None,
        class_names=names,
    )


def _classes(path: Path) -> list[ClassRow]:
    return [
        ClassRow(
            number=int(row["class"]),
            name=str(row["name"]),
            images=int(row["images"]),
            consistent=int(row["consistent"]),
            kept=int(row["kept"]),
            threshold=row.get("threshold"),
            purity=row.get("purity"),
            coverage=row.get("coverage"),
        )
        for row in pq.read_table(path).to_pylist()
    ]


def _dataset(run: Run) -> Dataset | None:
    """The dataset the run was made from, if it is still there and the same."""
    named = setting(run, "data", "dataset")
    if not named:
        run.notes.append("config.yaml names no dataset, so there are no thumbnails.")
        return None
    path = Path(str(named))
    try:
        dataset = Dataset.open(path)
    except (*DAMAGE, InputError) as error:
        run.notes.append(f"The dataset cannot be opened, so there are no thumbnails: {error}")
        return None
    recorded = run.digests.get("dataset.samples")
    if recorded and recorded != dataset.digest:
        run.notes.append(
            f"{path} has changed since the run began (SHA-256 {dataset.digest[:12]}…, the run recorded "
            f"{recorded[:12]}…), so there are no thumbnails."
        )
        return None
    return dataset


def _made_by(run: Run) -> list[str]:
    if run.dataset is None:
        return []
    dataset, name = run.dataset, setting(run, "data", "labels")
    column = run.read(dataset.path, lambda _: dataset.labels(str(name))) if name else None
    commands = [str(command) for command in dataset.marker.get("made_by", [])]
    return commands if column is None or column.how in commands else [*commands, column.how]


def _ranking(run: Run) -> Ranking | None:
    folder, seeds = run.path / "rank", run.path / "mine" / "seeds.parquet"
    if not (folder / "done.json").exists():
        return None
    kept = run.read(seeds, lambda p: pq.read_table(p, columns=["index"])["index"].to_numpy())
    ranking: Ranking | None = run.read(folder, lambda p: read_ranking(p, [] if kept is None else kept).trained_on())
    clean = setting(run, "data", "clean_labels")
    if ranking is None or run.dataset is None:
        return ranking
    dataset = run.dataset
    if len(ranking.index) and ranking.index[-1] >= len(dataset):
        run.notes.append("The ranking does not belong to the dataset that config.yaml names.")
        run.dataset = None
        return ranking
    column = run.read(dataset.path, lambda _: dataset.labels(str(clean))) if clean else None
    return ranking if column is None else ranking.with_truth(column.dense(len(dataset))[ranking.index])


def _recorded_digests(run: Run) -> dict[str, str]:
    """What the stages wrote down about the dataset that they were begun with."""
    found: dict[str, str] = {}
    for marker in sorted([*run.path.glob("*/inputs.json"), *run.path.glob("*/done.json")]):
        inputs = run.read(marker, lambda p: _json(p)["inputs"]) or {}
        found |= {k: v for k, v in inputs.items() if k.startswith("dataset.") and isinstance(v, str)}
    return found

