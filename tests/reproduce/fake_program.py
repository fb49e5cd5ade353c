"""Stands in for `python`: `twostage run` only pretends to train, and leaves the same files; fast, as it starts often.

It may be killed at any instant. Two at a time in one folder, or work done twice, are noted in OUT/offences.
FAKE_FAIL: name of a cell that fails. FAKE_SLEEP: seconds that each model takes. FAKE_PIDS: file that gets process ids.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import runpy
import signal
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def accuracy(labels: str, seed: int, model: str, min_share: float) -> float:
    """A made-up figure that follows from these alone."""
    digest = hashlib.sha256(f"{labels} {seed} {model} {min_share:g}".encode()).digest()
    return 0.5 + digest[0] / 512


def write(path: Path, value: Any) -> None:
    """JSON, aside and renamed; also YAML, which holds JSON."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    aside.write_text(json.dumps(value))
    aside.rename(path)


def make(folder: Path, files: dict[str, Any], offences: Path, inputs: dict[str, Any] | None = None) -> None:
    """A stage: nothing of it counts before done.json, which is written last; with other inputs it is done again."""
    marker, inputs = folder / "done.json", inputs or {}
    if marker.exists():
        if json.loads(marker.read_text())["inputs"] == inputs:
            return
        marker.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "inputs.json", {"inputs": inputs})
    time.sleep(float(os.environ.get("FAKE_SLEEP", "0.05")))
    for name, content in files.items():
        write(folder / name, content)
    if marker.exists():
        offences.write_text(f"{folder} was done twice\n")
    write(marker, {"inputs": inputs, "results": {"kept": 5, "images": 10, "purity": 0.9, "coverage": 0.5}})


def mine(folder: Path, offences: Path) -> None:
    """The seeds, as far as a table reads them."""
    if not (folder / "classes.parquet").exists():
        folder.mkdir(parents=True, exist_ok=True)
        row = {"images": 10, "kept": 5, "purity": 0.9, "coverage": 0.5}
        aside = folder / f".classes.{os.getpid()}.tmp"
        pq.write_table(pa.Table.from_pylist([row] * 10), aside)
        aside.rename(folder / "classes.parquet")
    make(folder, {}, offences)


def run(arguments: list[str]) -> int:
    """`twostage run`, for arguments of the form --section.key=value."""
    given = dict(argument[2:].split("=", 1) for argument in arguments if "=" in argument)
    folder, seed, labels = Path(given["run.dir"]), int(given["run.rng_seed"]), given["data.labels"]
    min_share = float(given.get("mine.min_share", "0.1"))
    offences = folder.parents[1] / "offences"
    if "FAKE_PIDS" in os.environ:
        with Path(os.environ["FAKE_PIDS"]).open("a") as file:
            file.write(f"{os.getpid()} {os.environ['OMP_NUM_THREADS']} {os.environ['OMP_WAIT_POLICY']}\n")
    if folder.name == os.environ.get("FAKE_FAIL"):
        print("error: the disk is made of cheese", file=sys.stderr)
        print("a line that comes after it")
        return 2
    busy = (folder / "busy").open("w")
    try:
        fcntl.flock(busy, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        offences.write_text(f"two at a time in {folder}\n")
        return 1
    config = {"run": {"rng_seed": seed}, "data": {"labels": labels}, "mine": {"min_share": min_share}}
    write(folder / "config.yaml", {**config, "pretrain": {"balance": True}})
    write(folder / "environment.json", {"git_commit": "abc"})
    for stage in ("pretrain", "rank"):
        make(folder / stage, {"model.json": str(uuid.uuid4())}, offences)
    baselines = [name for name in given["run.baselines"].strip("[]").split(",") if name]
    mine(folder / "mine", offences)
    for model in ("train", *(f"baseline_{name}" for name in baselines)):
        make(folder / model, {"model.safetensors": str(uuid.uuid4())}, offences)
        weights = hashlib.sha256((folder / model / "model.safetensors").read_bytes()).hexdigest()
        value = accuracy(labels, seed, model, min_share)
        test = {"accuracy": value, "per_class": [value] * 10, "num_samples": 100, "class_names": list("0123456789")}
        make(folder / "evaluate" / model, {"test.json": test}, offences, {"weights": weights})
    return 0


def main() -> int:
    assert sys.argv[1] == "-m"
    module, verb, *arguments = sys.argv[2:]
    if module == "data_prep":
        if verb == "noise" and (Path(arguments[0]) / "labels" / f"{arguments[2]}.parquet").exists():
            return 0
        sys.argv = [module, verb, *arguments]
        runpy.run_module(module, run_name="__main__")
    assert (module, verb) == ("twostage", "run")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
