"""What the sources list: keys, splits, labels, class names, and where reading stops at the source's border."""

from __future__ import annotations

import argparse
import gc
import gzip
import os
import pickle
import re
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from shared_data import shared_file

from data_prep import sources
from data_prep.check import RejectionError
from data_prep.sources.files import FileReader
from twostage.data.schema import NO_LABEL, SPLITS, InputError


def list_inputs(name: str, source: Path, **options: Any) -> tuple[sources.Listing, list[dict[str, Any]]]:
    module = sources.load(name)
    parser = argparse.ArgumentParser()
    sources.add_shared_arguments(parser.add_argument_group())
    for other in sources.FORMATS:
        sources.load(other).add_arguments(parser.add_argument_group())
    args = parser.parse_args([])
    for option, value in options.items():
        assert option in module.OPTIONS and getattr(args, option) is None
        setattr(args, option, value)
    listing = module.list_inputs(source, args)
    return listing, pa.Table.from_batches(listing.batches, sources.INPUTS_SCHEMA).to_pylist()


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())


def found(rows: list[dict[str, Any]], listing: sources.Listing) -> dict[str, tuple[str, str] | str]:
    """Split and class, or the reason of rejection, by key."""
    return {row["key"]: row["reason"] or (SPLITS[row["split"]], listing.class_names[row["label"]]) for row in rows}


# folders

def test_a_folder_per_class(tmp_path: Path) -> None:
    touch(tmp_path, "cat/1.jpg", "cat/2.jpg", "dog/deep/er/1.jpg", "README.txt", ".git/config")
    (tmp_path / "fish").mkdir()
    listing, rows = list_inputs("folder", tmp_path)
    assert listing.class_names == ("cat", "dog", "fish")
    assert found(rows, listing) == {
        "cat/1.jpg": ("noisy_train", "cat"), "cat/2.jpg": ("noisy_train", "cat"),
        "dog/deep/er/1.jpg": ("noisy_train", "dog"), "README.txt": "no_class", ".git/config": "no_class"}
    data, stamp = listing.reader.read(b"dog/deep/er/1.jpg", 100)
    assert data == b"dog/deep/er/1.jpg" and stamp.size == len(data)
    assert stamp == listing.reader.stamp(b"dog/deep/er/1.jpg")


def test_hidden_files_and_what_lies_in_hidden_folders_are_rejected(tmp_path: Path) -> None:
    touch(tmp_path, "cat/1.jpg", "dog/1.jpg", "dog/.trashed-1699999999-IMG.jpg", "cat/.thumbnails/0.jpg",
          "cat/.a/deep/2.jpg", "cat/deep/._1.jpg", "cat/deep/1.jpg", "cat/not.hidden/..jpg", "cat/not.hidden/2.jpg",
          ".DS_Store", ".cache/dog/1.jpg")
    listing, rows = list_inputs("folder", tmp_path)
    assert listing.class_names == ("cat", "dog")
    assert found(rows, listing) == {
        "cat/1.jpg": ("noisy_train", "cat"), "cat/deep/1.jpg": ("noisy_train", "cat"),
        "cat/not.hidden/2.jpg": ("noisy_train", "cat"), "dog/1.jpg": ("noisy_train", "dog"),
        "dog/.trashed-1699999999-IMG.jpg": "hidden", "cat/.thumbnails/0.jpg": "hidden", "cat/.a/deep/2.jpg": "hidden",
        "cat/deep/._1.jpg": "hidden", "cat/not.hidden/..jpg": "hidden",
        ".DS_Store": "no_class", ".cache/dog/1.jpg": "no_class"}


@pytest.mark.parametrize(
    ("names", "split"),
    [("train training noisy noisy_train TRAIN Train", "noisy_train"), ("clean clean_train", "clean_train"),
     ("val valid validation dev", "val"), ("test testing eval", "test")],
)
def test_the_usual_names_of_splits(tmp_path: Path, names: str, split: str) -> None:
    for name in names.split():
        touch(tmp_path, f"{name}/cat/1.jpg", f"{name}/dog/1.jpg")
    listing, rows = list_inputs("folder", tmp_path)
    assert {row["split"] for row in rows} == {SPLITS.index(split)} and len(rows) == 2 * len(names.split())
    assert len({row["key"] for row in rows}) == len(rows) and listing.class_names == ("cat", "dog")


