"""Which labels stage 1 keeps, against the rule worked out image by image; and the files and messages of `mine`."""

from __future__ import annotations

import math
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import settings as effort
from hypothesis import strategies as st
from rankings import kept_one_by_one, part_table, random_ranking, write_parts

from twostage.config import MineConfig
from twostage.data.schema import NO_LABEL, InputError, file_digest, write_table
from twostage.stage1 import parts
from twostage.stage1.class_report import CLASSES_SCHEMA
from twostage.stage1.mine import SEEDS_SCHEMA, find_cut, keep, mine
from twostage.stage1.parts import WINDOW_ROWS, Ranked

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


def windows_of(
    labels: list[int], predicted: list[int], scores: list[Any], index: list[int], held_out: list[bool], width: int
) -> list[tuple[Ranked, Any]]:
    """The rows by increasing index, `width` at a time."""
    order = np.argsort(np.array(index, np.int64))
    columns = [np.array(index, np.int64), np.array(labels, np.int64), np.array(predicted, np.int64),
               np.array(scores, np.float32), np.array(held_out, np.bool_)]
    columns = [column[order] for column in columns]
    cuts = range(0, max(1, len(order)), width)
    return [(Ranked(*(column[cut : cut + width] for column in columns[:4])), columns[4][cut : cut + width])
            for cut in cuts]


def chosen(
    labels: list[int], predicted: list[int], scores: list[Any], index: list[int], num_classes: int,
    min_score: float = 0.9, min_share: float = 0.1, width: int = 7,
) -> set[int]:
    windows = windows_of(labels, predicted, scores, index, [False] * len(index), width)
    config = MineConfig(min_score=min_score, min_share=min_share)
    cut = find_cut(windows, num_classes, config)
    found = list(keep(windows, cut, num_classes, config))
    kept = {i for ranked, _, _, rows in found for i in ranked.index[rows].tolist()}
    assert cut.counts.kept.sum() == len(kept), "what was counted beforehand is not what was kept"
    return kept


@given(rankings(), st.sampled_from([0.0, 0.5, 0.9, 1.0]), st.sampled_from(SHARES), st.integers(1, 70))
@example(([0] * 70, [0] * 70, [np.float32(0.5)] * 70, list(range(70)), 1), 0.9, "0.1", 9)   # 0.1 * 70 > 7 in floats
@example(([0] * 100, [0] * 100, [np.float32(0.5)] * 100, list(range(100)), 1), 0.9, "0.07", 100)
def test_keeps_what_the_rule_keeps(ranking: Any, min_score: float, min_share: str, width: int) -> None:
    labels, predicted, scores, index, num_classes = ranking
    expected = kept_one_by_one(
        labels, predicted, scores, index, num_classes=num_classes, min_score=min_score, min_share=min_share
    )
    assert chosen(labels, predicted, scores, index, num_classes, min_score, float(min_share), width) == expected


@given(st.integers(0, 10_000), st.sampled_from([1, 3, 14, 100, 3000]), st.sampled_from(SHARES),
       st.sampled_from(["few values", "neighbours", "any", "negative"]), st.integers(40, 400))
@effort(max_examples=60)
def test_equals_sorting_in_memory(rng_seed: int, num_classes: int, min_share: str, scores: str, width: int) -> None:
    """Scores that differ in their last bits or not at all, of any sign; so many classes that they need small digits."""
    rng = np.random.default_rng(rng_seed)
    num = 400
    label, index = rng.integers(0, min(num_classes, 5), num) * (num_classes // 5 or 1), rng.permutation(3 * num)[:num]
    label %= num_classes
    predicted = np.where(rng.random(num) < 0.8, label, 0)
    steps = rng.integers(0, 3 if scores == "few values" else 40, num)
    score = rng.normal(0.4, 0.3, num).astype(np.float32)
    if scores in ("few values", "neighbours"):
        score = (np.float32(0.5).view(np.uint32) + steps.astype(np.uint32)).view(np.float32)
    elif scores == "negative":
        score = -np.abs(np.round(score, 1))             # -0.0 among them, which is as high as 0.0
        score[::7] = 0
    order = np.lexsort((index, -score, label))
    expected = set()
    for c in range(num_classes):
        rows = order[(label[order] == c) & (predicted[order] == c)]
        wanted = max(math.ceil(Fraction(min_share) * int((label == c).sum())), int((score[rows] >= EDGE).sum()))
        expected |= set(index[rows[:wanted]].tolist())
    columns = (label.tolist(), predicted.tolist(), score.tolist(), index.tolist())
    assert chosen(*columns, num_classes, 0.9, float(min_share), width) == expected


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
    ("setting", "value"),
    [("min_score", -0.1), ("min_score", 1.01), ("min_share", 2.0), ("min_share", float("nan")), ("accept_score", 5)],
)
def test_settings_are_shares(setting: str, value: float, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"mine\.{setting}: .* is not within 0\.\.1"):
        run_mine(tmp_path, tiny([0], [0]), names=["hat"], **{setting: value})


