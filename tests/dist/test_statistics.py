"""BatchNorm's statistics, which each process gathers from its own slots: validated and handed on is their mean."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
from ranks import command, start, told

EPOCHS = 2


@pytest.mark.parametrize("verb", ["pretrain", "train"])
def test_the_mean_over_the_processes_is_validated_and_handed_on(
    verb: str, digits: Path, ranked: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    settings = {"pretrain__epochs": str(EPOCHS), "train__sub_epochs": str(EPOCHS), f"{verb}__select": "last"}
    settings |= {"model__name": "ranks:telling_factory", "train__ema_decay": "null"}
    if verb == "train":
        shutil.copytree(ranked, run_dir)
    lines = told(start(command(verb, digits, run_dir, **settings), tmp_path / "log").succeed())

    def statistics(rank: int, training: bool) -> list[np.ndarray]:
        """A rank's, after the last batch of each epoch."""
        found = [line["statistics"] for line in lines if (line["rank"], line["training"]) == (rank, training)]
        batches, left = divmod(len(found), EPOCHS)
        assert left == 0
        return [np.array(values) for values in found[batches - 1 :: batches]] if batches else []

    own = [statistics(rank, training=True) for rank in (0, 1)]
    means = [(first + second) / 2 for first, second in zip(*own, strict=True)]
    assert len(means) == EPOCHS
    assert all(np.abs(first - second).max() > 1e-3 for first, second in zip(*own, strict=True)), "nothing to average"
    validated = [found for rank in (0, 1) if (found := statistics(rank, training=False))]
    assert validated, "one batch of images at least, for one of the ranks"
    for of_rank in validated:
        np.testing.assert_allclose(of_rank, means, rtol=1e-5, atol=1e-7)
    weights = safetensors.torch.load_file(run_dir / verb / "model.safetensors")
    handed_on = [*weights["1.running_mean"].tolist(), *weights["1.running_var"].tolist()]
    np.testing.assert_allclose(handed_on, means[-1], rtol=1e-5, atol=1e-7)
