"""`twostage runs`: what ran, how far it is, and its best figures. Needs no torch."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import yaml

from twostage.cli import Parser
from twostage.data.schema import InputError, nearest
from twostage.report.metrics import read_metrics
from twostage.rows import BEST_FIRST, titles
from twostage.runtime.current import is_test_current, is_validation_current

STAGES: Final = ("pretrain", "clean_filter", "rank", "mine", "train")
RECENT: Final = 10.0
"""minutes; a run that wrote something since is taken to be running"""
EXAMPLES: Final = """\
examples:
  twostage runs runs                     all runs below a folder
  twostage runs runs/first runs/second   two runs
  twostage runs runs --json              for programs: a list with one object for each run

states: done: all that its configuration asks for is there; running: something is missing, and it wrote a file in the
last minutes (--recent); unfinished: something is missing, and nobody writes: the same command again goes on with it
"""


@dataclass(frozen=True)
class RunState:
    """One run folder. Accuracies are shares 0..1."""

    path: str
    state: Literal["done", "running", "unfinished"]
    done: list[str]
    """folders of the stages and models that are done, and `evaluate` if all of these are tested, or, where there is no
    test split, validated"""
    missing: list[str]
    """what the configuration asks for and is not done"""
    at: str | None
    """how far the stage is that is begun and not done: `train, epoch 3`"""
    test_accuracy: dict[str, float]
    """by model; a test of weights that were there earlier does not count"""
    best: str | None
    """the model with the highest of these"""
    best_title: str | None
    """what it is called in reports"""
    val_accuracy: float | None
    """of the weights of the last stage that trained (the best so far while it trains), on the validation split; of a
    baseline only where there is no other"""
    kept: int | None
    """labels that stage 1 kept"""
    labels: int | None
    """of so many"""
    purity: float | None
    """share of the kept ones that are right, where the truth is known"""
    written: float
    """when a file of it was last written: seconds since 1970"""
    problem: str | None
    """a file of it that cannot be read"""


def runs(arguments: list[str]) -> int:
    """`twostage runs DIR…`."""
    args = make_parser().read(arguments)
    if not args.recent > 0:
        raise InputError(f"--recent {args.recent}: must be more than 0 minutes")
    for folder in args.folders:
        if not folder.is_dir():
            siblings = [p.name for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else []
            raise InputError(f"no folder {folder}; {nearest(folder.name, siblings)}")
    paths = dict.fromkeys(path for folder in args.folders for path in find_runs(folder))
    states = [read_state(path, 60 * args.recent) for path in paths]
    if args.json:
        print(json.dumps([asdict(state) for state in states], indent=2, ensure_ascii=False))
    elif states:
        print(table(states, time.time()))
    else:
        print(f"no runs in {', '.join(str(folder) for folder in args.folders)}")
    return 0


def find_runs(folder: Path) -> Iterator[Path]:
    """Run folders at or below a folder, by name; inside of a run, none is looked for."""
    for parent, folders, files in os.walk(folder):
        folders.sort()
        if "config.yaml" in files and ("environment.json" in files or any(name in folders for name in titles())):
            folders.clear()
            yield Path(parent)
        elif "dataset.json" in files:
            folders.clear()         # a dataset has many files, none of them a run's


def read_state(path: Path, recent: float) -> RunState:
    """How far a run is; `recent` in seconds. What is damaged is named in `problem`, never raised."""
    problems: list[str] = []
    config = _yaml(path / "config.yaml", problems)
    done = [name for name in _stages(path) if (path / name / "done.json").exists()]
    tested = {}
    for name in titles():
        figures = _json(path / "evaluate" / name / "test.json", problems)
        if isinstance(figures.get("accuracy"), int | float) and is_test_current(path, name, trust_times=True):
            tested[name] = float(figures["accuracy"])
    validated = _validated(path, problems)
    trained = [name for name in done if name in titles()]
    if trained and all(name in tested or name in validated for name in trained):
        done.append("evaluate")
    missing = [name for name in asked(config) if name not in done]
    begun = [name for name in _stages(path) if name not in done and (path / name / "inputs.json").exists()]
    mined = _json(path / "mine" / "done.json", problems).get("results")
    mined = mined if isinstance(mined, dict) else {}
    written = _last_written(path)
    complete = not missing and not begun
    best = max(tested, key=lambda name: tested[name], default=None)
    pretrain = config.get("pretrain")
    balanced = not isinstance(pretrain, dict) or pretrain.get("balance") is not False
    return RunState(
        path=str(path),
        state="done" if complete else "running" if time.time() - written < recent else "unfinished",
        done=done,
        missing=missing,
        at=_position(path, begun[-1]) if begun else None,
        test_accuracy=tested,
        best=best,
        best_title=None if best is None else titles(balanced)[best],
        val_accuracy=_val_accuracy(path, [*BEST_FIRST, *begun, *reversed(done)]),
        kept=mined.get("kept"),
        labels=mined.get("images"),
        purity=mined.get("purity"),
        written=written,
        problem="; ".join(problems) or None,
    )


def table(states: Sequence[RunState], now: float) -> str:
    """The runs as aligned text."""
    rows = [["run", "state", "stages", "best on test", "labels kept", "written"]]
    for state in states:
        doing = f"{state.state}: {state.at}" if state.at else state.state
        best = "-" if state.best is None else f"{100 * state.test_accuracy[state.best]:.2f} % {state.best_title}"
        if state.best is None and state.val_accuracy is not None:
            best = f"{100 * state.val_accuracy:.2f} % on validation"
        kept = "-" if state.kept is None else f"{state.kept:,} of {state.labels or 0:,}"
        kept += f", {100 * state.purity:.1f} % right" if state.purity is not None else ""
        stages = ", ".join(state.done) or "none done"
        cells = [state.path, doing, stages, best, kept, f"{_age(now - state.written)} ago"]
        rows.append([cell if cell.isprintable() else repr(cell) for cell in cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += [f"{state.path}: {state.problem}" for state in states if state.problem]
    counts = [f"{sum(s.state == kind for s in states)} {kind}" for kind in ("done", "running", "unfinished")]
    return "\n".join([*lines, f"{len(states)} runs: {', '.join(counts)}"])


def _stages(path: Path) -> list[str]:
    """Folders of stages and models that are there, in the order in which `run` makes them."""
    order = [*STAGES, *titles()]
    return [name for name in dict.fromkeys(order) if (path / name).is_dir()]


def asked(config: dict[str, Any]) -> list[str]:
    """What `twostage run` would make by this configuration."""
    sections = map(config.get, ("run", "mine", "train"))
    run, mine, train = (section if isinstance(section, dict) else {} for section in sections)
    asked: list[str] = []
    if run.get("two_stage", True):
        by_classifiers = mine.get("rule") == "clean_filter"
        if train.get("init", "stage1") == "stage1" or not by_classifiers:
            asked.append("pretrain")
        asked += [*(["clean_filter"] if by_classifiers else []), "rank", "mine", "train"]
    baselines = run.get("baselines")
    asked += [f"baseline_{name}" for name in (baselines if isinstance(baselines, list) else [])]
    pretrain = config.get("pretrain")
    if "pretrain" in asked and (not isinstance(pretrain, dict) or pretrain.get("balance", True)):
        asked = [name for name in asked if name != "baseline_balanced_cross_entropy"]       # stage 1's network is that
    asked += ["finetune"] if run.get("finetune") else []
    return [*asked, "evaluate"]


def _position(path: Path, stage: str) -> str:
    """`train, epoch 3`: from the last line of metrics that is whole."""
    epochs = _metrics(path / stage).get("epoch")
    return stage if epochs is None else f"{stage}, epoch {int(epochs[1][-1]) + 1}"


def _validated(path: Path, problems: list[str]) -> list[str]:
    """Models that were validated at the run's end in place of a test, as their dataset has no test split."""
    models = _json(path / "summary.json", problems).get("models")
    models = models if isinstance(models, dict) else {}
    found = {name: figures.get("val_accuracy") for name, figures in models.items() if isinstance(figures, dict)}
    return [name for name, value in found.items() if value is not None and is_validation_current(path, name, value)]


