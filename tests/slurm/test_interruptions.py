"""One training that meets all that interrupts jobs on a cluster, and ends as if nothing had happened."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.slurm.chain import Chain
from tests.slurm.cluster import Cluster

EPOCHS = 12             # 312 steps
SLOW_DISK = """\
import os, time
fsync = os.fsync
os.fsync = lambda number: (time.sleep(0.01), fsync(number))[1]
"""     # a checkpoint has many files, so that a step lasts without computing: SLURM looks at time limits twice a minute


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_training_interrupted_in_every_way_equals_one_that_was_not(
    cluster: Cluster, digits: Path, tmp_path: Path
) -> None:
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "sitecustomize.py").write_text(SLOW_DISK)
    epochs = f"--pretrain.epochs={EPOCHS}"
    chain = Chain(cluster, tmp_path, digits, options=(epochs, "--runtime.checkpoint_steps=1"), settings={
        "ALL_JOBS": "(--time=2 --signal=B:USR1@115)",       # asked to stop between 5 and 35 s after it began
        "CONTAINER": f"(env PYTHONPATH={tmp_path / 'slow'})",
    })
    jobs = chain.submit()
    number = jobs["pretrain"]

    # the time limit
    cluster.wait(lambda: restarts(cluster, number) == 1, "a requeue because of the time limit", seconds=300)
    cluster.succeed("scontrol", "update", f"jobid={number}", "TimeLimit=100")
    assert "saved; requeued" in chain.log("pretrain")

    # another job with more priority, under accelerate's launcher; settings are read at every start
    accelerate = {"LAUNCHER": "accelerate", "ACCELERATE_CONFIG": "launch/accelerate/cpu-2.yaml"}
    chain.write(**accelerate)
    wait_for_progress(chain, number)
    urgent = cluster.succeed("sbatch", "--parsable", "--partition=high", "--nodes=2", "--exclusive",
                             "--output=/dev/null", "--wrap=sleep 1")
    chain.write()
    cluster.wait_for(urgent, "COMPLETED", seconds=200)
    assert restarts(cluster, number) == 2
    assert chain.log("pretrain").count("saved; requeued") == 2

    # a node that is set down
    wait_for_progress(chain, number)
    cluster.succeed("scontrol", "update", "nodename=n2", "state=down", "reason=test")
    cluster.wait(lambda: restarts(cluster, number) == 3, "a requeue because of the node", seconds=200)
    cluster.succeed("scontrol", "update", "nodename=n2", "state=resume")

    # the user cancels it, and the jobs behind it go, too
    wait_for_progress(chain, number)
    cluster.succeed("scancel", number)
    for job in jobs.values():
        cluster.wait_for(job, "CANCELLED")
    assert "start number 4" in chain.log("pretrain")
    assert "start number 5" not in chain.log("pretrain")

    # submitted again
    chain.options = (epochs,)
    chain.settings = {"ALL_JOBS": "(--time=100)"}
    chain.finish({"pretrain": chain.submit()["pretrain"]}, seconds=400)

    chain.without_slurm("pretrain", tmp_path / "other")
    weights = Path("pretrain") / "model.safetensors"
    assert (chain.run_dir / weights).read_bytes() == (tmp_path / "other" / weights).read_bytes()


def restarts(cluster: Cluster, number: str) -> int:
    return int(cluster.job(number)["Restarts"])


def wait_for_progress(chain: Chain, number: str) -> None:
    """Until the running job has written a checkpoint that was not there before it began."""
    folder = chain.run_dir / "pretrain" / "checkpoints"

    def newest() -> str:
        return max((path.name for path in folder.glob("step-*")), default="")

    chain.cluster.wait_for(number, "RUNNING", seconds=200)
    before = newest()
    chain.cluster.wait(lambda: newest() > before, f"a checkpoint after {before or 'none'}", seconds=300)
    assert chain.cluster.state(number) == "RUNNING"
