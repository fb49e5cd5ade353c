"""The verbs that read finished run folders: `twostage report` and `twostage audit`. They need no torch."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from twostage.cli import Parser
from twostage.data.schema import NO_LABEL, InputError, nearest
from twostage.report.audit import Judged, audit_paths, audit_table, open_judged, write_audit
from twostage.report.corrected import Correction, correct, export
from twostage.stage1.parts import Indices

REPORT_EXAMPLES = """\
examples:
  twostage report runs/first                          runs/first/report.html, as `twostage run` writes it at its end
  twostage report runs/demo/run-* --out demo.html     several runs side by side
"""
EXPORT_DEFAULTS: Final[dict[str, Any]] = {"min_confidence": 0.9, "others": "keep"}
AUDIT_EXAMPLES = """\
examples:
  twostage audit runs/first                               the 20 most doubtful labels, and both files
  twostage audit runs/first --class shirt --top 50        of one class
  twostage audit runs/first --export corrected            a label column for the next run: --data.labels corrected

the files in other tools, here the 20 most doubtful labels:
  duckdb -c "SELECT key, label_name, predicted_name, doubt FROM 'runs/first/labels_audit.parquet'
             ORDER BY doubt DESC LIMIT 20"
  python -c "import polars as pl; print(pl.scan_parquet('runs/first/labels_audit.parquet')
             .sort('doubt', descending=True, nulls_last=True).head(20).collect())"
  python -c "import pandas as pd; print(pd.read_parquet('runs/first/labels_audit.parquet').nlargest(20, 'doubt'))"
"""


def report(arguments: list[str]) -> int:
    """`twostage report RUN [RUN …]`: one page about a run, or several runs side by side."""
    args = report_parser().read(arguments)
    if args.out is not None and args.out.is_dir():
        raise InputError(f"--out {args.out} is a folder: name a file in it, {args.out / 'report.html'} say")
    if args.out is not None and not args.out.parent.is_dir():
        raise InputError(f"--out {args.out}: no folder {args.out.parent}: make it first")
    if len(args.runs) == 1:
        from twostage.report.html import write_report  # matplotlib takes its time

        page = write_report(args.runs[0], args.out, dry_run=args.dry_run)
    else:
        from twostage.report.compare import write_comparison

        page = write_comparison(args.runs, args.out, dry_run=args.dry_run)
    print(f"report: {'would write ' if args.dry_run else ''}{page}")
    return 0


def report_parser() -> Parser:
    """The command line of `report`."""
    parser = Parser(
        prog="twostage report",
        allow_abbrev=False,
        description="Write one self-contained HTML page about a run, or about several side by side. It opens offline\n"
        "and can be mailed. What a run does not hold yet is said in it.",
        epilog=REPORT_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run folder")
    parser.add_argument(
        "--out", type=Path, metavar="FILE",
        help="where the page goes; default: report.html in the run folder, or in the folder that all runs lie in",
    )
    parser.add_argument("--dry-run", action="store_true", help="read everything, say where the page would go")
    return parser


def audit(arguments: list[str]) -> int:
    """`twostage audit RUN`: every label that stage 1 judged as a table, the most doubtful ones in the terminal."""
    args = audit_parser().read(arguments)
    if args.top < 0:
        raise InputError(f"--top {args.top} is negative")
    settings = _export_settings(args)
    judged = open_judged(args.run)
    names = judged.labels.class_names
    if args.class_name is not None and args.class_name not in names:
        raise InputError(f"no class {args.class_name!r}; {nearest(args.class_name, names)}")
    correction = None
    if args.export is not None:
        correction = correct(judged, min_confidence=settings["min_confidence"], drop=settings["others"] == "drop")
        export(judged, correction, args.export, settings, dry_run=True)     # refuses before anything is written
    table = audit_table(judged)
    paths = audit_paths(args.run) if args.dry_run else write_audit(table, args.run)
    print(listing(table, args.class_name, args.top))
    print(f"audit: {'would write ' if args.dry_run else ''}{paths[0]}, {paths[1]}")
    if correction is not None:
        written = export(judged, correction, args.export, settings, dry_run=args.dry_run)
        print(_exported(judged, correction, args.export, written=written, dry_run=args.dry_run))
    return 0


def audit_parser() -> Parser:
    """The command line of `audit`."""
    parser = Parser(
        prog="twostage audit",
        allow_abbrev=False,
        description="List the labels that stage 1's prediction exceeds by most, and write labels_audit.parquet and\n"
        "labels_audit.csv into the run folder: every sample's key, given and predicted label, score, doubt, rank\n"
        "in its class, kept or not, and why.",
        epilog=AUDIT_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder whose stage 1 is done")
    parser.add_argument("--class", dest="class_name", metavar="NAME", help="only labels of this class")
    parser.add_argument("--top", type=int, default=20, metavar="N", help="how many to list (default: %(default)s)")
    parser.add_argument("--export", metavar="NAME", help="write corrected labels into the dataset as this label column")
    parser.add_argument(
        "--min-confidence", type=float, metavar="P",
        help="with --export: a label that was not kept becomes the predicted class where that is at least so probable "
        f"(default: {EXPORT_DEFAULTS['min_confidence']})",
    )
    parser.add_argument(
        "--others", choices=("keep", "drop"),
        help="with --export: whether the other labels that were not kept stay as given (default) or go",
    )
    parser.add_argument("--dry-run", action="store_true", help="list them, and say what would be written")
    return parser


def _export_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings of --export, which mean nothing without it."""
    given = {name: value for name in EXPORT_DEFAULTS if (value := getattr(args, name)) is not None}
    if given and args.export is None:
        raise InputError(f"--{next(iter(given)).replace('_', '-')} needs --export NAME: it is about what that writes")
    return EXPORT_DEFAULTS | given


