"""Stage 1, second step: the trained network scores every sample by P(given label | image) (paper, section 3.1)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from twostage.data import plan
from twostage.data.loader import ImageLoader
from twostage.data.schema import file_digest, table_writer
from twostage.runtime import preemption, stage
from twostage.runtime.checkpoint import load_weights
from twostage.runtime.evaluation import probabilities
from twostage.runtime.session import Session
from twostage.runtime.tracking import Progress
from twostage.runtime.world import barrier, gather_strings

BATCHES_PER_ROW_GROUP = 64
SAMPLES_PER_PART = 1 << 17
"""at most; what a process that is killed has to score again"""


def part_schema(num_classes: int) -> pa.Schema:
    """Columns of a part. `score` is the probability of the given label, 0 for a sample without one."""
    return pa.schema(
        [
            ("index", pa.int64()),
            ("label", pa.int64()),
            ("predicted", pa.int64()),
            ("score", pa.float32()),
            ("probs", pa.list_(pa.float32(), num_classes)),
            ("held_out", pa.bool_()),
        ]
    )


def rank(session: Session, folder: Path, model_folder: Path, *, per_class: bool = False) -> None:
    """Scores the training split, held-out samples included, each sample once; a Parquet part or more per process.

    Samples come in fixed batches whatever the number of processes, so that every score is the same bit for bit.
    Parts that are there already are kept, as long as the number of processes is the same. Asked to stop, it gives up
    the part that it is at.

    Args:
        model_folder: holds the network's `model.safetensors`.
        per_class: the network is one binary classifier per class; the score is that of the given label's classifier.

    Raises:
        InputError: `folder` was begun with other inputs, the network was trained on another dataset, or its weights do
            not fit the configured one.
        Preempted: asked to stop; on all ranks alike.
    """
    views, world = session.views, session.world
    stage.check_dataset(model_folder, views.digests)
    weights = model_folder / "model.safetensors"
    inputs = session.inputs(**stage.plain(session.config.rank, "rank."), weights=file_digest(weights))
    inputs |= {"per_class": True} if per_class else {}
    if stage.done(folder, inputs):
        session.say(f"{folder.name}: already done")
        return
    stage.begin(folder, inputs, world)

    model = session.new_model()
    load_weights(weights, model)
    scored = np.sort(np.concatenate([views.train, views.val])) if views.held_out else views.train
    held_out = np.isin(scored, views.val)
    batches = plan.fixed_batches(scored, session.config.rank.batch_size)
    shares = shares_of_ranks(len(batches), world.size, max(1, SAMPLES_PER_PART // session.config.rank.batch_size))
    number, total = sum(map(len, shares[: world.rank])), sum(map(len, shares))
    names = [f"part-{i:05d}-of-{total:05d}.parquet" for i in range(total)]
    if world.is_main:
        for path in folder.glob("*part-*"):
            if path.name not in names:      # of another number of processes, or never finished
                path.unlink()
    barrier(world)

    own = {folder / names[number + i]: batches[share.start : share.stop] for i, share in enumerate(shares[world.rank])}
    missing = {part: share for part, share in own.items() if not _holds(part, share)}
    kept = sum(len(share) for part, share in own.items() if part not in missing)
    progress = Progress(folder.name, 1, "pass", world)
    progress.start_epoch(0, sum(len(share) for share in missing.values()), 0)
    listener = preemption.Listener()
    with suppress(_AskedError):
        for part, share in missing.items():
            scores = probabilities(model, session.loader, share, session.accelerator, per_class=per_class)
            rows = (
                _rows(index, probs, views.labels[index], held_out[np.searchsorted(scored, index)])
                for index, probs in scores
            )
            _write(part, views.num_classes, _until_asked(rows, listener, progress, session.loader))
            kept += len(share)
    progress.close()
    in_parts = sum(map(int, gather_strings(str(kept), world)))
    if in_parts < len(batches):
        preemption.leave_if_asked(folder, in_parts, world)
    stage.finish(folder, inputs, {"samples": len(scored), "parts": total}, world)


class _AskedError(Exception):
    """A rank was asked to stop: the part that is being written is given up."""


def _until_asked(
    rows: Iterator[pa.RecordBatch], listener: preemption.Listener, progress: Progress, loader: ImageLoader
) -> Iterator[pa.RecordBatch]:
    for batch in rows:
        yield batch
        progress.step(len(batch) * progress.world.size, loader.data_wait)
        if listener.anyone_asked():
            raise _AskedError


def _write(part: Path, num_classes: int, batches: Iterable[pa.RecordBatch]) -> None:
    schema = part_schema(num_classes)
    with table_writer(part, schema) as writer:
        rows: list[pa.RecordBatch] = []
        for batch in batches:
            rows.append(batch)
            if len(rows) == BATCHES_PER_ROW_GROUP:
                writer.write_table(pa.Table.from_batches(rows))
                rows = []
        writer.write_table(pa.Table.from_batches(rows, schema))


def shares_of_ranks(num_batches: int, world_size: int, most: int) -> list[list[range]]:
    """The batches of each rank's parts: contiguous, in order, at most `most` each, at least one part per rank."""
    shares = []
    for rank_number in range(world_size):
        own = plan.rank_range(num_batches, rank_number, world_size)
        count = max(1, -(-len(own) // most))
        edges = [own.start + len(own) * i // count for i in range(count + 1)]
        shares.append([range(start, stop) for start, stop in pairwise(edges)])
    return shares


def _holds(part: Path, batches: list[plan.Indices]) -> bool:
    """Whether a part is there, whole, with just the samples of these batches."""
    try:
        index = pq.read_table(part, columns=["index"])["index"].to_numpy()
    except (pa.ArrowException, OSError):
        return False
    return np.array_equal(index, np.concatenate(batches) if batches else [])


def _rows(
    index: plan.Indices, probs: torch.Tensor, label: plan.Indices, held_out: np.ndarray[tuple[int], np.dtype[np.bool_]]
) -> pa.RecordBatch:
    table = probs.cpu().numpy()
    given = np.where(label < 0, 0, label)
    score = np.where(label < 0, np.float32(0), table[np.arange(len(index)), given])
    columns = [
        pa.array(index),
        pa.array(label),
        pa.array(table.argmax(axis=1)),
        pa.array(score.astype(np.float32)),
        pa.FixedSizeListArray.from_arrays(pa.array(table.reshape(-1)), table.shape[1]),
        pa.array(held_out),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=part_schema(table.shape[1]))
