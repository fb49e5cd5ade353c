"""Which runs a table is made of, and by which commands each is made. Decides only: reads no file, starts nothing.

A *cell* is one run folder: a data set, a noise, the number of the run, and, for Table 1, how many labels are kept. All
rows of Table 3 are in the same cell, as they share its stage 1.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from twostage.data.schema import GIVEN_LABELS, InputError, nearest
from twostage.reproduce import paper
from twostage.rows import BASELINES, folder_of

TABLES: Final = ("table1", "table2", "table3")
DATASETS: Final = ("mnist", "cifar10")
OURS: Final = "ours"
ROWS: Final = (*paper.ROWS[:-1], *(name for name in BASELINES if name not in paper.ROWS), OURS)
"""of Table 3, in its order, with ours last"""
SHARES: Final = tuple(paper.TABLE1_ACCURACY)
NOISES: Final = {"mnist": (*paper.NOISES, "asym0.2-text", "asym0.6-text"), "cifar10": paper.NOISES}
"""the paper's columns; any other rate is allowed as well"""
OWN_KEYS: Final = ("run.dir", "run.rng_seed", "run.baselines", "data.dataset", "data.labels", "data.clean_labels")
"""configuration fields that the grid sets"""
PATTERN: Final = re.compile(r"(sym|asym)(0|0?\.\d+|[1-9]\d*(?:\.\d+)?)(-text)?")
UNLESS: Final[dict[str, Any]] = {
    "loader.fancy_upsampling": True,
    "runtime.compile": "no",
    "runtime.micro_batch": None,
    "runtime.sync_batch_norm": False,
}
"""settings of the machine that change results where they are not these"""


@dataclass(frozen=True)
class Noise:
    """Artificial label noise."""

    name: str
    """as in folder names: p0, sym0.2, asym0.6, asym0.6-text"""
    kind: str
    """symmetric or asymmetric; empty: no noise"""
    rate: float
    flips: str | None = None
    """for `data_prep noise --flips`"""


@dataclass(frozen=True)
class Cell:
    """One run folder."""

    dataset: str
    noise: str
    run: int
    """also the seed of its noise and of its training"""
    min_share: float | None = None
    """of Table 1, where it is not the configuration's own"""

    @property
    def name(self) -> str:
        """Of its folder."""
        share = "" if self.min_share is None else f"-share{self.min_share:g}"
        return f"{self.dataset}-{self.noise}-{self.run}{share}"

    @property
    def labels(self) -> str:
        """Name of its label column."""
        return GIVEN_LABELS if self.noise == "p0" else f"{self.noise}-{self.run}"

    @property
    def title(self) -> str:
        """For people."""
        share = "" if self.min_share is None else f", {100 * self.min_share:g} % of the labels"
        return f"{self.dataset} {self.noise} run {self.run}{share}"


@dataclass(frozen=True)
class Task:
    """A cell, and what is wanted of it."""

    cell: Cell
    rows: tuple[str, ...]
    after: Cell | None = None
    """the cell whose stage 1 it takes over"""


def parse_noise(text: str, dataset: str) -> Noise:
    """The noise that a name stands for: p0, sym or asym and a rate, for MNIST also with -text (5 → 6 only).

    Raises:
        InputError: no such noise (names the nearest of the paper's), or its rate is not within 0..1.
    """
    if text == "p0":
        return Noise("p0", "", 0.0)
    match = PATTERN.fullmatch(text)
    if match is None or (match[3] and dataset != "mnist"):
        raise InputError(
            f"--noise {text}: {nearest(text, NOISES[dataset])}; or sym or asym with another rate, such as asym0.4"
        )
    kind, rate, variant = match[1], float(match[2]), match[3] or ""
    if not 0 < rate <= 1:
        hint = f": {rate:g} % is {kind}{rate / 100:g}" if 1 < rate <= 100 else ""
        raise InputError(f"--noise {text}: the rate must be above 0 and at most 1{hint}; no noise is p0")
    name = f"{kind}{rate:.9g}{variant}"
    if kind == "sym" and variant:
        raise InputError(f"--noise {text}: -text is a variant of asymmetric noise; {nearest(name, NOISES[dataset])}")
    if kind == "sym":
        return Noise(name, "symmetric", rate)
    return Noise(name, "asymmetric", rate, f"{dataset}{variant}")


def noise_title(name: str) -> str:
    """A noise for people: 'asym 0.6'."""
    if name == "p0":
        return "p = 0"
    title = re.sub(r"^(a?sym)", r"\1 ", name)
    return title.replace("-text", " (5 → 6 only)")


