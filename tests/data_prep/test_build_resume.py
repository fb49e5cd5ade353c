"""Whatever happens to a build, and however it is divided, the files are the same in the end."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from photos import LIMITS, digests, write_photos

from data_prep.__main__ import main
from twostage.data import schema

OPTIONS = ("--format", "folder", "--shard-size", "9", "--mean-size", "8", *LIMITS)
NUM_KILLS = 20


def build(source: Path, out: Path, *options: str) -> int:
    return main(["build", str(source), str(out), *OPTIONS, "--workers", "1", *options])


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """180 images, ten of them not to be accepted, so that nearly every shard's names change at the end."""
    root = tmp_path_factory.mktemp("resume") / "photos"
    write_photos(root, num=170)
    return root


@pytest.fixture(scope="module")
def intact(photos: Path) -> Path:
    out = photos.parent / "intact"
    assert build(photos, out) == 0
    return out


@pytest.fixture
def dataset(intact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(intact, tmp_path / "dataset"))


def run_silently(arguments: list[str]) -> None:
    """In a process of its own: runs a verb and leaves with its exit code."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    sys.exit(main(arguments))


@pytest.fixture(scope="module")
def forkserver() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["data_prep.build", "data_prep.merge"])
    return context


@pytest.mark.parametrize("workers", ["1", "2"])
def test_killed_at_random_instants(
    photos: Path, intact: Path, tmp_path: Path, forkserver: multiprocessing.context.ForkServerContext, workers: str
) -> None:
    rng = random.Random(workers)
    arguments = ["build", str(photos), str(tmp_path / "o"), *OPTIONS, "--workers", workers]
    kills, completed, longest = 0, 0, 0.1
    # a build with workers spends most of its time on starting them, so most kills are for the one without
    while kills < {"1": NUM_KILLS - 5, "2": 5}[workers] or not completed:
        process = forkserver.Process(target=run_silently, args=(arguments,))
        start = time.monotonic()
        process.start()
        process.join(rng.uniform(0, 1.1 * longest) if kills < NUM_KILLS else None)
        if process.is_alive():
            process.kill()
            process.join()
            kills += 1
            longest *= 1.15             # how long it takes is found out by being too early
            assert not (tmp_path / "o" / "dataset.json").exists() or digests(tmp_path / "o") == digests(intact)
            continue
        assert process.exitcode == 0
        assert digests(tmp_path / "o") == digests(intact)
        assert not list((tmp_path / "o").rglob("*.tmp"))
        completed += 1
        longest = time.monotonic() - start
        shutil.rmtree(tmp_path / "o")
    assert completed


class CrashError(BaseException):
    """Stands for a power cut."""


def test_cut_off_before_each_file_gets_its_name(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file appears by a rename, so these are the states that a build can be left in."""
    some = tmp_path / "some"
    for path in sorted(photos.rglob("*.*"))[::5]:
        (some / path.relative_to(photos)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, some / path.relative_to(photos))
    assert build(some, tmp_path / "whole") == 0
    expected = digests(tmp_path / "whole")
    rename = Path.replace
    for last in itertools.count():
        def replace(self: Path, target: Path, left: Iterator[int] = iter(range(last))) -> Path:      # noqa: B008
            if next(left, None) is None:
                raise CrashError
            return rename(self, target)

        out = tmp_path / f"o{last}"
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", replace)
            try:
                assert build(some, out) == 0
            except CrashError:
                assert not (out / "dataset.json").exists()
                left = {name: digest for name, digest in digests(out).items() if not name.endswith(".tmp")}
                assert left.items() <= expected.items()
                if last % 3:
                    continue
            else:
                assert digests(out) == expected
                break
        assert build(some, out) == 0
        assert digests(out) == expected
    assert last > 20


def test_four_workers_write_the_same_bytes(photos: Path, intact: Path, tmp_path: Path) -> None:
    assert build(photos, tmp_path / "o", "--workers", "4") == 0
    assert digests(tmp_path / "o") == digests(intact)
    assert main(["verify", str(tmp_path / "o"), "--workers", "1"]) == 0


