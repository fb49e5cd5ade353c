"""The results as a JSON file and a Markdown table, with the hardware and the versions that they belong to."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.bench.contest import Contest
from tests.bench.peer import PACKAGES, PINS, ROOT

PACKAGES_NAMED = (
    "torch", "nvidia-dali-cuda130", "nvidia-dali-cuda120", "numpy", "pyarrow", "pillow", "webdataset", "accelerate",
    "pandas", "polars", "duckdb", "cleanlab", "simplejpeg",
)


def surroundings() -> dict[str, Any]:
    """Hardware, versions, commit and time."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    versions = {"python": platform.python_version()}
    for name in PACKAGES_NAMED:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    for pins in sorted(PINS.glob("*.txt")):
        if (PACKAGES / pins.stem / ".ready").exists():
            versions[pins.stem] = pins.read_text().splitlines()[0].partition("==")[2]
    if tar := shutil.which("tar"):
        said = subprocess.run([tar, "--version"], capture_output=True, text=True, check=False).stdout
        versions["tar"] = said.partition("\n")[0]
    return {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip() or "unknown",
        "hardware": {"cpu": _cpu(), "cores": len(os.sched_getaffinity(0)), "memory_gib": round(_memory_gib(), 1)},
        "versions": versions,
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def write(out: Path, facts: dict[str, Any], results: dict[str, Sequence[Contest]]) -> None:
    """Writes results.json and results.md, anew after each comparison: what is stopped leaves what it had."""
    out.mkdir(parents=True, exist_ok=True)
    found = {name: [contest.record() for contest in contests] for name, contests in results.items()}
    (out / "results.json").write_text(json.dumps(facts | {"comparisons": found}, indent=1) + "\n")
    (out / "results.md").write_text(markdown(facts, results))


def markdown(facts: dict[str, Any], results: dict[str, Sequence[Contest]]) -> str:
    """One section per comparison, one table per contest."""
    hardware = facts["hardware"]
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    lines = [
        "# Side by side",
        "",
        f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['memory_gib']} GiB; commit {facts['commit']}; "
        f"{facts['made']}; {versions}. Medians; a ratio above 1 means that ours is faster.",
    ]
    for name, contests in results.items():
        lines += ["", f"## {name}"]
        for contest in contests:
            lines += ["", *contest_lines(contest)]
    return "\n".join(lines) + "\n"


def contest_lines(contest: Contest) -> list[str]:
    """A table of the sides, and a line for each target and note."""
    lines = [f"**{contest.title}**", "", f"| side | {contest.unit} | ours / it | MiB |", "|---|---|---|---|"]
    ours = next(iter(contest.rates), None)
    for side in contest.rates:
        ratio = "" if ours is None or side == ours else f"{contest.rate(ours) / contest.rate(side):.2f}"
        mib = f"{contest.mib[side]:,.0f}" if side in contest.mib else ""
        lines.append(f"| {side} | {_rate(contest.rate(side))} | {ratio} | {mib} |")
    lines += [f"| {side} | missing: {why.replace('|', '/')} | | |" for side, why in contest.missing.items()]
    lines.append("")
    for target in contest.targets:
        found, met = contest.found(target), contest.met(target)
        verdict = {True: "met", False: "MISSED", None: "not measured"}[met]
        lines.append(f"- target {target.text}: {verdict}" + ("" if found is None else f" ({_rate(found)})"))
    return lines + [f"- {note}" for note in contest.notes]


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
