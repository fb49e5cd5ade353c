"""What a network says about a view: probabilities, accuracy, confusion; the same whatever the number of processes.

A view is cut into batches of fixed content, and each rank takes a run of them, so no sum or batch ever depends on how
many ranks there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from twostage.data import plan
from twostage.data.plan import Indices
from twostage.data.schema import NO_LABEL, InputError, file_digest, write_json, write_table
from twostage.runtime import stage, watchdog
from twostage.runtime.checkpoint import load_weights
from twostage.runtime.snapshot import bare
from twostage.runtime.world import World, all_reduce_sum

if TYPE_CHECKING:
    from twostage.runtime.session import Session

BATCH_SIZE = 256
PREDICTIONS_SCHEMA = pa.schema(
    [("index", pa.int64()), ("label", pa.int64()), ("predicted", pa.int64()), ("score", pa.float32())]
)


class Batches(Protocol):
    """What hands out the images of planned batches: the loader."""

    def batches(self, planned: list[Indices], *, training: bool) -> Iterable[tuple[tuple[Tensor, ...], Tensor]]:
        """Yields ((images,), index) for each planned batch, in order, on the device."""


def probabilities(
    model: nn.Module, loader: Batches, batches: list[Indices], accelerator: Accelerator, *, per_class: bool = False
) -> Iterator[tuple[Indices, Tensor]]:
    """Yields each batch's indices and its class probabilities, float32 (batch, num_classes) on the device.

    The network is in evaluation mode meanwhile; precision is as accelerate was told, the softmax always float32. With
    `per_class`, each output is a binary classifier's by itself, and goes through a sigmoid in place of the softmax.
    """
    network = bare(model)
    mixed_up: Tensor | None = None
    with _evaluating(network), torch.no_grad():
        for batch, ((images,), index) in zip(batches, loader.batches(batches, training=False), strict=True):
            watchdog.feed()
            with accelerator.autocast():
                logits = network(images)
            wrong = (index != torch.from_numpy(batch).to(index.device, non_blocking=True)).any()
            mixed_up = wrong if mixed_up is None else mixed_up | wrong      # looked at once, so that no batch waits
            yield batch, logits.float().sigmoid() if per_class else logits.float().softmax(dim=1)
    assert mixed_up is None or not mixed_up.item(), "the loader delivered other samples than were planned"


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:      # one by one: a part may have been in evaluation mode before
            module.training = training


def predict(
    model: nn.Module,
    loader: Batches,
    view: Indices,
    *,
    world: World,
    batch_size: int,
    num_classes: int,
    accelerator: Accelerator,
) -> tuple[Indices, npt.NDArray[np.float32]]:
    """The view and its class probabilities, float32 (len(view), num_classes), in its order and complete on every rank.

    Computed by all ranks together; the same bits whatever their number.
    """
    batches = plan.fixed_batches(view, batch_size)
    share = plan.rank_range(len(batches), world.rank, world.size)
    starts = np.cumsum([0, *(len(batch) for batch in batches)])
    table = torch.zeros((len(view), num_classes), dtype=torch.float32, device=world.device)
    own = [batches[number] for number in share]
    for number, (_, probs) in zip(share, probabilities(model, loader, own, accelerator), strict=True):
        table[int(starts[number]) : int(starts[number + 1])] = probs
    # every row is nonzero on one rank only, so the sum is exact
    return view, all_reduce_sum(table, world).cpu().numpy()


def accuracy_on(
    model: nn.Module,
    loader: Batches,
    view: Indices,
    labels: Indices,
    *,
    accelerator: Accelerator,
    world: World,
    batch_size: int = BATCH_SIZE,
) -> float:
    """Share of a view's labelled samples that the network gets right, computed by all ranks together.

    Args:
        labels: (num_samples,) by sample index; samples without a label are left out.

    Raises:
        InputError: no sample of the view has a label.
    """
    batches = plan.fixed_batches(view[labels[view] != NO_LABEL], batch_size)
    own = [batches[number] for number in plan.rank_range(len(batches), world.rank, world.size)]
    counts = torch.zeros(2, dtype=torch.int64, device=world.device)
    for index, probs in probabilities(model, loader, own, accelerator):
        right = probs.argmax(dim=1) == torch.from_numpy(labels[index]).to(probs.device, non_blocking=True)
        counts += torch.stack([right.sum(), torch.full_like(counts[0], len(index))])
    num_right, num = all_reduce_sum(counts, world).tolist()
    if num == 0:
        raise InputError("no sample of the validation view has a label; set data.holdout, or another data.val_split")
    return float(num_right / num)


def confusion(labels: Indices, predicted: Indices, num_classes: int) -> Indices:
    """Counts int64 (num_classes, num_classes): row is the true class, column the predicted one. All have labels."""
    counts = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes).astype(np.int64)


def metrics_from(labels: Indices, predicted: Indices, class_names: Sequence[str]) -> dict[str, Any]:
    """Test figures as JSON: accuracy, per_class (null for an absent class), confusion, and what was counted.

    Samples without a label are left out and counted in `num_unlabeled`.

    Raises:
        InputError: no sample has a label.
    """
    known = labels != NO_LABEL
    if not known.any():
        raise InputError("no test sample has a label; set data.test_split or data.clean_labels to one that has")
    table = confusion(labels[known], predicted[known], len(class_names))
    right, present = table.diagonal(), table.sum(axis=1)
    return {
        "accuracy": int(right.sum()) / int(known.sum()),
        "per_class": [int(r) / int(n) if n else None for r, n in zip(right, present, strict=True)],
        "confusion": table.tolist(),
        "num_samples": int(known.sum()),
        "num_unlabeled": int((~known).sum()),
        "class_names": list(class_names),
    }


def evaluate(session: Session, folder: Path, weights: Path, *, output_norm: bool = False) -> dict[str, Any]:
    """Tests a trained network on the test split; leaves `predictions.parquet` and `test.json`, and returns the latter.

    `output_norm` says that the network was trained with BatchNorm behind its outputs.

    Done again without asking when anything changed since: it only derives from what is there.

    Raises:
        InputError: the weights do not fit the configured network, or no test sample has a label.
    """
    views, world = session.views, session.world
    inputs = session.inputs(weights=file_digest(weights))
    marker = folder / "done.json"
    if stage.read_inputs(marker) == inputs and (found := stage.read_results(marker)) is not None:
        return found
    model = session.new_model(output_norm=output_norm)
    load_weights(weights, model)
    index, probs = predict(
        model,
        session.loader,
        views.test,
        world=world,
        batch_size=session.config.rank.batch_size,
        num_classes=views.num_classes,
        accelerator=session.accelerator,
    )
    labels, predicted = views.true_labels[index], probs.argmax(axis=1)
    results = metrics_from(labels, predicted, views.class_names)
    if world.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        marker.unlink(missing_ok=True)
        # as in stage 1: the probability of the label, 0 for a sample without one
        score = np.where(labels == NO_LABEL, np.float32(0), probs[np.arange(len(index)), labels])
        columns = [index, labels, predicted.astype(np.int64), score.astype(np.float32)]
        write_table(folder / "predictions.parquet", pa.table(columns, schema=PREDICTIONS_SCHEMA))
        write_json(folder / "test.json", results)
    stage.finish(folder, inputs, results, world)
    return results
