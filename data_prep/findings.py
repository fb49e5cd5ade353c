"""What `data_prep verify` finds: one thing that is wrong, where, and how to mend it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa

from twostage.data.schema import InputError, write_json, write_table

MAX_PRINTED: Final = 40
BUILD_COMMAND: Final = "then run the dataset's `data_prep build` command again"
ANEW: Final = "nothing of it can be made again alone without its .build/: build the whole dataset into a new folder"
REPORT_SCHEMA: Final = pa.schema(
    [
        ("file", pa.string()),
        ("index", pa.int64()),
        ("key", pa.string()),
        ("problem", pa.string()),
        ("remedy", pa.string()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong in a dataset."""

    file: str
    """relative to the dataset"""
    index: int | None = None
    """the sample, where it concerns one"""
    key: str | None = None
    """the source's own name of that sample"""
    problem: str
    remedy: str

    def __str__(self) -> str:
        sample = "" if self.index is None else f", sample {self.index}"
        sample += "" if self.key is None else f" ({self.key!r})"
        return f"{self.file}{sample}: {self.problem}\n    mend: {self.remedy}"


def in_order(findings: Sequence[Finding]) -> list[Finding]:
    """By file and sample, so that the number of workers does not show."""
    return sorted(findings, key=lambda f: (f.file, -1 if f.index is None else f.index, f.problem))


def without_work_folder(findings: Sequence[Finding]) -> list[Finding]:
    """The same findings for a dataset whose .build/ is gone: the build's command would refuse to mend it."""
    return [dataclasses.replace(f, remedy=ANEW) if BUILD_COMMAND in f.remedy else f for f in findings]


def print_findings(findings: Sequence[Finding]) -> None:
    """Prints the first ones, and how many more there are in which files."""
    for finding in findings[:MAX_PRINTED]:
        print(finding)
    rest = findings[MAX_PRINTED:]
    if rest:
        files = sorted({finding.file for finding in rest})
        shown = ", ".join(files[:5]) + (f" and {len(files) - 5} more files" if len(files) > 5 else "")
        print(f"... and {len(rest)} more, in {shown}; --report FILE writes them all")


def check_report_path(path: Path) -> None:
    """Refuses a report that could not be written, before hours of work.

    Raises:
        InputError: neither .json nor .parquet, or no such folder.
    """
    if path.suffix not in (".json", ".parquet"):
        raise InputError(f"--report {path}: the file name must end in .json or .parquet")
    if not path.absolute().parent.is_dir():
        raise InputError(f"--report {path}: there is no folder {path.absolute().parent}")


def write_report(path: Path, findings: Sequence[Finding]) -> None:
    """Writes all findings, as a list of objects (.json) or as a table (.parquet)."""
    rows = [dataclasses.asdict(finding) for finding in findings]
    if path.suffix == ".json":
        write_json(path, rows)
    else:
        write_table(path, pa.Table.from_pylist(rows, schema=REPORT_SCHEMA))
