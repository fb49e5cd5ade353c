"""What `make setup` and `make clean` leave, in a folder that has only the Makefile and what it depends on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.digit_runs import ROOT

# In place of pip, on PYTHONPATH: says which Python called it.
PIP = """\
import pathlib, sys
with pathlib.Path("pip-calls").open("a") as file:
    print(sys.prefix, sys.base_prefix, file=file)
"""
# Python, but that its environments are made in a moment.
PYTHON = """\
#!/bin/sh
if [ "$1 $2" = "-m venv" ]; then shift 2; set -- -m venv --without-pip "$@"; fi
exec "{python}" "$@"
"""
OTHER_VERSION = """\
#!/bin/sh
[ "$1" = -c ] || exec touch made
exec "{python}" -c "import sys; sys.version_info = ({version}, 0, 'final', 0)
$2"
"""


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    if shutil.which("make") is None:
        pytest.skip("no make")
    (tmp_path / ".ci").mkdir()
    for name in ("Makefile", "pyproject.toml", ".ci/constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    executable(tmp_path / "modules" / "pip.py", PIP)
    return tmp_path


def make(folder: Path, target: str, python: Path | str = "false") -> subprocess.CompletedProcess[str]:
    """VENV is always said: with one of the environment's, `clean` would remove that."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", target, "VENV=.venv", f"PYTHON={python}"]
    return subprocess.run(command, cwd=folder, env={**own, "PYTHONPATH": str(folder / "modules")}, capture_output=True,
                          text=True, check=False)


def test_clean_removes_the_demo_and_no_other_run(folder: Path) -> None:
    for run in ("runs/first", "runs/demo/run-0"):
        (folder / run).mkdir(parents=True)
        (folder / run / "summary.json").touch()
    (folder / ".venv").mkdir()
    done = make(folder, "clean")
    assert done.returncode == 0, done.stderr
    assert (folder / "runs" / "first" / "summary.json").exists()
    assert not (folder / "runs" / "demo").exists() and not (folder / ".venv").exists()


@pytest.mark.parametrize("version", ["3, 10", "3, 15"])
def test_a_python_that_will_not_do_is_named_before_anything_is_installed(folder: Path, version: str) -> None:
    python = executable(folder / "python3", OTHER_VERSION.format(python=sys.executable, version=version))
    done = make(folder, "setup", python)
    assert done.returncode != 0
    said = f"{python} is Python {version.replace(', ', '.')}; 3.11 to 3.14 will do: make setup PYTHON=python3.12"
    assert said in done.stderr.splitlines()
    assert not (folder / ".venv").exists() and not (folder / "made").exists()


def test_setup_with_another_python_replaces_the_environment_and_with_the_same_keeps_it(folder: Path) -> None:
    old = executable(folder / "old", "#!/bin/sh\necho old\n")
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "python").symlink_to(old)
    (folder / ".venv" / "pyvenv.cfg").touch()
    python = executable(folder / "python3.12", PYTHON.format(python=sys.executable))
    first = make(folder, "setup", python)
    assert first.returncode == 0, first.stderr
    calls = (folder / "pip-calls").read_text().splitlines()
    assert set(calls) == {f"{folder / '.venv'} {sys.base_prefix}"}

    (folder / ".venv" / "installed by hand").touch()
    os.utime(folder / "pyproject.toml", (2**32, 2**32))         # newer, as after a pull
    second = make(folder, "setup", python)
    assert second.returncode == 0, second.stderr
    assert len((folder / "pip-calls").read_text().splitlines()) == 2 * len(calls)
    assert (folder / ".venv" / "installed by hand").exists()