def test_classes_may_be_missing_in_a_split_and_files_may_lie_beside_them(tmp_path: Path) -> None:
    touch(tmp_path, "train/cat/1.jpg", "train/dog/1.jpg", "test/dog/2.jpg", "test/list.txt", "notes.md")
    listing, rows = list_inputs("folder", tmp_path)
    assert found(rows, listing) == {
        "train/cat/1.jpg": ("noisy_train", "cat"), "train/dog/1.jpg": ("noisy_train", "dog"),
        "test/dog/2.jpg": ("test", "dog"), "test/list.txt": "no_class", "notes.md": "no_class"}
    assert "folder 'test' is the split test" in listing.notes


def test_split_map(tmp_path: Path) -> None:
    touch(tmp_path, "images/cat/1.jpg", "images/dog/1.jpg", "holdout/cat/2.jpg", "test/dog/2.jpg")
    listing, rows = list_inputs("folder", tmp_path, split_map="images=noisy_train, holdout=test,test=val")
    assert found(rows, listing) == {
        "images/cat/1.jpg": ("noisy_train", "cat"), "images/dog/1.jpg": ("noisy_train", "dog"),
        "holdout/cat/2.jpg": ("test", "cat"), "test/dog/2.jpg": ("val", "dog")}
    listing, rows = list_inputs("folder", tmp_path, split_map="none")
    assert listing.class_names == ("holdout", "images", "test")
    assert found(rows, listing)["test/dog/2.jpg"] == ("noisy_train", "test")


def test_classes_that_are_numbers_get_these_numbers(tmp_path: Path) -> None:
    touch(tmp_path, *[f"{number}/x.jpg" for number in range(12)])
    listing, rows = list_inputs("folder", tmp_path)
    assert listing.class_names == tuple(map(str, range(12)))
    assert all(row["key"] == f"{row['label']}/x.jpg" for row in rows)


def test_class_names_decide_the_order(tmp_path: Path) -> None:
    touch(tmp_path, "s/cat/1.jpg", "s/dog/1.jpg")
    listing, rows = list_inputs("folder", tmp_path / "s", class_names="dog,cow,cat")
    assert [(row["key"], row["label"]) for row in rows] == [("cat/1.jpg", 2), ("dog/1.jpg", 0)]
    for name, mark in (("names", ""), ("names", "\ufeff"), ("my, names", "")):     # a mark of Windows' editors
        (tmp_path / name).write_text(f"{mark}dog\ncow\n\ncat\n")
        again, _ = list_inputs("folder", tmp_path / "s", class_names=str(tmp_path / name))
        assert again.class_names == listing.class_names == ("dog", "cow", "cat")
    many = [*map(str, range(300)), "dog", "cat"]            # together longer than a file's name may be
    again, rows = list_inputs("folder", tmp_path / "s", class_names=",".join(many))
    assert again.class_names == tuple(many) and [row["label"] for row in rows] == [301, 300]
    (tmp_path / "names").write_bytes("dog\nkäuzchen\ncat\n".encode("latin1"))
    with pytest.raises(InputError, match="names: not a text file in UTF-8"):
        list_inputs("folder", tmp_path / "s", class_names=str(tmp_path / "names"))


