"""What stage 1 implies about the labels: the confident joint, against counting one by one and against the truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from page import Element, parse

from twostage.data.schema import NO_LABEL, InputError
from twostage.report.collect import ClassRow, Run, collect
from twostage.report.matrices import by_row, matrix, noise
from twostage.report.ranking import counts, estimated_joint, read_ranking
from twostage.report.words import balance_notes, class_notes, doubt_notes


def write_ranking(folder: Path, label: Any, probs: Any, held_out: Any, parts: int = 2) -> None:
    """Parts as `rank` writes them; the index runs in steps of 3."""
    folder.mkdir(parents=True, exist_ok=True)
    probs = np.asarray(probs, np.float32)
    label = np.asarray(label, np.int64)
    score = np.where(label < 0, 0, probs[np.arange(len(label)), label]).astype(np.float32)
    table = pa.table({
        "index": 3 * np.arange(len(label)), "label": label, "predicted": probs.argmax(axis=1), "score": score,
        "probs": pa.FixedSizeListArray.from_arrays(pa.array(probs.reshape(-1)), probs.shape[1]),
        "held_out": np.asarray(held_out, bool),
    })
    for part in range(parts):
        rows = pa.array(np.arange(part, len(label), parts))
        pq.write_table(table.take(rows), folder / f"part-{part:05d}-of-{parts:05d}.parquet")


def one_by_one(label: Any, probs: Any, held_out: Any) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Equations 1 to 3 of Confident Learning, sample by sample: (counts, calibrated joint), row = confident class."""
    num_classes = len(probs[0])
    rows = [(c, p) for c, p, out in zip(label, probs, held_out, strict=True) if not out and c >= 0]
    thresholds = [
        np.mean([np.float64(p[j]) for c, p in rows if c == j]) if any(c == j for c, _ in rows) else np.inf
        for j in range(num_classes)
    ]
    found = np.zeros((num_classes, num_classes))
    for c, p in rows:
        above = [j for j in range(num_classes) if np.float64(p[j]) >= thresholds[j]]
        if above:
            found[max(above, key=lambda j: (p[j], -j)), c] += 1
    joint = np.zeros_like(found)
    for c in range(num_classes):
        images = sum(given == c for given, _ in rows)
        if found[:, c].sum():
            joint[:, c] = found[:, c] / found[:, c].sum() * images
    return found, joint


@given(st.integers(2, 5), st.integers(1, 60), st.integers(0, 10_000))
def test_confident_joint(tmp_path_factory: Any, num_classes: int, size: int, rng_seed: int) -> None:
    rng = np.random.default_rng(rng_seed)
    probs = rng.dirichlet(np.full(num_classes, 0.5), size).astype(np.float32)
    label = rng.integers(NO_LABEL, num_classes, size)
    held_out = rng.random(size) < 0.2
    folder = tmp_path_factory.mktemp("rank")
    write_ranking(folder, label, probs, held_out, parts=min(3, size))
    ranking = read_ranking(folder, np.array([3 * (size - 1)]))
    assert (ranking.index == 3 * np.arange(size)).all() and (ranking.label == label).all()
    assert (ranking.confidence == probs.max(axis=1)).all()
    assert ranking.kept.tolist() == [False] * (size - 1) + [True]
    trained = ranking.trained_on()
    assert trained.index.tolist() == [3 * k for k in range(size) if not held_out[k] and label[k] >= 0]
    found, joint = one_by_one(label.tolist(), probs, held_out)
    assert (counts(trained.confident, trained.label, num_classes) == found).all()
    assert np.allclose(estimated_joint(trained), joint)


def test_a_network_that_knows_the_truth_finds_the_noise_exactly(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 3000)            # nothing is of class 3, though some is labelled so
    label = np.where((truth == 1) & (rng.random(3000) < 0.4), 2, truth)
    label[:2], truth[:2] = 3, 0
    probs = np.full((3000, 4), 0.05)
    probs[np.arange(3000), truth] = 0.9
    write_ranking(tmp_path / "rank", label, probs, np.zeros(3000))
    ranking = read_ranking(tmp_path / "rank", np.zeros(0, np.int64)).with_truth(truth)
    run = Run(tmp_path, classes=[ClassRow(c, name, 1, 1, 1, None, None, None) for c, name in enumerate("abcd")])
    run.ranking = ranking
    found = noise(run)
    assert found is not None and found.truly_wrong is not None
    assert found.wrong == pytest.approx(float((label != truth).mean())) == found.truly_wrong
    assert found.error == pytest.approx(0)
    assert [m.title for m in found.matrices][:2] == ["Estimated noise", "True noise"]
    assert found.matrices[0].largest == [
        ("b", "c", int((label != truth).sum()) - 2, pytest.approx(0.4, abs=0.03)),
        ("a", "d", 2, pytest.approx(0.002, abs=0.001)),
    ]


