"""Wrong input to a run: what it says, with which exit code, and that nothing is lost."""

from __future__ import annotations

import contextlib
import io
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from accelerate.state import AcceleratorState
from running import command, succeed

from twostage.__main__ import main
from twostage.config import DataConfig
from twostage.data.dataset import Dataset
from twostage.data.views import open_views


def refused(arguments: list[str], *words: str, code: int = 2) -> None:
    """The command ends with this exit code and one line on stderr that holds these words. Runs in this process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        assert main(arguments[3:]) == code
    message = next(line for line in errors.getvalue().splitlines() if line.startswith("error: "))
    for word in words:
        assert word in message, message


def test_a_dataset_that_changed_since_the_run_began(digits: Path, run_dir: Path, tmp_path: Path) -> None:
    changed = Path(shutil.copytree(digits, tmp_path / "changed"))
    noise = [sys.executable, "-m", "data_prep", "noise", str(changed), "--name", "noisy", "--overwrite"]
    succeed([*noise, "--kind", "symmetric", "--rate", "0.2", "--rng-seed", "1"])
    refused(
        command("rank", changed, run_dir), "the dataset changed since", "dataset.labels.noisy", "choose another run.dir"
    )
    moved = Path(shutil.copytree(digits, tmp_path / "moved"))
    assert "already done" in succeed(command("rank", moved, run_dir))       # it is the same dataset in another place


def test_other_settings_than_those_the_run_was_begun_with(digits: Path, run_dir: Path) -> None:
    before = {name: (run_dir / name).read_bytes() for name in ("config.yaml", "environment.json")}
    refused(command("pretrain", digits, run_dir, pretrain__optimizer__lr="0.1"), "pretrain.optimizer.lr: 0.003 -> 0.1")
    refused(command("run", digits, run_dir, augment__mean="[0.9]"), "augment.mean: [0.3] -> [0.9]")
    refused(command("run", digits, run_dir, mine__min_score="0.5"), "mine.min_score: 0.9 -> 0.5")
    assert before == {name: (run_dir / name).read_bytes() for name in before}, "predict and export go by them"


def test_what_is_evaluated_or_mined_later_does_not_change_how_finished_stages_were_made(
    digits: Path, run_dir: Path
) -> None:
    def settings() -> list[float]:
        config = yaml.safe_load((run_dir / "config.yaml").read_text())
        return [config[s][n] for s, n in (("pretrain", "epochs"), ("model", "dropout"), ("mine", "min_score"))]

    assert settings() == [4, 0.2, 0.9]
    others = {"pretrain__epochs": "9", "model__dropout": "0.5"}
    assert main(command("evaluate", digits, run_dir, mine__min_score="0.5", **others)[3:]) == 0
    assert settings() == [4, 0.2, 0.9]
    page = (run_dir / "report.html").read_text()
    assert "min_score: 0.9" in page and "min_score: 0.5" not in page and "epochs: 9" not in page
    shutil.rmtree(run_dir / "mine")
    assert main(command("mine", digits, run_dir, mine__min_score="0.5", **others)[3:]) == 0
    assert settings() == [4, 0.2, 0.5]


def test_a_rehearsal_refuses_other_settings_as_the_run_would(digits: Path, run_dir: Path) -> None:
    rehearsal = [*command("run", digits, run_dir, pretrain__epochs="9"), "--dry-run"]
    refused(rehearsal, "pretrain was finished with other inputs", "pretrain.epochs: 4 -> 9")


def test_stages_of_another_dataset_are_not_gone_on_from(digits: Path, run_dir: Path, tmp_path: Path) -> None:
    """The same photos in another order: labels by index would be those of other images."""
    other = Path(shutil.copytree(digits, tmp_path / "other"))
    noise = [sys.executable, "-m", "data_prep", "noise", str(other), "--name", "noisy", "--overwrite"]
    succeed([*noise, "--kind", "symmetric", "--rate", "0.3", "--rng-seed", "5"])
    refused(command("train", other, run_dir), "the dataset changed since", "rank was finished")
    shutil.rmtree(run_dir / "mine")
    refused(command("mine", other, run_dir), "the dataset changed since", "rank was finished")
    shutil.rmtree(run_dir / "rank")
    refused(command("rank", other, run_dir), "the dataset changed since", "pretrain was finished")


def test_a_class_that_keeps_no_label(digits: Path, run_dir: Path) -> None:
    shutil.rmtree(run_dir / "mine")
    arguments = command("mine", digits, run_dir, mine__min_score="1", mine__min_share="0")
    refused(arguments, "of 10 classes keep no label", "consistent", "mine.min_share")


def test_a_stage_whose_predecessor_is_missing(digits: Path, tmp_path: Path) -> None:
    refused(command("mine", digits, tmp_path / "run"), "holds no complete ranking", "`twostage rank`")
    refused(command("train", digits, tmp_path / "run"), "holds no mined labels", "`twostage mine`")
    refused(command("rank", digits, tmp_path / "run"), "holds no trained network", "`twostage pretrain`")
    refused(command("evaluate", digits, tmp_path / "run"), "holds no trained model")


@pytest.mark.parametrize(
    ("verb", "settings", "words"),
    [
        ("pretrain", {"data.labels": "nosy"}, ["'nosy'", "did you mean 'noisy'?"]),
        ("pretrain", {"data.train_split": "train"}, ["no split 'train'", "noisy_train"]),
        ("pretrain", {"data.holdout": "1.5"}, ["data.holdout", "between 0 and 1"]),
        ("pretrain", {"data.dataset": "missing"}, ["missing is not a dataset", "data_prep build"]),
        ("pretrain", {"model.name": "resnet15"}, ["model.name", "resnet14"]),
        ("pretrain", {"augment.size": "100000"}, ["augment.size: 100000", "at most 16384"]),
        ("pretrain", {"augment.mean": "[0.1, 0.2]"}, ["augment.mean", "needs 1"]),
        ("pretrain", {"runtime.precision": "fp16"}, ["runtime.precision", "fp16 needs a GPU"]),
        ("pretrain", {"pretrain.optimizer.name": "sdg"}, ["sdg", "sgd"]),
        ("run", {"train.batch_size": "63"}, ["train.batch_size", "63 is odd"]),
        ("run", {"train.batch_size": "60", "runtime.micro_batch": "16", "pretrain.batch_size": "64"},
         ["runtime.micro_batch: 16 does not divide", "(train.batch_size)", "allowed: 2, 4, 6, 10, 12, 20, 30, 60"]),
        ("run", {"runtime.micro_batch": "16", "train.batch_size": "64", "pretrain.batch_size": "16",
                 "runtime.compile": "reduce-overhead"}, ["runtime.compile: reduce-overhead", "`train` has 4 pieces"]),
        ("run", {"mine.min_share": "10"}, ["mine.min_share: 10.0 is not within 0..1"]),
        ("pretrain", {"pretrain.epochs": "0"}, ["pretrain.epochs is 0", "at least 1"]),
        ("pretrain", {"pretrain.optimizer.weight_decay": "-1"}, ["pretrain.optimizer.weight_decay is -1"]),
        ("pretrain", {"runtime.keep_checkpoints": "0"}, ["runtime.keep_checkpoints is 0", "at least 1"]),
        ("pretrain", {"runtime.log_steps": "0"}, ["runtime.log_steps is 0"]),
        ("pretrain", {"runtime.watchdog_seconds": "-5"}, ["runtime.watchdog_seconds is -5", "null"]),
        ("run", {"model.weights": "nope.pth"}, ["model.weights: nope.pth does not exist"]),
        ("run", {"augment.std": "[0]"}, ["augment.std"]),
        ("run", {"loader.prefetch": "0"}, ["loader.prefetch"]),
        ("run", {"train.sub_epochs": "-3"}, ["train.sub_epochs is -3"]),
        ("run", {"train.dropout": "1.5"}, ["train.dropout", "dropout 1.5"]),
        ("run", {"train.ema_decay": "1.0"}, ["train.ema_decay is 1.0"]),
        ("run", {"train.plateau.patience": "0"}, ["train.plateau.patience is 0"]),
        ("run", {"train.optimizer.lr": "-1"}, ["train.optimizer", "learning rate"]),
        ("run", {"train.consistency_weight": ".inf"}, ["train.consistency_weight is inf"]),
        ("run", {"rank.batch_size": "0"}, ["rank.batch_size"]),
        ("run", {"run.finetune": "true"}, ["clean_train"]),
        ("run", {"run.baselines": "[bottom_up]"}, ["clean_train"]),
        ("run", {"mine.rule": "clean_filter"}, ["clean_train"]),
        ("run", {"mine.rule": "clean_filter", "clean_filter.positive_weight": ".inf"},
         ["clean_filter.positive_weight is inf", "above 0"]),
        ("run", {"run.baselines": "[bottom_up]", "noise_model.epochs": "3", "noise_model.held_epochs": "3"},
         ["noise_model.held_epochs is 3", "below noise_model.epochs, 3"]),
        ("run", {"run.baselines": "[bottom_up]", "noise_model.penalty_weight": "-1"},
         ["noise_model.penalty_weight is -1", "at least 0"]),
        ("run", {"run.baselines": "[improved_baseline]", "mine.refine_val": "false"},
         ["baseline_improved_baseline", "mine.refine_val: true"]),
        ("run", {"run.baselines": "[pseudo_label]", "run.two_stage": "false"}, ["goes on from", "run.two_stage"]),
        ("baselines", {}, ["run.baselines names nothing"]),
        ("train", {"train.batch_size": "63"}, ["train.batch_size", "63 is odd"]),
        ("train", {"train.ensemble_decay": "1", "train.method": "temporal_ensembling"}, ["train.ensemble_decay", "1"]),
        ("train", {"train.ramp_up": "-1"}, ["train.ramp_up is -1"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_settings_that_make_no_sense(
    verb: str, settings: dict[str, str], words: list[str], digits: Path, run_dir: Path
) -> None:
    if verb != "train":
        shutil.rmtree(run_dir)
    names = {name.replace(".", "__"): value for name, value in settings.items()}
    refused(command(verb, digits, run_dir, **names), *words)
    assert verb == "train" or not (run_dir / "pretrain" / "checkpoints").exists()       # refused before any work
    if verb == "run":
        refused([*command(verb, digits, run_dir, **names), "--dry-run"], *words)


def test_what_was_refused_does_not_stand_in_the_way_of_what_is_right(digits: Path, run_dir: Path) -> None:
    shutil.rmtree(run_dir / "mine")
    strict = command("mine", digits, run_dir, mine__min_score="1", mine__min_share="0")
    refused(strict, "mine.allow_empty")
    assert main([*strict[3:], "--mine.min_share=0.1"]) == 0
    shutil.rmtree(run_dir)
    refused(command("pretrain", digits, run_dir, model__name="resnet15"), "resnet14")
    assert main(command("pretrain", digits, run_dir, pretrain__epochs="1")[3:]) == 0


def kept_by_hand(run_dir: Path, index: list[int | None], label: list[int]) -> None:
    pq.write_table(pa.table({"index": index, "label": label}), run_dir / "mine" / "seeds.parquet")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"label": 12}, ["labels outside of 0..9", "index 0"]),
        ({"index": 99_999}, ["no sample of", "99999"]),
        ({"index": 1}, ["a sample twice"]),
        ({"index": None}, ["without an index"]),
        ({"index": "test"}, ["outside of the training view"]),
    ],
    ids=str,
)
def test_seeds_of_the_users_own_are_checked(
    digits: Path, run_dir: Path, change: dict[str, Any], words: list[str]
) -> None:
    views = open_views(Dataset.open(digits), DataConfig(dataset=digits, labels="noisy", holdout=0.1), 0)
    index: list[Any] = views.train[:100].tolist()
    label = [n % 10 for n in range(100)]
    words = [word.replace("index 0", f"index {index[0]}") for word in words]
    changed = {"index": index[1] if change.get("index") == 1 else change.get("index", index[0])}
    index[0] = int(views.test[0]) if changed["index"] == "test" else changed["index"]
    label[0] = change.get("label", label[0])
    kept_by_hand(run_dir, index, label)
    refused(command("train", digits, run_dir), "seeds.parquet", *words)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    mounted = tmp_path / "small"
    mounted.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(mounted)], capture_output=True, check=False
    )
    if done.returncode != 0:
        pytest.skip("a small file system cannot be mounted here (needs root)")
    yield mounted
    subprocess.run(["umount", str(mounted)], check=True)


def test_no_space_left_for_a_checkpoint(digits: Path, small_disk: Path, tmp_path: Path) -> None:
    run_dir = small_disk / "run"
    arguments = command("pretrain", digits, run_dir, pretrain__epochs="2", runtime__checkpoint_steps="5")
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(700_000))         # one checkpoint fits, a second one does not
    refused(arguments, "no space left", str(run_dir), "bytes", "run the same command again", code=1)
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    assert "pretrain epoch 2/2" in succeed(arguments)
    undisturbed = tmp_path / "undisturbed"
    succeed(command("pretrain", digits, undisturbed, pretrain__epochs="2", runtime__checkpoint_steps="5"))
    weights = [folder / "pretrain" / "model.safetensors" for folder in (run_dir, undisturbed)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
