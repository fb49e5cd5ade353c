"""Stage 1, third step: keep the labels that are very likely right, class by class (paper, section 3.1).

A label is a candidate when the trained network predicts it too. Candidates are kept when their score is high; where
that keeps too few of a class, its best candidates are. With a clean set, those are kept that their class's classifier
accepts (see clean_filter.py). Needs no torch: the scores come from `rank`'s Parquet parts.

The parts may hold more than memory does. They are gone through window by window, first to count, then again for the
leading and the remaining bits of the score at which a class is full (a radix selection), and last to write what is
kept. That is exact: of equal scores those with the smallest indices are kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from twostage.config import MineConfig
from twostage.data.schema import NO_LABEL, InputError, table_writer, write_table
from twostage.stage1.class_report import Counts, text_table
from twostage.stage1.clean_filter import accepted
from twostage.stage1.parts import WINDOW_ROWS, Indices, Mask, Parts, Ranked, Scores, Window
from twostage.stage1.row_groups import WholeRowGroups

SEEDS_SCHEMA: Final = pa.schema([("index", pa.int64()), ("label", pa.int64()), ("score", pa.float32())])
Kept = tuple[Ranked, Mask, Indices, Mask]
"""scored samples, and of each: whether it was held out, its group (see `_groups`), whether its label is kept"""
MAX_BINS: Final = 1 << 23               # of the histogram of scores, 64 MiB


def mine(
    rank_dir: Path,
    out_dir: Path,
    *,
    class_names: Sequence[str],
    config: MineConfig,
    clean: Indices | None,
    clean_set: tuple[Indices, Indices] | None = None,
    window_rows: int = WINDOW_ROWS,
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
        window_rows: about so many samples are in memory at a time.

    Returns:
        A table of the classes as text, and figures over all classes: kept, images, purity, coverage (null where
        unknown), the same with `val_` where a validation set was written; clean_set: how many came from there.

    Raises:
        InputError: a part is missing, damaged or there twice, a class keeps no label, a setting is out of range.
    """
    check_shares(min_score=config.min_score, min_share=config.min_share, accept_score=config.accept_score)
    parts = Parts(rank_dir, len(class_names), window_rows=window_rows)
    if clean is not None and parts.last >= len(clean):
        raise InputError(
            f"{rank_dir} scores sample {parts.last}, but the dataset has {len(clean)} samples: run `rank` again"
        )
    cut = find_cut(parts, len(class_names), config)
    train, val = (cut.counts.of(groups) for groups in _sides(len(class_names)))
    _check_seeds(train, class_names, config)
    refine_val = config.refine_val and cut.num_held_out > 0
    if refine_val and not val.kept.any():
        raise InputError("no held-out sample keeps its label; set mine.refine_val to false")

    out_dir.mkdir(parents=True, exist_ok=True)
    windows = keep(parts, cut, len(class_names), config)
    _write_kept(out_dir, windows, cut.counts, refine_val=refine_val, clean=clean, clean_set=clean_set)
    classes, results = train.table(class_names), train.totals()
    write_table(out_dir / "classes.parquet", classes)
    lines = [text_table(classes, results)]
    if clean_set is not None:
        results["clean_set"] = len(clean_set[0])
        lines.append(f"and {len(clean_set[0])} clean samples, with their labels")
    if refine_val:
        classes, refined = val.table(class_names), val.totals()
        write_table(out_dir / "classes_val.parquet", classes)
        lines += ["", "validation", text_table(classes, refined)]
        results |= {f"val_{name}": value for name, value in refined.items()}
    return "\n".join(lines), results


def check_shares(**settings: float) -> None:
    """Refuses, by InputError, settings of the section `mine` that are not within 0..1; `run` asks before it trains."""
    for name, value in settings.items():
        if not 0 <= value <= 1:
            raise InputError(f"mine.{name}: {value} is not within 0..1")


@dataclass(frozen=True)
class Cut:
    """Where each group's ranking is cut off, beyond the labels that are certain; arrays are (groups,).

    There are two groups for each class, see `_groups`.
    """

    lowest: Scores
    """labels with a higher score are kept, too"""
    ties: Indices
    """and of those with just this score so many, the smallest indices first"""
    counts: Counts
    """images, consistent and kept; the rest is still zero"""
    num_held_out: int


def find_cut(windows: Iterable[Window], num_classes: int, config: MineConfig) -> Cut:
    """Decides which labels are kept, in memory that does not depend on how many there are.

    Of each class, the labels that agree with the prediction and whose score is `min_score` or more (compared in
    float32, so that a stored 0.9 reaches 0.9); where these are fewer than ceil(min_share · images of the class),
    the highest-scored ones that agree, up to that number. Of equal scores the smaller index comes first.
    A sample without a label is never kept. With the rule `clean_filter`, those that `accepted` names.

    Args:
        windows: are gone through several times: as many bits of the score as a histogram may have bins, at a time.

    Raises:
        InputError: a score is not a number (names the sample).
    """
    num_groups = 2 * (num_classes + 1)
    bits = next((bits for bits in (16, 11) if num_groups << bits <= MAX_BINS), 8)
    counts, histogram = Counts.nothing(num_groups), np.zeros((num_groups, 1 << bits), dtype=np.int64)
    num_held_out = 0
    for ranked, held_out in windows:
        _check_scores(ranked, held_out, config)
        group, (certain, rest) = _groups(ranked, held_out, num_classes), _certain_and_rest(ranked, config)
        for total, rows in ((counts.consistent, ranked.label == ranked.predicted), (counts.kept, certain)):
            total += np.bincount(group[rows], minlength=num_groups)
        counts.images[:] += np.bincount(group, minlength=num_groups)
        _count(histogram, group[rest], _code(ranked.score[rest]) >> (32 - bits))
        num_held_out += int(np.count_nonzero(held_out))

    # Exact: as floats, 0.1 * 70 is a little more than 7, and its ceiling 8.
    share = Fraction(str(float(config.min_share))) if config.rule == "agreement" else Fraction(0)
    missing = np.array([math.ceil(share * n) for n in counts.images.tolist()], dtype=np.int64) - counts.kept
    available = histogram.sum(axis=1)
    counts.kept[:] += missing.clip(0, available)
    takes_all, within = missing >= available, (missing > 0) & (missing < available)
    lowest = np.where(takes_all, np.float32(-np.inf), np.float32(np.inf))
    ties = np.where(takes_all, np.iinfo(np.int64).max, 0)

    known, place, below = np.zeros(num_groups, dtype=np.uint32), missing, 32 - bits
    while within.any():
        digit, place = _bin_from_top(histogram, place)
        known = known << np.uint32(bits) | digit
        if not below:
            lowest, ties = np.where(within, _score(known), lowest), np.where(within, place, ties)
            break
        bits = min(bits, below)
        below -= bits
        histogram = np.zeros((num_groups, 1 << bits), dtype=np.int64)
        for ranked, held_out in windows:
            rows = np.flatnonzero(_certain_and_rest(ranked, config)[1])
            group, code = _groups(ranked, held_out, num_classes)[rows], _code(ranked.score[rows]) >> below
            near = within[group] & (code >> bits == known[group])
            _count(histogram, group[near], code[near] & ((1 << bits) - 1))
    return Cut(lowest, ties, counts, num_held_out)


def keep(windows: Iterable[Window], cut: Cut, num_classes: int, config: MineConfig) -> Iterator[Kept]:
    """Goes through the windows again and says which labels are kept."""
    ties = cut.ties.copy()
    for ranked, held_out in windows:
        group, (kept, rest) = _groups(ranked, held_out, num_classes), _certain_and_rest(ranked, config)
        rows = np.flatnonzero(rest)
        lowest, score = cut.lowest[group[rows]], ranked.score[rows]
        kept[rows[score > lowest]] = True
        tied = rows[score == lowest]
        kept[tied[_place_in_group(group[tied]) < ties[group[tied]]]] = True
        ties -= np.bincount(group[tied], minlength=len(ties))
        yield ranked, held_out, group, kept


def _sides(num_classes: int) -> tuple[slice, slice]:
    """The groups of the training samples by class, and those of the held-out ones."""
    return slice(1, num_classes + 1), slice(num_classes + 2, None)


def _groups(ranked: Ranked, held_out: Mask, num_classes: int) -> Indices:
    """(n,) group of each sample: 1 + label, and for held-out ones as many more as there are labels with NO_LABEL."""
    groups: Indices = (ranked.label - NO_LABEL) + held_out * (num_classes + 1)
    return groups


def _certain_and_rest(ranked: Ranked, config: MineConfig) -> tuple[Mask, Mask]:
    """(n,) each: whether the label is kept whatever the others are; whether it may be, where its class needs more."""
    if config.rule == "clean_filter":
        certain = accepted(ranked.label, ranked.score, min_score=config.accept_score)
        return certain, np.zeros_like(certain)
    consistent = ranked.label == ranked.predicted       # no prediction is NO_LABEL
    certain = consistent & (ranked.score >= np.float32(config.min_score))
    return certain, consistent & ~certain


def _code(score: Scores) -> npt.NDArray[np.uint32]:
    """Numbers in the order of the scores: a float's bits, all of them turned where it is negative, else the sign."""
    bits = (score + np.float32(0)).view(np.uint32)      # -0.0 becomes 0.0
    return bits ^ np.where(bits >> 31, np.uint32(0xFFFFFFFF), np.uint32(0x80000000))


