"""The check for GPUs, at toy size on whatever there is: it must run to its end, or a GPU's time is lost on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.gpu.__main__ import GRACE
from tests.gpu.part import Part

CHECK = Path(__file__).with_name("check.sh")


def check(out: Path, *options: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """Runs the check; returns its process and what it left in results.json."""
    command = ["bash", str(CHECK), str(out), "--toy", "--work", str(out / "work"), *options]
    environment = {**os.environ, "PYTHON": sys.executable}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    results = out / "results.json"
    return ran, json.loads(results.read_text()) if results.exists() else {}


@pytest.mark.slow
def test_all_parts_run_to_their_end_and_say_what_they_found(tmp_path: Path) -> None:
    ran, results = check(tmp_path)
    log = (tmp_path / "log.txt").read_text()
    assert ran.returncode == 0, f"{ran.stdout}\n{ran.stderr}\n{log}"
    assert list(results["parts"]) == ["data", "correctness", "decoding", "training", "ranking", "limits"]
    for name, part in results["parts"].items():
        assert part["ended"] == "exit code 0" and part["rows"], name
        assert [row["what"] for row in part["rows"] if row["ok"] is not True] == [], name
    table = (tmp_path / "results.md").read_text()
    assert table in ran.stdout and "## training: exit code 0" in table
    assert "| Π step: ours over the plain recipe | yes |" in table


def test_a_part_that_fails_is_noted_and_ends_no_other(tmp_path: Path) -> None:
    ran, results = check(tmp_path, "--parts", "ranking,data", "--seconds", "60")
    assert ran.returncode == 1
    assert results["parts"]["ranking"] | {"seconds": 0} == {"ended": "exit code 1", "rows": [], "seconds": 0}
    assert "is not a dataset" in (tmp_path / "log.txt").read_text()
    assert [row["ok"] for row in results["parts"]["data"]["rows"]] == [True, True]


def test_a_part_that_is_late_is_killed(tmp_path: Path) -> None:
    ran, results = check(tmp_path, "--parts", "data", "--seconds", str(0.2 - GRACE))
    assert ran.returncode == 1 and results["parts"]["data"]["ended"] == "killed after 0 s"
    assert "## data: killed after 0 s" in ran.stdout


def test_an_unknown_part_is_refused(tmp_path: Path) -> None:
    ran, _ = check(tmp_path, "--parts", "data,ranging")
    assert ran.returncode == 2 and "no such part: ranging" in ran.stderr


def test_what_comes_too_late_is_skipped_and_what_fails_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> dict[str, Any]:
        raise ValueError("no\nluck")

    late, failed = {"ok": None, "error": "skipped: no time left"}, {"ok": False, "error": "ValueError: no luck"}
    for seconds, row in (("0", late), ("9", failed)):
        monkeypatch.setattr(sys, "argv", ["part", "--work", str(tmp_path), "--seconds", seconds])
        part = Part("some")
        part.do("first", fail)
        (found,) = part.earlier("some")
        assert found == {"what": "first", **row, "seconds": found["seconds"]}
    assert part.do("second", lambda: {"figure": 3})["figure"] == 3
    assert [found["what"] for found in part.earlier("some")] == ["first", "second"]