def listing(table: pa.Table, class_name: str | None, top: int) -> str:
    """The `top` most doubtful labels as aligned text, and what became of all labels in a sentence.

    Most doubtful is the label that the prediction exceeds by most; where they agree, the least likely one.
    """
    if class_name is not None:
        table = table.filter(pc.equal(table["label_name"], class_name))
    labeled = table.filter(pc.is_valid(table["label"]))
    order = [("doubt", "descending"), ("score", "ascending"), ("index", "ascending")]
    shown = labeled.sort_by(order).slice(0, top).to_pylist()
    with_truth = any(row["clean"] is not None for row in shown)
    rows = [["key", "label", "score", "stage 1 says", "probability", "rank", "kept", *(["truth"] * with_truth)]]
    for row in shown:
        cells = [
            row["key"],
            row["label_name"],
            f"{row['score']:.4f}",
            row["predicted_name"],
            f"{row['confidence']:.4f}",
            f"{row['rank_in_class']}/{row['labels_in_class']}",
            f"{'yes' if row['kept'] else 'no'}, {row['reason']}",
            *([row["clean_name"] or "-"] * with_truth),
        ]
        rows.append([cell if cell.isprintable() else repr(cell) for cell in cells])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines = lines if shown else []
    reasons = {row["values"]: row["counts"] for row in pc.value_counts(table["reason"]).to_pylist()}
    kept = pc.sum(table["kept"]).as_py() or 0
    told = ", ".join(f"{count:,} {reason}" for reason, count in sorted(reasons.items(), key=lambda item: -item[1]))
    lines.append(f"{len(labeled):,} labels, {kept:,} kept ({told})")
    known = [row for row in shown if row["clean"] is not None]
    if known:
        wrong = sum(row["clean"] != row["label"] for row in known)
        lines.append(f"of the {len(known):,} listed whose truth is known, {wrong:,} are wrong")
    return "\n".join(lines)


def _exported(judged: Judged, correction: Correction, name: str, *, written: bool, dry_run: bool) -> str:
    told = ", ".join(f"{given} -> {new} {count:,}" for given, new, count in correction.changes[:5])
    lines = f"export: {'would write ' if dry_run and written else ''}label column {name!r}"
    lines += f"{'' if written else ' (there already, the same)'}: "
    lines += f"{correction.num_changed:,} labels changed"
    if told:
        lines += f" ({told if told.isprintable() else ascii(told)}{', …' if len(correction.changes) > 5 else ''})"
    truth, given = judged.ranking.truth, judged.ranking.label
    if truth is not None:
        corrected = np.full(len(judged.dataset), NO_LABEL)
        corrected[correction.index] = correction.label
        lines += f"; right {_right(given, truth)} before, {_right(corrected[judged.ranking.index], truth)} now"
    return f"{lines}; train on it by --data.labels {name}"


def _right(label: Indices, truth: Indices) -> str:
    known = (label != NO_LABEL) & (truth != NO_LABEL)
    return f"{100 * (label == truth)[known].mean():.1f} % of {known.sum():,}" if known.any() else "-"
