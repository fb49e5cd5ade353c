"""The whole method by one command, what it leaves behind, and that running it again does nothing."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from running import command, ranking, succeed

from twostage.baselines import second_stage
from twostage.config import TrainConfig
from twostage.rows import ALL_BASELINES as TRAINABLE
from twostage.rows import BASELINES, BaselineName, folder_of

ALL_BASELINES = ",".join(BASELINES)
SCHEDULES = {"train__ramp_up": "2", "train__ramp_down": "2", "train__plateau__patience": "1"}


@pytest.fixture(scope="module")
def finished(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], str]:
    """A run of everything there is, its command and what it printed."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    arguments = command("run", digits, run_dir, run__baselines=f"[{ALL_BASELINES}]", **SCHEDULES)
    return run_dir, arguments, succeed(arguments)


def test_every_model_is_trained_and_tested(finished: tuple[Path, list[str], str]) -> None:
    run_dir, _, printed = finished
    summary = json.loads((run_dir / "summary.json").read_text())
    expected = {folder_of(name) for name in BASELINES} - {"baseline_balanced_cross_entropy"} | {"pretrain", "train"}
    assert set(summary["models"]) == expected
    for name, model in summary["models"].items():
        test = json.loads((run_dir / "evaluate" / name / "test.json").read_text())
        assert test["accuracy"] == model["test_accuracy"]
        assert f"{model['title']:46s} {100 * test['accuracy']:6.2f} % of the test images right" in printed
        table = pq.read_table(run_dir / "evaluate" / name / "predictions.parquet")
        right = table["label"].to_numpy() == table["predicted"].to_numpy()
        assert len(right) == test["num_samples"] == 500
        assert test["accuracy"] == right.mean()
    # ten classes: a network that has learned nothing gets 10 % right
    assert min(model["test_accuracy"] for model in summary["models"].values()) > 0.25
    assert f"report:  {run_dir / 'report.html'}" in printed
    assert (run_dir / "report.html").stat().st_size > 10_000


def test_seeds_are_purer_than_the_given_labels(finished: tuple[Path, list[str], str], digits: Path) -> None:
    run_dir = finished[0]
    seeds = pq.read_table(run_dir / "mine" / "seeds.parquet")
    columns = {n: pq.read_table(digits / "labels" / f"{n}.parquet")["label"].to_numpy() for n in ("given", "noisy")}
    index, label = seeds["index"].to_numpy(), seeds["label"].to_numpy()
    assert (columns["noisy"][index] == label).all()
    purity = (columns["given"][index] == label).mean()
    results = json.loads((run_dir / "mine" / "done.json").read_text())["results"]
    assert results["purity"] == pytest.approx(purity)
    scored = ranking(run_dir)["index"].to_numpy()
    assert purity > (columns["given"][scored] == columns["noisy"][scored]).mean()


def test_running_again_does_nothing(finished: tuple[Path, list[str], str]) -> None:
    run_dir, arguments, _ = finished
    written = ("config.yaml", "environment.json", "summary.json", "report.html", "status.json")

    def times() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in run_dir.rglob("*.*") if path.name not in written}

    before = times()
    printed = succeed(arguments)
    assert times() == before
    assert printed.count("already done") >= len(BASELINES) + 2


def test_folders_of_classes_and_nothing_else(digits: Path, tmp_path: Path) -> None:
    """Without test images a run goes through, and says what it could not say."""
    photos = digits.parent / "images" / "train"
    prep = [sys.executable, "-m", "data_prep", "build", str(photos), str(tmp_path / "dataset"), "--format", "folder"]
    succeed([*prep, "--workers", "1"])
    labels = {"data__labels": "given", "data__clean_labels": "null"}
    settings = {**labels, "pretrain__epochs": "1", "pretrain__balance": "false", "train__sub_epochs": "1"}
    printed = succeed(command("run", tmp_path / "dataset", tmp_path / "run", **settings))
    assert "no test images: the dataset has no split `test`" in printed
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert set(summary["models"]) == {"pretrain", "train"}
    assert summary["models"]["pretrain"]["title"] == "cross-entropy (stage 1)", "it is called balanced, and is not"
    for name, model in summary["models"].items():
        results = json.loads((tmp_path / "run" / name / "done.json").read_text())["results"]
        assert model["val_accuracy"] == results["val_accuracy"] > 0.3
        assert f"{100 * model['val_accuracy']:6.2f} % of the validation labels met" in printed
    assert (tmp_path / "run" / "report.html").exists()


