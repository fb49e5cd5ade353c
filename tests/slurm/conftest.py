"""A real SLURM for these tests, started once."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

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
