"""The whole chain, from image files to the report, on two nodes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.slurm.chain import NOISE, Chain
from tests.slurm.cluster import NODES, Cluster, own_disks


@pytest.mark.slow
def test_the_chain_makes_what_two_processes_make_without_slurm(
    cluster: Cluster, images: Path, digits: Path, tmp_path: Path
) -> None:
    chain = Chain(cluster, tmp_path, tmp_path / "dataset", settings={
        "SOURCE": str(images), "NOISE_OPTIONS": f"({' '.join(NOISE)})", "STAGE_DIR": f"{cluster.local_disk}/copies",
    })
    jobs = chain.submit()
    assert list(jobs) == ["prep", "merge", "pretrain", "rank", "train"]
    chain.finish(jobs)
    assert chain.submit() == {}

    same_files(chain.dataset, digits, "*.json", "*.parquet", "labels/*", "shards/*")
    for node in NODES if own_disks() else ():
        (copy,) = (path for path in (cluster.on_disk_of(node) / "copies").iterdir() if path.is_dir())
        same_files(copy, digits, "shards/*")

    other = Chain(cluster, tmp_path, digits)
    other.without_slurm("run", tmp_path / "other")
    same_files(chain.run_dir, tmp_path / "other", "pretrain/model.safetensors", "rank/*.parquet", "mine/*.parquet",
               "train/model.safetensors", "evaluate/*/*")
    summary = json.loads((chain.run_dir / "summary.json").read_text())
    assert summary == json.loads((tmp_path / "other" / "summary.json").read_text())
    assert summary["models"]["train"]["test_accuracy"] > 0.8
    assert str(chain.dataset) in (chain.run_dir / "config.yaml").read_text()        # and not a node's copy
    assert "<html" in (chain.run_dir / "report.html").read_text()


def same_files(one: Path, other: Path, *patterns: str) -> None:
    """Equal bytes of all files that match; at least one for each pattern."""
    for pattern in patterns:
        names = {path.relative_to(folder) for folder in (one, other) for path in folder.glob(pattern)}
        assert names, pattern
        for name in names:
            assert (one / name).read_bytes() == (other / name).read_bytes(), name
