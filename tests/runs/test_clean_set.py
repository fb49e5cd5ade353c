"""Runs with a clean set: the classifiers' seeds, fine-tuning, and what is said when the stages do not go together."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from running import ROOT, command, environment, succeed

from twostage.__main__ import main
from twostage.data.dataset import Dataset

SETTINGS = {
    "data__holdout": "null",
    "mine__rule": "clean_filter",
    "run__finetune": "true",
    "clean_filter__epochs": "8",
    "clean_filter__batch_size": "32",
    "clean_filter__optimizer__lr": "0.003",
    "train__sub_epochs": "3",
    "train__ema_decay": "0.9",
    "finetune__epochs": "3",
    "finetune__batch_size": "32",
    "finetune__optimizer__lr": "0.0003",
}


def arguments(verb: str, dataset: Path, run_dir: Path, **settings: str) -> list[str]:
    return command(verb, dataset, run_dir, **(SETTINGS | settings))


def here(arguments: list[str]) -> int:
    """Runs a command in this process, which has loaded everything already; returns its exit code."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return main(arguments[3:])
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scanned digits: of each class's training images one in four is clean, one in ten for validation."""
    folder = tmp_path_factory.mktemp("clean")
    prep = [sys.executable, "-m", "data_prep"]
    succeed([*prep, "digits", str(folder / "images")])
    for class_dir in sorted((folder / "images" / "train").iterdir()):
        for number, image in enumerate(sorted(class_dir.iterdir())):
            split = "clean_train" if number % 4 == 0 else "val" if number % 10 == 1 else None
            if split is not None:
                target = folder / "images" / split / class_dir.name
                target.mkdir(parents=True, exist_ok=True)
                image.rename(target / image.name)
    succeed([*prep, "build", str(folder / "images"), str(folder / "dataset"), "--format", "folder", "--workers", "1"])
    succeed([*prep, "noise", str(folder / "dataset"), "--name", "noisy", "--kind", "asymmetric", "--flips", "mnist",
             "--rate", "0.4", "--rng-seed", "0"])
    return folder / "dataset"


