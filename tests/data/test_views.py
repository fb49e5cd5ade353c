"""Which samples are trained, validated and tested on, with which labels; and what cannot be trained on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data_prep.tiny_dataset import write_labelled
from twostage.config import DataConfig
from twostage.data import plan, schema
from twostage.data.dataset import Dataset
from twostage.data.schema import NO_LABEL, InputError, LabelColumn
from twostage.data.views import Views, open_views

SPLITS = ["noisy_train"] * 30 + ["val"] * 6 + ["test"] * 4
CLASSES = ("cat", "dog", "frog")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_labelled(tmp_path / "d", [index % 3 for index in range(40)], CLASSES, SPLITS)


def views(path: Path, **options: Any) -> Views:
    return open_views(Dataset.open(path), DataConfig(dataset=path, **options), rng_seed=4)


def add_labels(path: Path, name: str, label: list[int], class_names: tuple[str, ...] = CLASSES) -> None:
    index = np.arange(len(label), dtype=np.int64)
    column = LabelColumn(name=name, index=index, label=np.array(label), class_names=class_names, how="by hand")
    schema.write_labels(path, column)


def test_splits_become_views(path: Path) -> None:
    found = views(path)
    assert found.train.tolist() == list(range(30)) and found.val.tolist() == list(range(30, 36))
    assert found.test.tolist() == list(range(36, 40)) and found.num_classes == 3 and not found.held_out
    assert found.labels.tolist() == [index % 3 for index in range(40)] and found.clean is None
    assert found.true_labels is found.labels
    given = schema.file_digest(path / "labels" / "given.parquet")
    samples = schema.file_digest(path / "samples.parquet")
    assert found.digests == {"dataset.samples": samples, "dataset.labels.given": given}


def test_held_out_samples_are_taken_from_the_training_split(path: Path) -> None:
    found = views(path, holdout=0.2)
    train, val = plan.holdout(found.labels, np.arange(30), 0.2, 4)
    assert found.train.tolist() == train.tolist() and found.val.tolist() == val.tolist() and found.held_out
    assert np.bincount(found.labels[found.val]).tolist() == [2, 2, 2]
    assert sorted([*found.train, *found.val]) == list(range(30))


def test_clean_labels_are_the_truth_where_there_are_any(path: Path) -> None:
    add_labels(path, "noisy", [(index // 2) % 3 for index in range(40)])
    found = views(path, labels="noisy", clean_labels="given")
    assert found.labels[5] == 2 and found.clean is not None and found.clean[5] == 2 and found.clean[7] == 1
    assert found.true_labels is found.clean
    assert sorted(found.digests) == ["dataset.labels.given", "dataset.labels.noisy", "dataset.samples"]


def test_a_column_for_a_part_of_the_samples_leaves_the_others_without_a_label(path: Path) -> None:
    add_labels(path, "few", [0, 1, 2] * 11)
    found = views(path, labels="few")
    assert (found.labels[33:] == NO_LABEL).all() and found.labels[32] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_split": "train"}, r"has no split 'train'; did you mean 'noisy_train'\?"),
        ({"val_split": "tst"}, r"has no split 'tst'; did you mean 'test'\?.*; or set data\.holdout: 0\.1,"),
        ({"test_split": "clean_train"}, r"has no split 'clean_train'; .*allowed: noisy_train, test, val"),
        ({"labels": "givn"}, r"no label column 'givn'; did you mean 'given'\?"),
        ({"clean_labels": "none"}, r"no label column 'none'"),
        ({"clean_labels": "others"}, r"'given' and 'others' .* differ in their classes: \['cat', .*\] and \['a'"),
        ({"labels": "gap"}, r"'gap' labels no sample of 'noisy_train' as 'dog'"),
        ({"labels": "one"}, r"one class only \('thing'\); a classifier needs at least two"),
        ({"labels": "no_val"}, r"no validation sample has a label in 'no_val'; set data\.holdout"),
        ({"holdout": 0.001}, r"data\.holdout: a share of 0\.001 holds out no sample"),
        ({"test_split": "val"}, r"data\.test_split and data\.val_split are both 'val': .* data\.holdout"),
        ({"val_split": "noisy_train"}, r"data\.train_split and data\.val_split are both 'noisy_train'"),
        ({"test_split": "noisy_train", "holdout": 0.1}, r"data\.train_split and data\.test_split are both"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(path: Path, options: dict[str, Any], message: str) -> None:
    add_labels(path, "others", [0] * 40, ("a", "b", "c"))
    add_labels(path, "gap", [0, 2] * 20)
    add_labels(path, "one", [0] * 40, ("thing",))
    add_labels(path, "no_val", [0, 1, 2] * 10)
    with pytest.raises(InputError, match=message):
        views(path, **options)


def test_the_validation_split_is_not_looked_at_where_samples_are_held_out(path: Path) -> None:
    found = views(path, holdout=0.2, val_split="test")
    assert dataclasses.is_dataclass(found) and found.val.max() < 30
