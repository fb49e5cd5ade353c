"""Writes the results and the pages of a table from what a grid's folder holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq

from twostage.config import Config
from twostage.data.dataset import Dataset
from twostage.reproduce import results, tables
from twostage.reproduce.grid import NOISES, OURS
from twostage.reproduce.labels import Ceiling, Floats
from twostage.reproduce.render import markdown_table, write_document
from twostage.reproduce.results import CellResults


def write_pages(
    table: str, out: Path, dataset: str, data: Path, *, config: Config, noises: Sequence[str], missing: Sequence[str]
) -> list[str]:
    """Writes `results.parquet` and the table's pages; returns lines for people: the first table, and where all lies.

    All finished cells of the folder count, also those of other calls. The same cells give the same bytes, times apart.

    Args:
        data: the dataset on disk.
        config: of any cell.
        noises: that were asked for.
        missing: titles of cells that were asked for and are not there.
    """
    everything = [cell for name in NOISES for cell in results.collect(out, name)]
    results.write_results(out / "results.parquet", everything, out)
    cells = [cell for cell in everything if cell.dataset == dataset]
    present = {cell.noise for cell in cells} | set(noises)
    order = [noise for noise in NOISES[dataset] if noise in present]
    order += sorted(present - set(order))
    opened = Dataset.open(data)
    intro = _intro(opened, cells, missing)
    whole = [cell for cell in cells if cell.min_share == config.mine.min_share]
    if table == "table1":
        shares = [cell for cell in cells if cell.result(OURS) is not None]
        document = tables.table1(shares, order, dataset, intro)
    elif table == "table2":
        document = _table2(out, opened, whole, order, dataset, intro)
    else:
        ceilings = _ceilings(opened, whole, config)
        document = tables.table3(whole, order, dataset, intro, method=config.train.method, ceilings=ceilings)
    paths = write_document(out, f"{table}-{dataset}", document)
    lines = ["", markdown_table(document.tables[0]), ""] if document.tables else []
    return [*lines, *(f"table:   {path}" for path in paths), f"results: {out / 'results.parquet'}"]


def _table2(
    out: Path, opened: Dataset, cells: Sequence[CellResults], noises: Sequence[str], dataset: str, intro: Sequence[str]
) -> tables.Document:
    shares: dict[str, list[dict[str, Floats]]] = {}
    kept = []
    for noise in noises:
        for cell in cells:
            ranked = (cell.folder / "rank" / "done.json").exists()
            if cell.noise == noise and ranked and cell.result(OURS) is not None:
                kept.append((cell, results.table2_shares(cell, opened)))
                shares.setdefault(noise, []).append(kept[-1][1])
    results.write_labels(out / f"table2-{dataset}.parquet", kept)
    names = kept[0][0].class_names if kept else ()
    return tables.table2(shares, names, dataset, intro)


def _ceilings(opened: Dataset, cells: Sequence[CellResults], config: Config) -> dict[str, Ceiling]:
    """By noise, of the first run that is there: runs differ in chance alone."""
    found: dict[str, Ceiling] = {}
    for cell in cells:
        if cell.noise not in found and cell.results:
            found[cell.noise] = results.label_ceiling(
                opened,
                cell.labels,
                train_split=config.data.train_split,
                test_split=config.data.test_split,
            )
    return found


def _intro(opened: Dataset, cells: Sequence[CellResults], missing: Sequence[str]) -> list[str]:
    formats = pq.read_table(opened.path / "samples.parquet", columns=["format"])["format"].value_counts().to_pylist()
    encoded = ", ".join(f"{entry['counts']:,} {entry['values']}" for entry in formats)
    counts = ", ".join(f"{count:,} {split}" for split, count in opened.marker["splits"].items())
    lines = [f"Data: {counts}; images stored as {encoded}; dataset {opened.digest[:12]}."]
    if any(entry["values"] == "jpeg" for entry in formats):
        lines.append("The images are JPEG-encoded, not the original pixels; the paper's figures are for those.")
    digests = ", ".join(sorted({cell.config_digest for cell in cells}))
    commits = ", ".join(sorted({str(cell.code_commit) for cell in cells}))
    lines.append(f"Settings: {digests or 'none'}; code: {commits or 'none'}.")
    lines.append("Figures in percent: mean ± standard deviation (n - 1) over n runs, each with its own noise and seed.")
    if missing:
        lines.append(f"Not there yet ({len(missing)}): {', '.join(missing)}.")
    return lines
