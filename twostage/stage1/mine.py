"""Stage 1, third step: keep the labels that are very likely right, class by class (paper, section 3.1).

A label is a candidate when the trained network predicts it too. Candidates are kept when their score is high; where
that keeps too few of a class, its best candidates are. With a clean set, those are kept that their class's classifier
accepts (see clean_filter.py). Needs no torch: the scores come from `rank`'s Parquet parts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from twostage.config import MineConfig
from twostage.data.schema import NO_LABEL, InputError, write_table
from twostage.stage1.clean_filter import accepted
from twostage.stage1.parts import Indices, Mask, Ranked, Scores, read_parts

SEEDS_SCHEMA: Final = pa.schema([("index", pa.int64()), ("label", pa.int64()), ("score", pa.float32())])
CLASSES_SCHEMA: Final = pa.schema(
    [
        ("class", pa.int64()),
        ("name", pa.string()),
        ("images", pa.int64()),          # with this label
        ("consistent", pa.int64()),      # of these, predicted as this class too
        ("kept", pa.int64()),
        ("threshold", pa.float32()),     # lowest score kept; null where none is
        ("purity", pa.float64()),        # right labels among those kept; null where no clean label is known
        ("coverage", pa.float64()),      # kept among the right labels; null likewise
    ]
)


def mine(
    rank_dir: Path,
    out_dir: Path,
    *,
    class_names: Sequence[str],
    config: MineConfig,
    clean: Indices | None,
    clean_set: tuple[Indices, Indices] | None = None,
) -> tuple[str, dict[str, Any]]:
    """Mines the training samples that `rank` scored, and in the same way the held-out ones, each by themselves.

    Writes `seeds.parquet` and `classes.parquet`; where samples were held out and `config.refine_val` is set, also
    `val.parquet` and `classes_val.parquet`. The same scores give the same bytes, however many parts they came in.
    The marker that makes the step done is the caller's to write, from what is returned.

    Args:
        rank_dir: folder with `part-*-of-*.parquet`.
        out_dir: made where it does not exist.
        class_names: by class number.
        clean: (num_samples,) true labels by sample index, NO_LABEL where unknown; only the report reads them.
        clean_set: sample indices and labels of the clean set, which join the seeds with a score of 1; they are not
            among those of `rank_dir`, nor in the report.

    Returns:
        A table of the classes as text, and figures over all classes: kept, images, purity, coverage (null where
        unknown), the same with `val_` where a validation set was written; clean_set: how many came from there.

    Raises:
        InputError: a part is missing, damaged or there twice, a class keeps no label, a setting is out of range.
    """
    ranked, held_out = read_parts(rank_dir, len(class_names))
    if clean is not None and len(ranked.index) and ranked.index[-1] >= len(clean):
        raise InputError(
            f"{rank_dir} scores sample {ranked.index[-1]}, but the dataset has {len(clean)} samples: run `rank` again"
        )
    train, val = ranked.where(~held_out), ranked.where(held_out)
    kept = _select(train, len(class_names), config)
    classes = report(train, kept, class_names=class_names, clean=clean)
    _check_seeds(classes, config)
    outputs = {"seeds.parquet": _with_clean_set(_seeds(train, kept), clean_set), "classes.parquet": classes}
    results = totals(train, kept, clean)
    lines = [text_table(classes, results)]
    if clean_set is not None:
        results["clean_set"] = len(clean_set[0])
        lines.append(f"and {len(clean_set[0])} clean samples, with their labels")

    if config.refine_val and len(val.index):
        kept = _select(val, len(class_names), config)
        if not kept.any():
            raise InputError("no held-out sample keeps its label; set mine.refine_val to false")
        outputs["val.parquet"] = _seeds(val, kept)
        outputs["classes_val.parquet"] = report(val, kept, class_names=class_names, clean=clean)
        refined = totals(val, kept, clean)
        lines += ["", "validation", text_table(outputs["classes_val.parquet"], refined)]
        results |= {f"val_{name}": value for name, value in refined.items()}

    _write(out_dir, outputs)
    return "\n".join(lines), results


def check_shares(**settings: float) -> None:
    """Refuses, by InputError, settings of the section `mine` that are not within 0..1; `run` asks before it trains."""
    for name, value in settings.items():
        if not 0 <= value <= 1:
            raise InputError(f"mine.{name}: {value} is not within 0..1")


def select(
    label: Indices,
    predicted: Indices,
    score: Scores,
    index: Indices,
    *,
    num_classes: int,
    min_score: float,
    min_share: float,
) -> Mask:
    """Decides which labels are kept. All arrays are (n,), in any order.

    Of each class, the labels that agree with the prediction and whose score is `min_score` or more (compared in
    float32, so that a stored 0.9 reaches 0.9); where these are fewer than ceil(min_share · images of the class),
    the highest-scored ones that agree, up to that number. Of equal scores the smaller index comes first.
    A sample without a label is never kept.

    Returns:
        (n,) whether the label is kept.

    Raises:
        InputError: a setting is not within 0..1, or a score is not a number (names the sample).
    """
    check_shares(min_score=min_score, min_share=min_share)
    _check_scores(score, index, "pretrain")
    consistent = (label == predicted) & (label != NO_LABEL)
    kept: Mask = consistent & (score >= np.float32(min_score))

    images = np.bincount(label[label != NO_LABEL], minlength=num_classes)
    # Exact: as floats, 0.1 * 70 is a little more than 7, and its ceiling 8.
    share = Fraction(str(float(min_share)))
    wanted = np.array([math.ceil(share * int(n)) for n in images], dtype=np.int64)
    missing = wanted - np.bincount(label[kept], minlength=num_classes)
    rest = np.flatnonzero(consistent & ~kept & (missing[label] > 0))
    rest = rest[np.lexsort((index[rest], -score[rest], label[rest]))]
    sizes = np.bincount(label[rest], minlength=num_classes)
    place = np.arange(len(rest)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    kept[rest[place < missing[label[rest]]]] = True
    return kept


def report(ranked: Ranked, kept: Mask, *, class_names: Sequence[str], clean: Indices | None) -> pa.Table:
    """One row per class, columns as in CLASSES_SCHEMA.

    Purity is the share of right labels among those kept, coverage the share of those kept among the right ones;
    both count only samples whose clean label is known.
    """
    num_classes = len(class_names)

    def count(rows: Mask) -> list[int]:
        numbers: list[int] = np.bincount(ranked.label[rows], minlength=num_classes).tolist()
        return numbers

    labeled = ranked.label != NO_LABEL
    known, right = _known_and_right(ranked, clean)
    threshold = np.full(num_classes, np.inf, dtype=np.float32)
    np.minimum.at(threshold, ranked.label[kept], ranked.score[kept])
    right_kept = count(right & kept)
    return pa.table(
        [
            list(range(num_classes)),
            list(class_names),
            count(labeled),
            count(labeled & (ranked.label == ranked.predicted)),
            count(kept),
            [None if np.isinf(lowest) else float(lowest) for lowest in threshold],
            [_share(a, b) for a, b in zip(right_kept, count(kept & known), strict=True)],
            [_share(a, b) for a, b in zip(right_kept, count(right), strict=True)],
        ],
        schema=CLASSES_SCHEMA,
    )


def totals(ranked: Ranked, kept: Mask, clean: Indices | None) -> dict[str, Any]:
    """Over all classes: labels kept, images with a label, purity and coverage (None where unknown)."""
    known, right = _known_and_right(ranked, clean)
    right_kept = int((right & kept).sum())
    return {
        "kept": int(kept.sum()),
        "images": int((ranked.label != NO_LABEL).sum()),
        "purity": _share(right_kept, int((kept & known).sum())),
        "coverage": _share(right_kept, int(right.sum())),
    }


def text_table(classes: pa.Table, results: dict[str, Any]) -> str:
    """The classes as aligned text for a terminal, with a last line over all classes."""

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.2f} %"

    rows = [("class", "images", "consistent", "kept", "share", "lowest score", "purity", "coverage")]
    for row in classes.to_pylist():
        name = row["name"] if row["name"].isprintable() else repr(row["name"])
        lowest = "-" if row["threshold"] is None else f"{row['threshold']:.4f}"
        numbers = (f"{row['images']}", f"{row['consistent']}", f"{row['kept']}")
        share = percent(_share(row["kept"], row["images"]))
        rows.append((name, *numbers, share, lowest, percent(row["purity"]), percent(row["coverage"])))
    consistent = str(sum(classes["consistent"].to_pylist()))
    share = percent(_share(results["kept"], results["images"]))
    ends = (percent(results["purity"]), percent(results["coverage"]))
    rows.append(("all", str(results["images"]), consistent, str(results["kept"]), share, "", *ends))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )


def _select(ranked: Ranked, num_classes: int, config: MineConfig) -> Mask:
    if config.rule == "clean_filter":
        _check_scores(ranked.score, ranked.index, "clean_filter")
        return accepted(ranked.label, ranked.score, min_score=config.accept_score)
    return select(
        ranked.label,
        ranked.predicted,
        ranked.score,
        ranked.index,
        num_classes=num_classes,
        min_score=config.min_score,
        min_share=config.min_share,
    )


def _seeds(ranked: Ranked, kept: Mask) -> pa.Table:
    return pa.table([ranked.index[kept], ranked.label[kept], ranked.score[kept]], schema=SEEDS_SCHEMA)


def _with_clean_set(seeds: pa.Table, clean_set: tuple[Indices, Indices] | None) -> pa.Table:
    if clean_set is None:
        return seeds
    index, label = clean_set
    more = pa.table([index, label, np.ones(len(index), np.float32)], schema=SEEDS_SCHEMA)
    return pa.concat_tables([seeds, more]).sort_by("index").combine_chunks()


def _check_scores(score: Scores, index: Indices, trained_by: str) -> None:
    broken = np.flatnonzero(np.isnan(score))
    if broken.size:
        raise InputError(
            f"the score of sample {index[broken[0]]} is not a number ({broken.size} such scores); the network that "
            f"ranked has diverged: lower {trained_by}.optimizer.lr, then run `{trained_by}` and `rank` again"
        )


def _write(out_dir: Path, outputs: dict[str, pa.Table]) -> None:
    out_dir.mkdir(parents=True, exist_ok=True)
    for stale in ("seeds.parquet", "classes.parquet", "val.parquet", "classes_val.parquet"):
        if stale not in outputs:            # a validation set of another configuration must not be taken for this one's
            (out_dir / stale).unlink(missing_ok=True)
    for name, table in outputs.items():
        write_table(out_dir / name, table)


def _known_and_right(ranked: Ranked, clean: Indices | None) -> tuple[Mask, Mask]:
    """(n,) each: whether the clean label is known; whether it is the one given."""
    if clean is None:
        none = np.zeros(len(ranked.index), dtype=np.bool_)
        return none, none
    truth = clean[ranked.index]
    known = (truth != NO_LABEL) & (ranked.label != NO_LABEL)
    return known, known & (truth == ranked.label)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _check_seeds(classes: pa.Table, config: MineConfig) -> None:
    empty = [row for row in classes.to_pylist() if row["kept"] == 0]
    if not empty or (config.allow_empty and len(empty) < len(classes)):
        return
    named = "; ".join(f"{row['name']!r}: {row['images']} images, {row['consistent']} consistent" for row in empty[:20])
    if config.rule == "clean_filter":
        remedy = "lower mine.accept_score, raise clean_filter.positive_weight, train longer (clean_filter.epochs)"
    else:
        remedy = "train stage 1 longer (pretrain.epochs)"
        if any(row["consistent"] for row in empty):
            remedy += ", raise mine.min_share"
    if not config.allow_empty:
        remedy += ", or go on without them by mine.allow_empty"
    raise InputError(f"{len(empty)} of {len(classes)} classes keep no label ({named}): {remedy}")
