"""The verb `reproduce`: makes the data set and its labels, runs the cells that are missing, and writes the table."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from twostage.data.schema import InputError, read_marker, write_json
from twostage.reproduce import grid
from twostage.reproduce.arguments import Grid, make_parser, make_plan, source_note
from twostage.reproduce.grid import Task
from twostage.reproduce.jobs import Job, Outcome, StoppedError, run_jobs
from twostage.reproduce.pages import write_pages
from twostage.reproduce.results import digest, settings

COPIED: Final = ("pretrain", "rank")
LEFT_BEHIND: Final = ("checkpoints", "tensorboard", ".*")       # of a stage that another cell takes over


def main(arguments: Sequence[str], *, python: Sequence[str] = (sys.executable,)) -> int:
    """Runs the verb; 0: all cells are there; 1: some failed; 2: wrong input; 128 + n: stopped by signal n.

    Args:
        python: the command that stands before `-m twostage run …` and `-m data_prep …`.

    Raises:
        InputError: a name or setting is wrong, or the folder holds results of other settings.
    """
    args = make_parser().parse_args(arguments)
    if args.table == "table4":
        from twostage.reproduce import table4  # which knows this module

        return table4.reproduce(args, tuple(python))
    plan = make_plan(args, tuple(python))
    if args.dry_run:
        _check_settings(plan, note=False)
        _show(plan)
        return 0
    plan.out.mkdir(parents=True, exist_ok=True)
    environment = functools.partial(job_environment, os.environ, num_parallel=args.jobs, num_cores=num_cores())
    run = functools.partial(run_jobs, num_parallel=args.jobs, environment=environment, say=_say)
    try:
        built = run([_build_job(args, plan)], ended=functools.partial(_ended, None))
        if built[0].code:
            return 2 if built[0].code == 2 else 1
        read_marker(plan.data)
        _check_settings(plan, note=True)
        outcomes = run([_job(plan, task) for task in plan.tasks], ended=functools.partial(_ended, plan))
    except StoppedError as stopped:
        print(f"stopped by {stopped}; the same command goes on where this one stopped", file=sys.stderr)
        return 128 + stopped.number
    failed = [outcome for outcome in outcomes if outcome.code]
    _write(plan, say=True)
    if failed:
        print(f"{len(failed)} of {len(outcomes)} cells failed; the same command tries them again:", file=sys.stderr)
        for outcome in failed:
            print(f"  {outcome.name}: {outcome.error}", file=sys.stderr)
    return 1 if failed else 0


def job_environment(base: Mapping[str, str], slot: int, *, num_parallel: int, num_cores: int) -> dict[str, str]:
    """Environment of the commands of one slot: the cores are divided, and the GPUs that are named are taken in turn."""
    threads = max(1, num_cores // num_parallel)
    given = base.get("OMP_NUM_THREADS", "")
    if given.isdigit() and int(given):
        threads = min(threads, int(given))
    more = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1"}
    devices = [name for name in base.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    if len(devices) > 1:
        more["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
    return {**base, **more}


def take_over_stage1(source: Path, folder: Path, stages: Sequence[str] = COPIED) -> None:
    """Copies finished stages, the first steps of stage 1, from another run folder; what is there already stays."""
    for stage in stages:
        if (folder / stage).exists():
            continue
        aside = folder / f".{stage}.{os.getpid()}.tmp"
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(source / stage, aside, ignore=shutil.ignore_patterns(*LEFT_BEHIND))
        aside.rename(folder / stage)


def _build_job(args: argparse.Namespace, plan: Grid) -> Job:
    kind = args.format or plan.dataset
    command = (*plan.python, "-m", "data_prep", "build", str(args.data), str(plan.data), "--format", kind)

    def prepare() -> None:
        plan.data.parent.mkdir(parents=True, exist_ok=True)
        write_json(source_note(plan.data), {"--data": str(args.data.resolve()), "--format": kind})

    return Job(
        name=f"dataset {plan.dataset}",
        commands=[command],
        log=plan.out / "logs" / f"dataset-{plan.dataset}.log",
        done=lambda: (plan.data / "dataset.json").exists() or plan.data == args.data,
        prepare=prepare,
    )


def _job(plan: Grid, task: Task) -> Job:
    commands = plan.commands(task)
    return Job(
        name=task.cell.title,
        commands=commands,
        log=plan.out / "logs" / f"{task.cell.name}.log",
        done=functools.partial(plan.is_done, task),
        after=None if task.after is None else task.after.title,
        prepare=functools.partial(_prepare, plan, task, commands[-1]),
    )


def starts(marker: Path, *, source: Path | None = None) -> list[float]:
    """Every time that a run was begun, this one included, by its note; and those of a run that stages come from."""
    notes = [json.loads(note.read_text())["started"] for note in (marker, source) if note is not None and note.exists()]
    return sorted({time.time(), *(start for note in notes for start in note)})


def _prepare(plan: Grid, task: Task, command: Sequence[str]) -> None:
    """Makes the run folder, with a note of which cell it is and of every time that it was begun."""
    folder, cell = plan.folder(task.cell), task.cell
    folder.mkdir(parents=True, exist_ok=True)
    marker, source = folder / "cell.json", None if task.after is None else plan.folder(task.after)
    note = {"dataset": cell.dataset, "noise": cell.noise, "run": cell.run, "command": grid.one_line(command)}
    taken = source is not None and any(not (folder / stage).exists() for stage in COPIED)
    started = starts(marker, source=source / "cell.json" if source is not None and taken else None)
    write_json(marker, {**note, "started": started})
    if source is not None:
        take_over_stage1(source, folder)
    _say(f"{cell.title}: {note['command']}")


def _check_settings(plan: Grid, *, note: bool) -> None:
    """Checks that what the runs of this folder have in common is the same as before; with `note`, notes it at first.

    Raises:
        InputError: the folder was begun with other settings, or on other images.
    """
    now: dict[str, Any] = settings(json.loads(json.dumps(dataclasses.asdict(plan.config), default=str)))
    path = plan.out / f"settings-{plan.dataset}.json"
    before: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    built = note or (plan.data / "dataset.json").exists()
    now["dataset"] = read_marker(plan.data)["samples_sha256"] if built else before.get("dataset")
    if note and not before:
        write_json(path, now)
    before = before or now
    changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if changed:
        listed = ", ".join(f"{key}: {json.dumps(before.get(key))} -> {json.dumps(now.get(key))}" for key in changed)
        raise InputError(
            f"{plan.out} was begun with other settings (then -> now): {listed}; choose another --out, as a table of "
            "different settings means nothing"
        )
    if note:
        _say(f"settings {digest({key: value for key, value in now.items() if key != 'dataset'})}, kept in {path}")


def _ended(plan: Grid | None, outcome: Outcome) -> None:
    if outcome.code:
        print(f"{outcome.name}: failed: {outcome.error}", file=sys.stderr, flush=True)
    elif outcome.seconds:
        _say(f"{outcome.name}: done in {outcome.seconds:.0f} s")
        if plan is not None:
            write_early(functools.partial(_write, plan, say=False))
    else:
        _say(f"{outcome.name}: already there")


def write_early(write: Callable[[], object]) -> None:
    """Writes the tables while other commands are at work, which a folder that cannot be read must not end."""
    try:
        write()
    except InputError as error:
        print(f"the tables are written later: {error}", file=sys.stderr, flush=True)


def _write(plan: Grid, *, say: bool) -> None:
    lines = write_pages(
        plan.table,
        plan.out,
        plan.dataset,
        plan.data,
        config=plan.config,
        noises=list(plan.noises),
        missing=[task.cell.title for task in plan.tasks if not plan.is_done(task)],
    )
    if say:
        print("\n".join(lines), flush=True)


def _show(plan: Grid) -> None:
    for task in plan.tasks:
        state = "there" if plan.is_done(task) else "missing"
        print(f"{task.cell.title}: {state}")
        if state == "missing":
            print("\n".join(f"  {grid.one_line(command)}" for command in plan.commands(task)))


def num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _say(line: str) -> None:
    print(line, flush=True)
