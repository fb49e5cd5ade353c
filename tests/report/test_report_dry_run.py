"""--dry-run of report, audit and predict: what they would write, and nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest
from untrained_run import write_files, write_run

from tests.data.images import encoded, noise
from twostage.__main__ import main


def test_nothing_is_written(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = (run_dir, run_dir.parent / "dataset")
    before = {path: path.stat().st_mtime_ns for place in places for path in place.rglob("*")}
    assert main(["report", str(run_dir), "--out", str(tmp_path / "page.html"), "--dry-run"]) == 0
    assert f"would write {tmp_path / 'page.html'}" in capsys.readouterr().out
    assert main(["audit", str(run_dir), "--export", "fixed", "--top", "3", "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "would write " in told and "would write label column 'fixed': " in told
    assert {path: path.stat().st_mtime_ns for place in places for path in place.rglob("*")} == before
    assert not list(tmp_path.iterdir())
    assert main(["report", str(tmp_path), "--dry-run"]) == 2
    assert main(["audit", str(run_dir), "--export", "given", "--dry-run"]) == 2


def test_predict_opens_the_model_and_counts_the_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run")
    write_files(tmp_path / "photos", [encoded(noise(n, 24, 24)) for n in range(3)])
    arguments = ["predict", str(run), str(tmp_path / "photos"), "--out", str(tmp_path / "p.csv"), "--dry-run"]
    assert main(arguments) == 0
    assert f"would predict 3 files by train of {run}, into {tmp_path / 'p.csv'}" in capsys.readouterr().out
    assert not (tmp_path / "p.csv").exists()
    assert main([*arguments, "--model", "finetune"]) == 2