def test_a_class_of_which_nothing_is_confident_counts_as_it_is_labelled(tmp_path: Path) -> None:
    write_ranking(tmp_path, [0, 0, 1], [[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]], [False] * 3)
    ranking = read_ranking(tmp_path, np.zeros(0, np.int64))
    import dataclasses

    doubtful = dataclasses.replace(ranking, confident=np.array([0, NO_LABEL, NO_LABEL]))
    assert estimated_joint(doubtful).tolist() == [[2, 0], [0, 1]]


def test_rankings_of_two_widths_or_without_probabilities_are_damaged(tmp_path: Path) -> None:
    pq.write_table(pa.table({"index": [0]}), tmp_path / "part-00000-of-00001.parquet")
    with pytest.raises(InputError, match=r"part-00000-of-00001\.parquet is damaged"):
        read_ranking(tmp_path, np.zeros(0, np.int64))
    with pytest.raises(InputError, match="holds no part of a ranking"):
        read_ranking(tmp_path / "nothing", np.zeros(0, np.int64))


def test_matrices_of_the_page(run_dir: Path) -> None:
    run = collect(run_dir)
    assert run.ranking is not None and run.ranking.truth is not None
    ranking, truth = run.ranking, run.ranking.truth
    found = noise(run)
    assert found is not None
    estimated, true, predicted, kept = found.matrices
    for table, rows, columns in (
        (true, truth, ranking.label),
        (predicted, ranking.label, ranking.predicted),
        (kept, truth[ranking.kept], ranking.label[ranking.kept]),
    ):
        expected = [[sum((rows == r) & (columns == c)) for c in range(4)] for r in range(4)]
        assert table.counts == [[int(n) for n in row] for row in expected]
        assert np.allclose(table.shares, [[n / max(1, sum(row)) for n in row] for row in expected])
    assert found.truly_wrong == pytest.approx(float((truth != ranking.label).mean()))
    differences = np.abs(np.array(estimated.shares) - np.array(true.shares))
    assert found.error == pytest.approx(differences.mean())


def section_text(page: Element) -> str:
    return page.with_id("noise").text


def test_the_page_says_how_wrong_the_labels_are(run_dir: Path) -> None:
    from twostage.report.html import render

    run = collect(run_dir)
    found = noise(run)
    assert found is not None and found.truly_wrong is not None
    said = section_text(parse(render(run)))
    assert f"takes {100 * found.wrong:.1f} % of the labels for wrong" in said
    assert f"in truth {100 * found.truly_wrong:.1f} % are" in said


def test_many_classes_become_words() -> None:
    table = np.eye(40, dtype=np.int64) * 5
    table[3, 7] = 4
    found = matrix("t", "n", table, [f"c{k}" for k in range(40)])
    assert found.shares is None and found.largest == [("c3", "c7", 4, pytest.approx(4 / 9))]
    assert by_row(np.zeros((2, 2))).tolist() == [[0, 0], [0, 0]]


def row(number: int, name: str, images: int, consistent: int, kept: int) -> ClassRow:
    return ClassRow(number, name, images, consistent, kept, None, None, None)


def test_doubtful_and_unequal_classes_in_words() -> None:
    classes = [row(0, "hat", 100, 95, 50), row(1, "coat", 400, 100, 20), row(2, "dress", 200, 160, 0)]
    assert balance_notes(classes) == [
        "Most labels: coat (400); fewest: hat (100), 4.0 to 1.",
        "Most labels kept: hat (50); fewest: dress (0).",
    ]
    assert doubt_notes(Run(Path(), classes=classes)) == [
        "coat: stage 1 agrees with 25.0\u202f% of the 400 labels.",
        "dress: stage 1 agrees with 80.0\u202f% of the 200 labels.",
    ]
    assert balance_notes([]) == [] and class_notes([]) == []