@pytest.fixture(scope="module")
def finished(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    assert here(arguments("run", dataset, run_dir)) == 0
    return run_dir


@pytest.fixture
def run_dir(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def seeds(run_dir: Path) -> tuple[Any, Any]:
    table = pq.read_table(run_dir / "mine" / "seeds.parquet")
    return table["index"].to_numpy(), table["label"].to_numpy()


def test_the_seeds_are_accepted_labels_and_the_clean_set(dataset: Path, finished: Path) -> None:
    opened = Dataset.open(dataset)
    truth, noisy = (opened.labels(name).dense(len(opened)) for name in ("given", "noisy"))
    index, label = seeds(finished)
    clean = opened.split_indices("clean_train")
    assert np.isin(clean, index).all() and (label[np.isin(index, clean)] == truth[clean]).all()
    mined = ~np.isin(index, clean)
    assert np.isin(index[mined], opened.split_indices("noisy_train")).all()
    assert (label[mined] == noisy[index[mined]]).all()
    given_wrong = (noisy != truth)[opened.split_indices("noisy_train")].mean()
    assert (label[mined] != truth[index[mined]]).mean() < given_wrong / 10
    ranking = pq.read_table(next((finished / "rank").glob("part-*.parquet")))
    scores = np.stack(ranking["probs"].to_numpy())
    assert (np.abs(scores.sum(axis=1) - 1) > 1e-3).any(), "the classifiers' scores are a distribution"
    given = ranking["label"].to_numpy()
    np.testing.assert_array_equal(ranking["score"].to_numpy(), scores[np.arange(len(given)), given])
    accepted = ranking["index"].to_numpy()[ranking["score"].to_numpy() >= np.float32(0.5)]
    assert sorted(accepted.tolist()) == sorted(index[mined].tolist())


def test_the_finished_run_says_how_good_each_model_is(
    dataset: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = json.loads((finished / "summary.json").read_text())["models"]
    accuracy = {name: model["test_accuracy"] for name, model in models.items()}
    assert list(accuracy) == ["pretrain", "train", "finetune"]
    assert accuracy["finetune"] > 0.85 and accuracy["train"] > accuracy["pretrain"] - 0.02
    assert here(arguments("run", dataset, finished)) == 0
    assert capsys.readouterr().out.count("already done") == 6


def test_without_stage_1s_network_none_is_trained(dataset: Path, tmp_path: Path) -> None:
    settings = {"train__init": "scratch", "run__finetune": "false", "clean_filter__epochs": "4"}
    assert here(arguments("run", dataset, tmp_path / "run", mine__accept_score="0.2", **settings)) == 0
    assert not (tmp_path / "run" / "pretrain").exists() and (tmp_path / "run" / "train" / "done.json").exists()


@pytest.mark.parametrize("verb", ["finetune", "train"])
def test_what_is_killed_ends_with_the_same_bits(dataset: Path, finished: Path, run_dir: Path, verb: str) -> None:
    """Fine-tuning, and stage 2 with a moving average of the weights."""
    shutil.rmtree(run_dir / verb)
    again = arguments(verb, dataset, run_dir, runtime__checkpoint_steps="2")
    process = subprocess.Popen(again, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list((run_dir / verb / "checkpoints").glob("step-*")):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (run_dir / verb / "done.json").exists(), "it was too fast to be killed"
    assert here(again) == 0
    one, other = (folder / verb / "model.safetensors" for folder in (finished, run_dir))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    ("verb", "settings", "message"),
    [
        ("mine", {"mine__rule": "agreement"}, "mine.rule is agreement, but"),
        ("finetune", {"finetune__init": "trian"}, "finetune.init 'trian': did you mean 'train'"),
        ("finetune", {"finetune__init": "baseline_forward"}, "/baseline_forward/model.safetensors does not exist"),
        ("clean_filter", {"clean_filter__positive_weight": "0"}, "clean_filter.positive_weight is 0.0; it must be"),
        ("finetune", {"finetune__init": "baseline_unhinged"}, "BatchNorm behind its outputs, as its loss needs"),
        ("finetune", {"data__clean_split": "val"}, "data.clean_split and data.val_split are both 'val'"),
    ],
)
def test_what_does_not_go_together_is_named(
    dataset: Path, finished: Path, capsys: pytest.CaptureFixture[str], verb: str, settings: dict[str, str], message: str
) -> None:
    assert here(arguments(verb, dataset, finished, **settings)) == 2
    assert message in capsys.readouterr().err


def test_ranking_needs_the_classifiers(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert here(arguments("rank", dataset, tmp_path)) == 2
    assert "holds no trained network: run `twostage clean_filter` first" in capsys.readouterr().err


def test_with_held_out_samples_the_clean_seeds_are_validated_on_clean_ones(dataset: Path, tmp_path: Path) -> None:
    settings = {"data__holdout": "0.2", "run__baselines": "[pseudo_label_clean]", "train__init": "scratch"}
    settings |= {"run__finetune": "false", "train__sub_epochs": "1"}
    assert here(arguments("baselines", dataset, tmp_path / "run", **settings)) == 0
    opened = Dataset.open(dataset)
    truth, clean = opened.labels("given").dense(len(opened)), opened.split_indices("clean_train")
    tables = [pq.read_table(tmp_path / "run" / "clean_seeds" / f"{name}.parquet") for name in ("seeds", "val")]
    index, label = (np.concatenate([table[name].to_numpy() for table in tables]) for name in ("index", "label"))
    assert sorted(index.tolist()) == clean.tolist() and (label == truth[index]).all()
    inputs = json.loads((tmp_path / "run" / "baseline_pseudo_label_clean" / "done.json").read_text())["inputs"]
    assert inputs["num_val"] == tables[1].num_rows > 0