def split_names(values: Iterable[str]) -> list[str]:
    """`a,b c` and `a b c` alike; what is there twice counts once."""
    return list(dict.fromkeys(name for value in values for name in value.split(",") if name))


def check_name(option: str, name: str, legal: Iterable[str]) -> str:
    """Returns `name` if it is legal.

    Raises:
        InputError: it is not; names the nearest.
    """
    legal = tuple(legal)
    if name not in legal:
        raise InputError(f"{option}: no {name!r}; {nearest(name, legal)}")
    return name


def check_overrides(overrides: Sequence[str]) -> tuple[str, ...]:
    """`section.key=value` as arguments of `twostage run`.

    Raises:
        InputError: not of this form, or a field that the grid sets itself.
    """
    for text in overrides:
        key, equals, _ = text.partition("=")
        if not equals or "." not in key:
            raise InputError(f"--set {text}: expected section.key=value, such as pretrain.epochs=1")
        if key in OWN_KEYS:
            raise InputError(f"--set {text}: {key} differs from run to run, `reproduce` sets it")
    return tuple(f"--{text}" for text in overrides)


def default_rows(table: str) -> tuple[str, ...]:
    """Rows that a table needs, where the user names none."""
    return {"table1": (OURS,), "table2": ("forward", OURS), "table3": paper.ROWS}[table]


def plan(
    table: str,
    *,
    dataset: str,
    noises: Sequence[str],
    rows: Sequence[str],
    runs: int,
    shares: Sequence[float],
    min_share: float,
) -> list[Task]:
    """The cells of a table, in the order in which they are worked on: all noises of run 0 first, then of run 1.

    Args:
        rows: wanted in each cell; for Table 1, `ours` alone is.
        shares: of Table 1: how much of each class is kept at least.
        min_share: the configuration's own; a cell with this share is the same as Table 3's.
    """
    tasks = []
    for run in range(runs):
        for noise in noises:
            whole = Cell(dataset, noise, run)
            tasks.append(Task(whole, tuple(rows)))
            if table == "table1":
                others = [share for share in shares if not math.isclose(share, min_share)]
                tasks += [Task(Cell(dataset, noise, run, share), (OURS,), after=whole) for share in others]
    return tasks


def model_folders(row: str, *, stage1_balanced: bool) -> tuple[str, ...]:
    """Folders of a run, any of which is this row of Table 3: stage 1's own network may be one of the baselines."""
    if row == OURS:
        return ("train",)
    folders: tuple[str, ...] = (folder_of(row),)
    if row == "balanced_cross_entropy" and stage1_balanced:
        folders += ("pretrain",)
    return folders


def commands(
    task: Task, noise: Noise, *, python: Sequence[str], config: Path, dataset: Path, out: Path, overrides: Sequence[str]
) -> list[tuple[str, ...]]:
    """What is run for a cell, one after the other: first its labels, then all of its training."""
    cell = task.cell
    found: list[tuple[str, ...]] = []
    if noise.kind:
        flips = () if noise.flips is None else ("--flips", noise.flips)
        arguments = ("--name", cell.labels, "--kind", noise.kind, *flips, "--rate", f"{noise.rate:.9g}")
        found.append((*python, "-m", "data_prep", "noise", str(dataset), *arguments, "--rng-seed", str(cell.run)))
    share = () if cell.min_share is None else (f"--mine.min_share={cell.min_share:g}",)
    arguments = (*run_arguments(cell, task.rows, dataset=dataset, folder=out / "runs" / cell.name), *overrides, *share)
    return [*found, (*python, "-m", "twostage", "run", "--config", str(config), *arguments)]


def run_arguments(cell: Cell, rows: Sequence[str], *, dataset: Path, folder: Path) -> tuple[str, ...]:
    """The fields that differ from cell to cell, as arguments of `twostage run`."""
    baselines = ",".join(row for row in rows if row != OURS)
    return (
        f"--run.dir={folder}",
        f"--run.rng_seed={cell.run}",
        f"--run.baselines=[{baselines}]",
        f"--data.dataset={dataset}",
        f"--data.labels={cell.labels}",
        f"--data.clean_labels={GIVEN_LABELS}",
    )


def one_line(command: Sequence[str]) -> str:
    """A command as it can be typed; the interpreter's path is left to the reader."""
    return shlex.join(("python", *command[1:]))
