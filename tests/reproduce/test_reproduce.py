"""The whole verb with a program that only pretends to train: kills at random instants, failures, refusals."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from fake_program import accuracy
from toy_mnist import write_toy_mnist

from data_prep.__main__ import main as data_prep
from twostage.data.schema import InputError
from twostage.reproduce.command import main

HERE = Path(__file__).parent
FAKE = HERE / "fake_program.py"
CONFIG = "model: {name: mlp}\ndata: {holdout: 0.1}\n"
BASE = ("--noise", "asym0.6", "sym0.2", "--runs", "2", "--rows", "cross_entropy,ours")
Reproduce = Callable[..., str]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with the label columns that BASE wants, which saves the fake program their making."""
    folder = tmp_path_factory.mktemp("data")
    source = write_toy_mnist(folder / "source", num_train=600)
    toy = folder / "toy"
    assert data_prep(["build", str(source), str(toy), "--format", "mnist", "--workers", "1"]) == 0
    for run in ("0", "1"):
        for name, *kind in (["sym0.2", "symmetric"], ["asym0.6", "asymmetric", "--flips", "mnist"]):
            arguments = ["noise", str(toy), "--name", f"{name}-{run}", "--rng-seed", run, "--rate", name[-3:], "--kind"]
            assert data_prep([*arguments, *kind]) == 0
    return toy


@pytest.fixture
def place(tmp_path: Path, data: Path) -> Path:
    """A folder with a copy of the data and a configuration."""
    (tmp_path / "config.yaml").write_text(CONFIG)
    shutil.copytree(data, tmp_path / "toy")
    return tmp_path


def arguments(place: Path, *more: str, table: str = "table3", out: str = "out") -> list[str]:
    command = [table, "--dataset", "mnist", "--out", str(place / out), "--data", str(place / "toy"), "--jobs", "2"]
    return [*command, "--config", str(place / "config.yaml"), *more]


def start(place: Path, *more: str, out: str = "out", **environment: str) -> subprocess.Popen[str]:
    """Starts `reproduce` as a process of its own."""
    command = [sys.executable, str(HERE / "driver.py"), *arguments(place, *more, out=out)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env={**os.environ, **environment})


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    """Waits for its end and returns what it says of errors."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, out + err
    return err


@pytest.fixture
def reproduce(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs `reproduce` in this process and returns all that it prints."""

    def run(*more: str, code: int = 0, table: str = "table3", out: str = "out", **environment: str) -> str:
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            capsys.readouterr()
            assert main(arguments(place, *more, table=table, out=out), python=(sys.executable, str(FAKE))) == code
        return "".join(capsys.readouterr())

    return run


def figures(out: Path) -> list[dict[str, object]]:
    """All results but the times."""
    return pq.read_table(out / "results.parquet").drop_columns(["seconds"]).to_pylist()


def page(out: Path) -> list[list[str]]:
    """The table's text without times."""
    lines = (out / "table3-mnist.md").read_text().splitlines()
    return [line.split("|")[:-2] if line.startswith("|") else [line] for line in lines]


def wait_for(path: Path) -> str:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if path.exists() and path.read_text().endswith("\n"):
            return path.read_text()
        time.sleep(0.02)
    raise AssertionError(f"no {path}")


def has_ended(pid: int) -> bool:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.02)
    return False


def test_a_grid_from_nothing(reproduce: Reproduce, tmp_path: Path) -> None:
    out = reproduce(*BASE, FAKE_PIDS=str(tmp_path / "pids"), OMP_NUM_THREADS="1")
    assert "mnist asym0.6 run 0: python" in out and "--run.rng_seed=1" in out, "each cell's command is said"
    rows = {(row["noise"], row["run"], row["row"]): row for row in figures(tmp_path / "out")}
    assert len(rows) == 2 * 2 * 2
    for (noise, run, row), found in rows.items():
        model = "train" if row == "ours" else f"baseline_{row}"
        assert found["accuracy"] == accuracy(f"{noise}-{run}", run, model, 0.1)
        assert (found["rng_seed"], found["code_commit"], found["num_test"]) == (run, "abc", 100)
        assert len(found["per_class"]) == 10
    assert len({row["config_digest"] for row in rows.values()}) == 1
    lines = (tmp_path / "pids").read_text().splitlines()
    assert len(lines) == 4 and {line.split(maxsplit=1)[1] for line in lines} == {"1 PASSIVE"}
    ours = [100 * accuracy(f"asym0.6-{run}", run, "train", 0.1) for run in (0, 1)]
    text = (tmp_path / "out" / "table3-mnist.md").read_text()
    assert f"{sum(ours) / 2:.2f} ± " in text and "at most 80.0 %" in text and "Not there yet" not in text

    again = reproduce(*BASE, FAKE_PIDS=str(tmp_path / "pids"))
    assert len((tmp_path / "pids").read_text().splitlines()) == 4, "nothing was started again"
    assert again.count("already there") == 5
    (tmp_path / "out" / "runs" / "mnist-sym0.2-1" / "evaluate" / "train" / "done.json").unlink()
    reproduce(*BASE, FAKE_PIDS=str(tmp_path / "pids"))
    assert len((tmp_path / "pids").read_text().splitlines()) == 5, "a test without its marker does not count"
    reproduce(*BASE, "--rows", "ours", "savage", FAKE_PIDS=str(tmp_path / "pids"))
    assert len((tmp_path / "pids").read_text().splitlines()) == 9, "a new row needs every cell"
    assert {row["row"] for row in figures(tmp_path / "out")} == {"cross_entropy", "savage", "ours"}
    assert not (tmp_path / "out" / "offences").exists()


