"""The cluster that the other tests need: two nodes, and nothing left behind."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, running_cluster, why_not


def test_a_job_runs_on_both_nodes(cluster: Cluster, tmp_path: Path) -> None:
    out = tmp_path / "out"
    number = cluster.succeed("sbatch", "--parsable", "--nodes=2", "--ntasks-per-node=1", f"--output={out}",
                             "--wrap=srun bash -c 'echo $SLURM_PROCID $SLURMD_NODENAME'")
    cluster.wait_for(number, "COMPLETED")
    assert sorted(out.read_text().split("\n")) == ["", "0 n1", "1 n2"]


def test_a_stopped_cluster_leaves_nothing() -> None:
    problem = why_not()
    if problem is not None:
        pytest.skip(problem)
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    with running_cluster(folder) as cluster:
        number = cluster.succeed("sbatch", "--parsable", "--output=/dev/null", "--wrap=trap '' TERM; sleep 1000")
        cluster.wait_for(number, "RUNNING")
        assert len(cluster.processes()) > 4
    assert not cluster.processes()
    assert not folder.exists()
