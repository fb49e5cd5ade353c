"""Runs the parts one after the other, each in a process of its own; writes results.json and results.md as they come."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

Row = dict[str, Any]

PARTS = {"data": 50, "correctness": 80, "decoding": 100, "training": 190, "ranking": 70, "limits": 20}
"""seconds of each part where all have 510"""
NOT_FIGURES = ("what", "ok", "options", "loader", "error", "message")
GRACE = 25
"""seconds beyond its time after which a part is killed: what it measures last takes some"""


def main() -> int:
    """Says by its exit code whether every check passed and every part came to its end."""
    parser = argparse.ArgumentParser(prog="tests/gpu/check.sh")
    parser.add_argument("out", type=Path, help="folder for results.json, results.md and log.txt")
    parser.add_argument("--seconds", type=float, default=sum(PARTS.values()), help="of all parts (%(default)s)")
    parser.add_argument("--parts", default=",".join(PARTS), help="which ones, in this order (%(default)s)")
    parser.add_argument("--work", type=Path, help="folder for what is made on the way; a new one by default")
    parser.add_argument("--toy", action="store_true", help="sizes for a CPU, where only running to the end counts")
    arguments = parser.parse_args()
    names = arguments.parts.split(",")
    unknown = set(names) - set(PARTS)
    if unknown:
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    work = arguments.work or Path(tempfile.mkdtemp(prefix="gpu-check-"))
    work.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"machine": machine(), "toy": arguments.toy, "parts": {}}
    scale = arguments.seconds / sum(PARTS[name] for name in names)
    with (arguments.out / "log.txt").open("w") as log:
        for name in names:
            results["parts"][name] = {"ended": "running", "rows": []}
            run_part(name, PARTS[name] * scale, work, arguments, results, log)
    print((arguments.out / "results.md").read_text())
    parts = results["parts"].values()
    return 0 if all(p["ended"] == "exit code 0" and all(r["ok"] is not False for r in p["rows"]) for p in parts) else 1


def run_part(
    name: str, seconds: float, work: Path, arguments: argparse.Namespace, results: dict[str, Any], log: Any
) -> None:
    """Starts a part and waits, writing the results as they come; kills it, and all that it started, when it is late."""
    command = [sys.executable, "-m", f"tests.gpu.{name}", "--work", str(work), "--seconds", str(seconds)]
    started = time.monotonic()
    process = subprocess.Popen(
        [*command, *(["--toy"] if arguments.toy else [])], stdout=log, stderr=log, start_new_session=True
    )
    part, rows = results["parts"][name], work / f"{name}.json"
    rows.unlink(missing_ok=True)
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=1)
        late = process.poll() is None and time.monotonic() - started > seconds + GRACE
        if late:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.returncode is not None:
            part["ended"] = f"killed after {seconds + GRACE:.0f} s" if late else f"exit code {process.returncode}"
        part["rows"] = json.loads(rows.read_text()) if rows.exists() else []
        part["seconds"] = round(time.monotonic() - started, 1)
        write(arguments.out, results)
        if process.returncode is not None:
            return


def write(out: Path, results: dict[str, Any]) -> None:
    """Writes both files aside and renames them."""
    texts = {"results.json": json.dumps(results, indent=1, ensure_ascii=False), "results.md": markdown(results)}
    for name, text in texts.items():
        aside = out / f".{name}"
        aside.write_text(text + "\n")
        aside.replace(out / name)


def markdown(results: dict[str, Any]) -> str:
    """A table for each part."""
    lines = [f"# GPU check{' (toy size)' if results['toy'] else ''}", ""]
    lines += [f"- {name}: {value}" for name, value in results["machine"].items()]
    for name, part in results["parts"].items():
        lines += ["", f"## {name}: {part['ended']}, {part.get('seconds', 0)} s", ""]
        if part["rows"]:
            lines += ["| | ok | figures |", "|---|---|---|"]
        for row in part["rows"]:
            ok = {True: "yes", False: "**NO**", None: "-"}[row["ok"]]
            figures = [f"{key.replace('_', ' ')} {row[key]}" for key in row if key not in NOT_FIGURES]
            cells = [row["what"] + (f": {row['error']}" if "error" in row else ""), ok, ", ".join(figures)]
            lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    return "\n".join(lines)


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    found = {"processor": f"{platform.machine()}, {os.cpu_count()} cores", "python": platform.python_version()}
    for distribution in importlib.metadata.distributions():
        name = distribution.name.lower()
        if name in ("torch", "triton", "numpy", "accelerate", "pyarrow") or name.startswith("nvidia-dali"):
            found.setdefault(name, distribution.version)
    try:
        query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
        found["gpu"] = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip() or "none"
    except FileNotFoundError:
        found["gpu"] = "none"
    return found


if __name__ == "__main__":
    sys.exit(main())
