"""What can be said of the scripts without SLURM."""

from __future__ import annotations

import fcntl
import os
import pwd
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.slurm.chain import ROOT, Chain, stub
from tests.slurm.cluster import Cluster

SCRIPTS = sorted(path for kind in ("*.sh", "*.sbatch") for path in (ROOT / "launch" / "slurm").glob(kind))


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    """With an empty queue, and a dataset to build."""
    squeue = stub(tmp_path, "squeue", "true")
    settings = {"SOURCE": str(tmp_path), "PATH": f"{squeue.parent}:$PATH"}
    return Chain(Cluster(tmp_path), tmp_path, tmp_path / "dataset", settings=settings)


def scripts(lines: list[str]) -> list[str]:
    """What the printed commands would submit."""
    return [match[1] for line in lines if (match := re.match(r"sbatch .* launch/slurm/(\w+)\.sbatch ", line))]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_bash_can_read_it(path: Path) -> None:
    assert subprocess.run(["bash", "-n", path], check=False).returncode == 0


def test_a_job_without_the_variable_user_can_read_the_settings() -> None:
    done = subprocess.run(
        ["bash", "-euc", "source launch/slurm/settings.sh; echo $RUN_DIR"],
        cwd=ROOT, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=False,
    )
    assert done.stdout == f"/shared/{pwd.getpwuid(os.geteuid()).pw_name}/runs/first\n", done.stderr


def test_shellcheck_finds_nothing() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck: apt-get install shellcheck")
    done = subprocess.run(["shellcheck", "-x", *SCRIPTS], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_dry_run_prints_the_chain_and_submits_nothing(chain: Chain) -> None:
    printed = chain.call("--dry-run")
    assert printed.returncode == 0, printed.stderr
    lines = printed.stdout.splitlines()
    assert scripts(lines) == ["prep", "merge", "pretrain", "rank", "train"]
    assert "--array=1-2" in lines[0] and "--dependency" not in lines[0]
    for line, before in zip(lines[1:], ("prep", "merge", "pretrain", "rank"), strict=True):
        assert rf"--dependency=afterok:\<{before}\> --kill-on-invalid-dep=yes" in line
    assert not chain.run_dir.exists()


def test_what_is_done_is_left_out(chain: Chain) -> None:
    chain.dataset.mkdir()
    (chain.dataset / "dataset.json").touch()
    for stage in ("pretrain", "rank"):
        (chain.run_dir / stage).mkdir(parents=True)
        (chain.run_dir / stage / "done.json").touch()
    first, *rest = chain.call("--dry-run").stdout.splitlines()
    assert first == "prep: done"
    assert "pretrain: done" in rest
    assert scripts(rest) == ["merge", "rank", "train"]      # not verified; not mined


@pytest.mark.parametrize(("settings", "message"), [
    ({"SOURCE": ""}, "DATASET: no dataset in"),
    ({"LAUNCHER": "mpirun"}, "LAUNCHER is 'mpirun'; known: srun, accelerate"),
    ({"LAUNCHER": "accelerate"}, "ACCELERATE_CONFIG: no such file"),
    ({"DEEPSPEED": "zero7.json"}, "DEEPSPEED: no such file: zero7.json"),
    ({"DEEPSPEED": "launch/deepspeed/zero1.json", "LAUNCHER": "accelerate"}, "DEEPSPEED goes with LAUNCHER=srun"),
])
def test_wrong_settings_are_named(chain: Chain, settings: dict[str, str], message: str) -> None:
    chain.settings |= settings
    done = chain.call()
    assert done.returncode == 2
    assert message in done.stderr
    assert not chain.run_dir.exists()


def test_a_setting_that_is_missing_is_named(chain: Chain) -> None:
    path = chain.write()
    path.write_text(re.sub("(?m)^STAGE_DIR=.*$", "", path.read_text()))
    done = chain.cluster.call([str(ROOT / "launch" / "slurm" / "submit.sh"), str(path), "--dry-run"])
    assert done.returncode == 2 and "does not say STAGE_DIR" in done.stderr


def test_wrong_arguments_are_named(tmp_path: Path) -> None:
    for arguments, message in (([], "usage: "), (["--dryrun"], "unknown option --dryrun"),
                               ([str(tmp_path / "none.sh")], "no such file: ")):
        done = subprocess.run([ROOT / "launch" / "slurm" / "submit.sh", *arguments], capture_output=True, text=True,
                              check=False)
        assert done.returncode == 2 and message in done.stderr


def test_a_second_submit_is_refused_and_nobody_is_where_the_file_system_knows_no_locks(chain: Chain) -> None:
    stub(chain.folder, "sbatch", "echo 7")
    (chain.run_dir / "slurm").mkdir(parents=True)
    with (chain.run_dir / "slurm" / "submit.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused = chain.call()
        assert refused.returncode == 2 and "another submit.sh is at work on" in refused.stderr
        assert "submitted" not in refused.stdout
    stub(chain.folder, "flock", "echo flock: 9: Function not implemented >&2; exit 65")
    assert list(chain.submit()) == ["prep", "merge", "pretrain", "rank", "train"]
