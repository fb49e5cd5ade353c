"""Stage 2: train on with all images, but only with the labels that stage 1 kept (paper, section 3.2, Algorithm 1)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from twostage.config import TrainConfig
from twostage.data import plan
from twostage.data.schema import NO_LABEL, file_digest
from twostage.ramps import ramp_down
from twostage.runtime import preemption, stage, tracking
from twostage.runtime.checkpoint import load_weights, save_weights
from twostage.runtime.descent import Descent
from twostage.runtime.evaluation import accuracy_on
from twostage.runtime.optimizers import make_optimizer
from twostage.runtime.session import Session
from twostage.runtime.state import Meter, TrainingState
from twostage.runtime.world import all_reduce_sum, average_batchnorm
from twostage.stage2.methods import check_method, loss_weight, make_method
from twostage.stage2.mined import read_mined


def train(session: Session, folder: Path, config: TrainConfig, mined: Path, weights: Path) -> None:
    """Trains by `config.method`; leaves `model.safetensors` and metrics in `folder`.

    Args:
        mined: folder with stage 1's `seeds.parquet` and, where validation labels are noisy, `val.parquet`.
        weights: stage 1's `model.safetensors`, which training continues from unless `train.init` is scratch.

    Raises:
        InputError: what stage 1 leaves is missing or out of range, `folder` was begun with other inputs, or the global
            batch does not divide among the processes.
    """
    views, world, accelerator = session.views, session.world, session.accelerator
    rng_seed, runtime = session.config.run.rng_seed, session.config.runtime

    check_method(config)
    for origin in (mined, mined.parent / "rank"):
        stage.check_dataset(origin, views.digests)
    labels_left = read_mined(mined, views, session.config.data)
    seeds, val, val_labels = labels_left.seeds, labels_left.val, labels_left.val_labels
    unlabeled = plan.unlabeled_view(views.train, seeds, config.unlabeled)
    pieces = session.pieces(config.batch_size, halves=True, section="train.")
    inputs = session.inputs(
        **stage.plain(config, "train."),
        weights=file_digest(weights) if config.init == "stage1" else None,
        seeds=file_digest(mined / "seeds.parquet"),
        num_val=len(val),
        **(session.initial_inputs() if config.init == "scratch" else {}),
    )
    if stage.done(folder, inputs):
        session.say(f"{folder.name}: already done")
        return
    stage.begin(folder, inputs, world)

    model = session.new_model(
        initial=config.init == "scratch", dropout=config.dropout, input_noise=config.input_noise
    )
    if config.init == "stage1":
        load_weights(weights, model)
    optimizer = make_optimizer(model, config.optimizer)
    network, prepared = session.prepare(model, optimizer, config.batch_size, pieces)
    descent = Descent(accelerator, network, prepared, world, pieces, runtime.max_skipped_steps)
    meter = Meter(("train/loss", "train/cross_entropy", "train/consistency"), world.device)
    method = make_method(config, session)
    state = TrainingState.new(
        model, prepared, config.plateau, meter, accelerator.scaler, method.memory, config.ema_decay
    )
    session.seed_rank(folder.name)
    resumed = state.resume(folder, world)
    tracking.start_tracking(accelerator, folder, resumed, session.config)
    index_log = tracking.IndexLog(folder, world, resumed, pieces if runtime.index_log else 0)
    label_table = session.table(seeds)
    progress = tracking.Progress(folder.name, config.sub_epochs, "sub-epoch", world)

    while state.epoch < config.sub_epochs and not state.plateau.should_stop:
        batches = plan.labeled_unlabeled_batches(
            np.flatnonzero(seeds != NO_LABEL),
            unlabeled,
            batch_size=config.batch_size,
            rng_seed=rng_seed,
            epoch=state.epoch,
            pass_over=config.pass_over,
            labeled_labels=seeds if config.balance_labeled else None,
            unlabeled_labels=views.labels if config.balance_unlabeled else None,
            shard=views.dataset.shard,
            window_shards=session.config.loader.window_shards,
        )
        mine = plan.rank_slice(batches, world.rank, world.size, pieces)
        draws = session.draws(config.batch_size, epoch=state.epoch, num_views=method.num_views, pieces=pieces)
        network.train()
        lr = state.set_lr(config.optimizer.lr * ramp_down(config.sub_epochs - state.epoch, config.ramp_down))
        consistency_weight = loss_weight(config, state.epoch)
        progress.start_epoch(state.epoch, len(batches), state.step)

        for images, index in session.loader.batches(
            mine, training=True, num_views=method.num_views, draws=draws, first_step=state.step * pieces
        ):
            index_log.note(index, state.total_steps + 1)
            labels = label_table[index]
            labels[1::2] = NO_LABEL         # odd slots are unlabeled, whatever is known of the samples in them
            with accelerator.autocast():
                supervised, consistency = method.losses(network, images, index, labels)
            loss = supervised + consistency_weight * consistency
            descent.take(loss, state.total_steps + 1)

            state.advance(loss, supervised, consistency, descent=descent)
            if not descent.complete:
                continue
            progress.step(config.batch_size, session.loader.data_wait)
            if state.total_steps % runtime.log_steps == 0:
                rates = progress.rates(session.loader)
                tracking.log(accelerator, {**state.meter.means(world), **rates}, state.total_steps, state.epoch)
            if descent.stop or state.checkpoint_due(runtime, len(batches)):
                state.save(folder, runtime, rng_seed, world)
                preemption.leave_if_asked(folder, state.total_steps, world)

        if method.memory is not None:
            method.memory.end_epoch(lambda tensor: all_reduce_sum(tensor, world))
        average_batchnorm(model, world)
        with state.validated():
            accuracy = accuracy_on(model, session.loader, val, val_labels, accelerator=accelerator, world=world)
        values = {
            **state.meter.means(world),
            "train/learning_rate": lr,
            "train/consistency_weight": consistency_weight,
            "val/accuracy": accuracy,
        }
        tracking.log(accelerator, values, state.total_steps, state.epoch)
        progress.end_epoch(values, state.meter.epoch_means())
        state.end_epoch(accuracy)
        state.save(folder, runtime, rng_seed, world)
        preemption.leave_if_asked(folder, state.total_steps, world)

    if world.is_main:
        save_weights(folder / "model.safetensors", state.kept_weights(config.select))
    tracking.stop_tracking(accelerator)
    results = {"sub_epochs": state.epoch, "val_accuracy": state.kept_accuracy(config.select)}
    stage.finish(folder, inputs, results, world)
