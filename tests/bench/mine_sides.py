"""Mining one ranking by several tools, each in a process of its own, so that its memory is its own.

    python -m tests.bench.mine_sides SIDE FOLDER

FOLDER/rank holds the parts; what is kept goes to FOLDER/SIDE/seeds.parquet and val.parquet, the same rows from all
tools: labels that agree with the prediction and have a score of 0.9, or are among the top tenth of their class.
cleanlab has another rule and ends with the labels' order. Packages are imported before the pass.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

from data_prep.no_pandas import NoPandas
from tests.bench.peer import serve

NUM_CLASSES = 14
KEPT = ("seeds", "val")
WINDOW = """
    WITH wanted AS (SELECT held_out, label, (count(*) + 9) // 10 AS wanted FROM {parts} WHERE label >= 0 GROUP BY ALL),
    ranking AS (
        SELECT index, label, score, held_out,
            row_number() OVER (PARTITION BY held_out, label ORDER BY score DESC, index) AS place
        FROM {parts} WHERE label = predicted)
    SELECT index, label, score, held_out FROM ranking JOIN wanted USING (held_out, label)
    WHERE score >= 0.9::FLOAT OR place <= wanted"""
LESS_SORTED = """
    WITH counts AS (
        SELECT held_out, label,
            (count(*) + 9) // 10 - count(*) FILTER (label = predicted AND score >= 0.9::FLOAT) AS missing
        FROM {parts} WHERE label >= 0 GROUP BY ALL),
    rest AS (
        SELECT index, label, score, held_out, missing,
            row_number() OVER (PARTITION BY held_out, label ORDER BY score DESC, index) AS place
        FROM {parts} JOIN counts USING (held_out, label)
        WHERE label = predicted AND score < 0.9::FLOAT AND missing > 0)
    SELECT index, label, score, held_out FROM {parts} WHERE label = predicted AND score >= 0.9::FLOAT
    UNION ALL SELECT index, label, score, held_out FROM rest WHERE place <= missing"""


def ours(rank: Path, out: Path) -> None:
    """As the verb `mine` does."""
    from twostage.config import MineConfig
    from twostage.stage1.mine import mine

    mine(rank, out, class_names=[f"class {c}" for c in range(NUM_CLASSES)], config=MineConfig(), clean=None)


def duckdb_sql(query: str) -> Callable[[Path, Path], None]:
    """One SQL query, in at most 1.5 GB; sorted beyond that on the disk."""

    def run(rank: Path, out: Path) -> None:
        import duckdb

        with duckdb.connect() as database:
            limits = f"SET memory_limit = '1500MB'; SET temp_directory = '{out}/spilled'"
            database.execute(f"{limits}; SET preserve_insertion_order = false")
            parts = f"read_parquet('{rank}/part-*.parquet')"
            database.execute(f"CREATE TEMP TABLE kept AS {query.format(parts=parts)}")
            for name, held_out in zip(KEPT, (False, True), strict=True):
                rows = f"SELECT index, label, score FROM kept WHERE held_out = {held_out} ORDER BY index"
                database.execute(f"COPY ({rows}) TO '{out}/{name}.parquet' (FORMAT parquet, COMPRESSION zstd)")

    return run


def polars(rank: Path, out: Path) -> None:
    """Lazy, by the streaming engine."""
    import polars as pl

    parts, group = pl.scan_parquet(f"{rank}/part-*.parquet"), ["held_out", "label"]
    wanted = parts.filter(pl.col("label") >= 0).group_by(group).agg(((pl.len() + 9) // 10).alias("wanted"))
    agreeing = parts.filter(pl.col("label") == pl.col("predicted")).select("index", "label", "score", "held_out")
    kept = (
        agreeing.sort(["score", "index"], descending=[True, False])
        .with_columns(pl.int_range(pl.len()).over(group).alias("place"))
        .join(wanted, on=group)
        .filter((pl.col("score") >= pl.lit(0.9, pl.Float32)) | (pl.col("place") < pl.col("wanted")))
        .sort("index")
        .select("index", "label", "score", "held_out")
        .collect(engine="streaming")
    )
    for name, rows in zip(KEPT, (kept.filter(~pl.col("held_out")), kept.filter(pl.col("held_out"))), strict=True):
        rows.drop("held_out").write_parquet(out / f"{name}.parquet", compression="zstd")


def pandas(rank: Path, out: Path) -> None:
    """All in memory."""
    import numpy as np
    import pandas as pd

    group = ["held_out", "label"]
    rows = pd.concat(
        pd.read_parquet(part, columns=["index", "label", "predicted", "score", "held_out"])
        for part in sorted(rank.glob("part-*.parquet"))
    )
    rows = rows[rows["label"] >= 0]
    wanted = (-(-rows.groupby(group).size() // 10)).rename("wanted")
    rows = rows[rows["label"] == rows["predicted"]].sort_values(["score", "index"], ascending=[False, True])
    place = rows.groupby(group).cumcount()
    kept = rows[(rows["score"] >= np.float32(0.9)) | (place < rows[group].join(wanted, on=group)["wanted"])]
    kept = kept.sort_values("index")
    for name, part in zip(KEPT, (kept[~kept["held_out"]], kept[kept["held_out"]]), strict=True):
        part[["index", "label", "score"]].to_parquet(out / f"{name}.parquet", compression="zstd", index=False)


def cleanlab(*, issues: bool) -> Callable[[Path, Path], None]:
    """The order of labels by quality; with `issues`, only of those that it takes for wrong."""

    def run(rank: Path, out: Path) -> None:
        import pyarrow.parquet as pq
        from cleanlab.filter import find_label_issues
        from cleanlab.rank import get_label_quality_scores

        table = pq.read_table(sorted(rank.glob("part-*.parquet")), columns=["label", "probs"])
        labels = table["label"].to_numpy()
        probs = table["probs"].combine_chunks().flatten().to_numpy().reshape(len(labels), -1)
        if issues:
            find_label_issues(labels, probs, return_indices_ranked_by="self_confidence", n_jobs=2)
        else:
            get_label_quality_scores(labels, probs, method="self_confidence").argsort()

    return run


SIDES: dict[str, tuple[tuple[str, ...], Callable[[Path, Path], None]]] = {
    "ours": (("twostage.stage1.mine",), ours),
    "duckdb": (("duckdb",), duckdb_sql(WINDOW)),
    "duckdb-less-sorted": (("duckdb",), duckdb_sql(LESS_SORTED)),
    "polars": (("polars",), polars),
    "pandas": (("pandas", "pyarrow.parquet"), pandas),
    "cleanlab-scores": (("cleanlab.rank", "cleanlab.filter", "pyarrow.parquet"), cleanlab(issues=False)),
    "cleanlab-issues": (("cleanlab.rank", "cleanlab.filter", "pyarrow.parquet"), cleanlab(issues=True)),
}



if __name__ == "__main__":
    side, folder = sys.argv[1], Path(sys.argv[2])
    packages, mined = SIDES[side]
    if side == "ours":
        sys.meta_path.insert(0, NoPandas)    # users of ours need not have it
    for package in packages:
        importlib.import_module(package)
    (folder / side).mkdir(exist_ok=True)
    serve(lambda: mined(folder / "rank", folder / side))
