"""Wrong input to a run: what it says, with which exit code, and that nothing is lost."""

from __future__ import annotations

import contextlib
import io
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from running import command, succeed

from twostage.__main__ import main


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
    refused(command("pretrain", digits, run_dir, pretrain__optimizer__lr="0.1"), "pretrain.optimizer.lr: 0.003 -> 0.1")


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
        ("pretrain", {"augment.mean": "[0.1, 0.2]"}, ["augment.mean", "needs 1"]),
        ("pretrain", {"runtime.precision": "fp16"}, ["runtime.precision", "fp16 needs a GPU"]),
        ("pretrain", {"pretrain.optimizer.name": "sdg"}, ["sdg", "sgd"]),
        ("run", {"train.batch_size": "63"}, ["train.batch_size", "63 is odd"]),
        ("run", {"train.batch_size": "60", "runtime.micro_batch": "16", "pretrain.batch_size": "64"},
         ["runtime.micro_batch: 16 does not divide", "(train.batch_size)", "allowed: 2, 4, 6, 10, 12, 20, 30, 60"]),
        ("run", {"mine.min_share": "10"}, ["mine.min_share: 10.0 is not within 0..1"]),
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
