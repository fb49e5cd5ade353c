"""Several runs in one page: every figure is that of its run, means are over runs that differ by their seed only."""

from __future__ import annotations

import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from page import Element, inner_svgs, parse

from twostage.data.schema import InputError
from twostage.report import compare
from twostage.report.collect import collect
from twostage.report.command import report


def change(run: Path, accuracy: float, **settings: Any) -> None:
    """Gives a run another accuracy of its last model, and other settings (`section__name=value`)."""
    path = run / "evaluate" / "train" / "test.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"accuracy": accuracy}))
    config = yaml.safe_load((run / "config.yaml").read_text())
    for key, value in settings.items():
        section, name = key.split("__")
        config.setdefault(section, {})[name] = value
    (run / "config.yaml").write_text(yaml.safe_dump(config))


@pytest.fixture(scope="module")
def runs(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("several")
    found = [Path(shutil.copytree(run_dir, folder / name)) for name in ("run-0", "run-1", "run-2", "strong")]
    for number, (run, accuracy) in enumerate(zip(found, (0.9, 0.95, 0.91, 0.99), strict=True)):
        change(run, accuracy, run__rng_seed=number, run__dir=str(run))
    change(found[3], 0.99, train__consistency_weight=100.0)
    return found


@pytest.fixture(scope="module")
def page(runs: list[Path]) -> Element:
    return parse(compare.render_comparison([collect(run) for run in runs]))


def base_accuracy(run: Path) -> float:
    return float(json.loads((run / "evaluate" / "baseline_cross_entropy" / "test.json").read_text())["accuracy"])


def test_results_are_those_of_the_runs(page: Element, runs: list[Path]) -> None:
    rows = page.table("Test accuracy of the runs")[1:]
    assert [row[0] for row in rows] == ["run-0", "run-1", "run-2", "strong"]
    assert [row[2] for row in rows] == ["90.00 %", "95.00 %", "91.00 %", "99.00 %"]
    base = base_accuracy(runs[0])
    assert {row[1] for row in rows} == {f"{100 * base:.2f} %"}
    assert rows[3][4].replace("−", "-") == f"{100 * (0.99 - base):+.1f}"
    kept = json.loads((runs[0] / "mine" / "done.json").read_text())["results"]
    assert rows[0][5:] == [f"{100 * kept['kept'] / kept['images']:.1f} %", f"{100 * kept['purity']:.1f} %"]


def test_means_are_over_runs_that_differ_by_their_seed_only(page: Element) -> None:
    (row,) = page.table("Means over runs that differ only by their seed")[1:]
    values = [90.0, 95.0, 91.0]
    assert row[0] == "run-0, run-1, run-2"
    assert row[3] == f"{statistics.mean(values):.2f} % ± {round(statistics.stdev(values), 2)}"
    assert row[2].endswith("± 0.0") and row[1] == "two-stage"


@pytest.mark.parametrize(
    ("labels", "grouped"),
    [
        (("noisy-0", "noisy-1"), True),
        (("noisy", "noisy"), True),
        (("sym0.2-0", "asym0.2-0"), False),
        (("asym0.2", "asym0.6"), False),
        (("asym0.2-0", "asym0.6-0"), False),
        (("sym-20", "sym-40"), False),
    ],
)
def test_label_columns_of_one_kind_count_as_seeds(
    runs: list[Path], tmp_path: Path, labels: tuple[str, str], grouped: bool
) -> None:
    found = []
    for run, name in zip(runs[:2], labels, strict=True):
        copy = Path(shutil.copytree(run, tmp_path / run.name))
        change(copy, 0.9, data__labels=name, data__dataset="elsewhere")
        found.append(collect(copy))
    assert bool(compare._repeated(compare._columns(found))) == grouped


def test_a_copy_of_a_run_is_no_other_seed(runs: list[Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(runs[0], tmp_path / "copy"))
    page = parse(compare.render_comparison([collect(run) for run in (runs[0], copy)]))
    assert "Over several seeds" not in page.text
    page = parse(compare.render_comparison([collect(run) for run in (runs[0], copy, runs[1])]))
    (row,) = page.table("Means over runs that differ only by their seed")[1:]
    assert row[0] == "run-0, run-1" and row[3].startswith("92.50 %")
    assert "Without copy, of the same seed as another." in page.text


def test_runs_over_other_images_are_not_repetitions(runs: list[Path]) -> None:
    found = [collect(run) for run in runs[:2]]
    assert compare._repeated(compare._columns(found))
    found[1].digests["dataset.samples"] = "another"
    assert not compare._repeated(compare._columns(found))


def test_what_differs(page: Element) -> None:
    assert page.table("What differs in the configuration") == [
        ["configuration", "run-0", "run-1", "run-2", "strong"],
        ["run.rng_seed", "0", "1", "2", "3"],
        ["train.consistency_weight", "–", "–", "–", "100.0"],
    ]
    assert "Nothing differs in the environment" in page.text


def test_classes_curves_and_speed(page: Element, runs: list[Path]) -> None:
    per_class = json.loads((runs[0] / "evaluate" / "train" / "test.json").read_text())["per_class"]
    rows = page.table("Test accuracy by class and run")[1:]
    assert [row[1] for row in rows] == [f"{100 * share:.1f} %" for share in per_class]
    assert page.table("Speed of the runs")[1][1] == "900"
    kept = pq.read_table(runs[0] / "mine" / "classes.parquet").to_pylist()
    expected = [f"{100 * row['kept'] / row['images']:.1f} % {100 * row['purity']:.0f} % right" for row in kept]
    assert [row[1] for row in page.table("Labels kept by class and run")[1:]] == expected
    alts = [image.attributes["alt"] for image in page.with_id("curves").all("img")]
    validation = next(alt for alt in alts if alt.startswith("Validation accuracy, stage 2"))
    assert all(f"{name}: from " in validation for name in ("run-0", "run-1", "run-2", "strong"))
    assert all("<script" not in svg for svg in inner_svgs(page))


def test_goes_where_all_runs_lie(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert report([str(run) for run in runs[:2]]) == 0
    page = runs[0].parent / "report.html"
    assert capsys.readouterr().out == f"report: {page.resolve()}\n" and page.read_text().startswith("<!DOCTYPE html>")
    page.unlink()


def test_runs_of_one_name_are_told_apart_and_named_once(runs: list[Path], tmp_path: Path) -> None:
    other = shutil.copytree(runs[0], tmp_path / "other" / "run-0")
    columns = compare._columns([collect(runs[0]), collect(other)])
    assert [column.name for column in columns] == [f"{runs[0].parent.name}/run-0", "other/run-0"]
    deep = [Path(shutil.copytree(run, tmp_path / grid / "runs" / "row07"))
            for run, grid in zip(runs[:2], "ab", strict=True)]
    metrics = deep[1] / "pretrain" / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace("900.0", "300.0"))
    page = parse(compare.render_comparison([collect(run) for run in deep]))
    assert [row[0] for row in page.table("Test accuracy of the runs")[1:]] == ["a/runs/row07", "b/runs/row07"]
    assert [row[1] for row in page.table("Speed of the runs")[1:]] == ["900", "300"]
    with pytest.raises(InputError, match=r"run-0.* is named twice"):
        compare.write_comparison([runs[0], runs[0].parent / "run-1" / ".." / "run-0"])


def test_runs_with_nothing_in_common_still_give_a_page(runs: list[Path], hostile_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.yaml").write_text("run: {dir: x}\n")
    page = parse(compare.render_comparison([collect(p) for p in (runs[0], hostile_dir, tmp_path / "begun")]))
    for section in ("classes", "seeds"):
        assert "know different classes" in page.with_id(section).text
    assert not page.all("script")
    assert page.table("Test accuracy of the runs")[3][1:3] == ["–", "–"]


def test_what_the_points_are_against_is_named(page: Element, runs: list[Path], tmp_path: Path) -> None:
    said = "the reference that of cross-entropy in the same run."
    assert said in page.with_id("result").text and "not to be compared" not in page.text
    other = Path(shutil.copytree(runs[1], tmp_path / "other"))
    shutil.rmtree(other / "evaluate" / "baseline_cross_entropy")
    mixed = parse(compare.render_comparison([collect(runs[0]), collect(other)]))
    rows = mixed.table("Test accuracy of the runs")[1:]
    assert rows[0][1].endswith("% cross-entropy") and rows[1][1].endswith("% balanced cross-entropy (stage 1)")
    assert "not to be compared" in mixed.with_id("result").text
    (mean,) = mixed.table("Means over runs that differ only by their seed")[1:]
    assert (mean[2], mean[4]) == ("–", "–") and mean[3].startswith("92.50 %"), "a mean over different references"


def test_commands_are_ones_that_can_be_typed(runs: list[Path]) -> None:
    run = collect(runs[0])
    run.made_by = ["data_prep build source toy"]
    (commands,) = parse(compare.render_comparison([run, collect(runs[1])])).with_id("reproduce").all("pre")
    assert "python -m data_prep build source toy" in commands.text


def test_a_run_without_a_test_split_says_so(runs: list[Path], tmp_path: Path) -> None:
    other = Path(shutil.copytree(runs[0], tmp_path / "other"))
    shutil.rmtree(other / "evaluate")
    (other / "summary.json").write_text(json.dumps({"models": {"train": {"val_accuracy": 0.925}}}))
    page = parse(compare.render_comparison([collect(runs[0]), collect(other)]))
    assert "other: there is no test split; two-stage: 92.50 % of the validation labels met" in page.text


def test_more_runs_than_colours(runs: list[Path]) -> None:
    found = [collect(runs[0]) for _ in range(10)]
    for number, run in enumerate(found):
        run.path = Path(f"r{number}")
        run.curves = {"train": {"train/loss": run.curves["train"]["train/loss"]}}
    page = parse(compare.render_comparison(found))
    assert "Curves are drawn for the first 8 runs only" in page.text
    assert len(page.table("Test accuracy of the runs")) == 11
