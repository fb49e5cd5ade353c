"""Which cells a table has, and by which commands they are made."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twostage.data.schema import InputError
from twostage.reproduce import grid, paper
from twostage.reproduce.command import job_environment
from twostage.reproduce.grid import Cell, Noise, Task
from twostage.rows import BASELINES


def cells(table: str, **changes: object) -> list[Task]:
    arguments = {
        "dataset": "cifar10", "noises": ["p0", "asym0.6"], "rows": ["forward", "ours"], "runs": 2,
        "shares": (0.05, 0.1), "min_share": 0.1, **changes,
    }
    return grid.plan(table, **arguments)  # type: ignore[arg-type]


def test_noises_by_name() -> None:
    assert grid.parse_noise("p0", "mnist") == Noise("p0", "", 0.0)
    assert grid.parse_noise("sym0.2", "cifar10") == Noise("sym0.2", "symmetric", 0.2)
    assert grid.parse_noise("asym0.6", "cifar10") == Noise("asym0.6", "asymmetric", 0.6, "cifar10")
    assert grid.parse_noise("asym0.6-text", "mnist") == Noise("asym0.6-text", "asymmetric", 0.6, "mnist-text")
    assert grid.parse_noise("asym.40", "mnist") == grid.parse_noise("asym0.4", "mnist"), "one folder for one noise"


@pytest.mark.parametrize("dataset", grid.DATASETS)
def test_every_default_noise_is_one(dataset: str) -> None:
    for name in grid.NOISES[dataset]:
        assert grid.parse_noise(name, dataset).name == name


@pytest.mark.parametrize(
    ("name", "dataset", "message"),
    [
        ("asym06", "mnist", "did you mean 'asym0.6'"),
        ("assym0.6", "mnist", "did you mean 'asym0.6'"),
        ("asym0.6-txt", "mnist", "did you mean 'asym0.6-text'"),
        ("asym0.6-text", "cifar10", "did you mean 'asym0.6'"),
        ("sym0.2-text", "mnist", "asymmetric"),
        ("sym60", "mnist", "60 % is sym0.6"),
        ("sym0", "mnist", "no noise is p0"),
        ("../../etc", "mnist", "allowed"),
    ],
)
def test_a_wrong_noise_names_the_nearest(name: str, dataset: str, message: str) -> None:
    with pytest.raises(InputError, match="--noise") as error:
        grid.parse_noise(name, dataset)
    assert message in str(error.value)


@given(st.floats(1e-6, 1), st.sampled_from(["sym", "asym"]), st.integers(0, 99))
def test_names_are_safe_and_tell_cells_apart(rate: float, kind: str, run: int) -> None:
    noise = grid.parse_noise(f"{kind}{rate:.6f}", "mnist")
    name = Cell("mnist", noise.name, run, 0.05).name
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-")
    assert noise.rate == pytest.approx(rate, abs=1e-6)
    assert name not in {Cell("mnist", noise.name, run).name, Cell("mnist", noise.name, run + 1, 0.05).name}


def test_the_grid_of_table_3() -> None:
    tasks = cells("table3")
    assert [task.cell.name for task in tasks] == [
        "cifar10-p0-0", "cifar10-asym0.6-0", "cifar10-p0-1", "cifar10-asym0.6-1",
    ]
    assert {task.rows for task in tasks} == {("forward", "ours")} and {task.after for task in tasks} == {None}


def test_shares_of_table_1_take_over_stage_1() -> None:
    tasks = cells("table1", rows=["ours"], noises=["asym0.6"], runs=1, shares=(0.05, 0.1, 0.5))
    whole = Cell("cifar10", "asym0.6", 0)
    assert [(task.cell.min_share, task.after) for task in tasks] == [(None, None), (0.05, whole), (0.5, whole)]
    assert tasks[0].cell == cells("table3", noises=["asym0.6"])[0].cell, "the cell of Table 3 is used again"


def test_commands_of_a_cell() -> None:
    noise = grid.parse_noise("asym0.6-text", "mnist")
    task = Task(Cell("mnist", "asym0.6-text", 3), ("forward", "ours"))
    made = grid.commands(
        task, noise, python=("py",), config=Path("c.yaml"), dataset=Path("d"), out=Path("o"),
        overrides=("--pretrain.epochs=1",),
    )
    assert " ".join(made[0]) == (
        "py -m data_prep noise d --name asym0.6-text-3 --kind asymmetric --flips mnist-text --rate 0.6 --rng-seed 3"
    )
    assert " ".join(made[1]) == (
        "py -m twostage run --config c.yaml --run.dir=o/runs/mnist-asym0.6-text-3 --run.rng_seed=3 "
        "--run.baselines=[forward] --data.dataset=d --data.labels=asym0.6-text-3 --data.clean_labels=given "
        "--pretrain.epochs=1"
    )


def test_no_noise_trains_on_the_given_labels() -> None:
    task = Task(Cell("mnist", "p0", 3, 0.05), ("ours",))
    made = grid.commands(
        task, grid.parse_noise("p0", "mnist"), python=("py",), config=Path("c"), dataset=Path("d"), out=Path("o"),
        overrides=("--mine.min_share=0.2",),
    )
    assert len(made) == 1
    assert "--data.labels=given" in made[0] and "--run.rng_seed=3" in made[0] and "--run.baselines=[]" in made[0]
    assert made[0][-1] == "--mine.min_share=0.05", "the cell's own share counts"


def test_rows_are_the_papers_first_and_ours_last() -> None:
    assert grid.ROWS[: len(paper.ROWS) - 1] == paper.ROWS[:-1]
    assert set(grid.ROWS) == {*BASELINES, "ours"} and len(set(grid.ROWS)) == len(grid.ROWS)
    assert grid.ROWS[-1] == "ours"


def test_stage_1_may_be_a_baseline() -> None:
    name = "balanced_cross_entropy"
    assert grid.model_folders(name, stage1_balanced=True) == ("baseline_balanced_cross_entropy", "pretrain")
    assert grid.model_folders(name, stage1_balanced=False) == ("baseline_balanced_cross_entropy",)
    assert grid.model_folders("ours", stage1_balanced=True) == ("train",)
    assert grid.model_folders("forward", stage1_balanced=True) == ("baseline_forward",)


@pytest.mark.parametrize("text", ["epochs=1", "pretrain.epochs", "run.dir=x", "data.labels=y"])
def test_overrides_that_cannot_be(text: str) -> None:
    with pytest.raises(InputError, match=f"--set {text}"):
        grid.check_overrides([text])


def test_cores_are_divided_and_gpus_taken_in_turn() -> None:
    one = job_environment({"A": "b"}, 0, num_parallel=3, num_cores=8)
    assert one == {"A": "b", "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1"}
    assert job_environment({}, 0, num_parallel=4, num_cores=2)["OMP_NUM_THREADS"] == "1"
    assert job_environment({"OMP_NUM_THREADS": "1"}, 0, num_parallel=1, num_cores=8)["OMP_NUM_THREADS"] == "1"
    base = {"CUDA_VISIBLE_DEVICES": "4,7"}
    devices = [job_environment(base, slot, num_parallel=3, num_cores=8)["CUDA_VISIBLE_DEVICES"] for slot in range(3)]
    assert devices == ["4", "7", "4"]
    assert job_environment({"CUDA_VISIBLE_DEVICES": "5"}, 1, num_parallel=2, num_cores=8)["CUDA_VISIBLE_DEVICES"] == "5"