def test_what_was_deleted_is_missing(reproduce: Reproduce, tmp_path: Path) -> None:
    few = ("--noise", "asym0.6", "--runs", "1", "--rows", "cross_entropy", "ours")
    reproduce(*few)
    run = tmp_path / "out" / "runs" / "mnist-asym0.6-0"
    for folder in ("train", "baseline_cross_entropy", "mine"):
        shutil.rmtree(run / folder)
        assert "mnist asym0.6 run 0: missing" in reproduce(*few, "--dry-run"), f"{folder} is gone"
        reproduce(*few)
        assert (run / folder / "done.json").exists()
    weights = run / "train" / "model.safetensors"
    weights.write_text("trained again")
    assert "mnist asym0.6 run 0: missing" in reproduce(*few, "--dry-run"), "the test is of other weights"
    reproduce(*few)
    assert "mnist asym0.6 run 0: there" in reproduce(*few, "--dry-run")
    assert len(figures(tmp_path / "out")) == 2 and not (tmp_path / "out" / "offences").exists()


def test_killed_at_random_instants_the_table_is_the_same(place: Path, tmp_path: Path) -> None:
    finish(start(place, *BASE, out="whole"))
    rng = random.Random(0)
    for attempt in range(8):
        process = start(place, *BASE)
        time.sleep(rng.uniform(0.4, 2.0))
        process.send_signal((signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGINT)[attempt % 4])
        process.communicate(timeout=60)
    finish(start(place, *BASE))
    assert not (tmp_path / "out" / "offences").exists()
    assert figures(tmp_path / "out") == figures(tmp_path / "whole")
    assert page(tmp_path / "out") == page(tmp_path / "whole")


def test_two_at_a_time_share_the_grid(place: Path, tmp_path: Path) -> None:
    pids = str(tmp_path / "pids")
    both = [start(place, *BASE, FAKE_PIDS=pids, FAKE_SLEEP="0.1") for _ in range(2)]
    for process in both:
        finish(process)
    assert not (tmp_path / "out" / "offences").exists() and len(figures(tmp_path / "out")) == 8
    assert len((tmp_path / "pids").read_text().splitlines()) == 4, "no cell was run twice"


def test_a_cell_that_fails_stops_no_other(reproduce: Reproduce, tmp_path: Path) -> None:
    err = reproduce(*BASE, FAKE_FAIL="mnist-asym0.6-1", code=1)
    assert "1 of 4 cells failed" in err and "mnist asym0.6 run 1: error: the disk is made of cheese" in err
    assert len(figures(tmp_path / "out")) == 6
    assert "Not there yet (1): mnist asym0.6 run 1." in (tmp_path / "out" / "table3-mnist.md").read_text()
    reproduce(*BASE)
    assert len(figures(tmp_path / "out")) == 8


@pytest.fixture
def stranger(tmp_path: Path) -> Path:
    """Folder of a cell that is not asked for, and that a run has only begun to fill: no result, no environment.json."""
    folder = tmp_path / "out" / "runs" / "mnist-asym0.6-7"
    folder.mkdir(parents=True)
    note = {"dataset": "mnist", "noise": "asym0.6", "run": 7, "started": [0.0]}
    (folder / "cell.json").write_text(json.dumps(note))
    config = {"run": {"rng_seed": 7}, "data": {"labels": "asym0.6-7"}, "mine": {"min_share": 0.1}}
    (folder / "config.yaml").write_text(json.dumps({**config, "pretrain": {"balance": True}}))
    return folder


