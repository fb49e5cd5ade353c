"""Samples without a label: what stage 2's unlabeled half is drawn from, and that stage 1 leaves them out."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import safetensors.numpy
from running import command, succeed

from twostage.data.dataset import Dataset
from twostage.data.schema import NO_LABEL, write_labels


def test_all_are_drawn_and_their_labels_are_not_used(digits: Path, ranked: Path, tmp_path: Path) -> None:
    """Without a consistency loss the unlabeled half changes nothing: not even where labels of its samples were kept."""
    seeds = set(pq.read_table(ranked / "mine" / "seeds.parquet")["index"].to_pylist())
    weights, drawn, losses = {}, {}, {}
    for unlabeled, weight in (("rest", "0"), ("all", "0"), ("all", "3")):
        run_dir = Path(shutil.copytree(ranked, tmp_path / f"{unlabeled}-{weight}"))
        settings = {"train__consistency_weight": weight, "runtime__index_log": "true", "runtime__log_steps": "1"}
        succeed(command("train", digits, run_dir, train__unlabeled=unlabeled, model__dropout="0",
                        model__input_noise="0", **settings))  # fmt: skip
        name = unlabeled, weight
        weights[name] = safetensors.numpy.load_file(run_dir / "train" / "model.safetensors")
        lines = (run_dir / "train" / "indices" / "rank-00000.jsonl").read_text().splitlines()
        drawn[name] = {index for line in lines for index in json.loads(line)["index"][1::2]}
        logged = [json.loads(line) for line in (run_dir / "train" / "metrics.jsonl").read_text().splitlines()]
        losses[name] = [line["train/cross_entropy"] for line in logged if "train/cross_entropy" in line]
    assert not drawn["rest", "0"] & seeds and len(drawn["all", "0"] & seeds) > len(seeds) / 2
    assert drawn["all", "0"] - seeds and drawn["all", "0"] == drawn["all", "3"]
    np.testing.assert_allclose(losses["rest", "0"], losses["all", "0"], rtol=1e-4)
    for key, tensor in weights["rest", "0"].items():
        np.testing.assert_allclose(tensor, weights["all", "0"][key], atol=1e-4)
    assert any(np.abs(tensor - weights["all", "3"][key]).max() > 1e-3 for key, tensor in weights["all", "0"].items())


def test_the_forecast_counts_them(digits: Path, ranked: Path) -> None:
    arguments = command("plan", digits, ranked, train__pass_over="unlabeled")
    rest, everything = (succeed([*arguments, f"--train.unlabeled={unlabeled}"]) for unlabeled in ("rest", "all"))
    kept = pq.read_table(ranked / "mine" / "seeds.parquet").num_rows
    assert f"{1167 - kept:,} unlabeled" in rest and "1,167 unlabeled" in everything


def test_samples_without_a_label_are_left_out_of_stage_1(digits: Path, tmp_path: Path) -> None:
    """Or its loss, a mean over the labeled slots of each piece, would depend on how many pieces a batch is taken in."""
    dataset = Path(shutil.copytree(digits, tmp_path / "dataset"))
    column = Dataset.open(dataset).labels("noisy")
    unlabeled = np.arange(len(column.label)) % 3 > 0
    label = np.where(unlabeled, NO_LABEL, column.label)
    write_labels(dataset, dataclasses.replace(column, name="partly", label=label))
    weights = {}
    for micro_batch in ("null", "8"):
        run_dir = tmp_path / f"run-{micro_batch}"
        settings = {"pretrain__optimizer__name": "sgd", "pretrain__epochs": "2", "runtime__index_log": "true"}
        succeed(command("pretrain", dataset, run_dir, data__labels="partly", model__dropout="0", model__input_noise="0",
                        runtime__micro_batch=micro_batch, **settings))  # fmt: skip
        weights[micro_batch] = safetensors.numpy.load_file(run_dir / "pretrain" / "model.safetensors")
        lines = (run_dir / "pretrain" / "indices" / "rank-00000.jsonl").read_text().splitlines()
        taken = [index for line in lines for index in json.loads(line)["index"]]
        assert taken and not np.isin(taken, column.index[unlabeled]).any()
    for name, tensor in weights["null"].items():
        np.testing.assert_allclose(tensor, weights["8"][name], atol=1e-5)
