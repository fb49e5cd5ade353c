"""The whole chain, from image files to the report, on two nodes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.slurm.chain import NOISE, Chain
from tests.slurm.cluster import Cluster


def test_the_chain_makes_what_two_processes_make_without_slurm(cluster: Cluster, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "data_prep", "digits", tmp_path / "images"], check=True)
    chain = Chain(cluster, tmp_path, tmp_path / "dataset", settings={
        "SOURCE": str(tmp_path / "images"), "NOISE_OPTIONS": f"({' '.join(NOISE)})",
    })
    jobs = chain.submit()
    assert list(jobs) == ["prep", "merge", "pretrain", "rank", "train"]
    chain.finish(jobs)
    for stage in jobs:
        print(chain.log(stage))
    raise AssertionError
