"""Files that cannot be written: nothing of them stays behind, and the message names the file that was meant."""

from __future__ import annotations

import errno
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from twostage.data.schema import nearest, table_writer, write_aside, write_json, write_table


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_of_many_names_only_the_nearest_are_listed() -> None:
    files = [f"photo-{number:03d}.jpg" for number in range(500)]
    found = nearest("photo-0007.jpg", files)
    assert found.startswith("did you mean 'photo-007.jpg'? the nearest of 500 names: photo-")
    assert found.count(".jpg") == 6
    assert nearest("nope", files[:3]) == "allowed: photo-000.jpg, photo-001.jpg, photo-002.jpg"


@pytest.fixture
def little_room() -> Iterator[None]:
    """Files may have no more than 100,000 bytes, as if the disk were full then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("little_room")
def test_no_part_of_a_file_stays_where_there_is_no_room(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")
    table = pa.table({"number": np.random.default_rng(0).random(50_000)})
    for write in (
        lambda: write_aside(path, bytes(200_000)),
        lambda: write_json(path, "x" * 200_000),
        lambda: write_table(path, table),
    ):
        with pytest.raises(OSError) as caught:
            write()
        assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(path))
        assert names(tmp_path) == ["file"] and path.read_bytes() == b"before"


def test_an_error_of_another_file_keeps_its_name(tmp_path: Path) -> None:
    schema = pa.schema([("number", pa.int64())])
    with pytest.raises(FileNotFoundError, match=r"photo\.jpg"), table_writer(tmp_path / "table", schema):
        (tmp_path / "photo.jpg").read_bytes()
    assert names(tmp_path) == []
