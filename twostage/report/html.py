"""Puts the report together: one HTML file that opens offline and can be mailed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jinja2
import numpy as np

from twostage.data.schema import write_aside
from twostage.report.collect import Run, collect, command, setting, title_of
from twostage.report.figures import Line, Picture, Scale, curve_panel, ranking_panel
from twostage.report.gallery import gallery
from twostage.report.matrices import noise, test_matrices
from twostage.report.tables import (
    MODEL_COLOURS,
    STAGES,
    headlines,
    lowest_tenth,
    main_model,
    number,
    per_class,
    percent,
    points,
    reference,
    seed_totals,
    shade,
    share,
)
from twostage.report.words import balance_notes, class_notes, doubt_notes, validation_notes

MAX_CLASSES_SHOWN: Final = 60       # with a ranking curve and a strip of images
PANELS: Final[dict[str, tuple[str, tuple[str, ...], Scale]]] = {     # metric -> (title, stages it is drawn for, scale)
    "train/loss": ("Training loss", ("stage 1", "stage 2"), "loss"),
    "train/cross_entropy": ("Cross-entropy of the kept labels", ("stage 2",), "loss"),
    "train/consistency": ("Consistency (pseudo-labels: their cross-entropy)", ("stage 2",), "loss"),
    "train/consistency_weight": ("Consistency weight", ("stage 2",), "number"),
    "val/accuracy": ("Validation accuracy", ("stage 1", "stage 2"), "share"),
    "train/learning_rate": ("Learning rate", ("stage 1", "stage 2"), "number"),
    "train/data_wait": ("Time spent waiting for data", ("stage 1", "stage 2"), "share"),
    "train/images_per_second": ("Images per second", ("stage 1", "stage 2"), "number"),
}


@dataclass(frozen=True)
class Panel:
    """One figure of the learning curves."""

    title: str
    picture: Picture
    legend: tuple[tuple[str, str], ...]
    """(title, colour) of each curve"""


def write_report(run_dir: Path, out: Path | None = None, *, dry_run: bool = False) -> Path:
    """Writes the report of a run to `out`, `run_dir`/report.html by default, and returns its path.

    Reads files only: those of the run folder, and image bytes of the dataset that its config.yaml names. The same files
    give the same bytes. What the run does not hold yet is said in the report. With `dry_run` nothing is written.

    Raises:
        InputError: there is no such folder, or it holds nothing of a run.
        OSError: the report cannot be written.
    """
    run = collect(run_dir)
    path = out or run_dir / "report.html"
    page = render(run)
    if not dry_run:
        write_aside(path, page.encode())
    return path


def render(run: Run) -> str:
    """The whole page as text."""
    shown = _shown_classes(run)
    classes = per_class(run.tested)
    strips = gallery(run, run.ranking, run.dataset, shown) if run.ranking and run.dataset else []
    lines, main = headlines(run.tested), main_model(run.tested)
    context = {
        "run": run,
        "title": run.path.resolve().name,
        "setting": lambda section, name: setting(run, section, name),
        "headlines": lines,
        "main": next((line for line in lines if line.model is main), None),
        "reference": reference(run.tested),
        "validated": [(title_of(run, name), MODEL_COLOURS.get(name, "green"), accuracy)
                      for name, accuracy in run.validated.items()],
        "colours": MODEL_COLOURS,
        "seeds": seed_totals(run),
        "class_notes": class_notes(run.tested),
        "balance_notes": balance_notes(run.classes),
        "doubt_notes": doubt_notes(run),
        "classes": classes,
        "floor": lowest_tenth([value for row in classes for _, _, value in row.accuracies]),
        "rankings": _rankings(run, shown),
        "strips": strips,
        "validation_notes": validation_notes(run),
        "panels": {stage: _panels(run, stage, names) for stage, names in STAGES.items()},
        "noise": noise(run),
        "matrices": test_matrices(run),
        "command": command(run),
        "environment": flat(run.environment),
        "missing": _missing(run),
        "hidden_classes": max(0, len(run.classes) - len(shown)),
    }
    return page("report.html.j2", context)


def page(template: str, context: dict[str, Any]) -> str:
    """Fills a template; everything that comes from files or names is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,            # of everything: the name of these templates would not turn it on by itself
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "points": points, "number": number, "shade": shade, "share": share}
    return environment.get_template(template).render(context)


