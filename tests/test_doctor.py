"""`twostage doctor` finds what is wrong, says what to do, and its exit code says whether anything is."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twostage import doctor
from twostage.__main__ import main
from twostage.data import loader
from twostage.runtime import manifest
from twostage.runtime.session import code_digests


def test_all_is_well_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--folder", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "fail" not in printed and "all is well" in printed
    for what in ("packages: twostage", "processor: ", "open files: ", "disk: ", "writing: ", "decoding: 64 JPEGs"):
        assert what in printed
    assert re.match(r"rank 0: process \d+ on ", printed)
    assert list(tmp_path.iterdir()) == [], "what it tried is gone"


def test_a_disk_that_is_full(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: Any) -> dict[str, Any]:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(manifest, "write_synced", full)
    assert main(["doctor", "--folder", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "fail  writing: [Errno 28] No space left on device" in printed and "give --folder" in printed
    assert "something will not work" in printed and "ok    decoding" in printed, "the rest is tried all the same"


def test_images_that_come_out_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = loader.StreamedImages.batches

    def inverted(self: Any, *arguments: Any, **options: Any) -> Iterator[Any]:
        for images, index in batches(self, *arguments, **options):
            yield tuple(255 - image for image in images), index

    monkeypatch.setattr(loader.StreamedImages, "batches", inverted)
    assert main(["doctor", "--folder", str(tmp_path)]) == 1
    assert "fail  decoding" in capsys.readouterr().out


def test_what_only_some_ranks_found_says_which() -> None:
    assert list(doctor._merged(["rank 0\nok a\nok b", "rank 1\nok a\nfail b"])) == [
        "rank 0", "rank 1", "ok a", "ok b  [rank 0]", "fail b  [rank 1]"
    ]  # fmt: skip


def test_a_remedy_stands_below_every_finding_that_has_it() -> None:
    memory = doctor.Finding("warn", "memory", "little", "buy some")
    room = doctor.Finding("warn", "room", "little", "buy some")
    rows = [f"rank {rank}\n{memory}\n{room if rank else 'ok'}" for rank in (0, 1)]
    assert list(doctor._merged(rows)) == [
        "rank 0", "rank 1", "warn  memory: little", "      buy some", "ok  [rank 0]",
        "warn  room: little  [rank 1]", "      buy some",
    ]  # fmt: skip


def test_a_folder_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--folder", str(tmp_path / "runs")]) == 2
    assert "no such folder; make it" in capsys.readouterr().err


def test_ranks_compare_every_file_of_the_code() -> None:
    files = {str(path) for path in (Path(doctor.__file__).parent).rglob("*.py")}
    found = code_digests()
    assert len(found) == len(files) > 60 and "stage2/train.py" in found
    assert len(np.unique(list(found.values()))) > 60
