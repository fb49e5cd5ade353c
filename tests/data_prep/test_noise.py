"""Label noise: the matrices, their statistics, what is changed and what is not, and every refusal."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_dataset import write_labelled

from data_prep import noise, transitions
from twostage.data.schema import NO_LABEL, InputError, LabelColumn, file_digest, labels_path, read_labels, write_labels

DIGITS = tuple("0123456789")


def run(*arguments: str | Path) -> int:
    parser = argparse.ArgumentParser()
    noise.add_arguments(parser)
    return noise.main(parser.parse_args([str(argument) for argument in arguments]))


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """12,000 labels of ten classes, three quarters of them noisy_train, the rest test."""
    labels = np.random.default_rng(0).integers(0, 10, 12_000).tolist()
    splits = ["test" if i % 4 == 3 else "noisy_train" for i in range(12_000)]
    return write_labelled(tmp_path / "digits", labels, DIGITS, splits)


def asked(dataset: Path, name: str) -> np.ndarray:
    return np.array(read_labels(dataset, name).extra["transition_matrix"])


def test_named_matrices_are_the_published_ones() -> None:
    p = 0.6
    expected = np.eye(10)
    for i, j in [(7, 1), (2, 7), (5, 6), (6, 5), (3, 8)]:
        expected[i, i], expected[i, j] = 1 - p, p
    np.testing.assert_allclose(transitions.named("mnist", DIGITS, p), expected)
    expected[6] = np.eye(10)[6]
    np.testing.assert_allclose(transitions.named("mnist-text", DIGITS, p), expected)
    expected = np.eye(10)
    for i, j in [(9, 1), (2, 0), (3, 5), (5, 3), (4, 7)]:
        expected[i, i], expected[i, j] = 1 - p, p
    np.testing.assert_allclose(transitions.named("cifar10", DIGITS, p), expected)
    np.testing.assert_allclose(transitions.named("next", "abc", p), [[0.4, 0.6, 0], [0, 0.4, 0.6], [0.6, 0, 0.4]])
    expected = np.array([[0.4, 0.3, 0.3], [0.3, 0.4, 0.3], [0.3, 0.3, 0.4]])
    np.testing.assert_allclose(transitions.named("symmetric", "abc", p), expected)


@pytest.mark.parametrize(
    "options",
    [
        ("--kind", "symmetric", "--rate", "0.2"),
        ("--kind", "asymmetric", "--flips", "mnist", "--rate", "0.6"),
        ("--kind", "asymmetric", "--flips", "7>1, 2>7", "--rate", "1"),
        ("--kind", "matrix", "--matrix", "next", "--rate", "0.4"),
    ],
)
def test_the_realised_matrix_is_the_one_asked_for(digits: Path, options: tuple[str, ...]) -> None:
    assert run(digits, "--name", "noisy", "--rng-seed", "1", *options) == 0
    before, after, matrix = read_labels(digits, "given"), read_labels(digits, "noisy"), asked(digits, "noisy")
    train = np.arange(12_000) % 4 != 3
    assert np.array_equal(after.index, before.index)
    assert np.array_equal(after.label[~train], before.label[~train])
    for i in range(10):
        rows = train & (before.label == i)
        realised = np.bincount(after.label[rows], minlength=10) / rows.sum()
        assert np.all(realised[matrix[i] == 0] == 0)
        spread = np.sqrt(matrix[i] * (1 - matrix[i]) / rows.sum())
        assert np.all(np.abs(realised - matrix[i]) <= 4.5 * spread + 1e-12)
    assert after.parent == file_digest(labels_path(digits, "given"))
    assert after.rng_seed == 1 and after.extra["from"] == "given" and after.extra["kind"] == options[1]


def test_only_the_labels_of_the_split_and_no_other_file_change(digits: Path) -> None:
    before = {path: path.read_bytes() for path in digits.rglob("*") if path.is_file()}
    run(digits, "--name", "noisy", "--kind", "symmetric", "--rate", "1", "--rng-seed", "0", "--split", "test")
    assert {path: path.read_bytes() for path in before} == before
    changed = read_labels(digits, "noisy").label != read_labels(digits, "given").label
    assert np.array_equal(np.flatnonzero(changed), np.arange(3, 12_000, 4))       # rate 1: never the true label


def test_again_gives_the_same_bytes_and_another_seed_others(digits: Path) -> None:
    command = (digits, "--kind", "symmetric", "--rate", "0.2")
    for name, rng_seed in (("a", "0"), ("b", "1"), ("c", "0")):
        run(*command, "--name", name, "--rng-seed", rng_seed)
    bytes_a = labels_path(digits, "a").read_bytes()
    run(*command, "--name", "a", "--rng-seed", "0")
    assert labels_path(digits, "a").read_bytes() == bytes_a
    labels_path(digits, "a").unlink()
    run(*command, "--name", "a", "--rng-seed", "0")
    assert labels_path(digits, "a").read_bytes() == bytes_a
    a, b, c = (read_labels(digits, name).label for name in "abc")
    assert np.array_equal(a, c)
    flipped = [set(np.flatnonzero(x != read_labels(digits, "given").label)) for x in (a, b)]
    assert len(flipped[0] & flipped[1]) < 0.35 * len(flipped[0])      # 0.2 of them by chance


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_a_label_depends_on_nothing_but_seed_index_label_and_matrix(data: st.DataObject) -> None:
    num_classes = data.draw(st.integers(2, 6))
    labels = np.array(data.draw(st.lists(st.integers(NO_LABEL, num_classes - 1), min_size=2, max_size=60)))
    index = np.sort(data.draw(st.permutations(range(200)))[: len(labels)]).astype(np.int64)
    weights = data.draw(st.lists(st.lists(st.integers(0, 3), min_size=num_classes, max_size=num_classes)
                                 .filter(any), min_size=num_classes, max_size=num_classes))
    matrix = np.array(weights, dtype=float) / np.sum(weights, axis=1, keepdims=True)
    rng_seed = data.draw(st.integers(0, 2**40))
    together = noise.draw_labels(index, labels, matrix, rng_seed)
    some = data.draw(st.lists(st.integers(0, len(labels) - 1), min_size=1, unique=True))
    assert np.array_equal(noise.draw_labels(index[some], labels[some], matrix, rng_seed), together[some])
    known = labels != NO_LABEL
    assert np.all(together[~known] == NO_LABEL)
    assert np.all(matrix[labels[known], together[known]] > 0)


def test_a_higher_rate_flips_the_same_samples_and_more() -> None:
    index, label = np.arange(5000), np.arange(5000) % 10
    low, high = (noise.draw_labels(index, label, transitions.symmetric(10, p), 3) != label for p in (0.2, 0.6))
    assert 900 < low.sum() < 1100 and 2850 < high.sum() < 3150
    assert np.all(high[low])


def test_noise_upon_noise_and_unlabelled_samples(digits: Path) -> None:
    column = LabelColumn(name="some", index=np.arange(0, 12_000, 3), label=np.arange(4000) % 3 - 1, class_names=DIGITS,
                         how="by hand")
    write_labels(digits, column)
    run(digits, "--name", "noisy", "--from", "some", "--kind", "symmetric", "--rate", "0.5", "--rng-seed", "0")
    noisy = read_labels(digits, "noisy")
    assert np.array_equal(noisy.index, column.index)
    assert np.array_equal(noisy.label == NO_LABEL, column.label == NO_LABEL)
    assert noisy.parent == file_digest(labels_path(digits, "some"))


@pytest.mark.parametrize("suffix", [".json", ".csv", ".npy"])
def test_a_matrix_from_a_file(digits: Path, tmp_path: Path, suffix: str) -> None:
    matrix = np.random.default_rng(1).dirichlet(np.ones(10), 10)
    path = tmp_path / f"matrix{suffix}"
    write_matrix(path, matrix)
    run(digits, "--name", "noisy", "--kind", "matrix", "--matrix", path, "--rng-seed", "0")
    np.testing.assert_allclose(asked(digits, "noisy"), matrix, rtol=1e-15)


def write_matrix(path: Path, matrix: np.ndarray) -> None:
    if path.suffix == ".json":
        path.write_text(json.dumps(matrix.tolist()))
    elif path.suffix == ".csv":
        path.write_text("\n".join(", ".join(repr(float(x)) for x in row) for row in matrix) + "\n")
    else:
        np.save(path, matrix)


def test_what_is_printed_shows_both_matrices_and_rates(digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(digits, *ASYMMETRIC, "mnist", "--rate", "0.6", "--dry-run")
    assert not labels_path(digits, "n").exists()
    printed = capsys.readouterr().out
    rows = {line.split()[0]: line for line in printed.splitlines() if "|" in line}
    left, right = rows["7"].split("|")
    assert left.split() == ["7", "7", ".", "60", ".", ".", ".", ".", ".", "40", ".", "."]
    numbers = right.split()
    assert abs(float(numbers[1]) - 60) < 6 and abs(float(numbers[7]) - 40) < 6 and numbers.count(".") == 8
    assert max(map(len, printed.splitlines()[2:])) <= 110
    train = read_labels(digits, "given").label[np.arange(12_000) % 4 != 3]
    expected = 0.6 * np.isin(train, [2, 3, 5, 6, 7]).mean()
    assert f"asked for {expected:.2%}" in printed
    assert "dry run" in printed


def test_many_classes_print_only_the_flipped_ones() -> None:
    names = [f"class {i}" for i in range(200)]
    matrix = transitions.asymmetric(200, 0.5, transitions.parse_flips("class 3>4,100>class 7", names))
    label = np.arange(20_000) % 200
    counts = noise.transition_counts(label, noise.draw_labels(np.arange(20_000), label, matrix, 0), 200)
    lines = noise.describe(matrix, counts, names)
    assert len(lines) == 4
    assert "class 3" in lines[1] and "to 4" in lines[1] and "class 100" in lines[2] and "to 7" in lines[2]
    crowded = noise.describe(transitions.symmetric(200, 0.5), counts, names)
    assert len(crowded) < 30 and "180 more" in crowded[-2]


def test_the_matrix_is_kept_with_the_labels_unless_it_is_huge(tmp_path: Path) -> None:
    for num_classes in (256, 2000):
        names = [f"class {i}" for i in range(num_classes)]
        dataset = write_labelled(tmp_path / str(num_classes), range(num_classes), names, ["noisy_train"] * num_classes)
        run(dataset, *SYMMETRIC)
        extra = read_labels(dataset, "n").extra
        matrix = transitions.symmetric(num_classes, 0.2)
        assert extra["transition_sha256"] == hashlib.sha256(matrix.tobytes()).hexdigest()
        assert extra["transition_matrix"] == (matrix.tolist() if num_classes == 256 else None)
        assert (extra["kind"], extra["rate"]) == ("symmetric", 0.2)
        assert labels_path(dataset, "n").stat().st_size < 5e6


def test_a_class_without_samples_is_said_to_have_none() -> None:
    lines = noise.describe(transitions.symmetric(3, 0.5), np.array([[1, 1, 0], [0, 0, 0], [1, 0, 1]]), "abc")
    assert any("1 b" in line and "no samples" in line for line in lines)


def test_class_names_win_over_numbers() -> None:
    names = ("1", "2", "0", "many words")
    assert transitions.parse_flips("1>2", names) == ((0, 1),)
    assert transitions.parse_flips("many words > 3, 0>2", ("0", "2", "many words", "x")) == ((2, 3), (0, 1))


SYMMETRIC = ("--kind", "symmetric", "--rate", "0.2", "--rng-seed", "0", "--name", "n")
MATRIX = ("--kind", "matrix", "--rng-seed", "0", "--name", "n", "--matrix")
ASYMMETRIC = ("--kind", "asymmetric", "--rate", "0.2", "--rng-seed", "0", "--name", "n", "--flips")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((*SYMMETRIC, "--rate", "20"), ["--rate 20", "0 to 1", "20 % is 0.2"]),
        ((*SYMMETRIC, "--rate", "-0.1"), ["--rate -0.1"]),
        ((*SYMMETRIC, "--rate", "nan"), ["--rate nan"]),
        ((*SYMMETRIC, "--kind", "symetric"), ["did you mean 'symmetric'"]),
        ((*SYMMETRIC, "--from", "givn"), ["'givn'", "did you mean 'given'"]),
        ((*SYMMETRIC, "--split", "noisy"), ["'noisy'", "did you mean 'noisy_train'"]),
        ((*SYMMETRIC, "--split", "val"), ["no split 'val'", "noisy_train, test"]),
        ((*SYMMETRIC, "--name", "given"), ["--name given", "another name"]),
        ((*SYMMETRIC, "--name", "../n"), ["'../n'", "only letters"]),
        ((*SYMMETRIC, "--rng-seed", "-1"), ["--rng-seed -1"]),
        ((*SYMMETRIC, "--flips", "mnist"), ["--flips goes with --kind asymmetric"]),
        (("--kind", "symmetric", "--rng-seed", "0", "--name", "n"), ["--rate is missing"]),
        ((*ASYMMETRIC[:-1],), ["--kind asymmetric needs --flips"]),
        ((*ASYMMETRIC, "minst"), ["did you mean 'mnist'"]),
        ((*ASYMMETRIC, "7>1,7>2"), ["'7' is flipped twice", "--kind matrix"]),
        ((*ASYMMETRIC, "7>7"), ["'7>7'", "itself"]),
        ((*ASYMMETRIC, "7>"), ["'7>'", "not a pair"]),
        ((*ASYMMETRIC, "7>1>2"), ["not a pair"]),
        ((*ASYMMETRIC, "7>10"), ["no class 10", "0 to 9"]),
        ((*ASYMMETRIC, "7>cat"), ["no class 'cat'"]),
        ((*MATRIX, "mnits"), ["no such file", "did you mean 'mnist'"]),
        ((*MATRIX, "mnist"), ["--rate is missing"]),
        (MATRIX[:-1], ["--kind matrix needs --matrix"]),
    ],
)
def test_mistakes_are_named(digits: Path, arguments: tuple[str, ...], words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        run(digits, *arguments)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert [path.name for path in (digits / "labels").iterdir()] == ["given.parquet"]


def spoil(row: int, column: int, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(matrix: np.ndarray) -> np.ndarray:
        matrix[row, column] = value
        return matrix
    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (spoil(4, 4, 0.9), ["row 4", "sums to 0.9"]),
        (spoil(2, 3, -0.5), ["row 2, column 3", "negative (-0.5)"]),
        (spoil(6, 0, math.nan), ["row 6", "not a number"]),
        (lambda m: m[:9], ["(9, 10)", "square"]),
        (lambda m: m[:9, :9], ["9 classes", "10"]),
        (lambda m: m[0], ["(10,)", "square"]),
    ],
)
@pytest.mark.parametrize("suffix", [".json", ".npy"])
def test_a_wrong_matrix_is_refused(digits: Path, tmp_path: Path, suffix: str, words: list[str],
                                   change: Callable[[np.ndarray], np.ndarray]) -> None:
    path = tmp_path / f"m{suffix}"
    write_matrix(path, change(np.eye(10)))
    with pytest.raises(InputError) as caught:
        run(digits, *MATRIX, path)
    assert all(word in str(caught.value) for word in [str(path), *words]), str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("m.json", b"[[1, 0], [0"),
        ("m.json", b"[[1, 0], [0]]"),
        ("m.json", b'{"a": 1}'),
        ("m.json", b"[[true, false], [false, true]]"),
        ("m.json", b"\xff\xfe"),
        ("m.json", b"[" * 100_000),
        ("m.csv", b"a,b\n1,0\n"),
        ("m.npy", b"not an array"),
        ("m.npy", b""),
        ("m.txt", b"1"),
    ],
)
def test_a_file_that_is_no_matrix_is_refused(digits: Path, tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match="--matrix"):
        run(digits, *MATRIX, tmp_path / name)


def test_a_matrix_file_as_spreadsheets_write_it_is_read(digits: Path, tmp_path: Path) -> None:
    write_matrix(tmp_path / "m.csv", np.eye(10))
    (tmp_path / "m.csv").write_text("\ufeff" + (tmp_path / "m.csv").read_text())
    run(digits, *MATRIX, tmp_path / "m.csv")
    assert np.array_equal(asked(digits, "n"), np.eye(10))


def test_a_folder_is_no_matrix(digits: Path, tmp_path: Path) -> None:
    (tmp_path / "m.csv").mkdir()
    with pytest.raises(InputError, match=r"m\.csv: not a file"):
        run(digits, *MATRIX, tmp_path / "m.csv")


def test_a_pickle_in_a_matrix_file_is_never_run(digits: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    np.save(tmp_path / "m.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    with pytest.raises(InputError):
        run(digits, *MATRIX, tmp_path / "m.npy")
    assert not (tmp_path / "ran").exists()


def test_rate_next_to_a_matrix_file_is_refused(digits: Path, tmp_path: Path) -> None:
    write_matrix(tmp_path / "m.npy", np.eye(10))
    with pytest.raises(InputError, match="leave --rate out"):
        run(digits, *MATRIX, tmp_path / "m.npy", "--rate", "0.1")


def test_a_column_made_in_another_way_is_kept(digits: Path) -> None:
    run(digits, *SYMMETRIC)
    before = labels_path(digits, "n").read_bytes()
    with pytest.raises(InputError, match=r"--rate 0\.2.*--overwrite"):
        run(digits, *SYMMETRIC, "--rate", "0.3")
    assert labels_path(digits, "n").read_bytes() == before
    run(digits, *SYMMETRIC, "--rate", "0.3", "--overwrite")
    assert "--rate 0.3" in read_labels(digits, "n").how


def test_a_changed_matrix_file_parent_or_label_is_noticed(digits: Path, tmp_path: Path) -> None:
    write_matrix(tmp_path / "m.npy", np.eye(10))
    run(digits, *MATRIX, tmp_path / "m.npy")
    write_matrix(tmp_path / "m.npy", transitions.symmetric(10, 0.1))
    with pytest.raises(InputError, match="another parent or matrix"):
        run(digits, *MATRIX, tmp_path / "m.npy")
    run(digits, *SYMMETRIC, "--overwrite")
    column = read_labels(digits, "n")
    write_labels(digits, dataclasses.replace(column, label=(column.label + 1) % 10))
    with pytest.raises(InputError, match="other labels"):
        run(digits, *SYMMETRIC)


def test_changed_and_missing_datasets_are_refused(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a dataset"):
        run(tmp_path / "nothing", *SYMMETRIC)
    with (digits / "samples.parquet").open("ab") as file:
        file.write(b"x")
    with pytest.raises(InputError, match="verify"):
        run(digits, *SYMMETRIC)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_named_flips_need_ten_classes_and_noise_two(name: str) -> None:
    with pytest.raises(InputError, match="10 classes"):
        transitions.parse_flips(name, "abc")
    for one in ("symmetric", "next"):
        with pytest.raises(InputError, match="at least two"):
            transitions.named(one, ["only"], 0.1)
