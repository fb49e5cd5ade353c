"""Which labels their class's classifier accepts, against the rule worked out image by image; and files of `mine`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rankings import part_table, random_ranking, write_parts

from twostage.config import MineConfig
from twostage.data.schema import NO_LABEL, InputError
from twostage.stage1.clean_filter import accepted
from twostage.stage1.mine import SEEDS_SCHEMA, mine

BELOW, EDGE, ABOVE = (float(np.nextafter(np.float32(0.7), np.float32(to))) for to in (0, 0.7, 1))
SCORES = st.sampled_from([0.0, 0.3, 0.5, BELOW, EDGE, ABOVE, 0.9, 1.0])


@given(st.data(), st.integers(1, 5), st.integers(0, 40), st.sampled_from([0.0, 0.5, 0.7, 1.0]))
def test_keeps_what_the_rule_keeps(data: st.DataObject, num_classes: int, size: int, min_score: float) -> None:
    """Every classifier's score of every sample; the label is put to its own classifier, one sample after the other."""
    table = [data.draw(st.lists(SCORES, min_size=num_classes, max_size=num_classes)) for _ in range(size)]
    labels = data.draw(st.lists(st.integers(NO_LABEL, num_classes - 1), min_size=size, max_size=size))
    expected = []
    for scores, label in zip(table, labels, strict=True):
        is_positive = [np.float32(score) >= np.float32(min_score) for score in scores]
        expected.append(any(c == label and is_positive[c] for c in range(num_classes)))
    own = np.array([scores[label] if label != NO_LABEL else 0.0 for scores, label in zip(table, labels, strict=True)])
    kept = accepted(np.array(labels, np.int64), own.astype(np.float32), min_score=min_score)
    assert kept.tolist() == expected and kept.dtype == np.bool_


@pytest.mark.parametrize("value", [-0.1, 1.01, float("nan")])
def test_the_score_to_reach_is_a_probability(value: float) -> None:
    with pytest.raises(InputError, match=rf"mine\.accept_score: {value} is not within 0\.\.1"):
        accepted(np.array([0]), np.array([0.5], np.float32), min_score=value)


def run_mine(folder: Path, table: Any, clean_set: Any = None, **settings: Any) -> tuple[str, dict[str, Any]]:
    write_parts(folder / "rank", table)
    config = MineConfig(rule="clean_filter", **settings)
    names = ["t-shirt", "hat", "dress", "coat"]
    return mine(folder / "rank", folder / "mine", class_names=names, config=config, clean=None, clean_set=clean_set)


def rows(path: Path) -> list[tuple[int, int, float]]:
    table = pq.read_table(path)
    assert table.schema.equals(SEEDS_SCHEMA)
    return [(row["index"], row["label"], row["score"]) for row in table.to_pylist()]


def test_mine_keeps_accepted_labels_whatever_other_classifiers_say(tmp_path: Path) -> None:
    index, label, predicted, score, held_out = random_ranking(600, 4)
    _, results = run_mine(tmp_path, part_table(index, label, predicted, score, held_out), accept_score=0.6)
    for name, of, prefix in (("seeds", ~held_out, ""), ("val", held_out, "val_")):
        samples = zip(index[of].tolist(), label[of].tolist(), score[of].tolist(), strict=True)
        expected = [(i, c, s) for i, c, s in samples if c != NO_LABEL and s >= np.float32(0.6)]
        assert rows(tmp_path / "mine" / f"{name}.parquet") == expected
        assert results[f"{prefix}kept"] == len(expected)
    assert "clean_set" not in results


def test_the_clean_set_joins_the_seeds_with_its_labels(tmp_path: Path) -> None:
    table = part_table(*random_ranking(300, 4))
    _, alone = run_mine(tmp_path / "alone", table)
    free = np.setdiff1d(np.arange(1000), table["index"].to_numpy())[::7]
    said, results = run_mine(tmp_path / "both", table, clean_set=(free, free % 4))
    expected = [*rows(tmp_path / "alone" / "mine" / "seeds.parquet"), *((int(i), int(i) % 4, 1.0) for i in free)]
    assert rows(tmp_path / "both" / "mine" / "seeds.parquet") == sorted(expected)
    assert results == alone | {"clean_set": len(free)}
    assert f"and {len(free)} clean samples, with their labels" in said
    for name in ("classes.parquet", "val.parquet", "classes_val.parquet"):
        one, other = (tmp_path / folder / "mine" / name for folder in ("alone", "both"))
        assert one.read_bytes() == other.read_bytes()


def test_a_class_that_loses_every_label_is_named_with_the_remedy(tmp_path: Path) -> None:
    index, label, predicted, score, held_out = random_ranking(300, 4)
    score[label == 2] *= np.float32(0.4)
    table = part_table(index, label, predicted, score, held_out)
    with pytest.raises(InputError, match=r"1 of 4 classes keep no label \('dress': .*lower mine\.accept_score, raise"):
        run_mine(tmp_path, table, accept_score=0.9)
    assert not (tmp_path / "mine").exists()


def test_scores_that_are_no_numbers_name_the_classifiers(tmp_path: Path) -> None:
    index, label, predicted, score, held_out = random_ranking(300, 4)
    score[5] = np.nan
    with pytest.raises(InputError, match=rf"score of sample {index[5]} is not a number.*clean_filter\.optimizer\.lr"):
        run_mine(tmp_path, part_table(index, label, predicted, score, held_out))