def test_a_cell_that_is_just_beginning_stops_no_other(reproduce: Reproduce, stranger: Path, tmp_path: Path) -> None:
    assert "cannot be read" not in reproduce(*BASE)
    assert len(figures(tmp_path / "out")) == 8


def test_a_damaged_cell_ends_the_grid_only_when_all_others_are_there(
    reproduce: Reproduce, stranger: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (stranger / "config.yaml").write_text("a: [b")
    with pytest.raises(InputError, match=r"mnist-asym0\.6-7 cannot be read .* delete that folder"):
        reproduce(*BASE)
    assert f"the tables are written later: {stranger} cannot be read" in capsys.readouterr().err
    assert len(list((tmp_path / "out" / "runs").glob("*/evaluate/train/done.json"))) == 4
    shutil.rmtree(stranger)
    assert reproduce(*BASE).count("already there") == 5 and len(figures(tmp_path / "out")) == 8


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_nothing_outlives_a_stop(place: Path, tmp_path: Path, number: int, code: int) -> None:
    process = start(place, *BASE, FAKE_SLEEP="60", FAKE_PIDS=str(tmp_path / "pids"))
    pid = int(wait_for(tmp_path / "pids").split()[0])
    process.send_signal(number)
    err = finish(process, code)
    assert has_ended(pid), "a run goes on without its scheduler"
    assert code < 0 or "the same command goes on where this one stopped" in err


def test_table_1_shares_one_stage_1(reproduce: Reproduce, tmp_path: Path) -> None:
    reproduce("--noise", "asym0.6", "--runs", "1", "--shares", "0.05,0.1,0.5", table="table1")
    runs = tmp_path / "out" / "runs"
    names = ["mnist-asym0.6-0", "mnist-asym0.6-0-share0.05", "mnist-asym0.6-0-share0.5"]
    assert sorted(path.name for path in runs.iterdir()) == names
    for stage in ("pretrain", "rank"):
        assert len({(runs / name / stage / "model.json").read_text() for name in names}) == 1
    found = {row["min_share"]: row["accuracy"] for row in figures(tmp_path / "out")}
    assert found == {share: accuracy("asym0.6-0", 0, "train", share) for share in (0.05, 0.1, 0.5)}
    text = (tmp_path / "out" / "table1-mnist.md").read_text()
    assert re.findall(r"^\| (\d+ %) ", text, flags=re.MULTILINE) == ["5 %", "10 %", "50 %"]
    reproduce(*BASE)                                # Table 3 goes on with the same cell, and leaves the shares out
    assert len(figures(tmp_path / "out")) == 8 + 2
    ours = [100 * accuracy(f"asym0.6-{run}", run, "train", 0.1) for run in (0, 1)]
    assert f"{sum(ours) / 2:.2f} ± " in (tmp_path / "out" / "table3-mnist.md").read_text()


def test_a_pause_of_a_stage_counts_where_it_is_taken_over(reproduce: Reproduce, tmp_path: Path) -> None:
    reproduce("--noise", "asym0.6", "--runs", "1", "--rows", "ours")
    run = tmp_path / "out" / "runs" / "mnist-asym0.6-0"
    begin, end = ((run / "pretrain" / name).stat().st_mtime for name in ("inputs.json", "done.json"))
    note = json.loads((run / "cell.json").read_text())
    (run / "cell.json").write_text(json.dumps({**note, "started": [*note["started"], (begin + end) / 2]}))
    reproduce("--noise", "asym0.6", "--runs", "1", "--shares", "0.5", table="table1")
    lines = pq.read_table(tmp_path / "out" / "results.parquet").to_pylist()
    assert {line["min_share"]: line["seconds"] for line in lines} == {0.1: None, 0.5: None}


def test_without_its_stage_1_a_share_fails(reproduce: Reproduce) -> None:
    arguments = ("--noise", "asym0.6", "--runs", "1", "--shares", "0.5")
    err = reproduce(*arguments, table="table1", FAKE_FAIL="mnist-asym0.6-0", code=1)
    assert "needs mnist asym0.6 run 0, which failed" in err


def test_other_settings_need_another_folder(reproduce: Reproduce, tmp_path: Path) -> None:
    reproduce("--noise", "p0", "--runs", "1", "--rows", "ours")
    with pytest.raises(InputError, match=r"pretrain.epochs: 10 -> 3; choose another --out"):
        reproduce("--noise", "p0", "--runs", "1", "--rows", "ours", "--set", "pretrain.epochs=3")
    with pytest.raises(InputError, match=r"pretrain.epochs: 10 -> 4; choose another --out"):
        reproduce("--noise", "p0", "--runs", "1", "--rows", "ours", "--set", "pretrain.epochs=4", "--dry-run")
    with pytest.raises(InputError, match=r"runtime.micro_batch: null -> 8; choose another --out"):
        reproduce("--noise", "p0", "--runs", "1", "--rows", "ours", "--set", "runtime.micro_batch=8")
    reproduce("--noise", "p0", "--runs", "1", "--rows", "ours", "--set", "runtime.log_steps=7")
    settings = json.loads((tmp_path / "out" / "settings-mnist.json").read_text())
    assert settings["pretrain.epochs"] == 10 and "runtime.log_steps" not in settings


def test_the_dataset_is_built_where_there_is_none(reproduce: Reproduce, data: Path, tmp_path: Path) -> None:
    source = ("--data", str(data.with_name("source")), "--runs", "1", "--rows", "ours")
    reproduce("--noise", "asym0.6-text", *source)
    assert (tmp_path / "out" / "datasets" / "mnist" / "labels" / "asym0.6-text-0.parquet").exists()
    assert "the labels tell all classes apart" in (tmp_path / "out" / "table3-mnist.md").read_text()
    err = reproduce("--noise", "p0", "--format", "mnst", *source, out="o2", code=2)
    assert "did you mean 'mnist'" in err

    built = tmp_path / "out" / "datasets" / "mnist"
    other = ("--data", str(shutil.copytree(data.with_name("source"), tmp_path / "other")), "--dry-run")
    with pytest.raises(InputError, match=rf"{built} was .*source -> {other[1]}; choose another --out, or leave out"):
        reproduce(*other)
    with pytest.raises(InputError, match="--format mnist -> folder;"):
        reproduce(*source, "--dry-run", "--format", "folder")
    reproduce(*source, "--dry-run", "--format", "mnist")
    reproduce("--dry-run")                          # names a dataset, which is taken in place of the one that was built
    built.with_name("mnist.source.json").unlink()   # as in a folder that was begun before there were such notes
    reproduce(*other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tabel3"], "did you mean 'table3'"),
        (["table3", "--dataset", "minst"], "did you mean 'mnist'"),
        (["table3", "--rows", "forwards"], "did you mean 'forward'"),
        (["table3", "--noise", "asym0.6,sim0.2"], "did you mean 'sym0.2'"),
        (["table2", "--rows", "ours"], "--rows goes with table3"),
        (["table3", "--shares", "0.1"], "--shares goes with table1"),
        (["table1", "--shares", "5"], "such as 0.05 for 5 %"),
        (["table3", "--runs", "0"], "--runs 0: give 1 or more"),
        (["table3", "--set", "pretrain.epoch=1"], "pretrain.epochs"),
        (["table3", "--set", "data.labels=x"], "`reproduce` sets it"),
        (["table3", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["table3", "--config", str(HERE)], "reproduce is a folder: name a file by --config"),
        (["table3", "--data", "nowhere"], "--data nowhere"),
        (["table3", "--jops", "2"], "--jops"),
    ],
)
def test_wrong_arguments_are_named_before_anything_is_made(
    arguments: list[str], message: str, tmp_path: Path, data: Path
) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    more = [] if "--config" in arguments else ["--config", str(tmp_path / "config.yaml")]
    more += [] if "--data" in arguments else ["--data", str(data)]
    with pytest.raises(InputError) as error:
        main([arguments[0], "--out", str(tmp_path / "out"), *more, *arguments[1:]], python=("false",))
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_dry_run_makes_nothing(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    arguments = ["--config", str(tmp_path / "config.yaml"), "--data", str(data), "--noise", "sym0.2", "--runs", "2"]
    assert main(["table3", "--out", str(tmp_path / "out"), "--dry-run", *arguments], python=("python",)) == 0
    out = capsys.readouterr().out
    assert "mnist sym0.2 run 1: missing" in out and "python -m data_prep noise" in out
    assert "python -m twostage run --config" in out and not (tmp_path / "out").exists()


def test_no_data_yet(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    with pytest.raises(InputError, match="--data is missing"):
        main(["table3", "--out", str(tmp_path / "out"), "--config", str(tmp_path / "config.yaml")])
