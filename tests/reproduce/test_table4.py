"""Table 4: all thirteen rows from a miniature of Clothing1M, at toy size; their order; what is refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml

from data_prep.__main__ import main as data_prep
from tests.data_prep.clothing1m_mini import write_mini
from tests.data_prep.shared_data import shared_file
from twostage.__main__ import main
from twostage.cli import parse
from twostage.config import Config
from twostage.data.dataset import Dataset
from twostage.data.schema import file_digest
from twostage.reproduce import paper, table4, table4_rows
from twostage.reproduce.arguments import CONFIGS, make_parser
from twostage.reproduce.table4_rows import ROWS, Row, chosen
from twostage.stage1 import noise_models

TOY = (
    "model.name=mlp", "augment.size=16", "augment.resize=16", "runtime.precision=fp32", "runtime.compile=no",
    "pretrain.epochs=8", "pretrain.batch_size=64", "pretrain.optimizer.lr=0.003",
    "clean_filter.epochs=2", "clean_filter.batch_size=32", "mine.accept_score=0.2", "mine.min_score=0.3",
    "train.sub_epochs=1", "train.batch_size=32", "finetune.epochs=1", "finetune.batch_size=32",
    "noise_model.epochs=2", "noise_model.batch_size=64", "noise_model.penalty_weight=3",
)  # fmt: skip


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 photographs as a dataset, with all splits and both label columns, out of a source full of faults."""
    shared_file("clothing/clothing-dataset-small.train.tar")
    folder = tmp_path_factory.mktemp("mini")
    write_mini(folder / "source", num=400, rng_seed=1)
    arguments = ["build", str(folder / "source"), str(folder / "dataset"), "--format", "clothing1m", "--drop-leaks"]
    assert data_prep([*arguments, "--workers", "1", "--short-side", "16"]) == 0
    return folder / "dataset"


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published files, without ImageNet's weights: they are for other networks, and on the internet."""
    folder = tmp_path_factory.mktemp("configs")
    for row in ROWS.values():
        text = (CONFIGS / "clothing1m" / f"{row.name}.yaml").read_text()
        (folder / f"{row.name}.yaml").write_text(text.replace("weights: imagenet", "weights: null"))
    return folder


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def arguments(data: Path, out: Path, configs: Path, *more: str) -> list[str]:
    toy = [part for setting in TOY for part in ("--set", setting)]
    return ["table4", "--data", str(data), "--out", str(out), "--config", str(configs), *toy, *more]