def test_a_score_that_is_no_number_names_the_sample_and_the_remedy() -> None:
    with pytest.raises(InputError, match=r"score of sample 4 is not a number \(2 such scores.*pretrain\.optimizer"):
        chosen([0, 0, 0, 0], [0, 0, 0, 0], [0.5, 0.7, float("nan"), float("nan")], [2, 1, 31, 4], 1)


# ------------------------------------------------------------------------------------------------------- the files


def run_mine(
    folder: Path, table: Any, cuts: Any = (), clean: Any = None, window_rows: int = WINDOW_ROWS, **settings: Any
) -> tuple[str, dict[str, Any]]:
    write_parts(folder / "rank", table, cuts)
    names = settings.pop("names", ["t-shirt", "hat", "dress", "coat"])
    return mine(folder / "rank", folder / "mine", class_names=names, config=MineConfig(**settings), clean=clean,
                window_rows=window_rows)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: file_digest(path) for path in sorted((folder / "mine").iterdir())}


@pytest.mark.parametrize("window_rows", [WINDOW_ROWS, 250, 60])
@pytest.mark.parametrize("cuts", [(400,), (1, 2, 3), (0, 130, 130, 600), (600,)])
def test_the_same_scores_give_the_same_bytes_however_many_parts_they_came_in(
    tmp_path: Path, cuts: Any, window_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if window_rows == 250:
        monkeypatch.setattr(parts, "KEPT_ROWS", 0)      # each pass reads them again, as if they were too many
    columns = random_ranking(600, 4)
    table = part_table(*columns, 4)
    clean = np.where(np.arange(1800) % 3 == 0, NO_LABEL, np.arange(1800) % 4)
    said, results = run_mine(tmp_path / "one", table, clean=clean)
    shuffled = table.take(np.random.default_rng(5).permutation(600))        # parts may hold any rows in any order
    again = run_mine(tmp_path / "many", shuffled, cuts, clean, window_rows)
    assert again == (said, results)
    assert digests(tmp_path / "many") == digests(tmp_path / "one")
    assert list(digests(tmp_path / "one")) == [
        "classes.parquet", "classes_val.parquet", "seeds.parquet", "val.parquet"
    ]
    kept = kept_one_by_one(*(column[~columns[4]].tolist() for column in (*columns[1:4], columns[0])),
                           num_classes=4, min_score=0.9, min_share="0.1")
    expected = table.filter(pc.and_(pc.is_in(table["index"], pa.array(sorted(kept))), pc.invert(table["held_out"])))
    write_table(tmp_path / "expected", expected.select(["index", "label", "score"]))
    assert (tmp_path / "one" / "mine" / "seeds.parquet").read_bytes() == (tmp_path / "expected").read_bytes()


def test_a_clean_set_joins_at_its_places(tmp_path: Path) -> None:
    index, label, predicted, score, held_out = random_ranking(600, 4)
    others = np.setdiff1d(np.arange(1900), index)[::5]      # before, between and after those that were ranked
    write_parts(tmp_path / "rank", part_table(index, label, predicted, score, held_out), (300,))
    written = []
    for window_rows in (50, 200, WINDOW_ROWS):
        config = MineConfig(rule="clean_filter")
        _, results = mine(tmp_path / "rank", tmp_path / "mine", class_names=list("abcd"), config=config, clean=None,
                          clean_set=(others, others % 4), window_rows=window_rows)
        written.append((tmp_path / "mine" / "seeds.parquet").read_bytes())
    seeds = pq.read_table(tmp_path / "mine" / "seeds.parquet")
    accepted = index[(label != NO_LABEL) & (score >= np.float32(0.5)) & ~held_out]
    assert seeds["index"].to_pylist() == sorted([*others.tolist(), *accepted.tolist()])
    joined = seeds.filter(pc.is_in(seeds["index"], pa.array(others)))
    assert joined["label"].to_pylist() == (others % 4).tolist() and set(joined["score"].to_pylist()) == {1.0}
    assert written[0] == written[1] == written[2] and results["clean_set"] == len(others)


@given(st.integers(0, 10_000), st.sampled_from(SHARES), st.floats(0, 0.5), st.sampled_from([40, 150]))
def test_counts_purity_and_coverage(rng_seed: int, min_share: str, unlabeled: float, width: int) -> None:
    index, label, predicted, score, held_out = random_ranking(150, 4, rng_seed, unlabeled)
    rng = np.random.default_rng(rng_seed)
    clean = np.full(3 * 150, NO_LABEL)
    clean[index] = np.where(rng.random(150) < 0.6, label, rng.integers(NO_LABEL, 4, 150))
    train = ~held_out
    config = MineConfig(min_share=float(min_share))
    windows = windows_of(*(column.tolist() for column in (label, predicted, score, index, held_out)), width)
    cut = find_cut(windows, 4, config)
    for ranked, _, group, kept in keep(windows, cut, 4, config):
        cut.counts.add_kept(ranked, group, kept, clean)
    counts = cut.counts.of(slice(1, 5))
    table = counts.table(list("abcd"))
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
    assert counts.totals() == {
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