def test_links_inside_are_followed_and_those_that_lead_outside_are_not(tmp_path: Path) -> None:
    root = tmp_path / "s"
    touch(tmp_path, "s/cat/1.jpg", "s/dog/1.jpg", "secret/cat/2.jpg", "secret/3.jpg")
    (root / "cat/inside.jpg").symlink_to("../dog/1.jpg")
    (root / "cat/outside.jpg").symlink_to(tmp_path / "secret/3.jpg")
    (root / "cat/outside").symlink_to(tmp_path / "secret")
    (root / "cat/broken.jpg").symlink_to("nowhere.jpg")
    (root / "cat/loop").symlink_to("..")
    (root / "cat/itself.jpg").symlink_to("itself.jpg")
    (root / "itself").symlink_to("itself")
    (root / "cat/latin1.jpg").symlink_to(tmp_path / "secret" / os.fsdecode(b"\xff.jpg"))
    (root / "cow").symlink_to("dog")
    (root / "elsewhere").symlink_to(tmp_path / "secret")
    listing, rows = list_inputs("folder", root)
    assert listing.class_names == ("cat", "cow", "dog")
    kinds = found(rows, listing)
    assert kinds["cow/1.jpg"] == ("noisy_train", "cow")
    assert kinds["cat/outside"] == kinds["elsewhere"] == "outside"
    assert kinds["cat/loop/cat"] == "unreadable"       # cat lies in it; what else lies there is listed
    assert read(listing.reader, b"cat/inside.jpg") == b"s/dog/1.jpg"
    assert read(listing.reader, b"cat/outside.jpg") == "outside"
    assert read(listing.reader, b"cat/broken.jpg") == "missing"
    assert read(listing.reader, b"cat/itself.jpg") == "unreadable" and kinds["itself"] == "no_class"
    with pytest.raises(RejectionError) as rejected:
        listing.reader.read(b"cat/latin1.jpg", 1000)
    assert rejected.value.reason == "outside" and rejected.value.detail.endswith(r"secret/\xff.jpg")
    listing, rows = list_inputs("folder", root, allow_outside=True)
    assert listing.class_names == ("cat", "cow", "dog", "elsewhere")
    assert found(rows, listing)["cat/outside/cat/2.jpg"] == ("noisy_train", "cat")
    assert read(listing.reader, b"cat/outside.jpg") == b"secret/3.jpg"
    assert read(listing.reader, b"cat/itself.jpg") == "unreadable"


def read(reader: sources.Reader, place: bytes) -> bytes | str:
    """The bytes, or the reason of rejection; by a copy of the reader, as a worker has it."""
    try:
        return pickle.loads(pickle.dumps(reader)).read(place, 1000)[0]      # noqa: S301 (our own)
    except RejectionError as error:
        return error.reason


PARTS = ("..", ".", "in", "in/dir", "out", "link", "a.txt", "in/dir/b.txt", "out/secret.txt")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(PARTS), min_size=1, max_size=6), st.booleans())
def test_no_path_reads_what_lies_outside(
    tmp_path_factory: pytest.TempPathFactory, parts: list[str], absolute: bool
) -> None:
    base = tmp_path_factory.getbasetemp() / "border"
    if not base.exists():
        touch(base, "top/a.txt", "top/in/dir/b.txt", "out/secret.txt")
        (base / "top/link").symlink_to(base / "out")
        (base / "top/in/link").symlink_to("../../out/secret.txt")
    place = "/".join(parts)
    place = f"{base}/top/{place}" if absolute else place
    result = read(FileReader(base / "top", allow_outside=False), place.encode())
    assert result in (b"top/a.txt", b"top/in/dir/b.txt", "outside", "missing", "unreadable")


