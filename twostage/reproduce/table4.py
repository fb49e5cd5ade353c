"""`reproduce table4`: runs the rows that are missing, each after what it starts from, and writes the table."""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from twostage.cli import parse
from twostage.config import Config
from twostage.data.schema import InputError, nearest, read_marker, write_json
from twostage.reproduce import table4_results, table4_rows
from twostage.reproduce.arguments import CONFIGS
from twostage.reproduce.command import job_environment, num_cores, starts, take_over_stage1, write_early
from twostage.reproduce.grid import UNLESS, one_line
from twostage.reproduce.jobs import Job, Outcome, StoppedError, run_jobs
from twostage.reproduce.table4_rows import ROWS, Row
from twostage.runtime.stage import plain

OPTIONS: Final = ("dataset", "format", "noise", "shares", "runs")     # of the other tables
NO_RESULT: Final = ("run.dir", "data.dataset", "loader.", "runtime.")
"""settings that change no result, or are told apart in another way; some of them do"""
BUT: Final = ("loader.window_shards", "runtime.precision")


@dataclass(frozen=True)
class Plan:
    """All that one call is about."""

    out: Path
    data: Path
    """the dataset on disk"""
    rows: list[Row]
    configs: dict[int, Config]
    """by row"""
    arguments: dict[int, tuple[str, ...]]
    """of `twostage run`, by row"""
    python: tuple[str, ...]

    def command(self, row: Row) -> tuple[str, ...]:
        """What is run for a row."""
        return (*self.python, "-m", "twostage", "run", *self.arguments[row.number])


def reproduce(args: argparse.Namespace, python: tuple[str, ...]) -> int:
    """0: all rows that were asked for are there; 1: some failed; 128 + n: stopped by signal n.

    Raises:
        InputError: an argument is wrong, the dataset lacks a split, or the folder holds rows of other settings.
    """
    plan = make_plan(args, python)
    if args.dry_run:
        check_settings(plan, note=False)
        for row in plan.rows:
            state = "there" if row.is_done(plan.out) else "missing"
            print(f"{row.title}: {state}")
            if state == "missing":
                print(f"  {one_line(plan.command(row))}")
        return 0
    plan.out.mkdir(parents=True, exist_ok=True)
    check_settings(plan)
    environment = functools.partial(job_environment, os.environ, num_parallel=args.jobs, num_cores=num_cores())
    try:
        outcomes = run_jobs(
            make_jobs(plan),
            num_parallel=args.jobs,
            environment=environment,
            say=_say,
            ended=functools.partial(_ended, plan),
        )
    except StoppedError as stopped:
        print(f"stopped by {stopped}; the same command goes on where this one stopped", file=sys.stderr)
        return 128 + stopped.number
    print("\n".join(_write(plan)), flush=True)
    failed = [outcome for outcome in outcomes if outcome.code]
    if failed:
        print(f"{len(failed)} of {len(outcomes)} rows failed; the same command tries them again:", file=sys.stderr)
        for outcome in failed:
            print(f"  {outcome.name}: {outcome.error}", file=sys.stderr)
    return 1 if failed else 0


def make_plan(args: argparse.Namespace, python: tuple[str, ...]) -> Plan:
    """Checks all arguments, every row's settings, and that the dataset has the splits.

    Raises:
        InputError: see `reproduce`.
    """
    for option in OPTIONS:
        if getattr(args, option) is not None:
            raise InputError(f"--{option} does not go with table4")
    if args.jobs < 1:
        raise InputError(f"--jobs {args.jobs}: give 1 or more")
    if args.data is None:
        raise InputError("--data is missing: name a dataset; `data_prep build SOURCE OUT --format clothing1m` makes it")
    marker = read_marker(args.data)
    overrides = table4_rows.check_overrides(args.overrides)
    folder = args.config or CONFIGS / "clothing1m"
    rows = table4_rows.chosen(args.rows or ())
    arguments: dict[int, tuple[str, ...]] = {}
    configs: dict[int, Config] = {}
    for row in rows:
        arguments[row.number] = table4_rows.run_arguments(
            row, config=folder, dataset=args.data, out=args.out, overrides=overrides
        )
        configs[row.number] = config = parse("run", "", list(arguments[row.number]))
        splits = [config.data.train_split, config.data.test_split]
        splits += [config.data.val_split] if config.data.holdout is None else []
        splits += [config.data.clean_split] if row.training_set != "1M" else []
        for split in splits:
            if split not in marker["splits"]:
                raise InputError(f"{row.title}: {args.data} has no split {split!r}; {nearest(split, marker['splits'])}")
    return Plan(args.out, args.data, rows, configs, arguments, python)


