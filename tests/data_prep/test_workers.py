"""Worker processes: what is wrong with one is said, and nobody waits for ever."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_a_worker_that_dies_before_it_has_read_its_arguments_is_said(tmp_path: Path) -> None:
    """Its main module ends it; the arguments are more than a pipe takes."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from data_prep.workers import run_in_processes\n"
        "if __name__ != '__main__':\n"
        "    sys.exit(7)\n"
        "try:\n"
        "    list(run_in_processes(abs, ((number,) for number in range(9)), 2, print, (bytes(1 << 20),)))\n"
        "except OSError as error:\n"
        "    print('said:', error)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False, env={"PYTHONPATH": root}
    )
    assert "said: [Errno 12] a worker process died" in done.stdout, done.stderr


def test_large_arguments_arrive_and_leave_nothing_behind(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys\n"
        "from data_prep.workers import run_in_processes\n"
        "size = 0\n"
        "def start(data):\n"
        "    global size\n"
        "    size = len(data)\n"
        "def add(number):\n"
        "    return number + size\n"
        "if __name__ == '__main__':\n"
        "    jobs = ((number,) for number in range(5))\n"
        "    print(sorted(run_in_processes(add, jobs, 2, start, (bytes(1 << 20),))))\n"
    )
    root, temporary = Path(__file__).parents[2], tmp_path / "tmp"
    temporary.mkdir()
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=True,
        env={"PYTHONPATH": root, "TMPDIR": temporary},
    )
    assert done.stdout.strip() == str([(1 << 20) + number for number in range(5)])
    assert not list(temporary.iterdir())
