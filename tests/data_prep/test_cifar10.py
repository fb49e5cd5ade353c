"""CIFAR-10 in all its layouts gives the same images and labels, and nothing in a pickle runs."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import os
import pickle
import resource
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from data_prep.__main__ import main
from data_prep.sources import Listing, cifar10
from data_prep.sources.plain_pickle import RefusedPickleError, read_plain_pickle
from tests.data_prep.cifar10_batches import (
    NAMES,
    PER_BATCH,
    binary,
    make_content,
    pack,
    python2_pickle,
    rows_of,
    sums,
    write_folder,
)
from twostage.data.schema import SPLITS, InputError

CONTENT = make_content()
PYTHON = {name: python2_pickle(*CONTENT[name]) for name in NAMES}
BINARY = {f"{name}.bin": binary(*CONTENT[name]) for name in NAMES}


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The made-up batches' sums are the original ones."""
    monkeypatch.setattr(cifar10, "PYTHON_MD5", sums(PYTHON))
    monkeypatch.setattr(cifar10, "BINARY_MD5", sums(BINARY))


def listed(source: Path, **options: Any) -> Listing:
    args = argparse.Namespace(**({"class_names": None, "allow_unknown_md5": None} | options))
    return cifar10.list_inputs(source, args)


def rows(listing: Listing) -> list[dict[str, Any]]:
    return [row for batch in listing.batches for row in batch.to_pylist()]


def layouts(tmp_path: Path) -> dict[str, Path]:
    python = write_folder(tmp_path / "a" / "cifar-10-batches-py", PYTHON | {"batches.meta": b"", "readme.html": b""})
    binary = write_folder(tmp_path / "b" / "cifar-10-batches-bin", BINARY | {"batches.meta.txt": b"airplane\n"})
    (tmp_path / "c").mkdir()
    (tmp_path / "d").mkdir()
    packed = pack(python, tmp_path / "c" / "cifar-10-python.tar.gz")
    return {
        "python folder": python,
        "python folder inside": python.parent,
        "python archive": packed,
        "python archive inside": packed.parent,
        "binary folder": binary,
        "binary folder inside": binary.parent,
        "binary archive": pack(binary, tmp_path / "d" / "anything.tgz"),
    }


@pytest.mark.usefixtures("known")
def test_every_layout_gives_the_original_images_labels_and_order(tmp_path: Path) -> None:
    for name, source in layouts(tmp_path).items():
        listing = listed(source)
        found = rows(listing)
        assert listing.class_names[3] == "cat" and listing.class_names[9] == "truck" and not listing.notes, name
        train = [f"train/{number:05d}" for number in range(5 * PER_BATCH)]
        assert [row["key"] for row in found] == train + [f"test/{number:05d}" for number in range(PER_BATCH)], name
        assert [row["label"] for row in found] == [label for batch in NAMES for label in CONTENT[batch][1]], name
        assert [SPLITS[row["split"]] for row in found] == ["noisy_train"] * len(train) + ["test"] * PER_BATCH, name
        reader = pickle.loads(pickle.dumps(listing.reader))     # noqa: S301  as it travels to a worker
        pixels = np.concatenate([CONTENT[batch][0] for batch in NAMES])
        for row, expected in zip(found, pixels, strict=True):
            data, _ = reader.read(row["place"], 10**6)
            with Image.open(io.BytesIO(data)) as image:
                assert image.format == "PNG" and image.mode == "RGB", name
                np.testing.assert_array_equal(np.asarray(image), expected, err_msg=name)
        files = PYTHON if name.startswith("python") else BINARY
        assert listing.containers == {batch: hashlib.sha256(data).hexdigest() for batch, data in files.items()}


@pytest.mark.usefixtures("known")
def test_a_dataset_is_built_and_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_folder(tmp_path / "cifar-10-batches-py", PYTHON)
    archive = pack(folder, tmp_path / "cifar-10-python.tar.gz")
    for number, source in enumerate((folder, archive)):
        arguments = ["build", source, tmp_path / str(number), "--format", "cifar10", "--workers", "1"]
        assert main([str(argument) for argument in arguments]) == 0
        assert main(["verify", str(tmp_path / str(number))]) == 0
    assert "all is well" in capsys.readouterr().out
    shards = [sorted((tmp_path / name).glob("shards/*")) for name in "01"]
    assert [path.read_bytes() for path in shards[0]] == [path.read_bytes() for path in shards[1]]