def _val_accuracy(path: Path, stages: Sequence[str]) -> float | None:
    for stage in stages:
        results = _json(path / stage / "done.json", []).get("results")
        accuracy = results.get("val_accuracy") if isinstance(results, dict) else None
        if isinstance(accuracy, int | float):
            return float(accuracy)
        values = _metrics(path / stage).get("val/accuracy")
        if values is not None:
            return float(values[1].max())
    return None


def _metrics(folder: Path) -> dict[str, Any]:
    try:
        return read_metrics(folder / "metrics.jsonl")
    except OSError:
        return {}


def _last_written(path: Path) -> float:
    """Of the files in the run folder and in its stages' folders, checkpoints included."""
    times = [path.stat().st_mtime]
    for pattern in ("*", "*/*", "*/checkpoints/*"):
        for file in path.glob(pattern):
            try:
                times.append(file.stat().st_mtime)
            except OSError:             # removed meanwhile, as older checkpoints are
                continue
    return max(times)


def _age(seconds: float) -> str:
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= (2 if unit == "days" else 1) * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def _json(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        problems.append(f"{path.name} cannot be read ({' '.join(str(error).split())})")
        return {}
    return content if isinstance(content, dict) else {}


def _yaml(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        problems.append(f"{path.name} cannot be read ({' '.join(str(error).split())})")
        return {}
    return content if isinstance(content, dict) else {}


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(
        prog="twostage runs",
        allow_abbrev=False,
        description="List the runs in some folders, however deep: how far each is, and its best figures.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="a run folder, or one that holds some")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--recent", type=float, default=RECENT, metavar="MINUTES",
        help="an unfinished run that wrote something since is running (default: %(default)g)",
    )
    return parser
