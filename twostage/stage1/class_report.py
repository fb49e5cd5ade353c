"""What became of each class's labels when seeds were mined: counts, purity, coverage. Knows only numpy and pyarrow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
import pyarrow as pa

from twostage.data.schema import NO_LABEL
from twostage.stage1.parts import Indices, Mask, Ranked, Scores

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


@dataclass(frozen=True)
class Counts:
    """What there is in each of some groups of samples, which need not be seen all at once; all arrays are (groups,)."""

    images: Indices
    """with a label"""
    consistent: Indices
    """of these, predicted as that class too"""
    kept: Indices
    known: Indices
    """kept, and the clean label is known"""
    right: Indices
    """the clean label is the one given"""
    right_kept: Indices
    lowest: Scores
    """lowest score kept; infinite where none is"""

    @classmethod
    def nothing(cls, groups: int) -> Counts:
        images, consistent, kept, known, right, right_kept = np.zeros((6, groups), dtype=np.int64)
        return cls(images, consistent, kept, known, right, right_kept, np.full(groups, np.inf, dtype=np.float32))

    def of(self, groups: slice) -> Counts:
        return Counts(*(getattr(self, field.name)[groups] for field in fields(self)))

    def add_kept(self, ranked: Ranked, group: Indices, kept: Mask, clean: Indices | None) -> None:
        """Adds what can be said of more samples once it is decided which labels are kept; `kept` itself is not counted.

        Args:
            group: (n,) of each sample.
            kept: (n,) whether its label is kept.
            clean: (num_samples,) true labels by sample index, NO_LABEL where unknown.
        """
        rows = np.flatnonzero(kept)
        np.minimum.at(self.lowest, group[rows], ranked.score[rows])
        if clean is not None:
            truth = clean[ranked.index]
            right = (truth == ranked.label) & (truth != NO_LABEL)
            for total, which in ((self.known, kept & (truth != NO_LABEL)), (self.right, right),
                                 (self.right_kept, right & kept)):
                total += np.bincount(group[which], minlength=len(total))

    def table(self, class_names: Sequence[str]) -> pa.Table:
        """One row per class, columns as in CLASSES_SCHEMA; the groups are the classes.

        Purity is the share of right labels among those kept, coverage the share of those kept among the right ones;
        both count only samples whose clean label is known.
        """
        return pa.table(
            [
                list(range(len(class_names))),
                list(class_names),
                self.images,
                self.consistent,
                self.kept,
                [None if np.isinf(lowest) else float(lowest) for lowest in self.lowest],
                [_share(a, b) for a, b in zip(self.right_kept.tolist(), self.known.tolist(), strict=True)],
                [_share(a, b) for a, b in zip(self.right_kept.tolist(), self.right.tolist(), strict=True)],
            ],
            schema=CLASSES_SCHEMA,
        )

    def totals(self) -> dict[str, Any]:
        """Over all classes: labels kept, images with a label, purity and coverage (None where unknown)."""
        right_kept = int(self.right_kept.sum())
        return {
            "kept": int(self.kept.sum()),
            "images": int(self.images.sum()),
            "purity": _share(right_kept, int(self.known.sum())),
            "coverage": _share(right_kept, int(self.right.sum())),
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


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
