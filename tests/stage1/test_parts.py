"""Parts of a ranking come back whole, or it is said which one is missing, damaged, or not of this ranking."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rankings import part_table, random_ranking, write_parts

from twostage.data.schema import InputError
from twostage.stage1 import parts
from twostage.stage1.parts import Parts, read_parts

NUM = 90


@pytest.fixture
def rank_dir(tmp_path: Path) -> Path:
    """Three parts of 30 rows, and the marker of a finished ranking."""
    write_parts(tmp_path / "rank", part_table(*random_ranking(NUM, 4), 4), (30, 60))
    mark(tmp_path / "rank", NUM)
    return tmp_path / "rank"


def mark(folder: Path, samples: Any) -> None:
    (folder / "done.json").write_text(json.dumps({"inputs": {}, "results": {"samples": samples}}))


@given(st.lists(st.integers(0, NUM), max_size=6), st.integers(0, 99))
def test_all_rows_come_back_in_order(tmp_path_factory: Any, cuts: list[int], order_seed: int) -> None:
    folder = tmp_path_factory.mktemp("rank")
    columns = random_ranking(NUM, 4)
    order = np.random.default_rng(order_seed).permutation(NUM)
    write_parts(folder, part_table(*columns).take(order), sorted(cuts))
    ranked, held_out = read_parts(folder, 4)
    found = (ranked.index, ranked.label, ranked.predicted, ranked.score, held_out)
    for got, expected in zip(found, columns, strict=True):
        assert got.dtype == expected.dtype and (got == expected).all()
    some = ranked.where(~held_out)
    assert (some.index == columns[0][~columns[4]]).all() and (some.score == columns[3][~columns[4]]).all()


@given(st.lists(st.integers(0, NUM), max_size=4), st.integers(1, NUM), st.sampled_from([1, 7, 1000]), st.booleans(),
       st.booleans())
def test_windows_are_the_same_rows_in_the_same_order(
    tmp_path_factory: Any, cuts: list[int], window_rows: int, row_group: int, sort: bool, statistics: bool
) -> None:
    """Whatever the parts, their row groups and the windows are, and also where the files do not say what is in them."""
    folder = tmp_path_factory.mktemp("rank")
    columns = random_ranking(NUM, 4)
    order = np.arange(NUM) if sort else np.random.default_rng(0).permutation(NUM)
    for path in write_parts(folder, part_table(*columns).take(order), sorted(cuts)):
        pq.write_table(pq.read_table(path), path, row_group_size=row_group, write_statistics=statistics)
    ranking = Parts(folder, 4, window_rows=window_rows)
    assert ranking.num_rows == NUM and ranking.last == columns[0][-1]
    for _ in range(2):
        windows = list(ranking)
        for number, name in enumerate(("index", "label", "predicted", "score")):
            got = np.concatenate([getattr(ranked, name) for ranked, _ in windows])
            assert (got == columns[number]).all() and got.dtype == columns[number].dtype
        assert (np.concatenate([held_out for _, held_out in windows]) == columns[4]).all()
    if window_rows < NUM // 3 and (row_group == 1 or not sort):
        assert len(windows) > 2 and max(len(held_out) for _, held_out in windows) <= 3 * window_rows + 6


def test_what_is_wrong_is_found_in_any_window(rank_dir: Path) -> None:
    replace("label", 4)(rank_dir)
    with pytest.raises(InputError, match=r"label 4, predicted \d is out of range"):
        list(Parts(rank_dir, 4, window_rows=20))
    copy_over(rank_dir)
    with pytest.raises(InputError, match=r"sample \d+ is there twice, in part-00000-.* and part-00002-.* \(\d+ such"):
        list(Parts(rank_dir, 4, window_rows=20))


def test_statistics_that_are_not_true_lose_nothing_silently(rank_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = parts._row_groups
    monkeypatch.setattr(parts, "_row_groups", lambda *part: np.add(told(*part), [0, 20, 0]))
    with pytest.raises(InputError, match=r"\d+ samples are not where the statistics of the parts say"):
        list(Parts(rank_dir, 4, window_rows=20))


def test_integers_of_any_width_and_columns_in_any_order_are_read(tmp_path: Path) -> None:
    index, label, predicted, score, held_out = random_ranking(20, 4)
    table = pa.table({"held_out": held_out, "score": score.astype(np.float64), "label": label.astype(np.int8),
                      "predicted": predicted.astype(np.int32), "index": index.astype(np.uint32)})
    write_parts(tmp_path, table)
    ranked, _ = read_parts(tmp_path, 4)
    assert ranked.index.dtype == ranked.label.dtype == np.int64 and ranked.score.dtype == np.float32
    assert (ranked.label == label).all()


def drop_part(folder: Path) -> None:
    (folder / "part-00001-of-00003.parquet").unlink()


def drop_all(folder: Path) -> None:
    for path in folder.glob("part-*"):
        path.unlink()


def cut_short(folder: Path) -> None:
    path = folder / "part-00001-of-00003.parquet"
    path.write_bytes(path.read_bytes()[:-40])


def other_bytes(folder: Path) -> None:
    (folder / "part-00001-of-00003.parquet").write_bytes(b"PAR1 this is not a table PAR1")


def overwrite_pages(folder: Path) -> None:
    path = folder / "part-00001-of-00003.parquet"
    data = bytearray(path.read_bytes())
    data[20:200] = b"\xff" * 180
    path.write_bytes(data)


def add_other_ranking(folder: Path) -> None:
    pq.write_table(pq.read_table(folder / "part-00001-of-00003.parquet"), folder / "part-00001-of-00002.parquet")


def add_part(folder: Path) -> None:
    pq.write_table(pq.read_table(folder / "part-00001-of-00003.parquet"), folder / "part-00003-of-00003.parquet")


def add_same_part(folder: Path) -> None:
    pq.write_table(pq.read_table(folder / "part-00001-of-00003.parquet"), folder / "part-1-of-00003.parquet")


def add_stray(folder: Path) -> None:
    (folder / "part-00001-of-00003 (copy).parquet").write_bytes(b"")


def copy_over(folder: Path) -> None:
    data = (folder / "part-00000-of-00003.parquet").read_bytes()
    (folder / "part-00002-of-00003.parquet").write_bytes(data)


def change(folder: Path, edit: Callable[[pa.Table], pa.Table]) -> None:
    path = folder / "part-00001-of-00003.parquet"
    pq.write_table(edit(pq.read_table(path)), path)


def replace(name: str, values: Any) -> Callable[[Path], None]:
    def edit(table: pa.Table) -> pa.Table:
        column = values(table[name]) if callable(values) else pa.array([values] * len(table))
        return table.set_column(table.schema.get_field_index(name), name, column)

    return lambda folder: change(folder, edit)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop_part, r"not complete \(1 parts missing: part-00001-of-00003\.parquet\): run `rank` again"),
        (drop_all, r"holds no part of a ranking \(part-\*\.parquet\): run `rank` first"),
        (cut_short, r"part-00001-of-00003\.parquet is damaged .*delete its folder and run `rank` again"),
        (other_bytes, r"part-00001-of-00003\.parquet is damaged"),
        (overwrite_pages, r"part-00001-of-00003\.parquet is damaged"),
        (add_other_ranking, r"parts of different rankings \(part-\d+-of-0000[23].* and part-\d+-of-0000[23]"),
        (add_part, r"part-00003-of-00003\.parquet is one part too many"),
        (add_same_part, r"part-1-of-00003\.parquet is one part too many"),
        (add_stray, r"\(copy\)\.parquet is not named like a part .*remove it"),
        (copy_over, r"sample \d+ is there twice, in part-00000-of-.* and part-00002-of-00003\.parquet \(30 such"),
        (lambda f: change(f, lambda t: t.drop_columns(["score"])), r"has no column 'score'"),
        (lambda f: change(f, lambda t: t.slice(0, 29)), r"its parts hold 89 samples, but 90 were scored"),
        (replace("score", lambda c: pc.if_else(pc.greater(c, 0.5), c, None)), r"rows without a value"),
        (replace("label", 4), r"sample \d+, label 4, predicted \d is out of range for 4 classes"),
        (replace("label", -2), r"label -2, predicted \d is out of range"),
        (replace("predicted", -1), r"predicted -1 is out of range"),
        (replace("predicted", 4), r"predicted 4 is out of range"),
        (replace("index", lambda c: pc.subtract(c, 1000)), r"sample -\d+, .*out of range"),
        (replace("predicted", "hat"), r"part-00001-of-00003\.parquet is damaged"),
        (replace("label", 0.5), r"part-00001-of-00003\.parquet is damaged"),
        (lambda f: mark(f, "many"), r"its parts hold 90 samples, but many were scored"),
        (lambda f: (f / "done.json").write_text("{"), r"done\.json is damaged"),
        (lambda f: (f / "done.json").write_text("[]"), r"done\.json is damaged"),
    ],
)
def test_what_is_wrong_is_named_with_the_remedy(rank_dir: Path, damage: Callable[[Path], Any], message: str) -> None:
    read_parts(rank_dir, 4)
    damage(rank_dir)
    with pytest.raises(InputError, match=message):
        read_parts(rank_dir, 4)


def test_a_part_that_may_not_be_read_is_not_called_damaged(rank_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pq, "ParquetFile", refuse)
    with pytest.raises(PermissionError):
        read_parts(rank_dir, 4)


def test_hidden_files_of_a_rank_that_still_writes_are_not_parts(rank_dir: Path) -> None:
    (rank_dir / ".part-00002-of-00003.parquet.tmp").write_bytes(b"half")
    assert len(read_parts(rank_dir, 4)[0].index) == NUM