@pytest.mark.parametrize("packed", [False, True])
def test_wrong_md5_names_file_expected_and_found(tmp_path: Path, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    original = sums(PYTHON)
    monkeypatch.setattr(cifar10, "PYTHON_MD5", original)
    changed = PYTHON | {"data_batch_3": python2_pickle(CONTENT["data_batch_3"][0], [0] * PER_BATCH)}
    source = write_folder(tmp_path / "cifar-10-batches-py", changed)
    if packed:
        source = pack(source, tmp_path / "cifar-10-python.tar.gz")
    found, expected = sums(changed)["data_batch_3"], original["data_batch_3"]
    with pytest.raises(InputError, match=rf"{source}.*data_batch_3: md5 {found}, expected {expected}: .*--allow-unkn"):
        listed(source)
    listing = listed(source, allow_unknown_md5=True)
    assert len(listing.notes) == 1 and found in listing.notes[0]
    assert [row["label"] for row in rows(listing)][2 * PER_BATCH : 3 * PER_BATCH] == [0] * PER_BATCH


def test_the_original_sums_are_those_of_the_original() -> None:
    # of 60,000 images that nobody here may have; so at least that none was mistyped
    assert set(cifar10.PYTHON_MD5) == set(NAMES) and set(cifar10.BINARY_MD5) == {f"{name}.bin" for name in NAMES}
    every = [*cifar10.PYTHON_MD5.values(), *cifar10.BINARY_MD5.values()]
    assert len(set(every)) == 12 and all(len(bytes.fromhex(md5)) == 16 for md5 in every)


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._path),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("where", ["before", "after"])
def test_a_foreign_class_is_refused_before_anything_runs(tmp_path: Path, protocol: int, where: str) -> None:
    trap = tmp_path / "trap"
    content: dict[str, Any] = {"before": {"x": Evil(trap)}, "after": {}}[where]
    content |= {"data": rows_of(CONTENT["test_batch"][0]), "labels": CONTENT["test_batch"][1]}
    content |= {"x": Evil(trap)}
    data = pickle.dumps(content, protocol)
    source = write_folder(tmp_path / "batches", PYTHON | {"test_batch": data})
    with pytest.raises(InputError, match=r"test_batch is not read: it names posix\.mkdir; only numpy arrays and plain"):
        listed(source, allow_unknown_md5=True)
    assert not trap.exists()
    pickle.loads(data)                                      # noqa: S301  the trap is one
    assert trap.exists()


@pytest.mark.parametrize(
    "value",
    [
        np.array([print, None], dtype=object),
        np.zeros(2, dtype=[("a", "i4"), ("b", "O")]),
        np.array(["2020-01-01"], dtype="datetime64[D]"),
        np.float64(1.5),
        np.load,
        np.dtype,
        OrderedDict(a=1),
        getattr,
        Path("x"),
        {1, Evil(Path("never"))},
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_is_no_array_of_numbers_is_refused(value: Any) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        if value is np.dtype:
            assert read_plain_pickle(pickle.dumps(value, protocol)) is not np.dtype
            continue
        with pytest.raises(RefusedPickleError):
            read_plain_pickle(pickle.dumps({"a": value}, protocol))


@pytest.mark.parametrize(
    "stream",
    [
        b"c__builtin__\neval\n(S'1'\ntR.",                          # protocol 0
        b"(S'1'\ni__builtin__\neval\n.",                            # the old way to make an instance
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.",
        b"\x80\x02cnumpy\nload\nU\x01x\x85R.",
        b"\x80\x02cnumpy.core.multiarray\nfromfile\nU\x01x\x85R.",
        b"\x80\x02cnumpy._core.multiarray\n_reconstruct\ncnumpy\ndtype\nK\x00\x85U\x01b\x87R.",
        b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00xX\x05\x00\x00\x00rot13\x86R.",
        b"\x80\x02\x82\x01.",                                       # an extension code
        b"Px\n.",                                                   # a persistent id
        b"\x80\x04\x8c\x0bnumpy.linalg\x8c\x0b_umath.load\x93.",
        b"",
        b"\x80\x02}(U\x04data",
        b"not a pickle",
    ],
)
def test_crafted_streams_are_refused(stream: bytes) -> None:
    with pytest.raises(RefusedPickleError):
        read_plain_pickle(stream)


numbers = st.sampled_from(["u1", "<i2", ">i2", "<i8", "<f4", ">f8", "?"])
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(
    array=numbers.flatmap(lambda code: hnp.arrays(np.dtype(code), hnp.array_shapes(min_dims=0, max_side=4))),
    content=plain,
    protocol=st.integers(0, pickle.HIGHEST_PROTOCOL),
    fortran=st.booleans(),
)
def test_arrays_and_plain_containers_come_out_as_they_went_in(
    array: np.ndarray[Any, Any], content: object, protocol: int, fortran: bool
) -> None:
    array = np.asfortranarray(array) if fortran else array
    found = read_plain_pickle(pickle.dumps({"array": array, "content": content}, protocol))
    np.testing.assert_array_equal(found["array"], array)
    native = (array.dtype.newbyteorder("="), array.shape)
    assert (found["array"].dtype.newbyteorder("="), found["array"].shape) == native
    assert found["content"] == content


@given(data=st.data())
def test_damaged_pickles_are_refused_or_read_but_never_crash(data: st.DataObject) -> None:
    stream = bytearray(PYTHON["test_batch"][:400] + PYTHON["test_batch"][-20:])
    for _ in range(data.draw(st.integers(1, 5))):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(RefusedPickleError):
        read_plain_pickle(bytes(stream))


@pytest.mark.parametrize("stream", [b"\x80\x02]r\xff\xff\xff\xf0.", b"]p4294967280\n.", b"\x80\x04B\xff\xff\xff\xf0."])
def test_no_room_is_made_for_empty_promises(stream: bytes) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(RefusedPickleError, match="damaged"):
        read_plain_pickle(stream)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000      # KiB


def pickled(**content: Any) -> bytes:
    return pickle.dumps(content)


PIXELS = rows_of(CONTENT["test_batch"][0])


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"data_batch_2": None}, r"data_batch_2 missing; it should hold data_batch_1, "),
        ({"test_batch": pickled(data=PIXELS, labels=[1] * (PER_BATCH - 1))}, r"test_batch: .*'labels' should be 7 w"),
        ({"test_batch": pickled(data=PIXELS, labels=[0.5] * PER_BATCH)}, r"test_batch: .*'labels' should be 7 w"),
        ({"test_batch": pickled(data=PIXELS, labels=[{}] * PER_BATCH)}, r"test_batch: .*'labels' should be"),
        ({"test_batch": pickled(data=PIXELS, labels=[2**70] * PER_BATCH)}, r"test_batch: .*'labels' should be"),
        ({"test_batch": pickled(data=PIXELS, labels=[10] * PER_BATCH)}, r"label 10 of image 0 is out of range 0\.\.9"),
        ({"test_batch": pickled(data=PIXELS, labels=[-1] * PER_BATCH)}, r"label -1 of image 0 is out of range"),
        ({"test_batch": pickled(data=PIXELS[:, :9], labels=[1])}, r"test_batch: its entry 'data' should be bytes of"),
        ({"test_batch": pickled(data=PIXELS.astype(float), labels=[1])}, r"its entry 'data' should be bytes of"),
        ({"test_batch": pickled(fine_labels=[1])}, r"its entry 'data' should be"),
        ({"test_batch": pickle.dumps([1, 2])}, r"its entry 'data' should be"),
        ({"test_batch": PYTHON["test_batch"][:-500]}, r"test_batch is not read: damaged: "),
    ],
)
def test_wrong_python_batches(tmp_path: Path, files: dict[str, bytes | None], message: str) -> None:
    content = {name: data for name, data in (PYTHON | files).items() if data is not None}
    with pytest.raises(InputError, match=message):
        listed(write_folder(tmp_path / "batches", content), allow_unknown_md5=True)


