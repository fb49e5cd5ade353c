"""The audit of labels: every row against the files it comes from, the listing, and the corrected labels."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import HOSTILE, HOSTILE_KEY, NAMES
from hypothesis import given
from hypothesis import strategies as st

from twostage.__main__ import main
from twostage.config import MineConfig
from twostage.data import schema
from twostage.data.dataset import Dataset
from twostage.data.schema import NO_LABEL, InputError
from twostage.report.audit import AUDIT_SCHEMA, Judged, audit_table, open_judged, ranks_in_class
from twostage.report.command import audit
from twostage.report.corrected import correct
from twostage.report.ranking import Ranking
from twostage.stage1.mine import mine


@pytest.fixture
def run(run_dir: Path, tmp_path: Path) -> Path:
    """A run with its dataset, both to write into."""
    shutil.copytree(run_dir.parent, tmp_path / "all")
    path = tmp_path / "all" / "run"
    config = yaml.safe_load((path / "config.yaml").read_text())
    config["data"]["dataset"] = str(tmp_path / "all" / "dataset")
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    return path


def scored(run: Path) -> list[dict[str, Any]]:
    rows = [row for part in sorted((run / "rank").glob("part-*")) for row in pq.read_table(part).to_pylist()]
    return sorted(rows, key=lambda row: row["index"])


def indices(path: Path) -> set[int]:
    return set(pq.read_table(path)["index"].to_pylist())


def test_every_row_is_what_the_files_say(run: Path) -> None:
    assert audit([str(run), "--top", "0"]) == 0
    table = pq.read_table(run / "labels_audit.parquet")
    assert table.schema.equals(AUDIT_SCHEMA)
    truth = schema.read_labels(run.parent / "dataset", "given").label
    keys = pq.read_table(run.parent / "dataset" / "samples.parquet")["key"].to_pylist()
    seeds, val = indices(run / "mine" / "seeds.parquet"), indices(run / "mine" / "val.parquet")
    rows = scored(run)
    assert len(table) == len(rows) == 240
    for row, found in zip(rows, table.to_pylist(), strict=True):
        alike = [r for r in rows if r["label"] == row["label"] and r["held_out"] == row["held_out"]]
        better = [r for r in alike if (-r["score"], r["index"]) < (-row["score"], row["index"])]
        kept = row["index"] in (val if row["held_out"] else seeds)
        reasons = ("certain" if row["score"] >= np.float32(0.9) else "filled up") if kept else (
            "uncertain" if row["label"] == row["predicted"] else "disagrees")
        assert found == {
            "index": row["index"], "key": keys[row["index"]], "label": row["label"], "label_name": NAMES[row["label"]],
            "predicted": row["predicted"], "predicted_name": NAMES[row["predicted"]], "score": row["score"],
            "confidence": max(row["probs"]),
            "doubt": np.float32(max(row["probs"])) - np.float32(row["score"]),
            "rank_in_class": len(better) + 1, "labels_in_class": len(alike),
            "kept": kept, "reason": reasons, "held_out": row["held_out"], "clean": truth[row["index"]],
            "clean_name": NAMES[truth[row["index"]]],
        }
    assert {"certain", "uncertain", "disagrees"} <= set(table["reason"].to_pylist())


def test_only_scored_samples_are_there_each_with_its_own_key(run: Path) -> None:
    for part in sorted((run / "rank").glob("part-*")):
        pq.write_table(pq.read_table(part).slice(40), part)
    (run / "rank" / "done.json").write_text(json.dumps({"inputs": {}, "results": {"samples": 160}}))
    rows = audit_table(open_judged(run)).to_pylist()
    assert [row["index"] for row in rows] == list(range(80, 240))
    assert all(row["key"] == f"photos/{row['index']}.png" for row in rows)


def test_csv_and_parquet_say_the_same_and_stay_the_same(run: Path) -> None:
    audit([str(run)])
    digests = [schema.file_digest(run / f"labels_audit.{kind}") for kind in ("parquet", "csv")]
    audit([str(run), "--class", "hat"])         # lists one class; the files hold all of them
    assert [schema.file_digest(run / f"labels_audit.{kind}") for kind in ("parquet", "csv")] == digests
    with (run / "labels_audit.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == AUDIT_SCHEMA.names
    for row, found in zip(rows, pq.read_table(run / "labels_audit.parquet").to_pylist(), strict=True):
        assert row["key"] == found["key"] and row["label_name"] == found["label_name"]
        assert np.float32(row["score"]) == np.float32(found["score"])
        assert row["kept"] == str(found["kept"]).lower() and int(row["rank_in_class"]) == found["rank_in_class"]


def test_listing_begins_where_the_prediction_exceeds_most(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    audit([str(run), "--top", "7", "--class", "shirt"])
    lines = capsys.readouterr().out.splitlines()
    ours = [row for row in scored(run) if row["label"] == 2]
    worst = sorted(ours, key=lambda r: (np.float32(r["score"]) - np.float32(max(r["probs"])), r["index"]))[:7]
    assert [line.split()[0] for line in lines[1:8]] == [f"photos/{row['index']}.png" for row in worst]
    truth = schema.read_labels(run.parent / "dataset", "given").label
    wrong = sum(truth[row["index"]] != 2 for row in worst)
    assert lines[9] == f"of the 7 listed whose truth is known, {wrong} are wrong" and wrong >= 4
    kept = len([r for r in scored(run) if r["label"] == 2 and r["index"] in
                indices(run / "mine" / "seeds.parquet") | indices(run / "mine" / "val.parquet")])
    assert lines[8].startswith(f"{sum(r['label'] == 2 for r in scored(run))} labels, {kept} kept (")
    assert lines[10] == f"audit: {run / 'labels_audit.parquet'}, {run / 'labels_audit.csv'}"


def test_names_do_not_command_the_terminal(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = run.parent / "dataset" / "samples.parquet"
    table = pq.read_table(samples)
    keys = [f"\x1b[2J{number}\n" for number in range(len(table))]
    schema.write_table(samples, table.set_column(1, table.schema.field("key"), [keys]))
    change_digest(run)
    audit([str(run), "--top", "5"])
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and len(printed.splitlines()) == 9
    assert pq.read_table(run / "labels_audit.parquet")["key"].to_pylist() == keys, "the file holds the true name"


def change_digest(run: Path) -> None:
    """Makes dataset, label columns and run agree about a samples.parquet that was changed."""
    dataset, digest = run.parent / "dataset", schema.file_digest(run.parent / "dataset" / "samples.parquet")
    marker = json.loads((dataset / "dataset.json").read_text())
    schema.write_json(dataset / "dataset.json", marker | {"samples_sha256": digest})
    for path in (dataset / "labels").glob("*.parquet"):
        schema.write_labels(dataset, schema.read_labels(dataset, path.stem))
    done = json.loads((run / "rank" / "done.json").read_text())
    schema.write_json(run / "rank" / "done.json", {**done, "inputs": {"dataset.samples": digest}})


def test_markup_in_names_stays_what_it_is(hostile_dir: Path, tmp_path: Path) -> None:
    run = shutil.copytree(hostile_dir, tmp_path / "run")
    audit([str(run)])
    with (run / "labels_audit.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["label_name"] for row in rows} == set(HOSTILE)
    assert rows[7]["key"] == HOSTILE_KEY.format(7)


# ------------------------------------------------------------------------------------------------ refinement and rules


def test_held_out_samples_that_were_not_mined_say_so(run: Path) -> None:
    (run / "mine" / "val.parquet").unlink()
    rows = audit_table(open_judged(run)).to_pylist()
    assert {row["reason"] for row in rows if row["held_out"]} == {"held out"}
    assert "held out" not in {row["reason"] for row in rows if not row["held_out"]}
    assert not any(row["kept"] for row in rows if row["held_out"])


def test_labels_that_fill_up_their_class_say_so(run: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["mine"] = {"min_score": 0.995, "min_share": 0.3}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    mine(run / "rank", run / "mine", class_names=NAMES, config=MineConfig(min_score=0.995, min_share=0.3), clean=None)
    rows = audit_table(open_judged(run)).to_pylist()
    assert {row["reason"] for row in rows if row["kept"]} == {"certain", "filled up"}
    assert all((row["score"] >= np.float32(0.995)) == (row["reason"] == "certain") for row in rows if row["kept"])


def test_labels_kept_by_a_classifier_per_class(run: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["mine"] = {"rule": "clean_filter"}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    for row in audit_table(open_judged(run)).to_pylist():
        assert row["reason"] == ("accepted" if row["kept"] else "refused")


def test_samples_without_a_label(run: Path) -> None:
    for part in sorted((run / "rank").glob("part-*")):
        table = pq.read_table(part)
        label = table["label"].to_numpy().copy()
        label[::3] = NO_LABEL
        pq.write_table(table.set_column(1, "label", [label]), part)
    rows = audit_table(open_judged(run)).to_pylist()
    without = [row for row in rows if row["label"] is None]
    assert len(without) == 80 and {row["reason"] for row in without} == {"no label"}
    assert all(row["label_name"] is row["score"] is row["doubt"] is row["rank_in_class"] is None for row in without)
    assert max(row["labels_in_class"] for row in rows if row["label"] is not None) < 80


@given(st.integers(0, 40), st.integers(0, 1000))
def test_ranks(size: int, rng_seed: int) -> None:
    rng = np.random.default_rng(rng_seed)
    ranking = made_up(rng, size, 3)
    place, of = ranks_in_class(ranking)
    for row in range(size):
        alike = [r for r in range(size) if ranking.label[r] == ranking.label[row]
                 and ranking.held_out[r] == ranking.held_out[row]]
        before = [r for r in alike if (-ranking.score[r], r) <= (-ranking.score[row], row)]
        assert (place[row], of[row]) == (len(before), len(alike))


def made_up(rng: np.random.Generator, size: int, num_classes: int) -> Ranking:
    return Ranking(
        index=2 * np.arange(size),
        label=rng.integers(NO_LABEL, num_classes, size),
        predicted=rng.integers(0, num_classes, size),
        score=np.round(rng.random(size), 1).astype(np.float32),
        confidence=rng.choice(np.float32([0.3, 0.89, 0.9, 1.0]), size),
        confident=np.full(size, NO_LABEL),
        held_out=rng.random(size) < 0.2,
        kept=rng.random(size) < 0.3,
        num_classes=num_classes,
    )


# ---------------------------------------------------------------------------------------------------- corrected labels


@given(st.integers(0, 40), st.integers(0, 1000), st.booleans(), st.sampled_from([0.0, 0.3, 0.9, 1.0]))
def test_corrected_labels(size: int, rng_seed: int, drop: bool, min_confidence: float) -> None:
    rng = np.random.default_rng(rng_seed)
    ranking, num_samples = made_up(rng, size, 3), 2 * size + 5
    given_labels = rng.integers(NO_LABEL, 3, num_samples)
    given_labels[ranking.index] = ranking.label
    labels = schema.LabelColumn(
        name="noisy", index=np.arange(num_samples), label=given_labels, class_names=tuple("abc"), how=""
    )
    empty = np.zeros(num_samples, np.int64)
    dataset = Dataset(Path(), {}, empty.astype(np.int32), empty, empty, empty.astype(np.int8))
    judged = Judged(Path(), dataset, labels, ranking, 0.9, False, True)
    correction = correct(judged, min_confidence=min_confidence, drop=drop)
    expected = given_labels.tolist()
    for row in range(size):
        if ranking.kept[row]:
            continue
        believed = ranking.confidence[row] >= np.float32(min_confidence)
        if believed and ranking.predicted[row] != ranking.label[row]:
            expected[2 * row] = int(ranking.predicted[row])
        elif drop:
            expected[2 * row] = NO_LABEL
    found = np.full(num_samples, NO_LABEL)
    found[correction.index] = correction.label
    assert found.tolist() == expected and NO_LABEL not in correction.label
    changed = [(a, b) for a, b in zip(given_labels.tolist(), expected, strict=True) if a != b]
    numbers = [count for *_, count in correction.changes]
    assert correction.num_changed == len(changed) == sum(numbers) and numbers == sorted(numbers, reverse=True)
    names = [*"abc", "no label"]
    assert all(count == changed.count((names.index(a) if a in "abc" else -1, names.index(b) if b in "abc" else -1))
               for a, b, count in correction.changes)


def test_export_writes_a_label_column_once(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = run.parent / "dataset"
    before = {path.name: schema.file_digest(path) for path in (dataset / "labels").iterdir()}
    assert audit([str(run), "--export", "fixed", "--top", "0"]) == 0
    printed = capsys.readouterr().out
    column = schema.read_labels(dataset, "fixed")
    noisy, truth = (schema.read_labels(dataset, name).label for name in ("noisy", "given"))
    assert column.class_names == NAMES and column.parent == schema.file_digest(dataset / "labels" / "noisy.parquet")
    assert column.how == "twostage audit RUN --export fixed --min-confidence 0.9 --others keep"
    changed = int((column.label != noisy).sum())
    assert column.extra["changed"] == changed > 10
    assert f"export: label column 'fixed': {changed} labels changed (" in printed
    right = [f"{100 * (label == truth).mean():.1f} % of 240" for label in (noisy, column.label)]
    assert f"right {right[0]} before, {right[1]} now; train on it by --data.labels fixed" in printed

    audit([str(run), "--export", "fixed", "--top", "0"])
    assert "(there already, the same)" in capsys.readouterr().out
    after = {path.name: schema.file_digest(path) for path in (dataset / "labels").iterdir()}
    assert {name: after[name] for name in before} == before and set(after) - set(before) == {"fixed.parquet"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--export", "given"], "has a label column 'given' already, with other labels: choose another name"),
        (["--export", "../x"], "only letters, digits"),
        (["--export", "x", "--min-confidence", "1.5"], "--min-confidence 1.5 is not within 0..1"),
        (["--min-confidence", "0.5"], "--min-confidence needs --export NAME: it is about what that writes"),
        (["--others", "drop"], "--others needs --export NAME"),
        (["--class", "hats"], "no class 'hats'; did you mean 'hat'? allowed: dress, hat, shirt, t-shirt"),
        (["--top", "-1"], "--top -1 is negative"),
        (["--top", "many"], "argument --top: invalid int value: 'many'"),
        (["--clas", "hat"], "unknown argument '--clas'; did you mean '--class'?"),
    ],
)
def test_wrong_arguments(run: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert main(["audit", str(run), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (run.parent / "dataset" / "labels" / "x.parquet").exists()
    assert not (run / "labels_audit.parquet").exists(), "it was noticed only after files were written"


def test_what_is_missing_or_changed_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused() -> str:
        assert main(["audit", str(run)]) == 2
        return capsys.readouterr().err

    aside = run.parent / "aside"
    for name, message in (
        ("config.yaml", "holds no run (no config.yaml)"),
        ("rank/done.json", "holds no finished `rank`: run `twostage run` or `twostage rank` first"),
        ("mine/done.json", "holds no finished `mine`"),
        ("mine/seeds.parquet", "seeds.parquet is missing or damaged"),
        ("rank/part-00000-of-00002.parquet", "is not complete (1 parts missing"),
        ("../dataset/dataset.json", "is not complete (no dataset.json)"),
    ):
        (run / name).rename(aside)
        assert message in refused(), name
        aside.rename(run / name)
    (run / "config.yaml").rename(aside)
    (run / "config.yaml").write_text("data: 3\n")
    assert "config.yaml is not the configuration of a run" in refused()
    aside.rename(run / "config.yaml")
    marker = {"inputs": {"dataset.samples": "0" * 64}, "results": {"samples": 240}}
    schema.write_json(run / "rank" / "done.json", marker)
    assert "is not the dataset that" in refused()
    assert not (run / "labels_audit.parquet").exists()


def test_a_ranking_of_another_dataset_is_refused(run: Path) -> None:
    path = run.parent / "dataset"
    column = schema.read_labels(path, "noisy")
    schema.write_labels(path, dataclasses.replace(column, class_names=(*NAMES, "coat")))
    with pytest.raises(InputError, match=r"does not belong to .*: run `twostage rank` again"):
        open_judged(run)
