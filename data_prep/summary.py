"""What a build prints at its end: samples by split and class, what was rejected, exact duplicates."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.check import REASONS
from data_prep.sources import HELD_OUT
from twostage.data.schema import NO_LABEL, SPLITS

MAX_CLASSES: Final = 30                 # of more classes, the table shows the first ones
EXAMPLES: Final = 3


class Summary:
    """Counts, gathered while the tables are written."""

    def __init__(self, class_names: tuple[str, ...]) -> None:
        self.class_names = class_names
        self.counts: npt.NDArray[np.int64] = np.zeros((len(SPLITS), len(class_names) + 1), np.int64)
        """(splits, classes + 1) samples; the last column counts those without a label"""
        self.rejected: Counter[str] = Counter()
        self.num_bytes = 0
        """of all images"""
        self.channel_means: list[float] = []
        """of the training split, red, green, blue, 0..1; empty if not computed"""
        self._rejected_keys: dict[str, list[str]] = {}
        self._digests: list[npt.NDArray[np.uint64]] = []
        self._splits: list[npt.NDArray[np.int8]] = []

    def add(self, samples: pa.Table) -> None:
        """Counts accepted samples: rows of samples.parquet with a column `label`."""
        split = samples["split"].combine_chunks().indices.to_numpy()
        np.add.at(self.counts, (split, samples["label"].to_numpy()), 1)         # NO_LABEL, -1, is the last column
        self.num_bytes += int(samples["size"].to_numpy().sum())
        digests = samples["sha256"].combine_chunks()
        whole = np.frombuffer(digests.buffers()[1], np.uint64).reshape(-1, 4)
        self._digests.append(whole[digests.offset : digests.offset + len(digests), 0].copy())
        self._splits.append(split)

    def add_inputs(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Counts inputs as if all were accepted, but those known to be unusable; passes them on."""
        known = batch.filter(pc.is_null(batch["reason"]))
        np.add.at(self.counts, (known["split"].to_numpy(), known["label"].to_numpy()), 1)
        return batch

    def add_rejected(self, rows: pa.Table) -> None:
        """Counts rejected inputs: rows of rejected.parquet."""
        for key, reason in zip(rows["key"].to_pylist(), rows["reason"].to_pylist(), strict=True):
            self.rejected[reason] += 1
            keys = self._rejected_keys.setdefault(reason, [])
            if len(keys) < EXAMPLES:
                keys.append(key)

    def split_counts(self) -> dict[str, int]:
        """Samples by split."""
        return dict(zip(SPLITS, self.counts.sum(axis=1).tolist(), strict=True))

    def duplicates(self) -> tuple[int, int]:
        """(samples that repeat the bytes of another one, how many of these lie in another split than that one).

        By 64 bits of the SHA-256: among a million images, the chance that two different ones agree is 1 in 10^7.
        """
        digests = np.concatenate(self._digests)
        splits = np.concatenate(self._splits)
        order = np.argsort(digests, kind="stable")
        digests, splits = digests[order], splits[order]
        is_first = np.concatenate([[True], digests[1:] != digests[:-1]])
        first = np.maximum.accumulate(np.where(is_first, np.arange(len(order)), 0))
        return int((~is_first).sum()), int((splits != splits[first]).sum())

    def leaks(self) -> dict[str, int]:
        """By split that is held out: how many of its samples have the bytes of one that may be trained on."""
        digests, splits = np.concatenate(self._digests), np.concatenate(self._splits)
        trained = digests[splits < SPLITS.index(HELD_OUT[0])]
        found = {split: np.isin(digests[splits == SPLITS.index(split)], trained).sum() for split in HELD_OUT}
        return {split: int(count) for split, count in found.items() if count}

    def lines(self) -> list[str]:
        """For people."""
        lines = self.table()
        for number, name in enumerate(self.class_names):
            if not self.counts[:, number].any() and len(self.class_names) <= MAX_CLASSES:
                lines.append(f"note: class {name!r} has no images")
        repeated, across = self.duplicates()
        if repeated:
            lines.append(
                f"{repeated} exact duplicates, {across} across splits (the same bytes as an earlier sample; equal "
                "sha256 in samples.parquet)"
            )
        for split, count in self.leaks().items():
            lines.append(f"warning: {count} images of {split} are in training too, byte for byte")
        if self.rejected:
            lines.append(f"rejected: {self.rejected.total()} (rejected.parquet names each one)")
            for reason, count in self.rejected.most_common():
                keys = ", ".join(self._rejected_keys[reason])
                more = ", ..." if count > EXAMPLES else ""
                lines.append(f"  {count:>9} {reason}: {REASONS[reason]}; {keys}{more}")
        else:
            lines.append("rejected: none")
        if self.channel_means:
            means = ", ".join(f"{mean:.3f}" for mean in self.channel_means)
            lines.append(f"mean of {SPLITS[0]}: [{means}] (for augment.mean; pixel by pixel: mean.parquet)")
        return list(map(printable, lines))

    def table(self) -> list[str]:
        """Splits x classes, for people."""
        used = [split for split in range(len(SPLITS)) if self.counts[split].any()]
        names = [*self.class_names[:MAX_CLASSES]]
        rows: list[tuple[str, Any]] = [(name, self.counts[used, number]) for number, name in enumerate(names)]
        hidden = len(self.class_names) - len(names)
        if hidden:
            rows.append((f"{hidden} more classes", self.counts[used][:, len(names) : -1].sum(axis=1)))
        if self.counts[:, NO_LABEL].any():
            rows.append(("no label", self.counts[used, NO_LABEL]))
        rows.append(("all", self.counts[used].sum(axis=1)))
        width = max(len("class"), *(len(name) for name, _ in rows))
        lines = [f"{'class':<{width}}" + "".join(f"{SPLITS[split]:>13}" for split in used) + f"{'all':>13}"]
        for name, counts in rows:
            lines.append(f"{name:<{width}}" + "".join(f"{n:>13}" for n in [*counts, counts.sum()]))
        return lines


def printable(line: str) -> str:
    """Names of files and classes may hold what would command the terminal."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in line)