def test_workers_end_with_a_killed_parent(photos: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "data_prep", "build", str(photos), str(tmp_path / "o"), *OPTIONS, "--workers", "2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    wait_for(lambda: list((tmp_path / "o" / ".build").glob("*.parquet")) or process.poll() is not None)
    process.kill()
    process.wait()
    wait_for(lambda: not alive(process.pid))


def wait_for(condition: object, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():              # type: ignore[operator]
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def alive(session: int) -> list[str]:
    """Processes of a session that are more than zombies."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(path.parent.name)
    return found


def workers_of(session: int) -> list[int]:
    return [int(pid) for pid in alive(session) if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]


def blocks_interrupts(pid: int) -> bool:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool(int(status["SigBlk"], 16) >> (signal.SIGINT - 1) & 1)


def test_interrupted_leaves_at_once_and_goes_on(photos: Path, intact: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "data_prep", "build", str(photos), str(tmp_path / "o"), *OPTIONS, "--workers", "2"]
    for longest in (0.6, 0.3, 0.1, 0.03, 0.0):           # on a fast machine the build may be done before
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                                   start_new_session=True)
        wait_for(lambda pid=process.pid: workers_of(pid))
        assert all(blocks_interrupts(worker) for worker in workers_of(process.pid))
        time.sleep(random.uniform(0, longest))           # the workers are being started, or at work
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)        # as a terminal does: to all processes
        _, errors = process.communicate(timeout=60)
        if process.returncode != 0:
            break
        shutil.rmtree(tmp_path / "o")
    assert process.returncode == 130, errors
    assert errors.strip().splitlines()[-1] == "interrupted; the same command goes on where this one stopped"
    assert "Traceback" not in errors
    assert build(photos, tmp_path / "o") == 0
    assert digests(tmp_path / "o") == digests(intact)


def test_a_dead_worker_is_said_and_the_next_run_goes_on(
    photos: Path, intact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "o"
    command = [sys.executable, "-m", "data_prep", "build", str(photos), str(out), *OPTIONS, "--workers", "2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                               start_new_session=True)
    wait_for(lambda: workers_of(process.pid))
    os.kill(workers_of(process.pid)[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and "a worker process died" in errors and "--workers" in errors, errors
    assert build(photos, out) == 0
    assert digests(out) == digests(intact)


def times(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.rglob("*") if path.is_file()}


def test_a_second_run_does_nothing(photos: Path, dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: state for path, state in times(dataset).items() if not path.endswith("lock")}
    assert build(photos, dataset) == 0
    assert "complete already: 170 samples; nothing to do" in capsys.readouterr().out
    assert {path: state for path, state in times(dataset).items() if not path.endswith("lock")} == before
    shutil.rmtree(dataset / ".build")
    assert build(photos, dataset) == 0
    assert "complete already" in capsys.readouterr().out and not (dataset / ".build").exists()


@pytest.mark.parametrize("name", ["shards/000003.tar", "shards/000003.idx", "samples.parquet", "labels/given.parquet",
                                  "rejected.parquet", "mean.parquet"])
def test_what_is_lost_together_with_the_work_folder_is_told(
    photos: Path, dataset: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (dataset / name).unlink()
    shutil.rmtree(dataset / ".build")
    assert build(photos, dataset) == 2
    error = capsys.readouterr().err
    assert f"lacks '{name}'" in error and "into a new folder" in error


@pytest.mark.parametrize("name", ["shards/000003.tar", "shards/000003.idx", "samples.parquet", "labels/given.parquet",
                                  "rejected.parquet", "dataset.json", "mean.parquet", ".build/000005.parquet",
                                  ".build/000005.sums.parquet"])
@pytest.mark.parametrize("with_marker", [True, False])
def test_what_is_lost_is_made_again(photos: Path, intact: Path, dataset: Path, name: str, with_marker: bool) -> None:
    before = times(dataset / "shards")
    (dataset / name).unlink()
    if not with_marker:
        (dataset / "dataset.json").unlink(missing_ok=True)      # as `verify` advises
    assert build(photos, dataset) == 0
    assert digests(dataset) == digests(intact)
    touched = {Path(path).name for path, state in times(dataset / "shards").items() if before[path] != state}
    if ".build" not in name:
        assert touched <= {name.removeprefix("shards/"), "000003.idx"}


def test_label_columns_of_others_survive(photos: Path, dataset: Path) -> None:
    assert main(["noise", str(dataset), "--name", "n", "--kind", "symmetric", "--rate", "0.2", "--rng-seed", "0"]) == 0
    (dataset / "shards/000002.tar").unlink()
    assert build(photos, dataset) == 0
    assert main(["verify", str(dataset), "--workers", "1"]) == 0
    assert schema.read_labels(dataset, "n").rng_seed == 0


@pytest.mark.parametrize("shared", [True, False])
def test_parts_make_the_same_dataset(
    photos: Path, intact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], shared: bool
) -> None:
    out = tmp_path / "o"
    folders = [out if shared else tmp_path / f"part{number}" for number in range(3)]
    for number in (2, 0):
        assert build(photos, folders[number], "--part", f"{number + 1}/3") == 0
        assert not (folders[number] / "dataset.json").exists()
    others = [] if shared else [str(folder) for folder in folders]
    assert main(["merge", str(out), *others[:1], *others[2:]]) == 2
    assert "run `data_prep build` again with --part 2/3" in capsys.readouterr().err
    assert build(photos, folders[1], "--part", "2/3") == 0
    before = [] if shared else [digests(folder) | times(folder) for folder in folders]
    assert main(["merge", str(out), *others]) == 0
    assert digests(out) == digests(intact)
    assert before == ([] if shared else [digests(folder) | times(folder) for folder in folders])
    assert main(["merge", str(out), *others]) == 0
    assert "complete already" in capsys.readouterr().out
    assert build(photos, out) == 0
    assert "complete already" in capsys.readouterr().out


def test_a_lost_part_is_built_anew_without_the_others(photos: Path, intact: Path, tmp_path: Path) -> None:
    for number in "123":
        assert build(photos, tmp_path / "o", "--part", f"{number}/3") == 0
    for path in (tmp_path / "o" / ".build").glob("*.tar"):
        if int(path.stem) % 3 == 1:
            path.unlink()
    before = {path: state for path, state in times(tmp_path / "o" / ".build").items() if path.endswith(".tar")}
    assert build(photos, tmp_path / "o", "--part", "2/3") == 0
    assert before.items() <= times(tmp_path / "o" / ".build").items()
    assert main(["merge", str(tmp_path / "o")]) == 0
    assert digests(tmp_path / "o") == digests(intact)


def test_a_part_of_another_dataset_is_refused(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build(photos, tmp_path / "a", "--part", "1/2") == 0
    assert build(photos, tmp_path / "b", "--part", "2/2", "--rng-seed", "7") == 0
    assert main(["merge", str(tmp_path / "o"), str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    assert "--rng-seed was 0, now it is 7" in capsys.readouterr().err
    assert main(["merge", str(tmp_path / "c")]) == 2
    assert "holds no part of a build" in capsys.readouterr().err


def test_two_at_once_are_refused(photos: Path, intact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from data_prep.work import locked
    with locked(intact / ".build", "part-1-of-2"):
        assert build(photos, intact) == 2
        assert "is at work in" in capsys.readouterr().err
        assert build(photos, intact, "--part", "2/2") == 0
        assert build(photos, intact, "--part", "1/2") == 2
    assert build(photos, intact) == 0


def test_progress_is_plain_lines_without_a_terminal(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_prep.run.LINE_EVERY", 0.0)
    assert build(photos, tmp_path / "o") == 0
    captured = capsys.readouterr()
    lines = [line for line in captured.out.splitlines() if line.startswith("build: ")]
    assert len(lines) == 20 and "\r" not in captured.out + captured.err
    assert lines[-1].startswith("build: 180 of 180 images, 10 rejected, ")


def test_all_chunks_together_hold_every_input_once(intact: Path) -> None:
    rows = [pq.read_table(path) for path in sorted((intact / ".build").glob("[0-9]?????.parquet"))]
    positions = np.concatenate([table["position"].to_numpy() for table in rows])
    assert np.array_equal(np.sort(positions), np.arange(180))
    assert {len(table) for table in rows} == {9}