@pytest.fixture(scope="module")
def reproduced(mini: Path, configs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole table, every command run in this process."""
    out = tmp_path_factory.mktemp("table4")
    plan = table4.make_plan(make_parser().parse_args(arguments(mini, out, configs)), ("python",))
    table4.check_settings(plan)
    for row in plan.rows:
        table4.prepare(plan, row)
        command = plan.command(row)
        assert command[:4] == ("python", "-m", "twostage", "run")
        with pytest.MonkeyPatch.context() as patch:
            if row.number not in (1, 8):        # drawing the others takes as long as their training
                patch.setattr("twostage.report.html.write_report", lambda run_dir: run_dir)
            assert main(list(command[3:])) == 0, row.title
    return out


def test_all_rows_are_run_and_the_table_stands_beside_the_papers(
    mini: Path, configs: Path, reproduced: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", *arguments(mini, reproduced, configs)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("already there") == 13
    lines = pq.read_table(reproduced / "table4.parquet").to_pylist()
    for line in lines:
        row = ROWS[line["row"]]
        test = json.loads((reproduced / "runs" / row.name / "evaluate" / row.model / "test.json").read_text())
        assert line["accuracy"] == test["accuracy"] and line["network_name"] == "mlp"
        shown = next(text for text in printed.splitlines() if text.startswith(f"| {row.number} "))
        assert f" {100 * line['accuracy']:.2f} |" in shown
        published = [value.value for value in paper.TABLE4[row.number] if value is not None]
        assert all(f" {value:.2f} |" in shown for value in published)
        difference = f"{100 * line['accuracy'] - published[-1]:+.2f}".replace("-", "−")
        assert difference in shown
    assert [line["row"] for line in lines] == list(range(1, 14))
    report = (reproduced / "runs" / "row01" / "report.html").read_text()
    assert "pseudo-labels, only the clean set labeled" in report
    page = (reproduced / "table4.html").read_text()
    assert page.count("<tr>") == 14 and "77.34" in page
    assert "77.34" in (reproduced / "table4.md").read_text()


def test_rows_go_on_from_what_the_table_says(mini: Path, reproduced: Path) -> None:
    def weights(row: int, folder: str) -> bytes:
        return (reproduced / "runs" / f"row{row:02d}" / folder / "model.safetensors").read_bytes()

    def inputs(row: int, folder: str) -> dict[str, object]:
        found: dict[str, object] = json.loads(
            (reproduced / "runs" / f"row{row:02d}" / folder / "done.json").read_text()
        )["inputs"]
        return found

    start = file_digest(ROWS[9].network_file(reproduced))
    assert all(inputs(n, ROWS[n].model)["model.weights"] == start for n in (1, 2, 3))
    assert all(inputs(n, ROWS[n].model)["model.class_layer"] == "loaded" for n in (1, 2, 3))
    for number, source in ((11, 6), (12, 7), (13, 8)):
        assert inputs(number, "finetune")["weights"] == file_digest(ROWS[source].network_file(reproduced))
    assert weights(4, "baseline_cross_entropy") == weights(5, "baseline_cross_entropy")
    assert weights(7, "pretrain") == weights(8, "pretrain")
    assert weights(7, "train") != weights(8, "train")
    dataset = Dataset.open(mini)
    clean = dataset.split_indices("clean_train")
    labeled = pq.read_table(reproduced / "runs" / "row01" / "clean_seeds" / "seeds.parquet")
    assert labeled["index"].to_pylist() == clean.tolist()
    assert labeled["label"].to_pylist() == dataset.labels("clean").dense(len(dataset))[clean].tolist()
    steps = -(-len(dataset.split_indices("noisy_train")) // 32)
    for row, model in ((2, "baseline_bottom_up"), (3, "baseline_label_noise")):
        metrics = [json.loads(line) for line in (reproduced / "runs" / f"row{row:02d}" / model / "metrics.jsonl")
                   .read_text().splitlines()]
        assert len([line for line in metrics if "val/accuracy" in line]) == 2
        assert metrics[-1]["step"] >= 2 * steps


def test_a_row_is_there_as_long_as_all_that_it_comes_from_is(reproduced: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(reproduced, tmp_path / "out", ignore=shutil.ignore_patterns("checkpoints")))

    def missing() -> list[int]:
        return [row.number for row in ROWS.values() if not row.is_done(out)]

    assert missing() == []
    weights = ROWS[9].network_file(out)
    before = weights.read_bytes()
    weights.write_bytes(before + b"trained again")
    assert missing() == [1, 2, 3, 9], "row 9 is another network now than was tested, and than 1 to 3 started from"
    weights.write_bytes(before)
    assert missing() == []
    shutil.rmtree(ROWS[6].folder(out) / ROWS[6].model)
    shutil.rmtree(ROWS[7].folder(out) / "mine")
    assert missing() == [6, 7, 11]


def test_what_is_taken_over_comes_with_its_pauses(
    mini: Path, configs: Path, reproduced: Path, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(ROWS[4].folder(reproduced), ROWS[4].folder(tmp_path)))
    (source / "row.json").write_text(json.dumps({"started": [1.5, 2.5]}))
    plan = table4.make_plan(make_parser().parse_args(arguments(mini, tmp_path, configs, "--rows", "5")), ())
    for times in (3, 4):
        table4.prepare(plan, ROWS[5])
        started = json.loads((ROWS[5].folder(tmp_path) / "row.json").read_text())["started"]
        assert started[:2] == [1.5, 2.5] and len(started) == times


@pytest.mark.parametrize(
    ("number", "training"), [(2, noise_models.BottomUpTraining), (3, noise_models.LabelNoiseTraining)]
)
def test_a_noise_model_that_was_interrupted_ends_with_the_same_bits(
    mini: Path,
    configs: Path,
    reproduced: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    training: Any,
) -> None:
    row, calls = ROWS[number], 0
    settle = training.settle

    def interrupted(self: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 11:
            raise KeyboardInterrupt
        settle(self)

    args = make_parser().parse_args(arguments(mini, reproduced, configs, "--rows", str(number)))
    plan = table4.make_plan(args, ())
    again = ["run", *plan.arguments[number], f"--run.dir={tmp_path}", "--runtime.checkpoint_steps=4"]
    monkeypatch.setattr("twostage.report.html.write_report", lambda run_dir: run_dir)
    with monkeypatch.context() as patch:
        patch.setattr(training, "settle", interrupted)
        assert main(again) == 130
    assert list((tmp_path / row.model / "checkpoints").glob("step-*"))
    assert not (tmp_path / row.model / "done.json").exists()
    assert main(again) == 0
    one, other = (folder / row.model / "model.safetensors" for folder in (tmp_path, row.folder(reproduced)))
    assert one.read_bytes() == other.read_bytes()


def test_a_row_that_failed_is_named_and_its_followers_wait(
    mini: Path, configs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Row 9 cannot be trained; so row 2 cannot be either. Both are processes of their own."""
    broken = shutil.copytree(configs, tmp_path / "configs")
    text = (broken / "row09.yaml").read_text()
    (broken / "row09.yaml").write_text(text.replace("weights: null", "weights: no/such/file.pth"))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    out = tmp_path / "out"
    assert main(["reproduce", *arguments(mini, out, broken, "--rows", "2")]) == 1
    said = capfd.readouterr()
    assert "no/such/file.pth does not exist" in said.err and "needs row 9" in said.err
    assert "Not there yet (2)" in (out / "table4.md").read_text()
    assert not (out / "runs" / "row02").exists()


def test_every_row_comes_after_what_it_starts_from() -> None:
    everything = [row.number for row in chosen(())]
    assert sorted(everything) == sorted(ROWS) == sorted(paper.TABLE4) == list(range(1, 14))
    for row in ROWS.values():
        for before in (row.starts_from, row.shares):
            assert before is None or everything.index(before) < everything.index(row.number)
    assert [row.number for row in chosen(["13"])] == [8, 13]
    assert [row.number for row in chosen(["8,7", "13"])] == [7, 8, 13]
    assert [row.number for row in chosen(["#2", "row01"])] == [9, 1, 2]
    assert [row.number for row in chosen(["5"])] == [5], "a row that only saves time is not asked for"


@pytest.mark.parametrize("row", ROWS.values(), ids=lambda row: row.name)
def test_the_files_say_what_the_table_says(row: Row, tmp_path: Path) -> None:
    path = CONFIGS / "clothing1m" / f"{row.name}.yaml"
    config: Config = parse("run", "", ["--config", str(path)])
    head = path.read_text().split("\nrun:")[0]
    figures = [value.value for value in paper.TABLE4[row.number] if value is not None]
    assert all(f"{value:.2f}" in head for value in figures)
    assert config.model.name == {"AlexNet": "alexnet", "50-ResNet": "resnet50"}[row.network]
    assert config.model.dropout == {"AlexNet": 0.5, "50-ResNet": 0.0}[row.network]
    assert config.run.dir.name == row.name and config.data.dataset == Path("runs/clothing1m/dataset")
    trained = [f"baseline_{name}" for name in config.run.baselines]
    trained += ["train"] * config.run.two_stage + ["finetune"] * config.run.finetune
    assert trained == [row.model]
    if row.starts_from is not None:
        named = config.model.weights if row.field == "model.weights" else config.finetune.init
        assert named == str(Path("runs/clothing1m") / f"row{row.starts_from:02d}" / ROWS[row.starts_from].model
                            / "model.safetensors")
    else:
        assert config.model.weights == "imagenet"
    assert config.data.train_split == ("clean_train" if row.training_set == "50K" and row.starts_from is None
                                       else "noisy_train")
    tree = yaml.safe_load(path.read_text())
    if row.model == "train":
        assert config.train.consistency_weight == 100 and config.train.optimizer.lr == 3e-4
        assert config.train.sub_epochs == 100 and config.train.ramp_up == 0 and config.train.method == "pi_model"
        assert (config.train.plateau.factor, config.train.plateau.patience) == (0.5, 10)
        assert config.train.plateau.stop_after == 20 and config.train.optimizer.name == "adam"
        assert tree["train"]["reduction"] == "sum" and tree["runtime"]["precision"] == "bf16"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--rows", "14"), "--rows 14: did you mean"),
        (("--noise", "sym0.2"), "--noise does not go with table4"),
        (("--set", "run.two_stage=true"), "run.two_stage makes a row what it is"),
        (("--set", "pretrain.epoch=1"), "did you mean 'pretrain.epochs'"),
        (("--set", "data.val_split=vall"), "has no split 'vall'"),
        (("--set", "pretrain.epochs=3"), "was begun with other settings (then -> now): pretrain.epochs: 8 -> 3"),
        (("--set", "pretrain.epochs=3", "--dry-run"), "was begun with other settings"),
        (("--jobs", "0"), "--jobs 0: give 1 or more"),
    ],
)
def test_what_cannot_be_done_is_named_before_anything_is_started(
    mini: Path, configs: Path, reproduced: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], message: str
) -> None:
    assert main(["reproduce", *arguments(mini, reproduced, configs, "--rows", "4", *more)]) == 2
    assert message in capsys.readouterr().err


def test_what_would_be_run_is_said(
    mini: Path, configs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", *arguments(mini, tmp_path / "out", configs, "--rows", "12", "--dry-run")]) == 0
    said = capsys.readouterr().out
    assert said.index("row 7 (") < said.index("row 12 (") and said.count("missing") == 2
    assert f"--finetune.init={tmp_path}/out/runs/row07/train/model.safetensors" in said
    assert not (tmp_path / "out").exists()
    assert table4_rows.check_overrides(["a.b=1"]) == ("--a.b=1",)
