"""The tables, against numbers computed by hand, and what is shown to people."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twostage.reproduce import labels, paper, render, tables
from twostage.reproduce.paper import Published
from twostage.reproduce.results import CellResults, Result
from twostage.reproduce.tables import Document, Sample, Table

NAMES = ("a", "b")


def cell(run: int, accuracies: dict[str, float], noise: str = "asym0.6", **changes: object) -> CellResults:
    results = tuple(Result(row, value, (value, None), 100, 10.0) for row, value in accuracies.items())
    plain = CellResults(
        dataset="mnist", noise=noise, run=run, folder=Path("x"), labels="y", min_share=0.1, rng_seed=run,
        config_digest="d", code_commit="c", class_names=NAMES, results=results,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def seeds(kept: tuple[int, int], purity: float | None) -> dict[str, object]:
    rows = [{"images": 100, "kept": number, "purity": purity, "coverage": 0.5} for number in kept]
    return {"classes": tuple(rows), "seeds": {"images": 200, "kept": sum(kept), "purity": purity, "coverage": 0.25}}


def by_title(document: Document) -> dict[str, Table]:
    return {table.title: table for table in document.tables}


def test_mean_and_spread_by_hand() -> None:
    assert tables.sample([]) is None and tables.sample([None, float("nan")]) is None
    assert tables.sample([0.5]) == Sample(50.0, None, 1)
    found = tables.sample([0.5, None, 0.6, 0.7])          # squares about 60: 100 + 0 + 100, over n - 1 = 2
    assert found is not None and (found.mean, found.num) == (pytest.approx(60), 3)
    assert found.spread == pytest.approx(10)


@pytest.mark.parametrize(
    ("mean", "spread", "value", "published", "marked"),
    [
        (60, 2, 63, 1, True),
        (60, 2, 62, 1, False),          # equal to the larger spread
        (60, 1, 62, 2, False),
        (60, None, 62, 1, True),        # one run: the paper's spread alone
        (60, None, 62, None, False),    # nothing is known
        (60, 1, 62, None, True),
        (98.0, 0.05, 97.9, 0.1, False),
    ],
)
def test_when_a_difference_is_marked(
    mean: float, spread: float | None, value: float, published: float | None, marked: bool
) -> None:
    assert tables.exceeds(Sample(mean, spread, 3), Published(value, published)) == marked


def test_table_3_beside_the_paper() -> None:
    cells = [cell(0, {"cross_entropy": 0.52, "ours": 0.80}), cell(1, {"cross_entropy": 0.54, "ours": 0.82})]
    document = tables.table3(cells, ["p0", "asym0.6"], "mnist", ["intro"], method="pi_model", ceilings={})
    table = by_title(document)["asym 0.6: beside the paper"]
    assert table.rows == (
        ("cross-entropy", "53.00 ± 1.41 (2)", "52.9 ± 0.6", "+0.1", "", "10"),
        ("ours (pi model)", "81.00 ± 1.41 (2)", "83.4 ± 1.3", "−2.4", "†", "10"),
    )
    assert any("53.0 ± 0.6" in note for note in table.notes), "the row that the paper copied"
    overview = by_title(document)["At a glance"]
    assert overview.columns == ("method", "p = 0", "asym 0.6")
    assert overview.rows[1] == ("ours (pi model)", "–", "81.0 (−2.4)†")
    per_class = by_title(document)["asym 0.6: accuracy by class"]
    assert per_class.columns == ("method", "a", "b") and per_class.rows[0] == ("cross-entropy", "53.0", "–")


def test_what_the_paper_does_not_have() -> None:
    cells = [cell(0, {"pseudo_label": 0.7, "ours": 0.8}, noise="asym0.4")]
    document = tables.table3(cells, ["asym0.4"], "mnist", [], method=None, ceilings={})
    assert by_title(document)["asym 0.4: beside the paper"].rows == (
        ("two-stage, pseudo-labels", "70.00 (1)", "–", "–", "", "10"),
        ("ours", "80.00 (1)", "–", "–", "", "10"),
    )


def test_rows_are_in_the_papers_order() -> None:
    values = dict.fromkeys(("ours", "pi_model", "improved_baseline", "savage", "cross_entropy"), 0.5)
    document = tables.table3([cell(0, values)], ["asym0.6"], "mnist", [], method=None, ceilings={})
    assert [line[0] for line in document.tables[0].rows] == [
        "cross-entropy", "savage", "improved baseline", "two-stage, Π-model", "ours",
    ]


def test_both_variants_of_the_noise_stand_beside_the_same_figure() -> None:
    assert paper.table3("mnist", "asym0.6-text", "ours") == Published(83.4, 1.3)
    assert paper.table3("mnist", "asym0.6", "ours") == Published(83.4, 1.3)
    assert paper.table3("mnist", "asym0.4", "ours") is None and paper.table3("mnist", "p0", "pi_model") is None
    assert paper.table3("cifar10", "sym0.2", "backward") == Published(80.4)


def test_seed_purity_by_class() -> None:
    cells = [cell(0, {"ours": 0.8}, **seeds((10, 30), 0.9)), cell(1, {"ours": 0.8}, **seeds((20, 30), None))]
    document = tables.table3(cells, ["asym0.6"], "mnist", [], method=None, ceilings={})
    assert by_title(document)["asym 0.6: the seed set of stage 1"].rows == (
        ("a", "100", "15", "15.0", "90.0", "50.0"),
        ("b", "100", "30", "30.0", "90.0", "50.0"),
        ("all", "200", "45", "22.5", "90.0", "25.0"),
    )


def test_the_ceiling_is_noted() -> None:
    ceiling = labels.Ceiling(0.815, ((0, 1, 0.6),))
    document = tables.table3([cell(0, {"ours": 0.8})], ["asym0.6"], "mnist", [], method=None,
                             ceilings={"asym0.6": ceiling})
    notes = " ".join(by_title(document)["asym 0.6: beside the paper"].notes)
    assert "of the images of a and b, 60.0 % bear the other's label" in notes and "at most 81.5 %" in notes


def test_table_1() -> None:
    cells = [
        cell(0, {"ours": 0.75}, min_share=0.05, **seeds((10, 10), 0.9)),
        cell(1, {"ours": 0.77}, min_share=0.05, **seeds((10, 10), 0.9)),
        cell(0, {"ours": 0.8}, min_share=0.1, **seeds((20, 40), 0.8)),
    ]
    table = tables.table1(cells, ["asym0.6"], "cifar10", []).tables[0]
    assert table.rows == (
        ("5 %", "76.00 ± 1.41 (2)", "75.6", "+0.4", "", "10.0", "90.0"),
        ("10 %", "80.00 (1)", "75.8", "+4.2", "", "30.0", "80.0"),
    )
    assert tables.table1(cells, ["asym0.6"], "mnist", []).tables[0].rows[0][2:5] == ("–", "–", "")


# Table 2 and the ceiling, by hand: 10 samples of class 0, of which 6 are labelled 1; 5 of class 1, all labelled 1
CLEAN = np.repeat([0, 1], [10, 5])
LABEL = np.array([0] * 4 + [1] * 6 + [1] * 5)
TRUTH = np.array([[0.4, 0.6], [0.0, 1.0]])


def test_posterior_by_hand() -> None:
    table = labels.posterior(TRUTH, LABEL)
    # label 0 comes from class 0 alone; label 1 from 6 samples of class 0 and 5 of class 1
    np.testing.assert_allclose(table, [[1, 0], [6 / 11, 5 / 11]], atol=1e-12)


def test_label_shares_by_hand() -> None:
    kept = np.zeros(15, dtype=bool)
    kept[[0, 4, 10, 11]] = True         # right, wrong, right, right
    shares = labels.label_shares(CLEAN, LABEL, kept, TRUTH, 2)
    np.testing.assert_allclose(shares["given"], [[0.4, 0.6, 0], [1, 0, 0], [9 / 15, 6 / 15, 0]])
    np.testing.assert_allclose(shares["argmax"], [[1, 0, 0], [0, 1, 0], [10 / 15, 5 / 15, 0]], atol=1e-12)
    drawn = [(4 + 6 * 6 / 11) / 10, 5 / 11]
    np.testing.assert_allclose(shares["sampling"][:, 0], [*drawn, (10 * drawn[0] + 5 * drawn[1]) / 15])
    np.testing.assert_allclose(shares["stage1"], [[0.1, 0.1, 0.8], [0.4, 0, 0.6], [3 / 15, 1 / 15, 11 / 15]])
    assert "argmax" not in labels.label_shares(CLEAN, LABEL, kept, None, 2)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.integers(1, 60))
def test_shares_always_add_up(seed: int, num_classes: int, num: int) -> None:
    rng = np.random.default_rng(seed)
    clean, label = rng.integers(0, num_classes, (2, num))
    transition = rng.dirichlet(np.full(num_classes, 0.3), num_classes)
    for table in labels.label_shares(clean, label, rng.random(num) < 0.3, transition, num_classes).values():
        known = ~np.isnan(table[:, 0])
        assert known[:-1].tolist() == [(clean == c).any() for c in range(num_classes)]
        np.testing.assert_allclose(table[known].sum(axis=1), 1)
        assert (table[known] > -1e-12).all() and (table[known] < 1 + 1e-12).all()


def test_table_2() -> None:
    kept = np.zeros(15, dtype=bool)
    kept[[0, 4, 10, 11]] = True
    shares = labels.label_shares(CLEAN, LABEL, kept, TRUTH, 2)
    document = tables.table2({"asym0.6": [shares, shares]}, NAMES, "cifar10", [])
    total, by_class = document.tables
    assert total.rows[0] == ("original training set", "60.00 ± 0.00 (2)", "70.0", "40.00 ± 0.00 (2)", "30.0",
                             "0.00 ± 0.00 (2)", "0.0")
    assert total.rows[3][1:] == ("20.00 ± 0.00 (2)", "16.8", "6.67 ± 0.00 (2)", "0.2", "73.33 ± 0.00 (2)", "81.0")
    assert by_class.columns[-3:] == ("stage 1: correct", "stage 1: incorrect", "stage 1: none")
    assert by_class.rows[0] == ("a", "40.0", "100.0", "72.7", "10.0", "10.0", "80.0")     # (4 + 6 · 6 / 11) / 10


def test_the_ceiling_of_the_papers_noise() -> None:
    """Of MNIST's 5 flipped classes, only 5 and 6 cannot be told apart; of CIFAR-10's, cat and dog."""
    test = np.array([980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009])
    train = np.array([5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949])
    chain = np.eye(10)
    for source, target in ((7, 1), (2, 7), (5, 6), (3, 8)):
        chain[source, source], chain[source, target] = 0.4, 0.6
    assert labels.ceiling(train[:, None] * chain, test) == labels.Ceiling(1.0, ())
    both = chain.copy()
    both[6, 6], both[6, 5] = 0.4, 0.6
    found = labels.ceiling(train[:, None] * both, test)
    assert found.accuracy == pytest.approx(1 - (892 + 958) / 10_000)
    assert [pair[:2] for pair in found.pairs] == [(5, 6)] and found.pairs[0][2] == pytest.approx(0.6)
    assert labels.ceiling(np.diag(train), test).accuracy == 1.0


def test_text_from_strangers_is_shown_as_it_is() -> None:
    table = Table("t", ("method", "<script>|`*_"), (("a\n| b", "[x](y)"),), ("<b>",))
    document = Document("x & y", ("<i>",), (table,))
    page = render.html(document)
    assert "<script>" not in page and "&lt;script&gt;" in page and "<i>" not in page and "x &amp; y" in page
    text = render.markdown(document)
    assert r"\<script\>\|\`\*\_" in text and r"a \| b" in text and r"\[x\](y)" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 3 and len({len(line) for line in lines}) == 1


def test_pages_are_written_whole(tmp_path: Path) -> None:
    document = tables.table3([cell(0, {"ours": 0.8})], ["asym0.6"], "mnist", ["a line"], method=None, ceilings={})
    paths = render.write_document(tmp_path, "table3-mnist", document)
    assert [path.name for path in paths] == ["table3-mnist.md", "table3-mnist.html"]
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    assert "83.4 ± 1.3" in paths[0].read_text() and "83.4 ± 1.3" in paths[1].read_text()
