"""What a user sees of wrong input: one line that names the thing, exit code 2, and nothing half made left behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from photos import BROKEN, KINDS, LIMITS, digests, write_photos

from data_prep.__main__ import main
from twostage.data import schema


def run(source: Path, out: Path, *options: str) -> int:
    return main(["build", str(source), str(out), "--format", "folder", "--workers", "1", *options])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    write_photos(tmp_path / "photos", num=30, broken=False)
    return tmp_path / "photos"


def refused(capsys: pytest.CaptureFixture[str], code: int, *words: str) -> None:
    errors = capsys.readouterr().err.splitlines()
    assert code == 2 and len(errors) == 1 and errors[0].startswith("error: "), errors
    assert all(word in errors[0] for word in words), errors[0]


def test_missing_and_empty_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, run(tmp_path / "nowhere", tmp_path / "o"), str(tmp_path / "nowhere"), "no such folder")
    (tmp_path / "empty").mkdir()
    refused(capsys, run(tmp_path / "empty", tmp_path / "o"), "has no class folders", "SOURCE/cat/1.jpg")
    for name in ("cat", "dog"):
        (tmp_path / "empty" / name).mkdir()
    refused(capsys, run(tmp_path / "empty", tmp_path / "o"), "SOURCE has no image")
    assert not (tmp_path / "o").exists()


def test_one_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_photos(tmp_path / "s", num=5, broken=False, classes=("cat",))
    refused(capsys, run(tmp_path / "s", tmp_path / "o"), "only one class folder, 'cat'")


def test_label_out_of_range(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.csv").write_text("path,label\na.jpg,0\nb.jpg,1\nc.jpg,14\n")
    code = main(["build", str(tmp_path / "t.csv"), str(tmp_path / "o"), "--format", "table"])
    refused(capsys, code, "label 14 is out of range 0..2", "--class-names")


def test_csv_without_the_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.csv").write_text("pth,label\na.jpg,0\nb.jpg,1\n")
    code = main(["build", str(tmp_path / "t.csv"), str(tmp_path / "o"), "--format", "table"])
    refused(capsys, code, "no column 'path'", "did you mean 'pth'", "--columns path=NAME")


def test_two_files_with_one_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.csv").write_text("path,label\na.jpg,x\nb.jpg,y\na.jpg,y\n")
    code = main(["build", str(tmp_path / "t.csv"), str(tmp_path / "o"), "--format", "table"])
    refused(capsys, code, "two images with one key, 'a.jpg'", "number 1 and number 3")
    for name in (b"a\xff.png", rb"a\xff.png"):
        path = tmp_path / "s" / "cat" / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(KINDS["png"](1))
    (tmp_path / "s" / "dog").mkdir()
    refused(capsys, run(tmp_path / "s", tmp_path / "o"), "two images with one key")
    refused(capsys, run(tmp_path / "s", tmp_path / "o", "--dry-run"), "two images with one key")
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_only_broken_images(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    reason, data = BROKEN[name]
    for class_name in ("cat", "dog"):
        (tmp_path / "s" / class_name).mkdir(parents=True)
        (tmp_path / "s" / class_name / name).write_bytes(data)
    code = run(tmp_path / "s", tmp_path / "o", *LIMITS)
    refused(capsys, code, "not one of 2 images was accepted", f"2 {reason}: ")
    assert not (tmp_path / "o" / "dataset.json").exists()


def test_paths_that_lead_outside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "outside.png").write_bytes(KINDS["png"](1))
    table = tmp_path / "s" / "t.csv"
    table.parent.mkdir()
    for number, name in enumerate("ab"):
        (table.parent / f"{name}.png").write_bytes(KINDS["png"](number))
    table.write_text(f"path,label\na.png,x\nb.png,y\n../outside.png,x\n{tmp_path}/outside.png,y\n")
    command = ["build", str(table), str(tmp_path / "o"), "--format", "table", "--workers", "1"]
    assert main(command) == 0
    assert "2 outside: the path, or a link in it, leads out of SOURCE (see --allow-outside)" in capsys.readouterr().out
    refused(capsys, main([*command, "--allow-outside"]), "--allow-outside was not given, now it is True")
    assert main([*command[:2], str(tmp_path / "o2"), *command[3:], "--allow-outside"]) == 0
    assert schema.read_marker(tmp_path / "o2")["num_samples"] == 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--format", "foldr"], ["--format foldr", "did you mean 'folder'"]),
        (["--worker", "2"], ["unknown argument '--worker'", "did you mean '--workers'"]),
        (["--workers", "two"], ["--workers", "'two'", "build --help"]),
        (["--workers", "0"], ["--workers 0: give 1 or more"]),
        (["--rng-seed", "-1"], ["--rng-seed -1: give 0 or more"]),
        (["--shard-size", "0"], ["--shard-size 0"]),
        (["--max-bytes", "0"], ["--max-bytes 0"]),
        (["--short-side", "0"], ["--short-side 0"]),
        (["--quality", "101", "--encode", "jpeg"], ["--quality 101: give 1 to 100"]),
        (["--quality", "90"], ["--quality goes with --encode or --short-side"]),
        (["--quality", "90", "--encode", "png"], ["--quality does not go with --encode png"]),
        (["--encode", "gif"], ["--encode", "'gif'", "jpeg"]),
        (["--mean-size", "-1"], ["--mean-size -1: give 1 to 1024, or 0"]),
        (["--mean-size", "1025"], ["--mean-size 1025"]),
        (["--mean-size", "8", "--check", "header"], ["--mean-size needs pixels", "--check full"]),
        (["--check", "none"], ["--check", "'none'", "full"]),
        (["--part", "3/2"], ["--part 3/2: give I/N"]),
        (["--part", "0/2"], ["--part 0/2"]),
        (["--part", "1"], ["--part 1: give I/N"]),
        (["--columns", "path=a"], ["--columns does not go with --format folder"]),
        (["--split-map", "a=b"], ["no split 'b'"]),
    ],
)
def test_wrong_options(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str],
                       words: list[str]) -> None:
    refused(capsys, run(photos, tmp_path / "o", *options), *words)
    assert not (tmp_path / "o").exists()


def test_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, main(["biuld"]), "unknown verb 'biuld'; did you mean 'build'")
    assert main([]) == 2 and "examples:" in capsys.readouterr().out
    assert main(["--help"]) == 0
    usage = capsys.readouterr().out
    for verb in ("build", "merge", "noise", "verify", "synth", "digits"):
        assert f"\n  {verb} " in usage
        with pytest.raises(SystemExit) as left:
            main([verb, "--help"])
        assert left.value.code == 0
        described = " ".join(capsys.readouterr().out.split())
        assert f"python -m data_prep {verb}" in described
    with pytest.raises(SystemExit):
        main(["build", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "val, valid, validation, dev mean val" in text and "--format table" in text


def test_places_that_do_not_do(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, run(photos, photos / "dataset"), "lies in SOURCE")
    (tmp_path / "file").write_text("")
    refused(capsys, run(photos, tmp_path / "file"), "is not a folder")
    refused(capsys, run(photos, tmp_path), "holds other files ('file', 'photos')", "a new or an empty folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "photos"]


CHANGES = {
    "other seed": (["--rng-seed", "5"], "--rng-seed was 0, now it is 5"),
    "other check": (["--check", "header"], "--check was full, now it is header"),
    "encoding": (["--short-side", "8"], "--short-side was not given, now it is 8"),
    "shard size": (["--shard-size", "7"], "--shard-size was not given, now it is 7"),
    "limits": (["--max-pixels", "1000"], "--max-pixels was 100000000, now it is 1000"),
    "class names": (["--class-names", "frog,dog,cat"], "the classes were 'cat', 'dog', 'frog', now they are 'frog',"),
    "split map": (["--split-map", "train=val"], "--split-map was not given, now it is train=val"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("finished", [True, False])
def test_other_arguments_are_refused_and_named(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                               change: str, finished: bool) -> None:
    out = tmp_path / "o"
    assert run(photos, out) == 0
    if not finished:
        (out / "dataset.json").unlink()
    before = digests(out)
    capsys.readouterr()
    options, message = CHANGES[change]
    refused(capsys, run(photos, out, *options), message, f"remove {out} to begin anew")
    assert digests(out) == before
    if finished:
        shutil.rmtree(out / ".build")
        refused(capsys, run(photos, out, *options), "was made otherwise", "--rng-seed 0")


def change_source(photos: Path, change: str) -> None:
    first = photos / "train/cat/0000.jpg"
    match change:
        case "new":
            (photos / "train/cat/new.png").write_bytes(KINDS["png"](999))
        case "gone":
            first.unlink()
        case "moved":
            first.rename(photos / "train/dog/0000.jpg")
        case "rewritten":
            data = bytearray(first.read_bytes())
            data[-3] ^= 1
            first.write_bytes(data)
            os.utime(first, (1, 1))
        case "longer":
            times = first.stat()
            first.write_bytes(first.read_bytes() + b"\0")
            os.utime(first, ns=(times.st_atime_ns, times.st_mtime_ns))
        case "mended":
            (photos / "test/cat/bad.jpg").write_bytes(KINDS["jpg"](7))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("new", ["1 images are new: 'train/cat/new.png'"]),
        ("gone", ["1 images are not there any more: 'train/cat/0000.jpg'"]),
        ("moved", ["not there any more: 'train/cat/0000.jpg'", "new: 'train/dog/0000.jpg'"]),
        ("rewritten", ["1 files of the source were changed", "'train/cat/0000.jpg'"]),
        ("longer", ["1 files of the source were changed", "'train/cat/0000.jpg'"]),
        ("mended", ["1 files of the source were changed", "'test/cat/bad.jpg'"]),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_a_changed_source_is_refused_and_named(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                               change: str, words: list[str], finished: bool) -> None:
    (photos / "test/cat/bad.jpg").write_bytes(b"no image")
    out = tmp_path / "o"
    assert run(photos, out) == 0
    if not finished:
        (out / "dataset.json").unlink()
        (out / "shards/000000.tar").unlink()
    capsys.readouterr()
    change_source(photos, change)
    refused(capsys, run(photos, out), *words, f"remove {out} to begin anew")


def test_other_labels_in_a_table_are_named(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = photos / "t.csv"
    table.write_text("path,label\ntrain/cat/0000.jpg,x\ntrain/dog/0001.progressive.jpg,y\n")
    command = ["build", str(table), str(tmp_path / "o"), "--format", "table", "--workers", "1"]
    assert main(command) == 0
    table.write_text("path,label\ntrain/cat/0000.jpg,y\ntrain/dog/0001.progressive.jpg,y\nz,x\n")
    refused(capsys, main(command), "1 images are new: 'z'")
    table.write_text("path,label\ntrain/cat/0000.jpg,y\ntrain/dog/0001.progressive.jpg,x\n")
    refused(capsys, main(command), "2 images have another label or split: 'train/cat/0000.jpg'")
    table.write_text("path,label\ntrain/dog/0001.progressive.jpg,y\ntrain/cat/0000.jpg,x\n")
    refused(capsys, main(command), "another order")


def test_a_source_whose_content_changes_while_permissions_do(photos: Path, tmp_path: Path,
                                                             capsys: pytest.CaptureFixture[str]) -> None:
    """A shard that is made again and comes out otherwise does not slip in among the old ones."""
    out = tmp_path / "o"
    assert run(photos, out) == 0
    first = photos / "train/cat/0000.jpg"
    times = first.stat()
    data = first.read_bytes()
    first.write_bytes(data[:-1] + b"\0")                    # the same size and time
    os.utime(first, ns=(times.st_atime_ns, times.st_mtime_ns))
    (out / "shards/000000.tar").unlink()
    capsys.readouterr()
    refused(capsys, run(photos, out), "the source was changed", "'train/cat/0000.jpg'")


def test_damaged_work_files_are_said_or_mended(photos: Path, tmp_path: Path,
                                               capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "o"
    assert run(photos, out, "--mean-size", "8") == 0
    before = digests(out)
    for name in (".build/000000.parquet", "shards/000000.tar"):
        (out / name).write_bytes(b"cut")
    assert run(photos, out, "--mean-size", "8") == 0 and digests(out) == before
    (out / ".build/000000.sums.parquet").write_bytes(b"cut")
    (out / "mean.parquet").unlink()
    refused(capsys, run(photos, out, "--mean-size", "8"), "000000.sums.parquet was damaged", "the same command again")
    assert run(photos, out, "--mean-size", "8") == 0 and digests(out) == before
    for name in ("plan.json", "inputs.arrow"):
        content = (out / ".build" / name).read_bytes()
        (out / ".build" / name).write_bytes(content[:20])
        capsys.readouterr()
        refused(capsys, run(photos, out, "--mean-size", "8"), f"{name} is damaged", f"remove {out}")
        (out / ".build" / name).write_bytes(content)
    plan = json.loads((out / ".build/plan.json").read_text())
    (out / ".build/plan.json").write_text(json.dumps({**plan, "settings": 5}))
    refused(capsys, run(photos, out, "--mean-size", "8"), "plan.json is damaged", f"remove {out}")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 KB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)]
    done = subprocess.run(command, capture_output=True, text=True, check=False) if shutil.which("mount") else None
    if done is None or done.returncode:
        pytest.skip("no small file system can be mounted here, that needs more rights")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_no_space_left(tmp_path: Path, small_disk: Path, capsys: pytest.CaptureFixture[str], workers: str) -> None:
    write_photos(tmp_path / "s", num=300, broken=False)
    command = ["build", str(tmp_path / "s"), str(small_disk / "o"), "--format", "folder", "--workers", workers,
               "--shard-size", "30"]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert "No space left on device" in error and "bytes are free" in error and "Make space" in error, error
    assert str(small_disk / "o") in error
    assert not (small_disk / "o" / "dataset.json").exists()
    subprocess.run(["mount", "-o", "remount,size=3m", str(small_disk)], check=True)
    assert main(command) == 0
    assert "done before" in capsys.readouterr().out
    plain = ["build", str(tmp_path / "s"), str(tmp_path / "o"), *command[3:]]
    assert main(plain) == 0
    assert digests(small_disk / "o") == digests(tmp_path / "o")


def test_a_full_disk_at_any_time(tmp_path: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In whatever file the space runs out: exit code 1, and the same command goes on."""
    write_photos(tmp_path / "s", num=60, broken=False)
    assert run(tmp_path / "s", tmp_path / "o", "--shard-size", "10") == 0
    filler = small_disk / "filler"
    failures = 0
    for left in range(0, 190_000, 8192):
        free = shutil.disk_usage(small_disk).free
        filler.write_bytes(bytes(max(0, free - left)))
        capsys.readouterr()
        code = run(tmp_path / "s", small_disk / "o", "--shard-size", "10")
        error = capsys.readouterr().err
        filler.unlink()
        assert code == 0 or (code == 1 and "No space left" in error), (left, error)
        failures += code
        if code == 0:
            break
    assert code == 0 and failures > 3
    assert digests(small_disk / "o") == digests(tmp_path / "o")


def test_names_that_are_not_utf_8(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """SOURCE may have one, also where the terminal cannot print it; what becomes a table may not."""
    odd = os.fsdecode(b"odd\xff")
    refused(capsys, run(photos, tmp_path / odd), r"odd\udcff' is not UTF-8")
    refused(capsys, main(["merge", str(tmp_path / "o"), str(tmp_path / odd)]), "parts", "is not UTF-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]
    (tmp_path / odd).mkdir()
    source = photos.rename(tmp_path / odd / "photos")
    command = [sys.executable, "-m", "data_prep", "build", str(source), "o", "--format", "folder", "--dry-run"]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and r"odd\udcff" in done.stdout, done.stderr


def test_the_verbs_run_as_a_program(photos: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "data_prep"]
    done = subprocess.run([*command, "build", str(tmp_path / "x"), str(tmp_path / "o"), "--format", "folder"],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr
