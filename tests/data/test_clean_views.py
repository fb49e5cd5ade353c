"""The clean set: which samples it has, what it is validated on, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data_prep.tiny_dataset import write_labelled
from twostage.config import DataConfig
from twostage.data import schema
from twostage.data.dataset import Dataset
from twostage.data.schema import NO_LABEL, InputError, LabelColumn
from twostage.data.views import CleanSet, open_clean_set, open_views

SPLITS = ["noisy_train"] * 30 + ["clean_train"] * 18 + ["val"] * 6 + ["test"] * 6
CLASSES = ("cat", "dog", "frog")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Labelled index % 3; the column `noisy` says index % 2."""
    path = write_labelled(tmp_path / "d", [index % 3 for index in range(60)], CLASSES, SPLITS)
    write_column(path, "noisy", [index % 2 if index < 27 else index % 3 for index in range(60)])
    return path


def write_column(path: Path, name: str, label: list[int]) -> None:
    index = np.arange(len(label), dtype=np.int64)
    column = LabelColumn(name=name, index=index, label=np.array(label), class_names=CLASSES, how="by hand")
    schema.write_labels(path, column)


def clean_set(path: Path, **options: Any) -> CleanSet:
    config = DataConfig(dataset=path, **options)
    return open_clean_set(open_views(Dataset.open(path), config, rng_seed=4), config, rng_seed=4)


@pytest.mark.parametrize("options", [{}, {"labels": "noisy", "clean_labels": "given"}])
def test_it_is_the_clean_split_with_the_true_labels(path: Path, options: dict[str, Any]) -> None:
    found = clean_set(path, **options)
    assert found.train.tolist() == list(range(30, 48)) and found.val.tolist() == list(range(48, 54))
    assert found.labels.tolist() == [index % 3 for index in range(60)]


def test_where_the_runs_validation_labels_are_noisy_a_share_of_it_is_held_out(path: Path) -> None:
    found = clean_set(path, labels="noisy", clean_labels="given", holdout=0.3)
    assert sorted([*found.train, *found.val]) == list(range(30, 48))
    assert np.bincount(found.labels[found.val]).tolist() == [2, 2, 2]


def test_samples_without_a_label_are_left_out(path: Path) -> None:
    write_column(path, "partly", [NO_LABEL if index == 33 else index % 3 for index in range(60)])
    assert clean_set(path, labels="noisy", clean_labels="partly").train.tolist() == [*range(30, 33), *range(34, 48)]


def test_a_split_of_another_purpose_is_refused(path: Path) -> None:
    for split, field in (("noisy_train", "train_split"), ("val", "val_split"), ("test", "test_split")):
        with pytest.raises(InputError, match=rf"data\.clean_split and data\.{field} are both '{split}'"):
            clean_set(path, clean_split=split)
    assert clean_set(path, clean_split="val", holdout=0.5).train.size      # val is not used then


def test_no_such_split_and_a_class_that_is_not_there_are_named(path: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no split 'clean_trian'; did you mean 'clean_train'"):
        clean_set(path, clean_split="clean_trian")
    labels = [index % 3 if index < 30 or index >= 48 else index % 2 for index in range(60)]
    write_column(path, "two", labels)
    with pytest.raises(InputError, match="no sample of the clean split 'clean_train' has label 'frog'"):
        clean_set(path, clean_labels="two")
