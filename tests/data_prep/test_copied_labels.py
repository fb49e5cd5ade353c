"""A label column that was copied from another build of the same images is refused: its labels are of other ones."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from photos import KINDS, write_photos

from data_prep.__main__ import main
from twostage.data import schema
from twostage.data.dataset import Dataset
from twostage.data.schema import InputError

NOISE = ("--kind", "symmetric", "--rate", "0.4", "--rng-seed", "0")


def build(source: Path, out: Path, *options: str) -> Path:
    assert main(["build", str(source), str(out), "--format", "folder", "--workers", "1", *options]) == 0
    return out


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    write_photos(tmp_path / "photos", num=30, broken=False)
    return tmp_path / "photos"


@pytest.fixture
def first(photos: Path, tmp_path: Path) -> Path:
    """A dataset with the columns `given`, and `noisy` made from it."""
    out = build(photos, tmp_path / "first")
    assert main(["noise", str(out), "--name", "noisy", *NOISE]) == 0
    return out


@pytest.mark.parametrize("change", ["another order", "one photo more"])
def test_training_refuses_a_column_of_another_build(
    photos: Path, first: Path, tmp_path: Path, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if change == "one photo more":
        (photos / "train/cat/more.png").write_bytes(KINDS["png"](999))
    options = ("--rng-seed", "1") if change == "another order" else ()
    second = build(photos, tmp_path / "second", *options)
    copied = Path(shutil.copy(first / "labels/noisy.parquet", second / "labels/noisy.parquet"))
    shutil.copy(first / "labels/given.parquet", second / "labels/old.parquet")
    for name in ("noisy", "old"):
        with pytest.raises(InputError, match=rf"{name}\.parquet was written for other samples, .* the wrong images"):
            Dataset.open(second).labels(name)
    with pytest.raises(InputError, match=r"run `python -m data_prep noise .* --name noisy .* --overwrite` again"):
        Dataset.open(second).labels("noisy")
    capsys.readouterr()
    assert main(["verify", str(second), "--workers", "1"]) == 1
    assert "labels/noisy.parquet: was written for another samples.parquet" in capsys.readouterr().out
    assert main(["noise", str(second), "--name", "again", "--from", "noisy", *NOISE]) == 2
    assert f"{copied} was written for other samples" in capsys.readouterr().err
    assert main(["noise", str(second), "--name", "noisy", *NOISE, "--overwrite"]) == 0      # as the message says
    assert len(Dataset.open(second).labels("noisy").label) == len(Dataset.open(second))


def test_a_column_goes_with_every_build_of_the_same_samples(photos: Path, first: Path, tmp_path: Path) -> None:
    second = build(photos, tmp_path / "second")
    shutil.copy(first / "labels/noisy.parquet", second / "labels/noisy.parquet")
    assert Dataset.open(second).labels("noisy").label.tolist() == Dataset.open(first).labels("noisy").label.tolist()
    (second / "shards/000000.tar").unlink()
    (second / "dataset.json").unlink()
    build(photos, second)                           # as verify says, to mend it
    Dataset.open(second).labels("noisy")
    assert main(["verify", str(second), "--workers", "1"]) == 0


def test_a_column_that_does_not_say_is_taken_as_it_is(first: Path) -> None:
    """Those that were written before columns said whose samples they mean."""
    for name in ("given", "noisy"):
        path = schema.labels_path(first, name)
        table = pq.read_table(path)
        assert table.schema.metadata.pop(b"samples_sha256") == Dataset.open(first).digest.encode()
        known = {key: text for key, text in table.schema.metadata.items() if key != b"samples_sha256"}
        if name == "noisy":
            known[b"parent"] = schema.file_digest(schema.labels_path(first, "given")).encode()
        schema.write_table(path, table.replace_schema_metadata(known))
        column = Dataset.open(first).labels(name)
        assert column.samples_sha256 == "" and len(column.label) == 30
    assert main(["verify", str(first), "--workers", "1"]) == 0
    assert main(["noise", str(first), "--name", "noisy", *NOISE]) == 0
    assert schema.read_labels(first, "noisy").samples_sha256 == "", "a column that is there already is not rewritten"
