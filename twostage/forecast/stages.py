"""What a run will be made of: stages, views, steps and passes, from the configuration and the label columns alone.

Starts nothing, and reads no image.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from twostage.baselines import second_stage
from twostage.config import Config, NoiseModelConfig, PretrainConfig, TrainConfig
from twostage.data.dataset import Dataset
from twostage.data.passes import Indices, Source
from twostage.data.plan import check_division, num_pieces, passes_over_labeled, unlabeled_view
from twostage.data.schema import NO_LABEL, InputError
from twostage.data.views import Views, open_clean_set, open_views
from twostage.rows import ALL_BASELINES, WITH_CLEAN_SET, BaselineName, folder_of
from twostage.stage1.methods import CORRECTED
from twostage.stage2.mined import read_mined

Kind = Literal["pretrain", "train", "rank"]
KINDS: Final[tuple[Kind, ...]] = ("pretrain", "train", "rank")
"""one augmentation of each sample; two (the Π-model); without gradients"""


@dataclass(frozen=True)
class Stage:
    """One stage of a run. Passes and with them all totals are upper bounds: a training may stop early."""

    name: str
    """its folder"""
    kind: Kind
    passes: int
    steps: int
    """of one pass; of `rank`, of the process with the most"""
    batch_size: int
    """samples of the global batch; of `rank`, of one process"""
    samples: int
    """that one pass takes, over all processes, over-sampled ones each time"""
    validated: int = 0
    """samples that are scored after each pass"""
    views: str = ""
    """what it sees, for people"""
    config: PretrainConfig | TrainConfig | None = None
    """None: nothing is trained"""
    networks: int = 1
    """that are trained together, each on all samples; only one of them is validated"""


def stages_of(config: Config, num_processes: int, kept: float) -> tuple[Views, list[Stage]]:
    """The stages that `twostage run` goes through, in its order.

    Args:
        kept: share of each class's labels that stage 1 keeps, where it has not been run yet.

    Raises:
        InputError: as the stages do: a split or column is missing, a batch does not divide among the processes.
    """
    if not 0 < kept < 1:
        raise InputError(f"--kept {kept}: give a share above 0 and below 1")
    views = open_views(Dataset.open(config.data.dataset), config.data, config.run.rng_seed)
    forecast = _Forecast(config, views, num_processes, kept)
    found = forecast.two_stages() if config.run.two_stage else []
    for name in config.run.baselines:
        found += [stage for stage in forecast.baseline(name) if stage.name not in {other.name for other in found}]
    if config.run.finetune:
        found.append(forecast.on_clean_set("finetune", config.finetune))
    trained = sum(stage.config is not None and stage.name != "clean_filter" for stage in found)
    found.append(
        forecast.scoring("evaluate", views.test, config.rank.batch_size, f"{trained} network(s)", passes=trained)
    )
    return views, found


@dataclass(frozen=True)
class _Forecast:
    config: Config
    views: Views
    num_processes: int
    kept: float

    def two_stages(self) -> list[Stage]:
        config, views = self.config, self.views
        by_classifiers = config.mine.rule == "clean_filter"
        found = []
        if config.train.init == "stage1" or not by_classifiers:
            found.append(self.supervised("pretrain", config.pretrain, views.train, views.val, views.labels))
        if by_classifiers:
            found.append(self.on_clean_set("clean_filter", config.clean_filter))
        return [*found, self.ranking("rank"), self.semi_supervised("train", config.train, *self.seeds())]

    def baseline(self, name: BaselineName) -> list[Stage]:
        row, config, views = ALL_BASELINES[name], self.config, self.views
        if row.noise_model is not None:
            networks = 2 if row.noise_model == "label_noise" else 1
            return [self.noise_model(folder_of(name), config.noise_model, networks)]
        if row.stage2 is not None:
            labeled = self.clean_labels() if name in WITH_CLEAN_SET else self.seeds()
            return [self.semi_supervised(folder_of(name), second_stage(config.train, row), *labeled)]
        if name == "balanced_cross_entropy" and config.pretrain.balance and config.run.two_stage:
            return []
        before = [*self.baseline("cross_entropy"), self.ranking("rank_cross_entropy")] if row.loss in CORRECTED else []
        settings = dataclasses.replace(config.pretrain, balance=row.balance)
        return [*before, self.supervised(folder_of(name), settings, views.train, views.val, views.labels)]

    def supervised(
        self, name: str, settings: PretrainConfig, view: Indices, val: Indices, labels: Indices
    ) -> Stage:
        """One augmentation of every sample of a view."""
        self._check_division(_section(name), settings.batch_size, halves=False)
        view = view[labels[view] != NO_LABEL]
        length = _length(view, labels if settings.balance else None)
        steps = -(-length // settings.batch_size)
        views = f"{len(view):,}{_balanced(len(view), length)}"
        return Stage(name, "pretrain", settings.epochs, steps, settings.batch_size, steps * settings.batch_size,
                     _labelled(val, labels), views, settings)  # fmt: skip

    def on_clean_set(self, name: str, settings: PretrainConfig) -> Stage:
        clean_set = open_clean_set(self.views, self.config.data, self.config.run.rng_seed)
        return self.supervised(name, settings, clean_set.train, clean_set.val, clean_set.labels)

    def semi_supervised(self, name: str, settings: TrainConfig, seeds: Indices, origin: str) -> Stage:
        """Half labeled, half unlabeled; `seeds`: (num_samples,) kept labels, NO_LABEL elsewhere."""
        self._check_division("train", settings.batch_size, halves=True)
        labeled = np.flatnonzero(seeds != NO_LABEL)
        unlabeled = unlabeled_view(self.views.train, seeds, settings.unlabeled)
        if not len(labeled) or not len(unlabeled):
            raise InputError(f"{name}: {len(labeled)} labeled and {len(unlabeled)} unlabeled samples; it needs both")
        lengths = (
            _length(labeled, seeds if settings.balance_labeled else None),
            _length(unlabeled, self.views.labels if settings.balance_unlabeled else None),
        )
        half = settings.batch_size // 2
        steps = -(-lengths[0 if passes_over_labeled(settings.pass_over, *lengths) else 1] // half)
        views = f"{len(labeled):,} labeled{_balanced(len(labeled), lengths[0])} {origin}, {len(unlabeled):,} unlabeled"
        kind: Kind = "train" if settings.method == "pi_model" else "pretrain"
        return Stage(name, kind, settings.sub_epochs, steps, settings.batch_size, steps * settings.batch_size,
                     _labelled(self.views.val, self.views.labels), views, settings)  # fmt: skip

    def noise_model(self, name: str, settings: NoiseModelConfig, networks: int) -> Stage:
        """Half clean, half noisy; one pass over the noisy ones."""
        self._check_division("noise_model", settings.batch_size, halves=True)
        clean_set = open_clean_set(self.views, self.config.data, self.config.run.rng_seed)
        view = self.views.train[self.views.labels[self.views.train] != NO_LABEL]
        length = _length(view, self.views.labels if settings.balance else None)
        steps = -(-length // (settings.batch_size // 2))
        noisy = f"{len(view):,} noisy{_balanced(len(view), length)}"
        return Stage(name, "pretrain", settings.epochs, steps, settings.batch_size, steps * settings.batch_size,
                     _labelled(clean_set.val, clean_set.labels), f"{noisy}, {len(clean_set.train):,} clean",
                     settings, networks)  # fmt: skip

    def ranking(self, name: str) -> Stage:
        scored = np.concatenate([self.views.train, self.views.val]) if self.views.held_out else self.views.train
        return self.scoring(name, scored, self.config.rank.batch_size, f"{len(scored):,}")

    def scoring(self, name: str, view: Indices, batch_size: int, views: str, passes: int = 1) -> Stage:
        check_division(batch_size, 1, section="rank.")
        batches = -(-len(view) // batch_size)
        return Stage(name, "rank", passes, -(-batches // self.num_processes), batch_size, len(view), views=views)

    def seeds(self) -> tuple[Indices, str]:
        """(num_samples,) labels as mined, or as many of each class as are assumed; and which of both, for people."""
        mined = self.config.run.dir / "mine"
        if (mined / "done.json").exists():
            return read_mined(mined, self.views, self.config.data).seeds, "(as mined)"
        seeds = np.full(len(self.views.dataset), NO_LABEL, dtype=np.int64)
        labels = self.views.labels[self.views.train]
        for c in range(self.views.num_classes):
            members = self.views.train[labels == c]
            seeds[members[: int(np.ceil(self.kept * len(members)))]] = c
        if self.config.mine.rule == "clean_filter" and self.config.mine.add_clean_set:
            clean, _ = self.clean_labels()
            seeds = np.where(clean == NO_LABEL, seeds, clean)
        return seeds, f"(if {100 * self.kept:g} % are kept)"

    def clean_labels(self) -> tuple[Indices, str]:
        clean_set = open_clean_set(self.views, self.config.data, self.config.run.rng_seed)
        seeds = np.full(len(self.views.dataset), NO_LABEL, dtype=np.int64)
        seeds[clean_set.train] = clean_set.labels[clean_set.train]
        return seeds, "(the clean set)"

    def _check_division(self, section: str, batch_size: int, *, halves: bool) -> None:
        micro_batch = self.config.runtime.micro_batch
        num_pieces(batch_size, self.num_processes, micro_batch, halves=halves, section=f"{section}.")


def _section(name: str) -> str:
    return "pretrain" if name.startswith("baseline_") else name


def _length(view: Indices, labels: Indices | None) -> int:
    """Slots that one pass over a view needs, classes balanced by `labels`."""
    return Source(view, labels, None, 0, 0, 0).length


def _balanced(samples: int, length: int) -> str:
    return f" ({length:,} balanced)" if length != samples else ""


def _labelled(view: Indices, labels: Indices) -> int:
    return int((labels[view] != NO_LABEL).sum())