def make_jobs(plan: Plan) -> list[Job]:
    """One job per row, in an order in which they can be run."""
    return [
        Job(
            name=row.title,
            commands=[plan.command(row)],
            log=plan.out / "logs" / f"{row.name}.log",
            done=functools.partial(row.is_done, plan.out),
            after=_before(plan, row),
            prepare=functools.partial(prepare, plan, row),
        )
        for row in plan.rows
    ]


def prepare(plan: Plan, row: Row) -> None:
    """Makes the run folder, with a note of every time that it was begun, and takes over what another row has done."""
    folder = row.folder(plan.out)
    folder.mkdir(parents=True, exist_ok=True)
    marker, command = folder / "row.json", one_line(plan.command(row))
    source = None if row.shares is None else ROWS[row.shares].folder(plan.out)
    taken = [] if source is None else [
        stage for stage in row.stages if (source / stage / "done.json").exists() and not (folder / stage).exists()
    ]
    started = starts(marker, source=source / "row.json" if source is not None and taken else None)
    write_json(marker, {"row": row.number, "command": command, "started": started})
    if source is not None:
        take_over_stage1(source, folder, taken)
    _say(f"{row.title}: {command}")


def check_settings(plan: Plan, *, note: bool = True) -> None:
    """Checks that the settings of each row are the same as before; with `note`, notes those of new rows.

    Raises:
        InputError: a row was begun with other settings, or on other images.
    """
    path = plan.out / "settings-table4.json"
    before: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
    digest = read_marker(plan.data)["samples_sha256"]
    now = {}
    for row in plan.rows:
        settings = {"dataset": digest}
        for key, value in plain(plan.configs[row.number]).items():
            kept = not key.startswith(NO_RESULT) or key in BUT or value != UNLESS.get(key, value)
            if kept and (row.starts_from is None or key != row.field):
                settings[key] = value
        now[row.name] = settings
        was = before.get(row.name, settings)
        changed = [key for key in {**was, **settings} if was.get(key) != settings.get(key)]
        if changed:
            changes = (f"{key}: {json.dumps(was.get(key))} -> {json.dumps(settings.get(key))}" for key in changed)
            raise InputError(
                f"{row.folder(plan.out)} was begun with other settings (then -> now): {', '.join(changes)}; choose "
                f"another --out, or delete that folder and the row's part of {path}"
            )
    if note:
        write_json(path, {**before, **now})


def _before(plan: Plan, row: Row) -> str | None:
    """Name of the job that has to end first."""
    number = row.starts_from if row.starts_from is not None else row.shares
    return ROWS[number].title if number is not None and ROWS[number] in plan.rows else None


def _write(plan: Plan) -> list[str]:
    missing = [row.title for row in plan.rows if not row.is_done(plan.out)]
    return table4_results.write(plan.out, read_marker(plan.data), missing)


def _ended(plan: Plan, outcome: Outcome) -> None:
    if outcome.code:
        print(f"{outcome.name}: failed: {outcome.error}", file=sys.stderr, flush=True)
    elif outcome.seconds:
        _say(f"{outcome.name}: done in {outcome.seconds:.0f} s")
        write_early(functools.partial(_write, plan))
    else:
        _say(f"{outcome.name}: already there")


def _say(line: str) -> None:
    print(line, flush=True)
