"""Which samples are trained on, validated on and tested on, and with which labels. Knows only numpy and pyarrow."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from twostage.config import DataConfig
from twostage.data.dataset import Dataset
from twostage.data.plan import Indices, holdout
from twostage.data.schema import NO_LABEL, InputError


@dataclass(frozen=True)
class Views:
    """The views of one run over one dataset. Views hold increasing sample indices; label tables are by sample index."""

    dataset: Dataset
    class_names: tuple[str, ...]
    train: Indices
    val: Indices
    test: Indices
    labels: Indices
    """(num_samples,) as given, noisy on the training split"""
    clean: Indices | None
    """(num_samples,) the truth, where it is known"""
    held_out: bool
    """whether `val` was taken out of the training split, so that its labels are as noisy as the training labels"""
    digests: dict[str, str]
    """what the run was begun with: of samples.parquet and of each label column"""

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def true_labels(self) -> Indices:
        """(num_samples,) labels to test against: the clean ones where there are any, else those given."""
        return self.labels if self.clean is None else self.clean


def open_views(dataset: Dataset, config: DataConfig, rng_seed: int) -> Views:
    """Reads the label columns and divides the samples.

    Raises:
        InputError: a split or label column is missing, label columns disagree about the classes, a training label is
            missing for a whole class, there is only one class, or one split serves two purposes.
    """
    _check_splits(config)
    given = dataset.labels(config.labels)
    clean = None
    if config.clean_labels is not None:
        column = dataset.labels(config.clean_labels)
        if column.class_names != given.class_names:
            raise InputError(
                f"label columns {config.labels!r} and {config.clean_labels!r} of {dataset.path} differ in their "
                f"classes: {list(given.class_names)} and {list(column.class_names)}"
            )
        clean = column.dense(len(dataset))
    if len(given.class_names) < 2:
        raise InputError(f"{dataset.path}: one class only ({given.class_names[0]!r}); a classifier needs at least two")
    labels = given.dense(len(dataset))
    train = dataset.split_indices(config.train_split)
    if config.holdout is None:
        try:
            val = dataset.split_indices(config.val_split)
        except InputError as error:
            remedy = "or set data.holdout: 0.1, to validate on a tenth of the training split"
            raise InputError(f"{error}; {remedy}") from error
    else:
        train, val = holdout(labels, train, config.holdout, rng_seed)
    absent = np.setdiff1d(np.arange(len(given.class_names)), labels[train])
    if absent.size:
        names = ", ".join(repr(given.class_names[c]) for c in absent)
        raise InputError(f"{dataset.path}: {config.labels!r} labels no sample of {config.train_split!r} as {names}")
    if not (labels[val] != NO_LABEL).any():
        raise InputError(f"{dataset.path}: no validation sample has a label in {config.labels!r}; set data.holdout")
    return Views(
        dataset=dataset,
        class_names=given.class_names,
        train=train,
        val=val,
        test=_test_view(dataset, config.test_split),
        labels=labels,
        clean=clean,
        held_out=config.holdout is not None,
        digests=dataset.digests(*filter(None, (config.labels, config.clean_labels))),
    )


def _test_view(dataset: Dataset, split: str) -> Indices:
    """Empty for a dataset of one folder per class and nothing else; any other split than `test` was asked for."""
    if split == "test" and split not in dataset.marker["splits"]:
        return np.empty(0, dtype=np.int64)
    return dataset.split_indices(split)


@dataclass(frozen=True)
class CleanSet:
    """The split whose labels are right. Views hold increasing sample indices."""

    train: Indices
    val: Indices
    """to validate on, with labels that are right too"""
    labels: Indices
    """(num_samples,) by sample index"""


def open_clean_set(views: Views, config: DataConfig, rng_seed: int) -> CleanSet:
    """The clean split; samples without a label are left out.

    Validated is on the run's validation split, as in the works that the paper is compared with. Where that is held out
    of the noisy training split, its labels are noisy, and the same share of the clean split is held out in its place.

    Raises:
        InputError: no such split (names the nearest), a class without a sample in it, or a split of another purpose.
    """
    for field in ("train_split", "test_split", "val_split"):
        if config.clean_split == getattr(config, field) and (field != "val_split" or config.holdout is None):
            raise InputError(f"data.clean_split and data.{field} are both {config.clean_split!r}: choose another split")
    labels = views.true_labels
    view = views.dataset.split_indices(config.clean_split)
    view = view[labels[view] != NO_LABEL]
    train, val = (view, views.val) if config.holdout is None else holdout(labels, view, config.holdout, rng_seed)
    absent = np.setdiff1d(np.arange(views.num_classes), labels[train])
    if absent.size:
        names = ", ".join(repr(views.class_names[c]) for c in absent)
        raise InputError(f"{views.dataset.path}: no sample of the clean split {config.clean_split!r} has label {names}")
    return CleanSet(train, val, labels)


def _check_splits(config: DataConfig) -> None:
    """What is trained on or chosen by must not be what the final figures are taken from."""
    used = [("train_split", config.train_split), ("test_split", config.test_split)]
    if config.holdout is None:
        used.append(("val_split", config.val_split))
    for (one, split), (other, same) in combinations(used, 2):
        if split == same:
            raise InputError(
                f"data.{one} and data.{other} are both {split!r}: their samples must not be the same; choose another "
                "split, or set data.holdout to validate on a part of the training split"
            )
