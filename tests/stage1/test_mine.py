"""Which labels stage 1 keeps, against the rule worked out image by image; and the files and messages of `mine`."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rankings import kept_one_by_one, part_table, random_ranking, write_parts

from twostage.config import MineConfig
from twostage.data.schema import NO_LABEL, InputError, file_digest
from twostage.stage1 import mine as mining
from twostage.stage1.mine import CLASSES_SCHEMA, SEEDS_SCHEMA, mine, select

BELOW, EDGE, ABOVE = (np.nextafter(np.float32(0.9), np.float32(to)) for to in (0, 0.9, 1))
SCORES = [0.0, 0.1, 0.5, 0.5000001, float(BELOW), float(EDGE), float(ABOVE), 0.95, 1.0]
SHARES = ["0", "0.1", "0.07", "0.3", "0.333", "0.5", "0.9", "1"]


@st.composite
def rankings(draw: st.DrawFn) -> tuple[list[int], list[int], list[np.float32], list[int], int]:
    """Labels, predictions, scores and indices in any order; ties, unlabeled samples and empty classes are common."""
    num_classes = draw(st.integers(1, 5))
    size = draw(st.integers(0, 60))
    labels = draw(st.lists(st.integers(NO_LABEL, num_classes - 1), min_size=size, max_size=size))
    agrees = draw(st.lists(st.booleans(), min_size=size, max_size=size))
    others = draw(st.lists(st.integers(0, num_classes - 1), min_size=size, max_size=size))
    scores = draw(st.lists(st.sampled_from(SCORES), min_size=size, max_size=size))
    index = np.random.default_rng(draw(st.integers(0, 99))).permutation(3 * size)[:size].tolist()
    predicted = [c if a and c != NO_LABEL else o for c, a, o in zip(labels, agrees, others, strict=True)]
    return labels, predicted, [np.float32(s) for s in scores], index, num_classes


def chosen(
    labels: list[int], predicted: list[int], scores: list[Any], index: list[int], num_classes: int,
    min_score: float = 0.9, min_share: float = 0.1,
) -> set[int]:
    kept = select(
        np.array(labels, np.int64), np.array(predicted, np.int64), np.array(scores, np.float32),
        np.array(index, np.int64), num_classes=num_classes, min_score=min_score, min_share=min_share,
    )
    return set(np.array(index, np.int64)[kept].tolist())


@given(rankings(), st.sampled_from([0.0, 0.5, 0.9, 1.0]), st.sampled_from(SHARES))
@example(([0] * 70, [0] * 70, [np.float32(0.5)] * 70, list(range(70)), 1), 0.9, "0.1")      # 0.1 * 70 > 7 in floats
@example(([0] * 100, [0] * 100, [np.float32(0.5)] * 100, list(range(100)), 1), 0.9, "0.07")
def test_keeps_what_the_rule_keeps(ranking: Any, min_score: float, min_share: str) -> None:
    labels, predicted, scores, index, num_classes = ranking
    expected = kept_one_by_one(
        labels, predicted, scores, index, num_classes=num_classes, min_score=min_score, min_share=min_share
    )
    assert chosen(labels, predicted, scores, index, num_classes, min_score, float(min_share)) == expected


@given(rankings(), st.sampled_from(SHARES), st.integers(0, 99))
def test_what_is_kept_can_be_defended(ranking: Any, min_share: str, order_seed: int) -> None:
    """Without any reference: only labels that agree, no better one left out, enough of each class, order irrelevant."""
    labels, predicted, scores, index, num_classes = ranking
    kept = chosen(labels, predicted, scores, index, num_classes, 0.9, float(min_share))
    rows = {i: row for row, i in enumerate(index)}
    assert all(labels[rows[i]] == predicted[rows[i]] for i in kept)
    for c in range(num_classes):
        agreeing = [i for i in index if labels[rows[i]] == c == predicted[rows[i]]]
        inside, outside = [i for i in agreeing if i in kept], [i for i in agreeing if i not in kept]
        if inside and outside:
            assert min(scores[rows[i]] for i in inside) >= max(scores[rows[i]] for i in outside)
        assert all(scores[rows[i]] < EDGE for i in outside), "a certain label was left out"
        images = labels.count(c)
        if outside:
            assert len(inside) >= Fraction(min_share) * images, "the class was not filled up"
        if len(inside) - 1 >= Fraction(min_share) * images:
            assert all(scores[rows[i]] >= EDGE for i in inside), "an uncertain label was kept beyond the share"
    order = np.random.default_rng(order_seed).permutation(len(index)).tolist()
    shuffled = [[column[row] for row in order] for column in (labels, predicted, scores, index)]
    assert chosen(*shuffled, num_classes, 0.9, float(min_share)) == kept


@pytest.mark.parametrize(
    ("score", "is_kept"), [(BELOW, False), (EDGE, True), (ABOVE, True), (np.float32(1), True), (np.float32(0), False)]
)
def test_a_probability_of_point_nine_is_as_high_as_point_nine(score: np.float32, is_kept: bool) -> None:
    assert bool(chosen([0], [0], [score], [7], 1, 0.9, 0.0)) == is_kept


def test_of_equal_scores_the_smaller_index_comes_first() -> None:
    assert chosen([0] * 6, [0] * 6, [0.5] * 6, [9, 3, 8, 1, 5, 2], 1, 0.9, 0.5) == {1, 2, 3}


def test_a_class_is_never_filled_up_with_labels_that_disagree() -> None:
    assert chosen([0, 0, 0, 0], [1, 1, 0, 1], [0.8, 0.7, 0.1, 0.95], [0, 1, 2, 3], 2, 0.9, 1.0) == {2}


@pytest.mark.parametrize(
    ("setting", "value"), [("min_score", -0.1), ("min_score", 1.01), ("min_share", 2.0), ("min_share", float("nan"))]
)
def test_settings_are_shares(setting: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"mine\.{setting}: .* is not within 0\.\.1"):
        chosen([0], [0], [0.5], [0], 1, **{setting: value})


def test_a_score_that_is_no_number_names_the_sample_and_the_remedy() -> None:
    with pytest.raises(InputError, match=r"score of sample 31 is not a number \(2 such scores\).*pretrain\.optimizer"):
        chosen([0, 0, 0, 0], [0, 0, 0, 0], [0.5, 0.7, float("nan"), float("nan")], [2, 1, 31, 4], 1)


# ------------------------------------------------------------------------------------------------------- the files


def run_mine(
    folder: Path, table: Any, cuts: Any = (), clean: Any = None, **settings: Any
) -> tuple[str, dict[str, Any]]:
    write_parts(folder / "rank", table, cuts)
    names = settings.pop("names", ["t-shirt", "hat", "dress", "coat"])
    return mine(folder / "rank", folder / "mine", class_names=names, config=MineConfig(**settings), clean=clean)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: file_digest(path) for path in sorted((folder / "mine").iterdir())}


@pytest.mark.parametrize("cuts", [(400,), (1, 2, 3), (0, 130, 130, 600), (600,)])
def test_the_same_scores_give_the_same_bytes_however_many_parts_they_came_in(tmp_path: Path, cuts: Any) -> None:
    table = part_table(*random_ranking(600, 4), 4)
    said, results = run_mine(tmp_path / "one", table)
    shuffled = table.take(np.random.default_rng(5).permutation(600))        # parts may hold any rows in any order
    again = run_mine(tmp_path / "many", shuffled, cuts)
    assert again == (said, results)
    assert digests(tmp_path / "many") == digests(tmp_path / "one")
    assert list(digests(tmp_path / "one")) == [
        "classes.parquet", "classes_val.parquet", "seeds.parquet", "val.parquet"
    ]


@given(st.integers(0, 10_000), st.sampled_from(SHARES), st.floats(0, 0.5))
def test_counts_purity_and_coverage(rng_seed: int, min_share: str, unlabeled: float) -> None:
    index, label, predicted, score, held_out = random_ranking(150, 4, rng_seed, unlabeled)
    rng = np.random.default_rng(rng_seed)
    clean = np.full(3 * 150, NO_LABEL)
    clean[index] = np.where(rng.random(150) < 0.6, label, rng.integers(NO_LABEL, 4, 150))
    train = ~held_out
    ranked = mining.Ranked(*(column[train] for column in (index, label, predicted, score)))
    kept = select(ranked.label, ranked.predicted, ranked.score, ranked.index, num_classes=4, min_score=0.9,
                  min_share=float(min_share))
    table = mining.report(ranked, kept, class_names=list("abcd"), clean=clean)
    assert table.schema.equals(CLASSES_SCHEMA)

    seeds = kept_one_by_one(*(column[train].tolist() for column in (label, predicted, score, index)),
                            num_classes=4, min_score=0.9, min_share=min_share)
    rows = [row for row in zip(index[train].tolist(), label[train].tolist(), predicted[train].tolist(),
                               score[train].tolist(), strict=True) if row[1] != NO_LABEL]
    right = {i for i, c, _, _ in rows if clean[i] == c}
    known = {i for i, c, _, _ in rows if clean[i] != NO_LABEL}
    for c, row in enumerate(table.to_pylist()):
        ours = {i: s for i, label_, _, s in rows if label_ == c}
        mine_ = seeds & set(ours)
        agreeing = sum(p == c for _, label_, p, _ in rows if label_ == c)
        assert (row["class"], row["name"], row["images"]) == (c, "abcd"[c], len(ours))
        assert (row["consistent"], row["kept"]) == (agreeing, len(mine_))
        assert row["threshold"] == (min(ours[i] for i in mine_) if mine_ else None)
        assert row["purity"] == (len(mine_ & right) / len(mine_ & known) if mine_ & known else None)
        assert row["coverage"] == (len(mine_ & right) / len(right & set(ours)) if right & set(ours) else None)
    assert mining.totals(ranked, kept, clean) == {
        "kept": len(seeds),
        "images": len(rows),
        "purity": len(seeds & right) / len(seeds & known) if seeds & known else None,
        "coverage": len(seeds & right) / len(right) if right else None,
    }


def test_without_clean_labels_purity_is_not_known(tmp_path: Path) -> None:
    said, results = run_mine(tmp_path, part_table(*random_ranking(300, 4)))
    assert results["purity"] is None and results["val_coverage"] is None
    classes = pq.read_table(tmp_path / "mine" / "classes.parquet")
    assert classes["purity"].null_count == classes["coverage"].null_count == 4
    assert said.splitlines()[1].startswith("t-shirt") and said.splitlines()[5].startswith("all")


def test_training_and_held_out_samples_are_mined_each_by_themselves(tmp_path: Path) -> None:
    index, label, predicted, score, held_out = random_ranking(600, 4)
    said, results = run_mine(tmp_path, part_table(index, label, predicted, score, held_out))
    for name, chosen_rows, prefix in (("seeds", ~held_out, ""), ("val", held_out, "val_")):
        found = pq.read_table(tmp_path / "mine" / f"{name}.parquet")
        assert found.schema.equals(SEEDS_SCHEMA)
        columns = [column[chosen_rows].tolist() for column in (label, predicted, score, index)]
        expected = kept_one_by_one(*columns, num_classes=4, min_score=0.9, min_share="0.1")
        assert found["index"].to_pylist() == sorted(expected)
        rows = np.searchsorted(index, found["index"].to_numpy())
        assert (found["label"].to_numpy() == label[rows]).all() and (found["score"].to_numpy() == score[rows]).all()
        assert results[f"{prefix}kept"] == len(expected)
        assert results[f"{prefix}images"] == int((label[chosen_rows] != NO_LABEL).sum())
    assert "validation" in said.splitlines()


def test_a_validation_set_of_another_configuration_does_not_stay(tmp_path: Path) -> None:
    table = part_table(*random_ranking(300, 4))
    run_mine(tmp_path, table)
    _, results = run_mine(tmp_path, table, refine_val=False)
    assert list(digests(tmp_path)) == ["classes.parquet", "seeds.parquet"]
    assert not any(name.startswith("val_") for name in results)


def tiny(labels: list[int], predicted: list[int], score: float = 0.95, held_out: bool = False) -> Any:
    size = len(labels)
    return part_table(np.arange(size), np.array(labels), np.array(predicted), np.full(size, score, np.float32),
                      np.full(size, held_out))


def test_a_class_that_keeps_nothing_is_named_with_its_numbers_and_the_remedy(tmp_path: Path) -> None:
    table = tiny([0, 0, 1, 1, 1, 2], [0, 0, 0, 0, 0, 2])
    with pytest.raises(InputError) as failed:
        run_mine(tmp_path, table, names=["t-shirt", "hat", "dress"])
    assert str(failed.value) == (
        "1 of 3 classes keep no label ('hat': 3 images, 0 consistent): train stage 1 longer (pretrain.epochs), "
        "or go on without them by mine.allow_empty"
    )
    assert not (tmp_path / "mine").exists(), "nothing may look finished"
    _, results = run_mine(tmp_path, table, names=["t-shirt", "hat", "dress"], allow_empty=True)
    assert results["kept"] == 3
    hat = pq.read_table(tmp_path / "mine" / "classes.parquet").to_pylist()[1]
    assert (hat["kept"], hat["threshold"]) == (0, None)


def test_where_a_larger_share_would_help_it_is_said(tmp_path: Path) -> None:
    table = tiny([0, 0, 1], [0, 0, 1], score=0.5)
    with pytest.raises(InputError, match=r"2 of 2 classes keep no label.*raise mine\.min_share"):
        run_mine(tmp_path, table, names=["hat", "coat"], min_share=0.0)
    with pytest.raises(InputError, match=r"2 of 2 classes") as failed:      # no seed at all is never accepted
        run_mine(tmp_path, table, names=["hat", "coat"], min_share=0.0, allow_empty=True)
    assert "allow_empty" not in str(failed.value)


def test_no_held_out_sample_kept_names_the_setting(tmp_path: Path) -> None:
    index = np.arange(4)
    table = part_table(index, np.array([0, 1, 0, 1]), np.array([0, 1, 1, 0]), np.full(4, 0.95, np.float32), index >= 2)
    with pytest.raises(InputError, match=r"no held-out sample keeps its label; set mine\.refine_val to false"):
        run_mine(tmp_path, table, names=["hat", "coat"])
    run_mine(tmp_path, table, names=["hat", "coat"], refine_val=False)


def test_a_ranking_of_a_larger_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"scores sample 5, but the dataset has 5 samples: run `rank` again"):
        run_mine(tmp_path, tiny([0] * 6, [0] * 6), names=["hat"], clean=np.zeros(5, np.int64))
    run_mine(tmp_path, tiny([0] * 6, [0] * 6), names=["hat"], clean=np.zeros(6, np.int64))


def test_names_that_would_break_the_terminal_are_quoted(tmp_path: Path) -> None:
    said, _ = run_mine(tmp_path, tiny([0, 1], [0, 1]), names=["a\x1b[2J\n", "帽子"])
    assert len(said.splitlines()) == 4 and "\x1b" not in said
    assert r"'a\x1b[2J\n'" in said and "帽子" in said


def test_needs_no_torch(tmp_path: Path) -> None:
    write_parts(tmp_path / "rank", tiny([0, 1], [0, 1]))
    code = (
        "import sys; sys.modules['torch'] = None\n"         # any import of it now fails
        "from pathlib import Path; from twostage.config import MineConfig; from twostage.stage1.mine import mine\n"
        "mine(Path('rank'), Path('mine'), class_names=['a', 'b'], config=MineConfig(), clean=None)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    assert pq.read_table(tmp_path / "mine" / "seeds.parquet")["index"].to_pylist() == [0, 1]