@pytest.mark.usefixtures("known")
def test_wrong_binary_batches_archives_and_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut = write_folder(tmp_path / "cut", BINARY | {"data_batch_1.bin": BINARY["data_batch_1.bin"][:-1]})
    with pytest.raises(InputError, match=r"data_batch_1.bin: 21510 bytes are not a multiple of 3073"):
        listed(cut, allow_unknown_md5=True)
    with pytest.raises(InputError, match="no such file or folder"):
        listed(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no CIFAR-10: expected is cifar-10-python.tar.gz .*download cifar10"):
        listed(tmp_path / "empty")
    (tmp_path / "text.tar.gz").write_text("hello")
    with pytest.raises(InputError, match=r"text.tar.gz is no whole tar archive"):
        listed(tmp_path / "text.tar.gz")
    whole = pack(write_folder(tmp_path / "cifar-10-batches-py", PYTHON), tmp_path / "whole.tar.gz").read_bytes()
    (tmp_path / "half.tar.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"half.tar.gz is no whole tar archive .*: get it again"):
        listed(tmp_path / "half.tar.gz")
    write_folder(tmp_path / "twice" / "one", PYTHON)
    write_folder(tmp_path / "twice" / "two", PYTHON)
    with pytest.raises(InputError, match=r"twice.tar.gz holds two files of the name test_batch"):
        listed(pack(tmp_path / "twice", tmp_path / "twice.tar.gz"))
    monkeypatch.setattr(cifar10, "MAX_BATCH_BYTES", 1000)
    with pytest.raises(InputError, match=r"whole.tar.gz: .*_batch.* has \d+ bytes, more than a batch can have"):
        (tmp_path / "whole.tar.gz").write_bytes(whole)
        listed(tmp_path / "whole.tar.gz")


@pytest.mark.usefixtures("known")
def test_a_batch_that_changes_after_it_was_listed_is_refused(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "batches", BINARY)
    listing = listed(source)
    place = rows(listing)[0]["place"]
    (source / "test_batch.bin").write_bytes(BINARY["data_batch_1.bin"])
    with pytest.raises(InputError, match=r"test_batch.bin was changed while the dataset was built"):
        listing.reader.read(place, 10**6)
