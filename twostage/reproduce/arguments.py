"""From the command line of `reproduce` to a checked plan. Nothing is made or started here."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from twostage.cli import Parser, parse
from twostage.config import Config
from twostage.data.schema import InputError
from twostage.reproduce import grid
from twostage.reproduce.grid import Cell, Noise, Task
from twostage.reproduce.results import is_done

EXAMPLES: Final = """\
examples:
  twostage reproduce table3 --dataset mnist --data mnist --out runs/table3 --noise asym0.6 --runs 5 --jobs 2
  twostage reproduce table3 --dataset cifar10 --data cifar10 --out runs/cifar10 --rows ours --dry-run
  twostage reproduce table4 --data data/clothing1m --out runs/table4 --rows 4 7 12
"""
CONFIGS: Final = Path(__file__).parents[2] / "configs"


@dataclass(frozen=True)
class Grid:
    """All that one call is about."""

    table: str
    out: Path
    dataset: str
    data: Path
    """the dataset on disk"""
    config_file: Path
    config: Config
    """of the first cell; the others differ in what the grid sets"""
    noises: dict[str, Noise]
    tasks: list[Task]
    overrides: tuple[str, ...]
    python: tuple[str, ...]

    def commands(self, task: Task) -> list[tuple[str, ...]]:
        """What is run for a cell."""
        return grid.commands(
            task,
            self.noises[task.cell.noise],
            python=self.python,
            config=self.config_file,
            dataset=self.data,
            out=self.out,
            overrides=self.overrides,
        )

    def folder(self, cell: Cell) -> Path:
        """The run folder of a cell."""
        return self.out / "runs" / cell.name

    def is_done(self, task: Task) -> bool:
        """Whether all that is wanted of a cell is there."""
        folder = self.folder(task.cell)
        ranked = self.table != "table2" or (folder / "rank" / "done.json").exists()     # its labels are counted
        return ranked and is_done(folder, task.rows, stage1_balanced=self.config.pretrain.balance)


def make_parser() -> Parser:
    """The command line; every option is explained in its help."""
    parser = Parser(
        prog="twostage reproduce",
        allow_abbrev=False,
        description="Make a table of the paper: every cell is one run, and only what is missing is run, so that the\n"
        "same command goes on after anything. Writes OUT/TABLE-DATASET.md and .html, ours beside the paper's, and all\n"
        "figures to OUT/results.parquet.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("table", help=f"which table: {', '.join(grid.TABLES)}, table4")
    parser.add_argument("--dataset", help="mnist or cifar10 (mnist for table3, cifar10 for table1 and table2)")
    parser.add_argument("--data", type=Path, metavar="SOURCE", help="a dataset, or what `data_prep build` makes one of")
    parser.add_argument("--format", help="of SOURCE, for `data_prep build` (the data set's name)")
    parser.add_argument("--out", type=Path, required=True, help="folder for everything that is made")
    parser.add_argument(
        "--rows", nargs="+", metavar="ROW",
        help=f"of table3: {', '.join(grid.ROWS)} (those of the paper). Ours, the two-stage method, is always run: "
        "other rows need its first stage. Of table4: 1 to 13 (all), to which those are added that they start from",
    )
    parser.add_argument(
        "--noise", nargs="+", metavar="NOISE",
        help="p0, sym0.2, asym0.2, asym0.6, or another rate; for mnist also asym0.6-text, where 5 becomes 6 but 6 "
        "stays 6 (all of the paper; for table2 asym0.6)",
    )
    parser.add_argument("--runs", type=int, metavar="N", help="runs per cell, seeds 0 to N-1 (5; of table4 one)")
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="J",
        help="runs at a time (%(default)s). Each gets an equal part of the cores; a GPU is shared, several that "
        "CUDA_VISIBLE_DEVICES names are taken in turn. Small networks are fastest with one job per core",
    )
    parser.add_argument(
        "--shares", nargs="+", metavar="SHARE", help="of table1: labels kept of each class, 0 to 1 (0.05 0.1 0.2 0.5)"
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE",
        help="of all runs (configs/DATASET/table3.yaml); of table4 a folder with row01.yaml and so on "
        "(configs/clothing1m)",
    )
    parser.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="SECTION.KEY=VALUE",
        help="changes a setting of all runs; may be given several times",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be run, and with which commands")
    return parser


def make_plan(args: argparse.Namespace, python: tuple[str, ...]) -> Grid:
    """Checks all arguments.

    Raises:
        InputError: a name or setting is wrong; names the nearest.
    """
    table = grid.check_name("reproduce", args.table, (*grid.TABLES, "table4"))
    default = "mnist" if table == "table3" else "cifar10"
    dataset = grid.check_name("--dataset", args.dataset or default, grid.DATASETS)
    names = grid.split_names(args.noise or (["asym0.6"] if table == "table2" else grid.NOISES[dataset]))
    noises = {noise.name: noise for noise in (grid.parse_noise(name, dataset) for name in names)}
    for option, value, wanted in (("--rows", args.rows, "table3"), ("--shares", args.shares, "table1")):
        if value and table != wanted:
            raise InputError(f"{option} goes with {wanted}, not with {table}")
    rows = [grid.check_name("--rows", row, grid.ROWS) for row in grid.split_names(args.rows or ())]
    rows = rows or list(grid.default_rows(table))
    runs = 5 if args.runs is None else args.runs
    for option, value in (("--runs", runs), ("--jobs", args.jobs)):
        if value < 1:
            raise InputError(f"{option} {value}: give 1 or more")
    overrides = grid.check_overrides(args.overrides)
    config_file = args.config or CONFIGS / dataset / "table3.yaml"
    if not config_file.is_file():
        problem = f"{config_file} is a folder" if config_file.exists() else f"no configuration {config_file}"
        raise InputError(f"{problem}: name a file by --config; a folder goes with table4 alone")
    data = _data(args, dataset)
    first = Cell(dataset, next(iter(noises)), 0)
    arguments = grid.run_arguments(first, rows, dataset=data, folder=args.out / "runs" / first.name)
    config = parse("run", "", ["--config", str(config_file), *arguments, *overrides])
    tasks = grid.plan(
        table,
        dataset=dataset,
        noises=list(noises),
        rows=rows,
        runs=runs,
        shares=_shares(args.shares),
        min_share=config.mine.min_share,
    )
    return Grid(table, args.out, dataset, data, config_file, config, noises, tasks, overrides, python)


def _shares(values: Sequence[str] | None) -> tuple[float, ...]:
    if not values:
        return grid.SHARES
    shares = []
    for value in grid.split_names(values):
        try:
            share = float(value)
        except ValueError:
            share = -1.0
        if not 0 < share <= 1:
            raise InputError(f"--shares {value}: give numbers above 0 and at most 1, such as 0.05 for 5 %")
        shares.append(share)
    return tuple(shares)


def _data(args: argparse.Namespace, dataset: str) -> Path:
    """Where the dataset lies, or will lie when it is built."""
    built: Path = args.out / "datasets" / dataset
    if args.data is None:
        if not (built / "dataset.json").exists():
            raise InputError(f"--data is missing: there is no {built} yet; name a dataset, or what one is made of")
        return built
    source: Path = args.data
    if not source.exists():
        raise InputError(f"--data {source}: no such file or folder")
    if source.is_dir() and ((source / "dataset.json").exists() or (source / "samples.parquet").exists()):
        return source
    _check_source(built, {"--data": str(source.resolve()), **({"--format": args.format} if args.format else {})})
    return built


def source_note(built: Path) -> Path:
    """File beside a dataset that says what it was built from, as it was given: --data and --format."""
    return built.with_name(f"{built.name}.source.json")


def _check_source(built: Path, given: dict[str, str]) -> None:
    """That a dataset which is there was built from what is named now; of an older one, that is not known.

    Raises:
        InputError: it was built from something else.
    """
    note = source_note(built)
    if not note.exists() or not (built / "dataset.json").exists():
        return
    try:
        before = dict(json.loads(note.read_text()))
    except (ValueError, TypeError) as error:
        raise InputError(f"{note} is damaged ({error}): delete it if {built} was built from what you name") from error
    changed = [f"{option} {before.get(option)} -> {value}" for option, value in given.items()
               if before.get(option) != value]
    if changed:
        raise InputError(
            f"{built} was built from something else (then -> now): {', '.join(changed)}; choose another --out, or "
            "leave out --data and --format to go on with it"
        )
