"""Clothing1M in its official layout: nothing of test gets into training, and nothing that is good is lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.__main__ import main
from data_prep.sources import clothing1m_lists as lists
from tests.data_prep.clothing1m_mini import CLASSES, Labels, Mini, write_lists, write_mini
from tests.data_prep.photos import digests
from tests.data_prep.shared_data import shared_file
from twostage.data.schema import NO_LABEL, SPLITS, read_labels


@pytest.fixture(scope="module")
def photographs() -> None:
    shared_file("clothing/clothing-dataset-small.train.tar")


@pytest.fixture(scope="module")
def planted(photographs: None, tmp_path_factory: pytest.TempPathFactory) -> Mini:
    return write_mini(tmp_path_factory.mktemp("planted") / "clothing1m", num=240)


@pytest.fixture(scope="module")
def whole(photographs: None, tmp_path_factory: pytest.TempPathFactory) -> Mini:
    return write_mini(tmp_path_factory.mktemp("whole") / "clothing1m", num=60, planted=False)


def build(source: Path, out: Path, *options: str) -> int:
    return main(["build", str(source), str(out), "--format", "clothing1m", "--workers", "1", *options])


def found_in(out: Path) -> dict[str, Labels]:
    """By key: split and labels of a dataset's samples."""
    samples = pq.read_table(out / "samples.parquet", columns=["index", "key", "split"]).to_pylist()
    columns = {name: read_labels(out, name).dense(len(samples)) for name in ("given", "noisy", "clean")}

    def label(name: str, index: int) -> int | None:
        value = int(columns[name][index])
        return None if value == NO_LABEL else value

    return {
        row["key"]: Labels(row["split"], *(label(name, row["index"]) for name in ("given", "noisy", "clean")))
        for row in samples
    }


def rejected_in(out: Path) -> dict[str, str]:
    return {row["key"]: row["reason"] for row in pq.read_table(out / "rejected.parquet").to_pylist()}


def same_bytes(out: Path, root: Path) -> None:
    for row in pq.read_table(out / "samples.parquet").to_pylist():
        with (out / "shards" / f"{row['shard']:06d}.tar").open("rb") as shard:
            shard.seek(row["offset"])
            assert shard.read(row["size"]) == (root / row["key"]).read_bytes(), row["key"]


