"""--dry-run says what would be done, and writes nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from photos import encoded, pixels
from PIL import Image

from data_prep.__main__ import main


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_folders_that_are_made_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, told in [
        (["digits", "images"], "1797 of 1797 images would be written"),
        (["synth", "load", "--num", "30", "--size", "64x48"], "30 images of 64 x 48 pixels"),
        (["download", "mnist", "mnist"], "train-images-idx3-ubyte.gz would be fetched: 9912422 bytes from https://"),
    ]:
        out = tmp_path / arguments[-1] if arguments[0] != "synth" else tmp_path / "load"
        words = [arguments[0], *(["mnist"] if arguments[0] == "download" else []), str(out)]
        options = arguments[2:] if arguments[0] == "synth" else []
        assert main([*words, *options, "--dry-run"]) == 0
        assert told in capsys.readouterr().out and not out.exists()
    assert main(["synth", str(tmp_path), "--num", "0", "--size", "64", "--dry-run"]) == 2


def test_merge_says_which_part_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(8):
        path = tmp_path / "photos" / f"class{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(Image.fromarray(pixels(number)), "PNG"))
    out = tmp_path / "out"
    build = ["build", str(tmp_path / "photos"), "--format", "folder", "--workers", "1", "--shard-size", "2"]
    parts = [tmp_path / f"part{number}" for number in (1, 2)]
    for number, part in enumerate(parts, start=1):
        assert main([*build, str(part), "--part", f"{number}/2"]) == 0
    before = files(tmp_path)
    capsys.readouterr()
    assert main(["merge", str(out), str(parts[0]), "--dry-run"]) == 2
    assert "--part 2/2" in capsys.readouterr().err
    assert main(["merge", str(out), *map(str, parts), "--dry-run"]) == 0
    assert "all 4 shards are written" in capsys.readouterr().out
    assert files(tmp_path) == before and not out.exists()
    assert main(["merge", str(out), *map(str, parts)]) == 0
    shutil.rmtree(out)


def test_build_and_noise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(8):
        path = tmp_path / "photos" / f"class{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(Image.fromarray(pixels(number)), "PNG"))
    build = ["build", str(tmp_path / "photos"), str(tmp_path / "out"), "--format", "folder", "--workers", "1"]
    assert main([*build, "--dry-run"]) == 0
    assert not (tmp_path / "out").exists()
    assert main(build) == 0
    before = files(tmp_path)
    noise = ["noise", str(tmp_path / "out"), "--name", "n", "--kind", "symmetric", "--rate", "0.5", "--rng-seed", "0"]
    assert main([*noise, "--dry-run"]) == 0
    assert files(tmp_path) == before
