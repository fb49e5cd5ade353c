"""Several runs side by side, in one page: results, means over seeds, classes, curves, and what differs."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from twostage.data.schema import InputError, write_aside
from twostage.report.collect import Run, Tested, collect, command, setting, title_of
from twostage.report.figures import Line
from twostage.report.html import PANELS, Panel, flat, page, panel
from twostage.report.tables import main_model, percent, reference, seed_totals

RUN_COLOURS: Final = ("blue", "amber", "green", "violet", "grey", "teal", "rose", "sand")
MAIN: Final = {"stage 1": "pretrain", "stage 2": "train"}
SEED_KEYS: Final = ("run.dir", "run.rng_seed", "data.labels", "data.dataset")
"""settings that may differ between runs that are repeated for their mean; of the labels, only `-N` at the end, N being
the run's own rng_seed"""
QUIET: Final = ("run.dir", "command")
"""what differs by itself and is not worth a line"""


@dataclass(frozen=True)
class Column:
    """One run, as a row of the tables and a line of the curves."""

    name: str
    colour: str
    """name from figures.COLOURS; the runs after the eighth have none"""
    run: Run
    base: Tested | None
    main: Tested | None
    seeds: dict[str, float | None] | None

    @property
    def gain(self) -> float | None:
        """Main model against the reference."""
        if self.base is None or self.main is None or self.base is self.main:
            return None
        return self.main.accuracy - self.base.accuracy


@dataclass(frozen=True)
class Repeated:
    """Runs that differ by their seeds, only so: mean and standard deviation (None for a figure that not all have)."""

    names: list[str]
    title: str
    reference: str
    """title of what the difference is from; empty where the runs do not have it in common"""
    base: tuple[float, float] | None
    main: tuple[float, float] | None
    gain: tuple[float, float] | None
    left_out: list[str]
    """names of runs with the rng_seed of an earlier one"""


def write_comparison(run_dirs: Sequence[Path], out: Path | None = None, *, dry_run: bool = False) -> Path:
    """Writes one page about several runs to `out` and returns its path; the same files give the same bytes.

    Without `out` it is report.html in the folder that all runs lie in. With `dry_run` nothing is written.

    Raises:
        InputError: a folder is not there, holds nothing of a run, or is named twice.
        OSError: the page cannot be written.
    """
    resolved = [path.resolve() for path in run_dirs]
    for number, path in enumerate(resolved):
        if path in resolved[:number]:
            raise InputError(f"{run_dirs[number]} is named twice: name each run once")
    text = render_comparison([collect(path) for path in run_dirs])
    path = out or Path(os.path.commonpath([path.parent for path in resolved])) / "report.html"
    if not dry_run:
        write_aside(path, text.encode())
    return path


def render_comparison(runs: Sequence[Run]) -> str:
    """The whole page as text."""
    columns = _columns(runs)
    names = _common_classes(columns)
    context = {
        "title": f"{len(columns)} runs side by side",
        "columns": columns,
        "best": max((c.main.accuracy for c in columns if c.main), default=None),
        "repeated": _repeated(columns),
        "classes": _class_rows(columns, names),
        "kept": _kept_rows(columns),
        "speed": [_speed(c.run) for c in columns],
        "references": list(dict.fromkeys(c.base.title for c in columns if c.base)),
        "panels": {stage: _panels(columns, stage) for stage in MAIN},
        "uncoloured": len(columns) - len(RUN_COLOURS),
        "config_differences": _differences([flat(c.run.config) for c in columns]),
        "environment_differences": _differences([flat(c.run.environment) for c in columns]),
        "notes": [(c.name, note) for c in columns for note in (*_untested(c.run), *c.run.notes)],
        "command": command,
    }
    return page("compare.html.j2", context)


def _columns(runs: Sequence[Run]) -> list[Column]:
    names = _names([run.path.resolve() for run in runs])
    found = []
    for number, (run, name) in enumerate(zip(runs, names, strict=True)):
        colour = RUN_COLOURS[number] if number < len(RUN_COLOURS) else ""
        found.append(Column(name, colour, run, reference(run.tested), main_model(run.tested), seed_totals(run)))
    return found


def _names(paths: Sequence[Path]) -> list[str]:
    """The last part of each path, or as many more as tell it from the others."""
    found = []
    for path in paths:
        length = 1
        while length < len(path.parts) and [p.parts[-length:] for p in paths].count(path.parts[-length:]) > 1:
            length += 1
        found.append("/".join(path.parts[-length:]))
    return found


