"""What the rows of Table 4 have come to, beside the paper's figures: as a table in Parquet, Markdown and HTML."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import yaml

from twostage.data.schema import InputError, write_table
from twostage.reproduce import paper
from twostage.reproduce.render import markdown_table, write_document
from twostage.reproduce.results import digest, settings
from twostage.reproduce.table4_rows import ROWS, Row
from twostage.reproduce.tables import UNKNOWN, Document, Table

SCHEMA: Final = pa.schema(
    [
        ("row", pa.int64()),
        ("network", pa.string()),
        ("method", pa.string()),
        ("initialization", pa.string()),
        ("training_set", pa.string()),
        ("accuracy", pa.float64()),              # 0..1, of all test samples; null: not there yet
        ("per_class", pa.list_(pa.float64())),   # 0..1; null for a class without test samples
        ("num_test", pa.int64()),
        ("seconds", pa.float64()),               # of all stages in its folder; null where one was interrupted
        ("paper_reported", pa.float64()),        # 0..1: what the paper quotes from others
        ("paper_own", pa.float64()),             # 0..1: the paper's own runs
        ("network_name", pa.string()),           # what was trained: model.name
        ("rng_seed", pa.int64()),
        ("config_digest", pa.string()),
        ("code_commit", pa.string()),
        ("folder", pa.string()),                 # below the table's own
    ]
)
Line = dict[str, Any]


def write(out: Path, marker: Mapping[str, Any], missing: Sequence[str]) -> list[str]:
    """Writes OUT/table4.parquet, .md and .html from all rows that OUT holds; returns the table and where all lies.

    Args:
        marker: content of the dataset's dataset.json.
        missing: rows that were asked for and are not there.

    Raises:
        InputError: a file of a row is damaged.
    """
    lines = [_line(out, row) for row in ROWS.values()]
    write_table(out / "table4.parquet", pa.Table.from_pylist(lines, schema=SCHEMA))
    document = Document("Table 4: accuracy on the test set", _intro(marker, lines, missing), (_table(lines),))
    paths = write_document(out, "table4", document)
    shown = ["", markdown_table(document.tables[0]), ""]
    return [*shown, *(f"table:   {path}" for path in paths), f"results: {out / 'table4.parquet'}"]


def _line(out: Path, row: Row) -> Line:
    reported, own = paper.TABLE4[row.number]
    line: Line = {
        "row": row.number,
        "network": row.network,
        "method": row.method,
        "initialization": row.initialization,
        "training_set": row.training_set,
        "paper_reported": None if reported is None else reported.value / 100,
        "paper_own": None if own is None else own.value / 100,
        "folder": str(row.folder(out).relative_to(out)),
    }
    if not row.is_done(out):
        return line
    folder = row.folder(out)
    try:
        test = json.loads(row.figures(out).read_text())
        config = yaml.safe_load((folder / "config.yaml").read_text())
        line |= {
            "accuracy": float(test["accuracy"]),
            "per_class": test["per_class"],
            "num_test": test["num_samples"],
            "seconds": _seconds(folder),
            "network_name": config["model"]["name"],
            "rng_seed": config["run"]["rng_seed"],
            "config_digest": digest({**settings(config), "noise_model": config["noise_model"]}),
            "code_commit": json.loads((folder / "environment.json").read_text())["git_commit"],
        }
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise InputError(f"{folder} cannot be read ({error!r}): delete it and run the same command again") from error
    return line


def _seconds(folder: Path) -> float | None:
    """Wall clock of all stages in a row's folder; None where one was interrupted, or there is no note of it."""
    marker = folder / "row.json"
    if not marker.exists():
        return None
    started = json.loads(marker.read_text())["started"]
    total = 0.0
    for last in folder.glob("*/done.json"):
        first = last.with_name("inputs.json")
        if first.exists():
            begin, end = first.stat().st_mtime, last.stat().st_mtime
            if any(begin < start < end for start in started):
                return None
            total += end - begin
    return total


def _table(lines: Sequence[Line]) -> Table:
    rows = []
    for line in lines:
        ours, reported, own = line.get("accuracy"), line["paper_reported"], line["paper_own"]
        published = reported if own is None else own
        difference = UNKNOWN
        if ours is not None:
            difference = f"{100 * (ours - published):+.2f}".replace("-", "−")
        seconds = line.get("seconds")
        rows.append(
            (
                str(line["row"]),
                line["network"],
                line["method"],
                line["initialization"].replace("#", "row "),
                line["training_set"],
                _percent(ours),
                _percent(reported),
                _percent(own),
                difference,
                UNKNOWN if seconds is None else f"{seconds / 3600:.2f}",
            )
        )
    columns = ("row", "network", "method", "from", "trained on", "ours", "paper, reported", "paper, own", "difference",
               "hours")
    notes = (
        "Accuracy, %, of one run each. Difference: from the paper's own figure, or where it has none from the reported "
        "one. Hours: wall clock of all stages in the row's folder, those taken over from another row included.",
    )
    return Table("Beside the paper", columns, tuple(rows), notes)


def _intro(marker: Mapping[str, Any], lines: Sequence[Line], missing: Sequence[str]) -> tuple[str, ...]:
    counts = ", ".join(f"{count:,} {split}" for split, count in marker["splits"].items())
    names = sorted({line["network_name"] for line in lines if line.get("network_name")})
    intro = [
        f"Data: {counts}; dataset {marker['samples_sha256'][:12]}. The paper's figures are for Clothing1M, with 22K "
        "test images as it says; the published lists have 10,526.",
        f"Networks trained: {', '.join(names) or 'none'}; code: "
        f"{', '.join(sorted({str(line['code_commit']) for line in lines if 'code_commit' in line})) or 'none'}.",
    ]
    if missing:
        intro.append(f"Not there yet ({len(missing)}): {'; '.join(missing)}.")
    return tuple(intro)


def _percent(value: float | None) -> str:
    return UNKNOWN if value is None else f"{100 * value:.2f}"