def test_everything_planted_is_caught_and_counted_and_nothing_else_is_lost(
    planted: Mini, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert build(planted.root, out, "--drop-leaks", "--workers", "2") == 0
    printed = capsys.readouterr().out
    assert found_in(out) == planted.expected
    assert rejected_in(out) == planted.rejected
    same_bytes(out, planted.root)
    reasons = list(planted.rejected.values())
    assert {reason: reasons.count(reason) for reason in set(reasons)} == {
        "leak": 14, "truncated": 5, "empty": 5, "format": 5, "too_many_pixels": 5, "missing": 4,
    }  # fmt: skip
    for line in (
        "noisy_train_key_list.txt: 2 lines repeat a key, taken once: ",
        "clean_test_key_list.txt: 1 keys have no clean label: ",
        "noisy_label_kv.txt: 1 keys are in no list, so not used: 'images/9/99/1,2.jpg'",
        "6 keys of noisy_train_key_list.txt are in another list too: ",
        "1 keys of clean_val_key_list.txt are in another list too: ",
        "5 exact duplicates, 0 across splits",
        "rejected: 38 ",
    ):
        assert line in printed
    assert main(["verify", str(out)]) == 0
    details = {row["key"]: row["detail"] for row in pq.read_table(out / "rejected.parquet").to_pylist()}
    assert sum(detail.startswith("the same bytes as images/") for detail in details.values()) == 6
    assert sum(detail == "also in clean_test_key_list.txt" for detail in details.values()) == 5


def test_no_image_and_no_bytes_of_val_or_test_are_in_training(planted: Mini, tmp_path: Path) -> None:
    assert build(planted.root, tmp_path / "out", "--drop-leaks") == 0
    samples = pq.read_table(tmp_path / "out" / "samples.parquet").to_pylist()
    for kind in ("key", "sha256"):
        training, val, test = (
            {row[kind] for row in samples if row["split"] in names}
            for names in (("noisy_train", "clean_train"), ("val",), ("test",))
        )
        assert not training & (val | test) and not val & test and training and val and test


def test_leaks_stop_a_build_before_anything_is_written(
    planted: Mini, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build(planted.root, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "a leak between splits: 6 keys of noisy_train_key_list.txt are in another list too: 'images/" in error
    assert "(clean_test_key_list.txt)" in error and "--drop-leaks" in error
    assert not (tmp_path / "out").exists()


def test_leaks_by_bytes_stop_it_when_they_are_read_and_the_option_goes_on(
    planted: Mini, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "clothing1m"
    shutil.copytree(planted.root, root)
    taken: set[str] = set()
    for split in reversed(SPLITS):                  # mend the lists: each key in the last of its lists only
        keys = [key for key in dict.fromkeys(planted.lists[split]) if key not in taken]
        taken |= set(keys)
        (root / lists.LISTS[split]).write_text("\n".join(keys))
    out = tmp_path / "out"
    options = ("--shard-size", "10")
    assert build(root, out, *options) == 2
    error = capsys.readouterr().err
    assert "a leak between splits: " in error and "has the same bytes as images/" in error and "--drop-leaks" in error
    assert not (out / "dataset.json").exists()
    assert build(root, out, *options, "--drop-leaks") == 0
    assert found_in(out) == planted.expected
    assert sum(reason == "leak" for reason in rejected_in(out).values()) == 6
    assert build(root, tmp_path / "fresh", *options, "--drop-leaks") == 0
    assert digests(out) == digests(tmp_path / "fresh")


def test_a_copy_without_leaks_needs_no_option_and_the_option_changes_nothing(whole: Mini, tmp_path: Path) -> None:
    assert build(whole.root, tmp_path / "a") == 0
    assert build(whole.root, tmp_path / "b", "--drop-leaks") == 0
    assert found_in(tmp_path / "a") == whole.expected and not rejected_in(tmp_path / "a")
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert read_labels(tmp_path / "a", "given").class_names == CLASSES


def relocated(whole: Mini, root: Path, layout: str) -> tuple[Path, tuple[str, ...]]:
    """A copy in another layout that is around; and the options it needs."""
    shutil.copytree(whole.root, root)
    annotations = [*root.glob("*.txt")]
    options: tuple[str, ...] = ()
    match layout:
        case "annotations" | "label":
            (root / layout).mkdir()
            for path in annotations:
                path.rename(root / layout / path.name)
        case "bare":
            for path in (root / "images").iterdir():
                path.rename(root / path.name)
            (root / "images").rmdir()
        case "elsewhere":
            (root / "images").rename(root.parent / "photos")
            options = ("--image-root", str(root.parent / "photos"))
        case "link":
            (root / "images").rename(root.parent / "photos")
            (root / "images").symlink_to(root.parent / "photos")
        case "no prefix":
            for path in annotations:
                path.write_text(path.read_text().replace("images/", ""))
        case "CRLF":
            for path in annotations:
                path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n\r\n")
        case "twice":
            (root / "label").mkdir()
            for path in annotations:
                shutil.copy(path, root / "label")
    return root, options


@pytest.mark.parametrize(
    "layout", ["annotations", "label", "bare", "elsewhere", "link", "no prefix", "CRLF", "twice"]
)
def test_every_layout_gives_the_same_dataset(whole: Mini, tmp_path: Path, layout: str) -> None:
    root, options = relocated(whole, tmp_path / "clothing1m", layout)
    assert build(root, tmp_path / "out", "--check", "header", *options) == 0
    assert found_in(tmp_path / "out") == whole.expected


def test_wrong_copies_are_named(whole: Mini, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refuses(message: str, **changes: str | None) -> None:
        root = tmp_path / "clothing1m"
        shutil.copytree(whole.root, root, ignore=shutil.ignore_patterns("images"))
        (root / "images").symlink_to(whole.root / "images")
        for name, text in changes.items():
            path = root / f"{name}.txt"
            path.unlink(missing_ok=True)
            if text is not None:
                path.write_text(text)
        assert build(root, tmp_path / "out", "--dry-run") == 2
        error = capsys.readouterr().err
        assert message in error, error
        shutil.rmtree(root)

    noisy = (whole.root / "noisy_label_kv.txt").read_text()
    first = noisy.splitlines()[0].rsplit(" ", 1)[0]
    keys = (whole.root / "noisy_train_key_list.txt").read_text()
    refuses("no clean_val_key_list.txt, neither there nor in annotations, ", clean_val_key_list=None)
    refuses("no noisy_label_kv.txt, clean_label_kv.txt, neither", noisy_label_kv=None, clean_label_kv=None)
    refuses("noisy_label_kv.txt: line 2 is 'images/0/00/1,2.jpg'; expected is a key, a space and a class number",
            noisy_label_kv=f"{first} 3\nimages/0/00/1,2.jpg\n")
    refuses("noisy_label_kv.txt: line 1 is 'images/0/00/1,2.jpg x'; expected", noisy_label_kv="images/0/00/1,2.jpg x")
    refuses("noisy_label_kv.txt: line 1: label 10 is out of range 0..9", noisy_label_kv=f"{first} 10\n")
    refuses("line 2, '" + first + " 4', gives the key another label", noisy_label_kv=f"{first} 3\n{first} 4\n")
    refuses("noisy_train_key_list.txt: line 1 is '" + first + " 9', a key with a label",
            noisy_train_key_list=f"{first} 9\n{keys}")
    refuses("noisy_train_key_list.txt is empty", noisy_train_key_list="\n")
    refuses("category_names_eng.txt: 'a' occurs twice", category_names_eng="a\nb\na")
    refuses("is out of range 0..2", category_names_eng="a\nb\nc")

    assert build(tmp_path / "nowhere", tmp_path / "out") == 2
    assert "nowhere: no such folder" in capsys.readouterr().err
    root = tmp_path / "packed"
    shutil.copytree(whole.root, root, ignore=shutil.ignore_patterns("images"))
    (root / "images").mkdir()
    (root / "images" / "0.tar").touch()
    assert build(root, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "images that were looked for is there" in error and "0.tar' look packed: unpack them first" in error
    (root / "label").mkdir()
    (root / "label" / "clean_val_key_list.txt").write_text("images/0/00/other,1.jpg")
    assert build(root, tmp_path / "out") == 2
    assert "clean_val_key_list.txt differ: keep one of them" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_copy_of_page_not_found_in_train_and_test_is_no_leak(whole: Mini, tmp_path: Path) -> None:
    root = tmp_path / "clothing1m"
    shutil.copytree(whole.root, root)
    mini = Mini(root, dict(whole.expected), {}, {}, {split: list(keys) for split, keys in whole.lists.items()},
                dict(whole.noisy), dict(whole.clean), _count=60)
    for split in SPLITS:
        mini.reject(mini.add(split, b"<html>404", 1, None if split == "noisy_train" else 1), "format")
    write_lists(mini)
    assert build(root, tmp_path / "out") == 0
    assert found_in(tmp_path / "out") == mini.expected and rejected_in(tmp_path / "out") == mini.rejected


def published_labels() -> dict[str, dict[str, np.ndarray]]:
    """Labels by split and column that have the published counts, and as many images with both labels."""
    labels = {}
    for split in lists.LISTS:
        own = np.repeat(np.arange(14), lists.PUBLISHED[split])
        other = np.full(len(own), NO_LABEL)
        other[: lists.PUBLISHED_BOTH[split]] = 0
        labels[split] = {"noisy": own, "clean": other} if split == "noisy_train" else {"noisy": other, "clean": own}
    return labels


def test_counts_are_compared_with_the_published_ones() -> None:
    files = {
        name: lists.LabelFile(Path(lists.LABELS[name]), pa.nulls(count, pa.binary()), np.zeros(count, np.int64))
        for name, count in lists.PUBLISHED_KV.items()
    }
    labels = published_labels()
    lines = lists.survey(labels, files, lists.CLASS_NAMES)
    assert lines[-1] == "all counts are the published ones"
    assert lines[5].split() == ["4", "Sweater", "18976", "4126", "1259", "918"]
    assert [line.split()[1:] for line in lines if line.startswith("all  ")] == [["1000000", "47570", "14313", "10526"]]
    labels["val"] = {name: values[1:] for name, values in labels["val"].items()}
    lines = lists.survey(labels, files, lists.CLASS_NAMES)
    assert lines[-1] == "in brackets: the published count"
    assert lines[1].split() == ["0", "T-Shirt", "86152", "3974", "1220", "(1221)", "845"]
    assert "published" not in "".join(lists.survey(labels, files, lists.CLASS_NAMES[::-1]))


def test_the_published_counts_are_those_of_the_lists() -> None:
    content = json.loads(shared_file("clothing1m_class_counts.json").read_text())
    assert tuple(content["classes"]) == lists.CLASS_NAMES
    for split, name in (("noisy_train", "my_train_label"), ("clean_train", "clean_train_from_kv"),
                        ("val", "clean_val_from_kv"), ("test", "clean_test_from_kv")):
        assert lists.PUBLISHED[split] == tuple(content[name]["counts"])
    clean = sum(sum(lists.PUBLISHED[split]) for split in ("clean_train", "val", "test"))
    noisy = 1_000_000 + sum(lists.PUBLISHED_BOTH.values())
    assert (lists.PUBLISHED_KV["noisy"], lists.PUBLISHED_KV["clean"]) == (noisy, clean)


names = st.from_regex(r"[0-9]/[0-9]{2}/[0-9]{1,9},[0-9]{1,9}\.jpg", fullmatch=True)
ends = st.sampled_from(["\n", "\r\n", "\n\n", " \n"])


@given(entries=st.lists(st.tuples(names, st.integers(0, 13)), min_size=1, unique_by=lambda entry: entry[0]),
       end=ends, last=st.sampled_from(["", "\n", "\r\n"]), prefix=st.sampled_from(["images/", "", "./images/"]))
def test_lists_are_read_whatever_their_ends(
    tmp_path_factory: pytest.TempPathFactory, entries: list[tuple[str, int]], end: str, last: str, prefix: str
) -> None:
    folder = tmp_path_factory.mktemp("lists")
    (folder / "list").write_bytes((end.join(prefix + key for key, _ in entries) + last).encode())
    (folder / "kv").write_bytes((end.join(f"{prefix}{key} {label}" for key, label in entries) + last).encode())
    keys = lists.read_key_list(folder / "list")
    assert keys.keys.to_pylist() == [f"images/{key}".encode() for key, _ in entries] and not keys.repeated
    labels = lists.read_label_file(folder / "kv", 14)
    assert labels.of(keys.keys).tolist() == [label for _, label in entries]
    unknown = pa.array([b"images/x", *keys.keys.to_pylist()[::-1]], pa.binary())
    assert labels.of(unknown).tolist() == [NO_LABEL, *[label for _, label in entries[::-1]]]


def test_a_path_with_commas_does_not_name_the_classes(
    whole: Mini, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "web, shops, 2015" / "clothing1m"
    shutil.copytree(whole.root, root)
    assert build(root, tmp_path / "out", "--check", "header") == 0
    assert read_labels(tmp_path / "out", "given").class_names == CLASSES
    (root / "category_names_eng.txt").write_text("Shawl\n")
    capsys.readouterr()
    assert build(root, tmp_path / "out2") == 2
    error = capsys.readouterr().err
    assert f"{root}/category_names_eng.txt: it must hold two names or more" in error and "--class-names" not in error


def test_without_a_file_of_names_the_classes_are_the_official_ones(whole: Mini, tmp_path: Path) -> None:
    root = tmp_path / "clothing1m"
    shutil.copytree(whole.root, root, ignore=shutil.ignore_patterns("category*"))
    assert build(root, tmp_path / "out", "--check", "header") == 0
    assert read_labels(tmp_path / "out", "given").class_names == lists.CLASS_NAMES