def test_threads_that_read_from_many_folders_get_their_own_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each folder has a file of the same name; more folders than stay open."""
    monkeypatch.setattr("data_prep.sources.files.MAX_OPEN", 3)
    for folder in range(40):
        (tmp_path / str(folder)).mkdir()
        (tmp_path / str(folder) / "1.jpg").write_bytes(b"%d" % folder)
    asked = np.random.default_rng(0).integers(0, 40, 8000).tolist()

    def num_open() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    def read_all() -> list[bytes]:
        reader = FileReader(tmp_path, allow_outside=False)
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda folder: reader.read(b"%d/1.jpg" % folder, 100)[0], asked))
        assert num_open() <= before + 3 + 8       # folders that two threads open at the same time
        return found

    gc.collect()        # files of tests before this one, which are closed at any time otherwise
    before = num_open()
    assert read_all() == [b"%d" % folder for folder in asked]
    assert num_open() == before


def test_what_cannot_be_read_is_rejected_and_a_lost_source_is_not(tmp_path: Path) -> None:
    touch(tmp_path, "s/x/1.jpg")
    os.mkfifo(tmp_path / "s/x/pipe")
    reader = FileReader(tmp_path / "s", allow_outside=False)
    assert read(reader, b"x/pipe") == "unreadable" and read(reader, b"x") == "unreadable"
    assert read(reader, b"x/2.jpg") == read(reader, b"x/1.jpg/y") == read(reader, b"x/\0") == "missing"
    assert read(reader, b"x/" + b"n" * 300) == "missing" and reader.stamp(b"x/2.jpg") == (-1, -1)
    with pytest.raises(RejectionError, match="9 bytes, the limit is 8"):
        reader.read(b"x/1.jpg", 8)
    (tmp_path / "s").rename(tmp_path / "gone")
    with pytest.raises(OSError, match="reading"):
        FileReader(tmp_path / "s", allow_outside=False).read(b"x/1.jpg", 1000)


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        ([], {}, "has no class folders; images are expected as in SOURCE/cat/1.jpg"),
        (["1.jpg"], {}, "has no class folders"),
        (["cat/1.jpg"], {}, "only one class folder, 'cat': a classifier needs two"),
        (["train/cat/1.jpg", "cats/1.jpg"], {}, "'train' look like splits, 'cats' does not .*--split-map cats=SPLIT"),
        (["train/1.jpg", "test/1.jpg"], {}, "has no class folders.* SOURCE/train/cat/1.jpg .*--split-map none"),
        (["cat/1.jpg", "dog/1.jpg"], {"class_names": "dogs,cat"}, "'dog' is not in --class-names; did you mean 'dogs'"),
        (["cat/1.jpg", "dog/1.jpg"], {"class_names": "cat"}, "give two names or more"),
        (["cat/1.jpg", "dog/1.jpg"], {"class_names": "cat,dog,cat"}, "'cat' occurs twice"),
        (["a/cat/1.jpg"], {"split_map": "a=tset"}, "no split 'tset'; did you mean 'test'"),
        (["a/cat/1.jpg"], {"split_map": "a:test"}, "'a:test' is not NAME=SPLIT"),
    ],
)
def test_mistakes_in_folders(tmp_path: Path, names: list[str], options: dict[str, str], message: str) -> None:
    touch(tmp_path, *names)
    with pytest.raises(InputError, match=message):
        list_inputs("folder", tmp_path, **options)


# tables

def write_table(path: Path, columns: dict[str, list[Any]]) -> Path:
    table = pa.table(columns)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        separator = "\t" if path.suffix == ".tsv" else ","
        rows = [columns, *zip(*columns.values(), strict=True)]
        path.write_text("".join(separator.join("" if v is None else str(v) for v in row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet"])
def test_tables_of_names_with_splits(tmp_path: Path, suffix: str) -> None:
    touch(tmp_path, "a.jpg")
    path = write_table(tmp_path / f"t.{suffix}", {
        "split": ["train", "val", "test", "train"], "other": [1, 2, 3, 4],
        "path": ["a.jpg", "sub/b.jpg", "c.jpg", "d.jpg"], "label": ["dog", "cat", "dog", None]})
    listing, rows = list_inputs("table", path)
    assert listing.class_names == ("cat", "dog")
    assert [(row["key"], SPLITS[row["split"]], row["label"]) for row in rows] == [
        ("a.jpg", "noisy_train", 1), ("sub/b.jpg", "val", 0), ("c.jpg", "test", 1), ("d.jpg", "noisy_train", NO_LABEL)]
    assert [row["place"].decode() for row in rows] == [row["key"] for row in rows]
    assert read(listing.reader, b"a.jpg") == b"a.jpg"


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("labels", [[0, 2, 1, -1], [0.0, 2.0, 1.0, None], ["0.0", "2.0", "1.0", "-1.0"]])
def test_tables_of_numbers_without_splits(tmp_path: Path, suffix: str, labels: list[Any]) -> None:
    path = write_table(tmp_path / f"t.{suffix}", {"path": ["a", "b", "c", "d"], "label": labels})
    listing, rows = list_inputs("table", path)
    assert listing.class_names == ("0", "1", "2") and [row["label"] for row in rows] == [0, 2, 1, NO_LABEL]
    assert {row["split"] for row in rows} == {0}
    listing, rows = list_inputs("table", path, class_names="x,y,z,unused")
    assert listing.class_names == ("x", "y", "z", "unused") and [row["label"] for row in rows][:3] == [0, 2, 1]


def test_csv_as_it_is_found_in_the_wild(tmp_path: Path) -> None:
    text = '\ufeff"Path";"Label"\r\n"a;b.jpg";" cat "\r\n"new\nline.jpg";007\r\n"say ""x"".jpg";cat\r\n'
    (tmp_path / "t.csv").write_bytes(text.encode())
    listing, rows = list_inputs("table", tmp_path / "t.csv")
    assert listing.class_names == ("007", "cat")
    assert [(row["key"], row["label"]) for row in rows] == [("a;b.jpg", 1), ("new\nline.jpg", 0), ('say "x".jpg', 1)]


@pytest.mark.parametrize(
    ("open_mark", "next_mark", "message"),
    [('"3.jpg,y', 'a"7.jpg,y', "row 3 has a path of several lines, which begins with '3.jpg,y'"),
     ('3.jpg,"y', '7.jpg,"y"', "row 3 has a label of several lines, which begins with 'y'")],
)
def test_a_quotation_mark_that_is_left_open_swallows_no_rows(
    tmp_path: Path, open_mark: str, next_mark: str, message: str
) -> None:
    lines = [f"{number}.jpg,{'xy'[number % 2]}" for number in range(10)]
    lines[2], lines[6] = open_mark, next_mark
    (tmp_path / "t.csv").write_text("\n".join(["path,label", *lines, ""]))
    with pytest.raises(InputError, match=re.escape(message) + ".*: is a quotation mark left open"):
        list_inputs("table", tmp_path / "t.csv")


def test_rows_that_go_over_several_lines_are_told(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('path,label,note\na,x,\nb,y,"one\nc,y,two"\n\nd,y,\n')
    (note,), rows = (found := list_inputs("table", tmp_path / "t.csv"))[0].notes, found[1]
    assert len(rows) == 3 and note.startswith("warning: ") and "3 rows on 4 lines" in note


def test_a_header_with_a_space_after_the_comma(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('path, label, "split"\na.jpg, cat, train\nb.jpg, dog, test\n')
    listing, rows = list_inputs("table", tmp_path / "t.csv")
    assert found(rows, listing) == {"a.jpg": ("noisy_train", "cat"), "b.jpg": ("test", "dog")}


def test_numbers_in_parquet_that_are_no_class_numbers(tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": list("abc"), "label": [1.0, float("nan"), 0.0]}), tmp_path / "t.parquet")
    assert [row["label"] for row in list_inputs("table", tmp_path / "t.parquet")[1]] == [1, NO_LABEL, 0]
    pq.write_table(pa.table({"path": list("abc"), "label": [1.0, 0.5, 0.0]}), tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"column 'label' has 0\.5, which is no whole number"):
        list_inputs("table", tmp_path / "t.parquet")


def test_columns_and_image_root(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.jpg")
    path = write_table(tmp_path / "t.csv", {"file": ["a.jpg", "b.jpg"], "class": ["x", "y"], "subset": ["A", "B"]})
    listing, rows = list_inputs("table", path, columns="path=file,label=class,split=subset", split_map="A=val,B=test",
                                image_root=tmp_path / "images")
    assert [SPLITS[row["split"]] for row in rows] == ["val", "test"]
    assert read(listing.reader, b"a.jpg") == b"images/a.jpg"


def test_labels_that_look_like_numbers_or_like_none_are_classes(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.csv", {"path": ["a", "b", "c"], "label": ["--1", "nan", "x"]})
    listing, _ = list_inputs("table", path)
    assert listing.class_names == ("--1", "nan", "x")
    assert [note for note in listing.notes if note.startswith("warning: ") and "label 'nan' is taken for" in note]
    listing, _ = list_inputs("table", path, class_names="nan,x,--1")
    assert listing.class_names == ("nan", "x", "--1") and not listing.notes


def test_a_dictionary_column_is_a_text_column(tmp_path: Path) -> None:
    table = pa.table({"path": ["a", "b"], "label": pa.array(["x", "y"]).dictionary_encode()})
    pq.write_table(table, tmp_path / "t.parquet")
    assert [row["label"] for row in list_inputs("table", tmp_path / "t.parquet")[1]] == [0, 1]


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"file": ["a"], "label": ["x"]}, {}, "no column 'path'; allowed: file, label; say which by --columns path="),
        ({"paths": ["a"], "label": ["x"]}, {}, "no column 'path'; did you mean 'paths'"),
        ({"path": ["a"], "labels": ["x"]}, {}, "no column 'label'; did you mean 'labels'"),
        ({"path": ["a"], "label": ["x"], "splits": ["train"]}, {}, "'split', but 'splits': say --columns split=splits"),
        ({"path": ["a"], "label": ["x"]}, {"columns": "path=pth"}, "no column 'pth'; did you mean 'path'"),
        ({"path": ["a"], "label": ["x"]}, {"columns": "key=path"}, "'key=path' is not NAME=COLUMN"),
        ({"path": ["a", "b"], "label": ["x", "x"]}, {}, r"only one class \(x\)"),
        ({"path": ["a", "b"], "label": [None, None]}, {}, r"only one class \(no labels\)"),
        ({"path": ["a", "b"], "label": [0, 2]}, {}, r"label 2 is out of range 0\.\.1, and there are 2 classes"),
        ({"path": ["a", "b", "c"], "label": [1, 2, 3]}, {}, r"label 3 is out of range 0\.\.2"),
        ({"path": ["a", "b"], "label": ["0.0", "5.0"]}, {}, r"label 5 is out of range 0\.\.1"),
        ({"path": ["a", "b", "c"], "label": ["0.0", "nan", "1.0"]}, {}, "label 'nan' is no class number; an image"),
        ({"path": ["a", "b", "c"], "label": ["0", "NA", "1"]}, {}, "label 'NA' is no class number; .* or -1"),
        ({"path": ["a", "b"], "label": [0, -2]}, {}, r"label -2 is out of range 0\.\.1"),
        ({"path": ["a", "b"], "label": [0, 5]}, {"class_names": "x,y,z"}, r"label 5 is out of range 0\.\.2"),
        ({"path": ["a", "b"], "label": ["x", "cta"]}, {"class_names": "cat,x"}, "'cta' .*did you mean 'cat'"),
        ({"path": ["a", "b"], "label": ["x", "y"], "split": ["train", "tset"]}, {}, "'tset' .*; did you mean 'test'"),
        ({"path": ["a", None], "label": ["x", "y"]}, {}, "row 2 has no path"),
        ({"path": ["a", "b"], "label": ["x", "y"], "split": ["train", None]}, {}, "row 2 has no split"),
        ({"path": [], "label": []}, {}, "has no rows"),
        ({"path": ["a", "b"], "label": ["x", "y"]}, {"image_root": Path("nowhere")}, "nowhere: no such folder"),
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_mistakes_in_tables(
    tmp_path: Path, columns: dict[str, list[Any]], options: dict[str, Any], message: str, suffix: str
) -> None:
    with pytest.raises(InputError, match=message):
        list_inputs("table", write_table(tmp_path / f"t.{suffix}", columns), **options)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.xlsx", b"PK", "a table's name ends in one of .csv, .tsv, .parquet"),
        ("t.parquet", b"PAR1 no", "cannot be read as a table"),
        ("t.csv", b"path,label\na,x\nb\n", "cannot be read as a table: .*Expected 2 columns, got 1"),
        ("t.csv", b"path,label\n\xff\xfe,x\n", "cannot be read as a table"),
        ("t.csv", b"", "no column 'path'"),
    ],
)
def test_files_that_are_no_tables(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        list_inputs("table", tmp_path / name)


# idx files

def idx(array: np.ndarray) -> bytes:
    return struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_mnist(folder: Path, compress: bool = False, dot: str = "-", seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    folder.mkdir(exist_ok=True)
    arrays = {}
    for prefix, count in (("train", 30), ("t10k", 10)):
        arrays[f"{prefix}-images{dot}idx3-ubyte"] = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        arrays[f"{prefix}-labels{dot}idx1-ubyte"] = (np.arange(count) % 10).astype(np.uint8)
    for name, array in arrays.items():
        path = folder / (name + ".gz" * compress)
        path.write_bytes(gzip.compress(idx(array)) if compress else idx(array))
    return arrays


@pytest.mark.parametrize(("compress", "dot"), [(True, "-"), (False, "-"), (False, ".")])
def test_mnist_keeps_pixels_labels_and_order(tmp_path: Path, compress: bool, dot: str) -> None:
    arrays = write_mnist(tmp_path, compress, dot)
    listing, rows = list_inputs("mnist", tmp_path)
    assert listing.class_names == tuple("0123456789") and len(listing.containers) == 4
    assert [row["key"] for row in rows][:2] == ["train/00000", "train/00001"] and rows[30]["key"] == "test/00000"
    assert [SPLITS[row["split"]] for row in rows] == ["noisy_train"] * 30 + ["test"] * 10
    assert [row["label"] for row in rows] == [*range(10)] * 4
    reader = pickle.loads(pickle.dumps(listing.reader))     # noqa: S301 (our own)
    for row in rows:
        data, _ = reader.read(row["place"], 10_000)
        (tmp_path / "x.png").write_bytes(data)
        prefix, number = ("t10k", row["key"][5:]) if row["key"].startswith("test") else ("train", row["key"][6:])
        with Image.open(tmp_path / "x.png") as image:
            assert np.array_equal(np.asarray(image), arrays[f"{prefix}-images{dot}idx3-ubyte"][int(number)])


def test_the_real_mnist() -> None:
    _, rows = list_inputs("mnist", shared_file("mnist"))
    assert np.bincount([row["label"] for row in rows]).tolist() == [
        6903, 7877, 6990, 7141, 6824, 6313, 6876, 7293, 6825, 6958]
    assert [row["label"] for row in rows[:8]] == [5, 0, 4, 1, 9, 2, 1, 3]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("t10k-labels-idx1-ubyte", None, "no t10k-labels-idx1-ubyte or .*idx1-ubyte.gz; there are: t10k-images"),
        ("train-images-idx3-ubyte", lambda data: data[:-1], r"hold 23520 bytes \(30 x 28 x 28\), it holds 23519"),
        ("train-labels-idx1-ubyte", lambda data: data[:10] + b"\x0b" + data[11:], r"label 11 of image 2 .* 0\.\.9"),
        ("train-labels-idx1-ubyte", lambda data: idx(np.zeros(29, np.uint8)), "has 30 images, .* has 29 labels"),
        ("train-images-idx3-ubyte", lambda data: b"\x00\x00\x08\x01" + data[4:], "is no idx file of this kind"),
        ("train-images-idx3-ubyte", lambda data: idx(np.zeros((30, 0, 28), np.uint8)), r"without pixels \(30 x 0 x 28"),
        ("train-images-idx3-ubyte", lambda data: b"", "is no idx file of this kind"),
    ],
)
def test_mistakes_in_idx_files(tmp_path: Path, name: str, change: Any, message: str) -> None:
    write_mnist(tmp_path)
    if change is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(change((tmp_path / name).read_bytes()))
    with pytest.raises(InputError, match=message):
        list_inputs("mnist", tmp_path)


def test_a_damaged_gz_file(tmp_path: Path) -> None:
    write_mnist(tmp_path, compress=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"ubyte\.gz is damaged"):
        list_inputs("mnist", tmp_path)


# all

@pytest.mark.parametrize("name", sources.FORMATS)
def test_a_source_that_is_not_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="no such f"):
        list_inputs(name, tmp_path / "nowhere")


def test_an_unknown_format_names_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'folder'"):
        sources.load("foldr")
