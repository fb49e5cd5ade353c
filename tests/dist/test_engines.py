"""DeepSpeed's ZeRO beside plain data parallelism: changed in the middle of a run, and compared."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
import safetensors.torch
from ranks import command, global_batches, position, result, start


def test_another_engine_and_number_of_processes(digits: Path, ranked: Path, tmp_path: Path) -> None:
    """ZeRO-1 in two processes, stopped in its first epoch; then in turn none in one, ZeRO-2 in four, ZeRO-1 in one."""
    arguments = command("pretrain", digits, tmp_path / "run")
    stage = tmp_path / "run" / "pretrain"
    printed = ""
    for size, zero in ((2, 1), (1, 0), (4, 2), (1, 1)):
        run, begun = start(arguments, tmp_path / "log", size=size, zero=zero, write_delay=0.05), position(stage)
        while run.alive and position(stage)[:13] == begun[:13]:
            time.sleep(0.002)
        assert run.alive, f"ended too early to be stopped\n{run.log.read_text()}"
        run.signal(signal.SIGTERM)
        assert not any(run.wait(60)), run.log.read_text()
        printed += run.log.read_text()
    start(arguments, tmp_path / "log").succeed()
    for change in ("written by 2 process(es), resumed by 1", "written by 1 process(es), resumed by 4", "by 4 process"):
        assert change in printed
    assert global_batches(stage) == global_batches(ranked / "pretrain")
    # dropout draws from each rank's own random state, so the weights are those of another draw
    scores = [float(result(folder)["metrics"][-1]["val/accuracy"]) for folder in (stage, ranked / "pretrain")]
    assert abs(scores[0] - scores[1]) < 0.25


@pytest.mark.parametrize(("optimizer", "tolerance"), [("sgd", 1e-6), ("adam", 1e-3)])
def test_weights_are_those_of_plain_data_parallelism(
    optimizer: str, tolerance: float, digits: Path, tmp_path: Path
) -> None:
    """On the same batches, in fp32, after all steps of stage 1.

    Both differ by rounding alone: convolutions are computed in another layout. SGD passes it on as it is; Adam divides
    by the gradient's own size, so that a gradient of nothing but rounding moves a weight by as much as a large one.
    """
    settings = {"pretrain__optimizer__name": optimizer, "pretrain__epochs": "1"}
    weights = []
    for zero in (0, 1):
        run_dir = tmp_path / f"run-{zero}"
        start(command("pretrain", digits, run_dir, **settings), tmp_path / "log", zero=zero).succeed()
        weights.append(safetensors.torch.load_file(run_dir / "pretrain" / "model.safetensors"))
    plain, zero = weights
    assert plain.keys() == zero.keys()
    assert max(float((plain[name] - zero[name]).abs().max()) for name in plain) < tolerance
