"""Stage 1, first step: ordinary training on the noisy labels, with balanced classes (paper, sections 3.1 and 3.3).

The methods that the paper is compared with differ from it by their loss, by balancing, and some by BatchNorm behind the
outputs or by what they validate on: so the same loop trains them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from twostage.config import PretrainConfig
from twostage.data import plan
from twostage.data.schema import NO_LABEL
from twostage.data.views import CleanSet
from twostage.runtime import preemption, stage, tracking
from twostage.runtime.checkpoint import save_weights
from twostage.runtime.descent import Descent
from twostage.runtime.evaluation import accuracy_on
from twostage.runtime.optimizers import make_optimizer
from twostage.runtime.session import Session
from twostage.runtime.state import Meter, TrainingState
from twostage.runtime.world import average_batchnorm
from twostage.stage1.methods import OUTPUT_NORM, loss_by_name


@dataclass(frozen=True)
class Variant:
    """What a row of Table 3, or a classifier per class, does otherwise than stage 1."""

    loss: str = "cross_entropy"
    """name in stage1.methods"""
    transition: torch.Tensor | None = None
    """(num_classes, num_classes) for the losses that correct by it"""
    positive_weight: float = 1.0
    """for the loss of one classifier per class"""
    val: plan.Indices | None = None
    """validation view in place of the run's own: the refined one"""
    clean_set: CleanSet | None = None
    """trained and validated on, in place of the run's own views"""
    section: str = "pretrain"
    """of the configuration that the settings are from, for messages"""


def pretrain(session: Session, folder: Path, config: PretrainConfig, variant: Variant = Variant()) -> None:
    """Trains on the training view's labels as given; leaves `model.safetensors` and metrics in `folder`.

    With `variant.clean_set`, on its labels. Samples without a label are left out.

    Raises:
        InputError: `folder` was begun with other inputs, or the global batch does not divide among the processes.
    """
    views, world, accelerator = session.views, session.world, session.accelerator
    rng_seed, runtime = session.config.run.rng_seed, session.config.runtime
    view, val, labels_of = views.train, views.val, views.labels
    if variant.clean_set is not None:
        view, val, labels_of = variant.clean_set.train, variant.clean_set.val, variant.clean_set.labels
    val = val if variant.val is None else variant.val
    view = view[labels_of[view] != NO_LABEL]

    pieces = session.pieces(config.batch_size, section=f"{variant.section}.")
    inputs = session.inputs(
        **stage.plain(config, f"{variant.section}."),
        loss=variant.loss,
        transition=None if variant.transition is None else variant.transition.tolist(),
        num_val=len(val),
        **({"clean_set": len(view)} if variant.clean_set is not None else {}),
        **session.initial_inputs(),
    )
    if stage.done(folder, inputs):
        session.say(f"{folder.name}: already done")
        return
    stage.begin(folder, inputs, world)

    transition = None if variant.transition is None else session.table(variant.transition)
    loss_of = loss_by_name(variant.loss, transition, variant.positive_weight)
    model = session.new_model(output_norm=variant.loss in OUTPUT_NORM, initial=True)
    optimizer = make_optimizer(model, config.optimizer)
    network, prepared = session.prepare(model, optimizer, config.batch_size, pieces)
    descent = Descent(accelerator, network, prepared, world, pieces, runtime.max_skipped_steps)
    meter = Meter(("train/loss",), world.device)
    state = TrainingState.new(model, prepared, config.plateau, meter, accelerator.scaler)
    session.seed_rank(folder.name)
    resumed = state.resume(folder, world)
    tracking.start_tracking(accelerator, folder, resumed, session.config)
    index_log = tracking.IndexLog(folder, world, resumed, pieces if runtime.index_log else 0)
    label_table = session.table(labels_of)
    progress = tracking.Progress(folder.name, config.epochs, "epoch", world)

    while state.epoch < config.epochs and not state.plateau.should_stop:
        batches = plan.epoch_batches(
            view,
            batch_size=config.batch_size,
            rng_seed=rng_seed,
            epoch=state.epoch,
            labels=labels_of if config.balance else None,
            shard=views.dataset.shard,
            window_shards=session.config.loader.window_shards,
        )
        mine = plan.rank_slice(batches, world.rank, world.size, pieces)
        draws = session.draws(config.batch_size, epoch=state.epoch, num_views=1, pieces=pieces)
        network.train()
        lr = state.set_lr(config.optimizer.lr)
        progress.start_epoch(state.epoch, len(batches), state.step)

        for (images,), index in session.loader.batches(
            mine, training=True, draws=draws, first_step=state.step * pieces
        ):
            index_log.note(index, state.total_steps + 1)
            labels = label_table[index]
            with accelerator.autocast():
                logits = network(images)
            loss = loss_of(logits, labels)
            descent.take(loss, state.total_steps + 1)

            state.advance(loss, descent=descent)
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
        accuracy = accuracy_on(model, session.loader, val, labels_of, accelerator=accelerator, world=world)
        values = {**state.meter.means(world), "train/learning_rate": lr, "val/accuracy": accuracy}
        tracking.log(accelerator, values, state.total_steps, state.epoch)
        progress.end_epoch(values, state.meter.epoch_means())
        state.end_epoch(accuracy)
        state.save(folder, runtime, rng_seed, world)
        preemption.leave_if_asked(folder, state.total_steps, world)

    if world.is_main:
        save_weights(folder / "model.safetensors", state.kept_weights(config.select))
    tracking.stop_tracking(accelerator)
    results = {"epochs": state.epoch, "val_accuracy": state.kept_accuracy(config.select)}
    stage.finish(folder, inputs, results, world)