def _repeated(columns: Sequence[Column]) -> list[Repeated]:
    groups: dict[tuple[Any, ...], dict[Any, list[Column]]] = {}
    for column in columns:
        same = [line for line in flat(column.run.config) if line[0] not in SEED_KEYS]
        seed = setting(column.run, "run", "rng_seed")
        labels = str(setting(column.run, "data", "labels")).removesuffix(f"-{seed}")
        title = column.main.title if column.main else ""
        key = (*same, labels, column.run.digests.get("dataset.samples"), title)
        groups.setdefault(key, {}).setdefault(seed, []).append(column)
    found = []
    for by_seed in groups.values():
        group = [same_seed[0] for same_seed in by_seed.values()]
        left_out = [column.name for same_seed in by_seed.values() for column in same_seed[1:]]
        if len(group) > 1 and group[0].main is not None:
            references = {c.base.title if c.base else "" for c in group}
            base, main, gain = (
                _mean_and_deviation(values)
                for values in (
                    [c.base.accuracy if c.base and len(references) == 1 else None for c in group],
                    [c.main.accuracy if c.main else None for c in group],
                    [c.gain if len(references) == 1 else None for c in group],
                )
            )
            named = references.pop() if base else ""
            found.append(Repeated([c.name for c in group], group[0].main.title, named, base, main, gain, left_out))
    return found


def _untested(run: Run) -> list[str]:
    """What is known of a run whose dataset has no test split."""
    if run.tested or not run.validated:
        return []
    told = "; ".join(f"{title_of(run, name)}: {percent(value, 2)}" for name, value in run.validated.items())
    return [f"there is no test split; {told} of the validation labels met"]


def _mean_and_deviation(values: Sequence[float | None]) -> tuple[float, float] | None:
    known = [value for value in values if value is not None]
    return (statistics.mean(known), statistics.stdev(known)) if len(known) == len(values) > 1 else None


def _common_classes(columns: Sequence[Column]) -> tuple[str, ...]:
    named = {c.main.class_names for c in columns if c.main and c.main.per_class is not None}
    return named.pop() if len(named) == 1 else ()


def _class_rows(columns: Sequence[Column], names: Sequence[str]) -> list[tuple[str, list[float | None]]]:
    """Test accuracy of each run's main model by class; empty where the runs have different classes."""
    tables = [c.main.per_class if c.main else None for c in columns]
    return [(name, [None if t is None else float(t[k]) for t in tables]) for k, name in enumerate(names)]


def _kept_rows(columns: Sequence[Column]) -> list[tuple[str, list[tuple[float | None, float | None]]]]:
    """(share of the labels kept, purity) of each run by class; empty where the runs have different classes."""
    named = {tuple(row.name for row in c.run.classes) for c in columns if c.run.classes}
    if len(named) != 1:
        return []
    rows = []
    for k, name in enumerate(named.pop()):
        cells: list[tuple[float | None, float | None]] = []
        for column in columns:
            row = column.run.classes[k] if column.run.classes else None
            cells.append((row.kept / row.images if row and row.images else None, row.purity if row else None))
        rows.append((name, cells))
    return rows


def _speed(run: Run) -> dict[str, tuple[float | None, float | None]]:
    """Stage -> medians of (images per second, share of the time waiting for data)."""
    found = {}
    for stage in MAIN.values():
        curves = run.curves.get(stage, {})
        medians = [
            float(np.median(curves[metric][1])) if metric in curves and curves[metric][1].size else None
            for metric in ("train/images_per_second", "train/data_wait")
        ]
        if any(value is not None for value in medians):
            found[stage] = (medians[0], medians[1])
    return found


def _panels(columns: Sequence[Column], stage: str) -> list[Panel]:
    """One line for each run, of the stage's own network."""
    panels = []
    for metric, (title, stages, scale) in PANELS.items():
        lines = []
        for column in columns:
            curves = column.run.curves.get(MAIN[stage], {})
            if column.colour and metric in curves and stage in stages:
                lines.append(Line(column.name, *curves[metric], column.colour))
        if lines:
            panels.append(panel(f"{title}, {stage}", title, lines, scale))
    return panels


def _differences(trees: Sequence[list[tuple[str, str]]]) -> list[tuple[str, list[str | None]]]:
    """Settings in which the runs are not all alike: (name, value of each run, None where it has none)."""
    tables = [dict(tree) for tree in trees]
    keys = {key: None for table in tables for key in table if key not in QUIET}
    rows = [(key, [table.get(key) for table in tables]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]
