"""Rows 2 and 3 of Table 4: a network is trained together with a model of how labels go wrong (paper, section 4.3).

Half of each batch is clean and half is noisy: the clean half tells what the classes are, the noisy half what the labels
make of them. The paper copies both rows' figures from Patrini et al., who quote Xiao et al., and does not say how the
sets are mixed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from twostage.config import NoiseModelConfig
from twostage.data import plan
from twostage.data.schema import NO_LABEL, InputError
from twostage.data.views import CleanSet, open_clean_set
from twostage.losses import cross_entropy
from twostage.models.label_noise import (
    NOISE_TYPES,
    LabelNoiseModel,
    confusing_matrix,
    label_noise_losses,
    supervised_losses,
)
from twostage.models.noise_layer import BottomUp
from twostage.runtime import preemption, stage, tracking
from twostage.runtime.checkpoint import save_weights
from twostage.runtime.descent import Descent
from twostage.runtime.evaluation import accuracy_on
from twostage.runtime.optimizers import make_optimizer
from twostage.runtime.session import Session
from twostage.runtime.state import Meter, TrainingState
from twostage.runtime.world import average_batchnorm
from twostage.runtime.zero import ZeroOptimizer


class NoiseModel(Protocol):
    """How the noisy half is learned from."""

    @property
    def model(self) -> nn.Module:
        """The network and what is trained with it."""

    @property
    def handed_on(self) -> str:
        """Prefix of the parameters that make up the classifier."""

    def start_epoch(self, epoch: int) -> None:
        """Called before each epoch."""

    def losses(self, outputs: tuple[Tensor, Tensor], clean: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of the clean slots and that of the noisy ones: means over each.

        Args:
            outputs: of the model, in training mode.
            clean: (b,) int64, NO_LABEL in the noisy slots.
            given: (b,) int64 labels as given; NO_LABEL where there is none, as in many clean slots.
        """

    def settle(self) -> None:
        """Called after each step of the optimizer."""