def test_evaluate_by_itself_ends_with_the_summary_and_the_report(finished: tuple[Path, list[str], str]) -> None:
    run_dir, arguments, _ = finished
    pages = [run_dir / "summary.json", run_dir / "report.html"]
    before = pages[0].read_text()
    for page in pages:
        page.unlink()
    other = ["--pretrain.balance=false"]        # not how stage 1 was trained
    printed = succeed([*("evaluate" if word == "run" else word for word in arguments), *other])
    assert pages[0].read_text() == before
    assert all(page.exists() and str(page) in printed for page in pages)


def test_the_estimated_matrix_is_kept(finished: tuple[Path, list[str], str]) -> None:
    run_dir = finished[0]
    matrices = []
    for name in ("forward", "backward"):
        record = json.loads((run_dir / folder_of(name) / "transition.json").read_text())
        assert record["mode"] == "fixed"
        matrices.append(np.array(record["transition"]))
    assert (matrices[0] == matrices[1]).all()
    assert np.allclose(matrices[0].sum(axis=1), 1)


SMOOTH = [math.exp(-5), math.exp(-5 / 4), 1, 1]


@pytest.mark.parametrize(
    ("folder", "weight", "rise"),
    [
        ("train", 3, SMOOTH),
        ("baseline_temporal_ensembling", 30, SMOOTH),
        ("baseline_pseudo_label", 3, [0, 0.5, 1, 1]),
    ],
)
def test_schedules_are_those_of_the_settings(
    folder: str, weight: float, rise: list[float], finished: tuple[Path, list[str], str]
) -> None:
    """The second loss's weight rises, and the learning rate falls in the end and after each sub-epoch no better."""
    lines = [json.loads(line) for line in (finished[0] / folder / "metrics.jsonl").read_text().splitlines()]
    ends = [line for line in lines if "val/accuracy" in line]
    assert [line["epoch"] for line in ends] == [0, 1, 2, 3]
    best, lr = 0.0, 0.001
    for line, part, fall in zip(ends, rise, [1, 1, 1, math.exp(-12.5 / 4)], strict=True):
        assert line["train/consistency_weight"] == pytest.approx(weight * part)
        assert line["train/learning_rate"] == pytest.approx(lr * fall)
        lr, best = (lr, line["val/accuracy"]) if line["val/accuracy"] > best else (lr / 2, best)
    losses = [line for line in lines if "train/loss" in line]
    assert len(losses) > 8 and any(line["train/consistency"] > 0 for line in losses)
    for line in losses:
        whole = line["train/cross_entropy"] + weight * rise[line["epoch"]] * line["train/consistency"]
        assert line["train/loss"] == pytest.approx(whole, rel=1e-5)


def test_baselines_are_those_that_the_configuration_allows() -> None:
    assert set(TRAINABLE) == set(BaselineName.__args__)


@pytest.mark.parametrize(
    ("name", "weight"), [("pi_model", 100), ("temporal_ensembling", 7), ("pseudo_label", 3), ("pseudo_label_clean", 3)]
)
def test_another_second_stage_does_not_take_the_weight_of_the_first(name: BaselineName, weight: float) -> None:
    config = TrainConfig(method="temporal_ensembling", consistency_weight=7, reduction="sum", ramp_up=5)
    found = second_stage(config, TRAINABLE[name])
    same = name == config.method
    expected = {"consistency_weight": weight, "reduction": "sum" if same else "mean", "method": found.method}
    assert dataclasses.asdict(found) == dataclasses.asdict(config) | expected
    assert found.method == TRAINABLE[name].stage2


def test_balanced_cross_entropy_is_trained_where_stage_1_is_not(digits: Path, tmp_path: Path) -> None:
    settings = {"run__baselines": "[balanced_cross_entropy]", "run__two_stage": "false", "pretrain__epochs": "1"}
    succeed(command("run", digits, tmp_path / "run", **settings))
    assert list(json.loads((tmp_path / "run" / "summary.json").read_text())["models"]) == [
        "baseline_balanced_cross_entropy"
    ]
