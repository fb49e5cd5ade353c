"""A real SLURM for these tests, started once."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.chain import NOISE
from tests.slurm.cluster import Cluster, running_cluster, why_not


@pytest.fixture(scope="session")
def running() -> Iterator[Cluster]:
    """The daemons, for all tests."""
    problem = why_not()
    if problem is not None:
        pytest.skip(problem)
    with running_cluster(Path(tempfile.mkdtemp(prefix="slurm-"))) as cluster:
        yield cluster


@pytest.fixture
def cluster(running: Cluster) -> Iterator[Cluster]:
    """An empty cluster with both nodes up; emptied afterwards."""
    yield running
    running.clear()


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,797 scanned digits as files, split/class/file."""
    folder = tmp_path_factory.mktemp("digits") / "images"
    subprocess.run([sys.executable, "-m", "data_prep", "digits", folder], check=True)
    return folder


@pytest.fixture(scope="session")
def digits(images: Path) -> Path:
    """The dataset of these, made without SLURM."""
    dataset = images.parent / "dataset"
    for arguments in (["build", images, dataset, "--format", "folder", "--shard-size", "256", "--workers", "1"],
                      ["noise", dataset, *NOISE]):
        subprocess.run([sys.executable, "-m", "data_prep", *arguments], check=True)
    return dataset