def flat(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested values as lines ('packages.torch', '2.10'); what is unknown or empty is left out."""
    lines: list[tuple[str, str]] = []
    for key, value in tree.items():
        if isinstance(value, dict):
            lines += flat(value, f"{prefix}{key}.")
        elif value not in (None, [], ""):
            lines.append((f"{prefix}{key}", ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return lines


def _shown_classes(run: Run) -> list[int]:
    """All classes; of very many, those of which the smallest shares of labels were kept."""
    rows = run.classes
    if not rows and run.ranking is not None:
        return [int(c) for c in np.unique(run.ranking.label)[:MAX_CLASSES_SHOWN]]
    doubtful = sorted(rows, key=lambda row: (row.kept / max(1, row.images), row.number))[:MAX_CLASSES_SHOWN]
    return sorted(row.number for row in doubtful)


def _rankings(run: Run, shown: list[int]) -> list[tuple[str, Picture]]:
    ranking = run.ranking
    if ranking is None:
        return []
    thresholds = {row.number: row.threshold for row in run.classes}
    panels = []
    for c in shown:
        ours = ranking.label == c
        right = None
        if ranking.truth is not None and (ranking.truth[ours] >= 0).all():
            right = ranking.truth[ours] == c
        picture = ranking_panel(
            ranking.score[ours], ranking.kept[ours], right, thresholds.get(c), class_name=run.class_name(c)
        )
        panels.append((run.class_name(c), picture))
    return panels


def panel(words: str, title: str, lines: Sequence[Line], scale: Scale) -> Panel:
    """One figure with its legend; `words` begin the alternative text."""
    picture = curve_panel(lines, title=words, scale=scale)
    return Panel(title, picture, tuple((line.title, line.colour) for line in lines))


def _panels(run: Run, stage: str, names: tuple[str, ...]) -> list[Panel]:
    panels = []
    for metric, (title, stages, scale) in PANELS.items():
        lines = [
            Line(title_of(run, name), *run.curves[name][metric], MODEL_COLOURS.get(name, "green"))
            for name in names
            if stage in stages and metric in run.curves.get(name, {})
        ]
        if lines:
            panels.append(panel(f"{title}, {stage}", title, lines, scale))
    return panels


def _missing(run: Run) -> dict[str, str]:
    """Section -> one line on what is not there, and what has to be run to have it."""
    again = "run `twostage run` again, it does only what is missing"
    tested = {model.name for model in run.tested} | set(run.validated)
    two_stage = setting(run, "run", "two_stage") is not False
    balanced = setting(run, "pretrain", "balance") is not False     # otherwise stage 1 is the ordinary training itself
    no_truth = run.ranking is not None and run.ranking.truth is None
    lines = [
        ("config", not run.config, "config.yaml is missing or damaged."),
        ("tested", not tested, f"No model has been tested yet: {again}, or `twostage evaluate`."),
        ("baseline", not any(name.startswith("baseline") for name in tested) and balanced,
         "No baseline was tested; `run.baselines: [cross_entropy]` gives the difference against ordinary training."),
        ("stage2", not tested & {"train", "finetune"} and (two_stage or setting(run, "run", "finetune") is True),
         f"Stage 2 has no result yet: {again}."),
        ("seeds", not run.classes, f"No labels have been mined yet: {again}." if two_stage else
         "No labels were mined, as `run.two_stage` is false."),
        ("ranking", not run.ranking, "No complete ranking, so there are no ranking curves and no gallery."),
        ("truth", no_truth, "No clean labels (`data.clean_labels`), so how many labels are right is not known."),
        ("curves", not any(run.curves.values()), "No metrics have been written yet."),
    ]
    return {section: line for section, absent, line in lines if absent}
