"""Shards on a node's own disk: whole and checked, or not there."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.slurm.chain import ROOT, SEARCH_PATH, Chain, stub
from tests.slurm.cluster import Cluster


@pytest.fixture
def chain(digits: Path, tmp_path: Path) -> Chain:
    return Chain(Cluster(tmp_path), tmp_path, digits)


def stage_in(chain: Chain, copy: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SETTINGS": str(chain.write()), "SLURMD_NODENAME": "n1"}
    command = [ROOT / "launch" / "slurm" / "stage_in.sh", chain.dataset, copy]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_shards_are_copied_once_and_again_where_they_were_damaged(chain: Chain, tmp_path: Path) -> None:
    copy = tmp_path / "local" / "copy"
    assert "bytes in" in stage_in(chain, copy).stdout
    shards = sorted((copy / "shards").iterdir())
    assert shards and not any(path.is_symlink() for path in shards)
    assert (copy / "labels" / "noisy.parquet").exists()
    inode = shards[0].stat().st_ino
    assert "was there already" in stage_in(chain, copy).stdout
    assert shards[0].stat().st_ino == inode

    os.truncate(shards[0], 5000)
    assert "not whole any more" in stage_in(chain, copy).stdout
    assert shards[0].read_bytes() == (chain.dataset / "shards" / shards[0].name).read_bytes()
    assert sorted(path.name for path in copy.parent.iterdir()) == ["copy", "copy.lock", "copy.tmp.log"]


def test_a_copy_that_is_not_the_dataset_is_refused(chain: Chain, tmp_path: Path) -> None:
    # a disk that gives back something else than was written, in the middle of the first image
    flip = """/bin/cp "$@"; printf X | dd of="$2/000000.tar" bs=1 seek=700 conv=notrunc status=none"""
    chain.settings["PATH"] = f"{stub(tmp_path, 'cp', flip).parent}:{SEARCH_PATH}"
    done = stage_in(chain, tmp_path / "local" / "copy")
    assert done.returncode == 1
    assert "is not the dataset" in done.stderr and "SHA-256" in done.stderr
    assert not (tmp_path / "local" / "copy").exists()


def test_a_disk_that_is_too_small_is_named_before_anything_is_copied(chain: Chain, tmp_path: Path) -> None:
    df = stub(tmp_path, "df", "echo Avail; echo 1000")
    chain.settings["PATH"] = f"{df.parent}:{SEARCH_PATH}"
    done = stage_in(chain, tmp_path / "local" / "copy")
    assert done.returncode == 1
    assert f"{tmp_path / 'local'} has 1000 bytes free, the shards need " in done.stderr
    assert [path.name for path in (tmp_path / "local").iterdir()] == ["copy.lock"]
