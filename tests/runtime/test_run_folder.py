"""One command at a time works in a run folder; one that nothing can be written to is refused with a remedy."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.digit_runs import ROOT
from twostage.data.schema import InputError
from twostage.runtime import run_folder, status

AT_WORK = """
import sys
from pathlib import Path
from twostage.runtime import run_folder, status
run_dir = Path(sys.argv[1])
with status.reported(run_dir, "train"):
    run_folder.occupy(run_dir, "train")
    print("at work", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another command, which began in a folder that was not there, and is at work until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", AT_WORK, str(tmp_path / "run")],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "at work\n"
    yield process
    process.communicate()


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def work(run_dir: Path) -> None:
    with status.reported(run_dir, "pretrain"):
        run_folder.occupy(run_dir, "pretrain")


def test_a_second_command_is_refused_and_leaves_the_first_alone(
    other: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"
    status.write(run_dir, "running", "train")
    before = (run_dir / "status.json").read_bytes()
    with pytest.raises(InputError, match=f"in use by `twostage train`, process {other.pid} on {os.uname().nodename}"):
        work(run_dir)
    assert (run_dir / "status.json").read_bytes() == before
    work(tmp_path / "another")
    monkeypatch.setenv("RANK", "1")
    work(run_dir)           # of the same launch: rank 0 is that process
    monkeypatch.delenv("RANK")
    other.communicate()
    work(run_dir)
    assert names(run_dir) == ["status.json"]


def test_a_command_that_was_killed_keeps_nobody_out(other: subprocess.Popen[str], tmp_path: Path) -> None:
    other.send_signal(signal.SIGKILL)
    work(tmp_path / "run")
    assert names(tmp_path / "run") == ["status.json"]


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", without)
    work(tmp_path)
    found = status.read(tmp_path)
    assert found is not None and found["state"] == "done" and names(tmp_path) == ["status.json"]


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder that nothing can be written to."""
    folder = tmp_path / "read_only"
    folder.mkdir(mode=0o555)
    if os.geteuid() != 0:
        yield folder
        return
    mount = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("root can write everywhere, and no file system can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_folder_that_cannot_be_written_to(read_only: Path) -> None:
    for run_dir in (read_only, read_only / "run"):
        with pytest.raises(InputError, match=rf"nothing can be written to {run_dir} \(.*\): give another run\.dir"):
            work(run_dir)


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for run_dir in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(InputError, match=r"run\.dir: .* a file is in the way: give another"):
            work(run_dir)


def test_a_rank_that_is_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "x")
    with pytest.raises(InputError, match="RANK is 'x', which is no number"):
        work(tmp_path)
