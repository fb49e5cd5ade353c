from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from fake_loader import FakeLoader, new_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from twostage.data.schema import NO_LABEL, InputError
from twostage.runtime.checkpoint import save_weights
from twostage.runtime.evaluation import accuracy_on, confusion, evaluate, metrics_from, predict, probabilities
from twostage.runtime.world import World

ALONE = World(rank=0, size=1, device=torch.device("cpu"))
VIEW = np.array([5, 9, 2, 2, 7, 30, 11, 4, 8, 1, 0], dtype=np.int64)     # one sample twice, 11 in all
CLASSES = ("a", "b", "c", "d")


@pytest.fixture
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def test_predictions_are_the_networks_own(accelerator: Accelerator) -> None:
    model, loader = new_model(1), FakeLoader()
    model[1].eval()
    model[1].weight.requires_grad_(False)
    index, probs = predict(
        model, loader, VIEW, world=ALONE, batch_size=4, num_classes=4, accelerator=accelerator
    )
    assert loader.delivered == VIEW.tolist() == index.tolist()
    assert probs.dtype == np.float32 and probs.shape == (11, 4)
    assert [m.training for m in model] == [True, False, True, True, True, True], "modes are as before, one by one"
    images = torch.cat([images for (images,), _ in loader.batches([VIEW], training=False)])
    logits = model.eval()(images).detach().double().numpy()
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probs, expected, atol=1e-6)


def test_modes_come_back_after_an_error(accelerator: Accelerator) -> None:
    model = new_model(1)
    scored = probabilities(model, FakeLoader(), [VIEW], accelerator)
    next(scored)
    assert not model.training
    scored.close()  # type: ignore[attr-defined]
    assert all(m.training for m in model.modules())


def test_a_loader_that_mixes_up_samples_is_caught(accelerator: Accelerator) -> None:
    class Wrong(FakeLoader):
        def batches(
            self, planned: list[npt.NDArray[np.int64]], *, training: bool
        ) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
            return super().batches([batch[::-1] for batch in planned], training=training)

    with pytest.raises(AssertionError, match="other samples than were planned"):
        predict(new_model(1), Wrong(), VIEW, world=ALONE, batch_size=4, num_classes=4, accelerator=accelerator)


def test_accuracy_leaves_out_what_has_no_label(accelerator: Accelerator) -> None:
    model = new_model(1)
    _, probs = predict(
        model, FakeLoader(), VIEW, world=ALONE, batch_size=11, num_classes=4, accelerator=accelerator
    )
    labels = np.full(31, NO_LABEL, dtype=np.int64)
    labels[VIEW] = probs.argmax(axis=1)
    labels[9] = (labels[9] + 1) % 4         # one wrong
    labels[[1, 4]] = NO_LABEL               # two unknown
    for batch_size in (1, 3, 256):
        accuracy = accuracy_on(
            model, FakeLoader(), VIEW, labels, accelerator=accelerator, world=ALONE, batch_size=batch_size
        )
        assert accuracy == 8 / 9
    with pytest.raises(InputError, match="no sample of the validation view has a label"):
        accuracy_on(model, FakeLoader(), VIEW[[7, 9]], labels, accelerator=accelerator, world=ALONE)


LABELS = st.integers(min_value=-1, max_value=3)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(LABELS, st.integers(min_value=0, max_value=3)), min_size=1, max_size=40))
def test_metrics_against_counting(pairs: list[tuple[int, int]]) -> None:
    labels, predicted = (np.array(column, dtype=np.int64) for column in zip(*pairs, strict=True))
    known = [pair for pair in pairs if pair[0] != NO_LABEL]
    if not known:
        with pytest.raises(InputError, match="no test sample has a label"):
            metrics_from(labels, predicted, CLASSES)
        return
    table = metrics_from(labels, predicted, CLASSES)
    assert table["confusion"] == [[known.count((true, said)) for said in range(4)] for true in range(4)]
    assert table["accuracy"] == sum(true == said for true, said in known) / len(known)
    for true, share in enumerate(table["per_class"]):
        said = [s for t, s in known if t == true]
        assert share == (said.count(true) / len(said) if said else None)
    assert (table["num_samples"], table["num_unlabeled"]) == (len(known), len(pairs) - len(known))
    assert table["class_names"] == list(CLASSES)


def test_confusion_is_true_by_predicted() -> None:
    table = confusion(np.array([0, 0, 2]), np.array([1, 1, 0]), 3)
    assert table.tolist() == [[0, 2, 0], [0, 0, 0], [1, 0, 0]] and table.dtype == np.int64


def fake_session(accelerator: Accelerator, labels: npt.NDArray[np.int64], loader: FakeLoader) -> Any:
    return SimpleNamespace(
        views=SimpleNamespace(test=VIEW, num_classes=4, class_names=CLASSES, true_labels=labels),
        world=ALONE,
        accelerator=accelerator,
        loader=loader,
        config=SimpleNamespace(rank=SimpleNamespace(batch_size=4)),
        inputs=lambda **more: {"run.rng_seed": 0, **more},
        new_model=lambda **_: new_model(9),
    )


def test_evaluate_writes_files_and_does_only_what_is_missing(tmp_path: Path, accelerator: Accelerator) -> None:
    weights, folder, loader = tmp_path / "model.safetensors", tmp_path / "evaluate" / "train", FakeLoader()
    labels = np.arange(31, dtype=np.int64) % 4
    labels[2] = NO_LABEL
    session = fake_session(accelerator, labels, loader)
    save_weights(weights, new_model(1))
    results = evaluate(session, folder, weights)
    table = pq.read_table(folder / "predictions.parquet")
    assert table.column_names == ["index", "label", "predicted", "score"]
    _, probs = predict(
        new_model(1), FakeLoader(), VIEW, world=ALONE, batch_size=4, num_classes=4, accelerator=accelerator
    )
    given_label = labels[VIEW]
    expected = np.where(given_label < 0, 0, probs[np.arange(11), given_label])
    assert table["index"].to_pylist() == VIEW.tolist() and table["label"].to_pylist() == given_label.tolist()
    assert table["predicted"].to_pylist() == probs.argmax(axis=1).tolist()
    assert table["score"].to_numpy().tobytes() == expected.astype(np.float32).tobytes()
    assert results["num_unlabeled"] == 2 and results["num_samples"] == 9

    loader.delivered.clear()
    assert evaluate(session, folder, weights) == results
    assert not loader.delivered, "nothing changed, so nothing is computed"
    save_weights(weights, new_model(2))
    assert evaluate(session, folder, weights) != results
    assert loader.delivered == VIEW.tolist(), "other weights are tested again without asking"
