"""All three tables for real: a few made-up digits, two epochs; what the pages say is found again in the run folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from toy_mnist import write_toy_mnist

from twostage.__main__ import main
from twostage.cli import parse
from twostage.data.dataset import Dataset
from twostage.data.schema import file_digest
from twostage.reproduce import results
from twostage.reproduce.pages import write_pages

SMALL = ("pretrain.epochs=2", "pretrain.batch_size=32", "train.sub_epochs=2", "runtime.device=cpu")
CONFIG = """
model: {name: mlp, dropout: 0.1}
data: {holdout: 0.1, clean_labels: given}
augment: {channels: gray, resize: null, size: 28, flip: false, mean: [0.0], std: [1.0]}
pretrain: {optimizer: {name: adagrad, lr: 0.02}}
train: {method: temporal_ensembling, pass_over: unlabeled, batch_size: 64, consistency_weight: 1.0, ramp_up: 1}
"""


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Makes the tables."""
    folder = tmp_path_factory.mktemp("toy")
    write_toy_mnist(folder / "source", num_train=400)
    (folder / "config.yaml").write_text(CONFIG)
    reproduce(folder / "out", "table3", "--rows", "forward,improved_baseline", "--data", str(folder / "source"))
    reproduce(folder / "out", "table2")
    reproduce(folder / "out", "table1", "--shares", "0.1,0.9")
    return folder / "out"


def reproduce(out: Path, table: str, *arguments: str) -> None:
    command = ["reproduce", table, "--dataset", "mnist", "--noise", "sym0.2", "--runs", "1", "--out", str(out)]
    command += ["--config", str(out.parent / "config.yaml"), *arguments]
    assert main([*command, *(word for setting in SMALL for word in ("--set", setting))]) == 0


def cells_of(page: Path, first: str) -> list[str]:
    """The cells of the first line that begins so."""
    line = next(line for line in page.read_text().splitlines() if line.startswith(f"| {first} "))
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_table_3_says_what_the_runs_found(out: Path) -> None:
    run = out / "runs" / "mnist-sym0.2-0"
    rows = {row["row"]: row for row in pq.read_table(out / "results.parquet").to_pylist() if row["min_share"] == 0.1}
    # cross-entropy is trained for forward, and stage 1 is balanced cross-entropy
    assert set(rows) == {"ours", "forward", "improved_baseline", "cross_entropy", "balanced_cross_entropy"}
    for row, folder in (("ours", "train"), ("forward", "baseline_forward"), ("balanced_cross_entropy", "pretrain")):
        test = json.loads((run / "evaluate" / folder / "test.json").read_text())
        assert rows[row]["accuracy"] == test["accuracy"] and rows[row]["per_class"] == test["per_class"]
        assert rows[row]["num_test"] == 100 and rows[row]["seconds"] > 0
    mined = json.loads((run / "mine" / "done.json").read_text())["results"]
    assert {rows["ours"][f"seed_{key}"] for key in ("kept", "purity")} == {mined["kept"], mined["purity"]}
    text = out / "table3-mnist.md"
    assert cells_of(text, "ours (temporal ensembling)")[1].split()[0] == f"{100 * rows['ours']['accuracy']:.1f}"
    assert "Ceiling: the labels tell all classes apart." in text.read_text()
    assert (out / "table3-mnist.html").read_text().count("</table>") == text.read_text().count("\n## ")


def test_table_2_counts_the_labels(out: Path) -> None:
    dataset = Dataset.open(out / "datasets" / "mnist")
    run = out / "runs" / "mnist-sym0.2-0"
    part = pq.read_table(next((run / "rank").glob("part-*.parquet")))
    trained = part.filter(~part["held_out"].to_numpy())["index"].to_numpy()
    clean, noisy = (dataset.labels(name).dense(len(dataset)) for name in ("given", "sym0.2-0"))
    seeds = pq.read_table(run / "mine" / "seeds.parquet")["index"].to_numpy()
    right = clean == noisy
    page = out / "table2-mnist.md"
    before, after = cells_of(page, "original training set"), cells_of(page, "after stage 1")
    assert before[1] == f"{100 * right[trained].mean():.2f} (1)" and before[5] == "0.00 (1)"
    assert after[1] == f"{100 * right[seeds].sum() / len(trained):.2f} (1)"
    assert after[3] == f"{100 * (~right[seeds]).sum() / len(trained):.2f} (1)"
    transition = np.array(json.loads((run / "baseline_forward" / "transition.json").read_text())["transition"])
    assert transition.shape == (10, 10)
    lines = pq.read_table(out / "table2-mnist.parquet").to_pylist()
    assert {line["labels"] for line in lines} == {"given", "argmax", "sampling", "stage1"} and len(lines) == 4 * 11


def test_table_2_of_a_run_without_its_seeds_or_ranking(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for gone in ("mine", "rank"):
        copy = shutil.copytree(out.parent, tmp_path / gone) / "out"
        shutil.rmtree(copy / "runs" / "mnist-sym0.2-0" / gone)
        lines = results.collect(copy, "mnist")
        assert (next(cell for cell in lines if cell.min_share == 0.1).result("ours") is None) == (gone == "mine")
        reproduce(copy, "table2", "--data", str(copy / "datasets" / "mnist"), "--dry-run")
        assert "mnist sym0.2 run 0: missing" in capsys.readouterr().out
        config, dataset = parse("run", "", ["--run.dir=x", "--data.dataset=y"]), copy / "datasets" / "mnist"
        write_pages("table2", copy, "mnist", dataset, config=config, noises=["sym0.2"], missing=[])


def test_table_1_trains_stage_1_once(out: Path) -> None:
    whole, share = (out / "runs" / name for name in ("mnist-sym0.2-0", "mnist-sym0.2-0-share0.9"))
    for file in ("pretrain/model.safetensors", "pretrain/done.json", "rank/done.json"):
        assert file_digest(whole / file) == file_digest(share / file)
    assert "pretrain: already done" in (out / "logs" / f"{share.name}.log").read_text()
    kept = [pq.read_table(run / "mine" / "seeds.parquet").num_rows for run in (whole, share)]
    assert kept[0] < kept[1]
    shown = [float(cells_of(out / "table1-mnist.md", first)[5]) for first in ("10 %", "90 %")]
    images = json.loads((whole / "mine" / "done.json").read_text())["results"]["images"]
    assert shown == [round(100 * number / images, 1) for number in kept]