class BottomUpTraining:
    """A noise layer behind the network, for the noisy slots alone (Sukhbaatar et al.)."""

    handed_on = "network."

    def __init__(self, session: Session, config: NoiseModelConfig) -> None:
        self.model = BottomUp(session.new_model(initial=True), session.views.num_classes).to(session.world.device)
        self._config = config

    def start_epoch(self, epoch: int) -> None:
        """The layer is held until the network has learned something."""
        self.model.noise_layer.held = epoch < self._config.held_epochs

    def losses(self, outputs: tuple[Tensor, Tensor], clean: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        """See NoiseModel; the penalty counts as the noisy slots'."""
        logits, given_log_probs = outputs
        layer = self.model.noise_layer
        weight = 0.0 if layer.held else self._config.penalty_weight     # else Adam remembers it from before
        noisy = cross_entropy(given_log_probs, _of_noisy_slots(given, clean))
        return cross_entropy(logits, clean), noisy + weight * layer.penalty(self._config.penalty)

    def settle(self) -> None:
        """Makes the rows of the transition matrix probabilities again."""
        self.model.noise_layer.settle_()


class LabelNoiseTraining:
    """A second network says which type of noise a label has; both are trained by EM (Xiao et al.)."""

    handed_on = "classes."

    def __init__(self, session: Session, clean_set: CleanSet) -> None:
        """Raises InputError where no image has two labels that differ: nothing tells what is confused with what."""
        classes = session.new_model(initial=True)
        self.model = LabelNoiseModel(classes, session.new_model(initial=True, num_outputs=len(NOISE_TYPES)))
        data, index = session.config.data, clean_set.train
        clean, given = clean_set.labels[index], session.views.labels[index]
        if session.views.clean is None or not ((clean != given) & (given != NO_LABEL)).any():
            raise InputError(
                f"label_noise: no sample of {data.clean_split!r} has a right and a wrong label, from which it learns "
                f"what is confused with what: name the column of noisy labels by data.labels (now {data.labels}) and "
                f"that of right ones by data.clean_labels (now {data.clean_labels}); for Clothing1M noisy and clean"
            )
        pairs = torch.from_numpy(clean), torch.from_numpy(given)
        self._confusing = session.table(confusing_matrix(*pairs, session.views.num_classes).float())

    def start_epoch(self, epoch: int) -> None:
        """Nothing changes from epoch to epoch."""

    def losses(self, outputs: tuple[Tensor, Tensor], clean: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        """See NoiseModel; each is the sum of the class network's and the type network's."""
        known = supervised_losses(*outputs, clean, given, self._confusing)
        expected = label_noise_losses(*outputs, _of_noisy_slots(given, clean), self._confusing)
        return known[0] + known[1], expected[0] + expected[1]

    def settle(self) -> None:
        """Nothing to be done."""


def train(
    session: Session, folder: Path, config: NoiseModelConfig, kind: Literal["bottom_up", "label_noise"]
) -> None:
    """Trains on the noisy training view and the clean set; leaves the classifier's `model.safetensors` in `folder`.

    Raises:
        InputError: there is no clean split or it lacks a class, label_noise finds no image with two labels, `folder`
            was begun with other inputs, or half the global batch does not divide among the processes.
    """
    views, world, accelerator = session.views, session.world, session.accelerator
    rng_seed, runtime = session.config.run.rng_seed, session.config.runtime
    if config.batch_size < 1 or config.batch_size % (2 * world.size):
        raise InputError(
            f"noise_model.batch_size: {config.batch_size} does not divide into a clean and a noisy half for each of "
            f"{world.size} process(es); choose a multiple of {2 * world.size}"
        )
    clean_set = open_clean_set(views, session.config.data, rng_seed)
    clean = np.full(len(views.dataset), NO_LABEL, dtype=np.int64)
    clean[clean_set.train] = clean_set.labels[clean_set.train]
    noisy = views.train[views.labels[views.train] != NO_LABEL]
    pieces = session.pieces(config.batch_size, halves=True)
    inputs = session.inputs(
        noise_model=stage.plain(config),
        kind=kind,
        clean_set=len(clean_set.train),
        num_val=len(clean_set.val),
        **session.initial_inputs(),
    )
    if stage.done(folder, inputs):
        session.say(f"{folder.name}: already done")
        return
    noise: NoiseModel
    noise = BottomUpTraining(session, config) if kind == "bottom_up" else LabelNoiseTraining(session, clean_set)
    stage.begin(folder, inputs, world)

    model = noise.model
    optimizer = make_optimizer(model, config.optimizer)
    network, prepared = session.prepare(model, optimizer, config.batch_size, pieces)
    descent = Descent(accelerator, network, prepared, world, pieces, runtime.max_skipped_steps)
    meter = Meter(("train/loss", "train/clean", "train/noisy"), world.device)
    state = TrainingState.new(model, prepared, config.plateau, meter, accelerator.scaler)
    session.seed_rank(folder.name)
    resumed = state.resume(folder, world)
    tracking.start_tracking(accelerator, folder, resumed, session.config)
    index_log = tracking.IndexLog(folder, world, resumed, pieces if runtime.index_log else 0)
    clean_table, given_table = session.table(clean), session.table(views.labels)
    progress = tracking.Progress(folder.name, config.epochs, "epoch", world)

    while state.epoch < config.epochs and not state.plateau.should_stop:
        batches = plan.labeled_unlabeled_batches(
            clean_set.train,
            noisy,
            batch_size=config.batch_size,
            rng_seed=rng_seed,
            epoch=state.epoch,
            pass_over="unlabeled",
            labeled_labels=clean if config.balance else None,
            unlabeled_labels=views.labels if config.balance else None,
            shard=views.dataset.shard,
            window_shards=session.config.loader.window_shards,
        )
        mine = plan.rank_slice(batches, world.rank, world.size, pieces)
        draws = session.draws(config.batch_size, epoch=state.epoch, num_views=1, pieces=pieces)
        network.train()
        noise.start_epoch(state.epoch)
        lr = state.set_lr(config.optimizer.lr)
        progress.start_epoch(state.epoch, len(batches), state.step)

        for (images,), index in session.loader.batches(
            mine, training=True, draws=draws, first_step=state.step * pieces
        ):
            index_log.note(index, state.total_steps + 1)
            with accelerator.autocast():
                outputs = network(images)
            of_clean, of_noisy = noise.losses(outputs, clean_table[index], given_table[index])
            loss = of_clean + of_noisy
            descent.take(loss, state.total_steps + 1)
            noise.settle()
            if isinstance(prepared, ZeroOptimizer):
                prepared.weights_changed()

            state.advance(loss, of_clean, of_noisy, descent=descent)
            if not descent.complete:
                continue
            progress.step(config.batch_size, session.loader.data_wait)
            if state.total_steps % runtime.log_steps == 0:
                rates = progress.rates(session.loader)
                tracking.log(accelerator, {**state.meter.means(world), **rates}, state.total_steps, state.epoch)
            if descent.stop or state.checkpoint_due(runtime, len(batches)):
                state.save(folder, runtime, rng_seed, world)
                preemption.leave_if_asked(folder, state.total_steps, world)

        average_batchnorm(model, world)
        accuracy = accuracy_on(
            model, session.loader, clean_set.val, clean_set.labels, accelerator=accelerator, world=world
        )
        values = {**state.meter.means(world), "train/learning_rate": lr, "val/accuracy": accuracy}
        tracking.log(accelerator, values, state.total_steps, state.epoch)
        progress.end_epoch(values, state.meter.epoch_means())
        state.end_epoch(accuracy)
        state.save(folder, runtime, rng_seed, world)
        preemption.leave_if_asked(folder, state.total_steps, world)

    if world.is_main:
        kept = state.kept_weights(config.select).items()
        prefix = noise.handed_on
        own = {name.removeprefix(prefix): value for name, value in kept if name.startswith(prefix)}
        save_weights(folder / "model.safetensors", own)
    tracking.stop_tracking(accelerator)
    results = {"epochs": state.epoch, "val_accuracy": state.kept_accuracy(config.select)}
    stage.finish(folder, inputs, results, world)


def _of_noisy_slots(given: Tensor, clean: Tensor) -> Tensor:
    """The given labels of the slots without a clean one."""
    return torch.where(clean == NO_LABEL, given, NO_LABEL)
