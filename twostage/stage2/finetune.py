"""At the end: fine-tune a trained network on the clean set, with a very small learning rate (paper, section 4.3)."""

from __future__ import annotations

from pathlib import Path

from twostage.data import plan
from twostage.data.schema import file_digest
from twostage.data.views import open_clean_set
from twostage.losses import cross_entropy
from twostage.runtime import preemption, stage, tracking
from twostage.runtime.checkpoint import load_weights, save_weights
from twostage.runtime.descent import Descent
from twostage.runtime.evaluation import accuracy_on
from twostage.runtime.optimizers import make_optimizer
from twostage.runtime.session import Session
from twostage.runtime.state import Meter, TrainingState
from twostage.runtime.world import average_batchnorm


def finetune(session: Session, folder: Path, weights: Path) -> None:
    """Trains on with cross-entropy on the clean labels; leaves `model.safetensors` and metrics in `folder`.

    Args:
        weights: of a network for the same classes, whose class layer is kept: Table 4, rows 11-13.

    Raises:
        InputError: there is no clean split or it lacks a class, the weights do not fit, `folder` was begun with other
            inputs, or the global batch does not divide among the processes.
    """
    config, views, world, accelerator = session.config.finetune, session.views, session.world, session.accelerator
    rng_seed, runtime = session.config.run.rng_seed, session.config.runtime

    clean_set = open_clean_set(views, session.config.data, rng_seed)
    settings = stage.plain(config)
    del settings["init"]                # the same weights are the same, wherever they lie
    pieces = session.pieces(config.batch_size, section="finetune.")
    inputs = session.inputs(
        finetune=settings,
        noise=[session.config.train.dropout, session.config.train.input_noise],
        weights=file_digest(weights),
        num_val=len(clean_set.val),
    )
    if stage.done(folder, inputs):
        session.say(f"{folder.name}: already done")
        return
    stage.begin(folder, inputs, world)

    model = session.new_model(dropout=session.config.train.dropout, input_noise=session.config.train.input_noise)
    load_weights(weights, model)
    optimizer = make_optimizer(model, config.optimizer)
    network, prepared = session.prepare(model, optimizer, config.batch_size, pieces)
    descent = Descent(accelerator, network, prepared, world, pieces, runtime.max_skipped_steps)
    meter = Meter(("train/loss",), world.device)
    state = TrainingState.new(model, prepared, config.plateau, meter, accelerator.scaler)
    session.seed_rank(folder.name)
    resumed = state.resume(folder, world)
    tracking.start_tracking(accelerator, folder, resumed, session.config)
    index_log = tracking.IndexLog(folder, world, resumed, pieces if runtime.index_log else 0)
    label_table = session.table(clean_set.labels)
    progress = tracking.Progress(folder.name, config.epochs, "epoch", world)

    while state.epoch < config.epochs and not state.plateau.should_stop:
        batches = plan.epoch_batches(
            clean_set.train,
            batch_size=config.batch_size,
            rng_seed=rng_seed,
            epoch=state.epoch,
            labels=clean_set.labels if config.balance else None,
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
            loss = cross_entropy(logits, labels)
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
        save_weights(folder / "model.safetensors", state.kept_weights(config.select))
    tracking.stop_tracking(accelerator)
    results = {"epochs": state.epoch, "val_accuracy": state.kept_accuracy(config.select)}
    stage.finish(folder, inputs, results, world)