def _score(code: npt.NDArray[np.uint32]) -> Scores:
    return (code ^ np.where(code >> 31, np.uint32(0x80000000), np.uint32(0xFFFFFFFF))).view(np.float32)


def _count(histogram: Indices, group: Indices, digit: npt.NDArray[Any]) -> None:
    np.add.at(histogram.reshape(-1), group * histogram.shape[1] + digit, 1)


def _bin_from_top(histogram: Indices, place: Indices) -> tuple[npt.NDArray[np.uint32], Indices]:
    """Of each row the bin that holds the `place`-th entry from the top, and which one of that bin it is, from 1."""
    from_top = histogram[:, ::-1].cumsum(axis=1)
    position = (from_top >= place[:, None]).argmax(axis=1)
    rows = np.arange(len(histogram))
    digit = histogram.shape[1] - 1 - position
    above = from_top[rows, position] - histogram[rows, digit]
    return digit.astype(np.uint32), place - above


def _place_in_group(group: Indices) -> Indices:
    """(n,) how many entries before this one are of the same group."""
    order = np.argsort(group, kind="stable")
    sizes = np.bincount(group)
    place = np.empty(len(group), dtype=np.int64)
    place[order] = np.arange(len(group)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return place


def _write_kept(
    out_dir: Path,
    windows: Iterable[Kept],
    counts: Counts,
    *,
    refine_val: bool,
    clean: Indices | None,
    clean_set: tuple[Indices, Indices] | None,
) -> None:
    """Writes the seeds, joined by the clean set, and what is kept of the held-out samples; completes the counts."""
    nobody = np.empty(0, dtype=np.int64)
    index, label = (nobody, nobody) if clean_set is None else clean_set
    joining = pa.table([index, label, np.ones(len(index), np.float32)], schema=SEEDS_SCHEMA).sort_by("index")
    with ExitStack() as files:
        names = ("seeds.parquet", "val.parquet") if refine_val else ("seeds.parquet",)
        tables = [WholeRowGroups(files.enter_context(table_writer(out_dir / name, SEEDS_SCHEMA))) for name in names]
        for ranked, held_out, group, kept in windows:
            counts.add_kept(ranked, group, kept, clean)
            found = _rows(ranked, kept & ~held_out)
            if len(joining) and len(ranked.index):
                here = int(np.searchsorted(joining["index"].to_numpy(), ranked.index[-1]))
                found = pa.concat_tables([found, joining.slice(0, here)]).sort_by("index")
                joining = joining.slice(here)
            for table, rows in zip(tables, (found, _rows(ranked, kept & held_out)), strict=False):
                table.write(rows)
        tables[0].write(joining)
        for table in tables:
            table.finish()
    for stale in () if refine_val else ("val.parquet", "classes_val.parquet"):      # of another configuration
        (out_dir / stale).unlink(missing_ok=True)


def _rows(ranked: Ranked, which: Mask) -> pa.Table:
    rows = np.flatnonzero(which)
    return pa.table([ranked.index[rows], ranked.label[rows], ranked.score[rows]], schema=SEEDS_SCHEMA)


def _check_scores(ranked: Ranked, held_out: Mask, config: MineConfig) -> None:
    if not np.isnan(ranked.score.min(initial=0)):       # which is not a number if any of them is not
        return
    broken = ranked.index[np.isnan(ranked.score) & (~held_out | config.refine_val)]
    if broken.size:
        trained_by = "clean_filter" if config.rule == "clean_filter" else "pretrain"
        raise InputError(
            f"the score of sample {broken[0]} is not a number ({broken.size} such scores among {len(ranked.index)}); "
            f"the network that ranked has diverged: lower {trained_by}.optimizer.lr, then run `{trained_by}` and "
            "`rank` again"
        )


def _check_seeds(train: Counts, class_names: Sequence[str], config: MineConfig) -> None:
    empty = np.flatnonzero(train.kept == 0)
    if not len(empty) or (config.allow_empty and len(empty) < len(class_names)):
        return
    named = "; ".join(
        f"{class_names[c]!r}: {train.images[c]} images, {train.consistent[c]} consistent" for c in empty[:20]
    )
    if config.rule == "clean_filter":
        remedy = "lower mine.accept_score, raise clean_filter.positive_weight, train longer (clean_filter.epochs)"
    else:
        remedy = "train stage 1 longer (pretrain.epochs)"
        if train.consistent[empty].any():
            remedy += ", raise mine.min_share"
    if not config.allow_empty:
        remedy += ", or go on without them by mine.allow_empty"
    raise InputError(f"{len(empty)} of {len(class_names)} classes keep no label ({named}): {remedy}")
