"""What build writes: nothing lost, nothing changed, nothing in the wrong place; and what it says."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from nvidia.dali import fn, pipeline_def
from photos import KINDS, LIMITS, digests, encoded, rgb, with_orientation, write_photos
from PIL import Image, ImageOps

import data_prep
from data_prep.__main__ import main
from twostage.data import schema


def build(source: Path, out: Path, *options: str, code: int = 0) -> Path:
    assert main(["build", str(source), str(out), "--format", "folder", "--workers", "1", *LIMITS, *options]) == code
    return out


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 good images of 15 kinds in three splits and classes, and ten that are not to be accepted."""
    root = tmp_path_factory.mktemp("build") / "photos"
    write_photos(root)
    return root


@pytest.fixture(scope="module")
def intact(photos: Path) -> Path:
    return build(photos, photos.parent / "intact", "--shard-size", "16")


@pytest.fixture
def dataset(intact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(intact, tmp_path / "dataset"))


def members(dataset: Path) -> dict[int, bytes]:
    """Bytes by index, as tarfile finds them; in the order of the shards."""
    found: dict[int, bytes] = {}
    for path in sorted((dataset / "shards").glob("*.tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                file = archive.extractfile(member)
                assert file is not None
                found[int(member.name.split(".")[0])] = file.read()
    return found


def test_every_image_is_there_once_unchanged_with_its_split_and_label(photos: Path, intact: Path) -> None:
    samples = pq.read_table(intact / "samples.parquet").to_pylist()
    stored = members(intact)
    given = schema.read_labels(intact, "given")
    assert list(stored) == list(range(60)) == [row["index"] for row in samples] == given.index.tolist()
    assert given.class_names == ("cat", "dog", "frog")
    assert given.parent == schema.file_digest(intact / "samples.parquet")
    for row, label in zip(samples, given.label, strict=True):
        data = (photos / row["key"]).read_bytes()
        split, class_name, name = row["key"].split("/")
        assert stored[row["index"]] == data and row["sha256"] == hashlib.sha256(data).digest()
        assert row["split"] == {"train": "noisy_train", "val": "val", "test": "test"}[split]
        assert given.class_names[label] == class_name
        assert row["format"] == {"jpg": "jpeg"}.get(name.rsplit(".")[-1], name.rsplit(".")[-1])
        with (intact / "shards" / schema.shard_name(row["shard"])).open("rb") as shard:
            shard.seek(row["offset"])
            assert shard.read(row["size"]) == data
    assert len({row["key"] for row in samples}) == 60
    marker = schema.read_marker(intact)
    assert marker["splits"] == {"noisy_train": 36, "val": 12, "test": 12} and marker["num_shards"] == 5


def test_what_is_rejected_is_kept_in_a_table(photos: Path, intact: Path, tmp_path: Path) -> None:
    reasons = write_photos(tmp_path)
    rows = pq.read_table(intact / "rejected.parquet").to_pylist()
    assert {row["key"]: row["reason"] for row in rows} == reasons
    assert all(row["detail"] for row in rows)


def test_verify_finds_nothing(intact: Path) -> None:
    assert main(["verify", str(intact), "--workers", "1"]) == 0


def dali_reader(dataset: Path, **options: object) -> list[bytes]:
    """All images by DALI's own reader, in its order."""
    shards = sorted(str(path) for path in (dataset / "shards").glob("*.tar"))
    indices = sorted(str(path) for path in (dataset / "shards").glob("*.idx"))

    @pipeline_def(batch_size=60, num_threads=1, device_id=None)
    def pipeline() -> object:
        return fn.readers.webdataset(paths=shards, index_paths=indices, ext=["jpg;png;webp"],
                                     missing_component_behavior="error", **options)
    pipe = pipeline()
    pipe.build()
    (output,) = pipe.run()
    return [output.at(i).tobytes() for i in range(60)]


def test_dali_and_webdataset_read_the_same(intact: Path) -> None:
    expected = list(members(intact).values())
    assert dali_reader(intact) == expected == dali_reader(intact, dont_use_mmap=True)
    shards = sorted(str(path) for path in (intact / "shards").glob("*.tar"))
    samples = list(webdataset.WebDataset(shards, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [f"{index:09d}" for index in range(60)]
    assert [next(sample[e] for e in schema.EXTENSIONS.values() if e in sample) for sample in samples] == expected


def decode_with_dali(images: list[bytes]) -> list[np.ndarray]:
    @pipeline_def(batch_size=len(images), num_threads=1, device_id=None)
    def pipeline() -> object:
        data = [np.frombuffer(image, np.uint8) for image in images]
        return fn.decoders.image(fn.external_source(source=lambda: data, batch=True))
    pipe = pipeline()
    pipe.build()
    (output,) = pipe.run()
    return [np.array(output.at(i)) for i in range(len(images))]


def test_widths_and_heights_are_those_that_dali_decodes(intact: Path) -> None:
    samples = pq.read_table(intact / "samples.parquet").to_pylist()
    decoded = decode_with_dali(list(members(intact).values()))
    assert [(row["height"], row["width"], 3) for row in samples] == [image.shape for image in decoded]
    assert {(row["width"], row["height"]) for row in samples} == {(24, 16), (16, 24)}      # some lie on their side


def test_the_order_is_a_fair_draw_that_the_seed_decides(photos: Path, intact: Path, tmp_path: Path) -> None:
    def keys(dataset: Path) -> list[str]:
        return pq.read_table(dataset / "samples.parquet")["key"].to_pylist()

    other = build(photos, tmp_path / "other", "--shard-size", "16", "--rng-seed", "1")
    again = build(photos, tmp_path / "again", "--shard-size", "16")
    assert keys(intact) != sorted(keys(intact)) and keys(other) != keys(intact)
    assert sorted(keys(other)) == sorted(keys(intact))
    assert digests(again) == digests(intact)
    first = {key.split("/")[0] for key in keys(intact)[:14]}
    assert first == {"train", "val", "test"}


def test_another_place_of_the_source_gives_the_same_bytes(photos: Path, intact: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(photos, tmp_path / "moved")
    assert digests(build(copy, tmp_path / "o", "--shard-size", "16")) == digests(intact)


@pytest.mark.parametrize("encode", ["jpeg", "png", "webp"])
def test_images_written_anew_are_upright_and_close_to_the_original(
    photos: Path, tmp_path: Path, encode: str
) -> None:
    out = build(photos, tmp_path / "o", "--encode", encode)
    assert main(["verify", str(out), "--workers", "1"]) == 0
    samples = pq.read_table(out / "samples.parquet").to_pylist()
    stored = list(members(out).values())
    assert {row["format"] for row in samples} == {encode} and len(stored) == 60
    for row, data, decoded in zip(samples, stored, decode_with_dali(stored), strict=True):
        with Image.open(photos / row["key"]) as original, Image.open(io.BytesIO(data)) as now:
            assert not now.getexif() and "icc_profile" not in now.info
            if original.mode.startswith("I"):
                original = Image.fromarray((np.asarray(original) // 257).astype(np.uint8))
            expected = ImageOps.exif_transpose(original).convert("RGB")
        assert decoded.shape == np.asarray(expected).shape == (row["height"], row["width"], 3)
        difference = np.abs(np.asarray(expected, int) - decoded).mean()
        allowed = 0 if encode == "png" else 12 if "palette" in row["key"] else 6
        assert difference <= allowed, row["key"]


def test_larger_images_are_reduced(tmp_path: Path) -> None:
    large = {"a/wide.png": rgb(1, width=150, height=100), "b/high.jpg": rgb(2, width=300, height=600)}
    for name, image in large.items():
        (tmp_path / "s" / name).parent.mkdir(parents=True)
        image.save(tmp_path / "s" / name, quality=95)
    out = build(tmp_path / "s", tmp_path / "o", "--short-side", "50", "--encode", "png")
    samples = pq.read_table(out / "samples.parquet").to_pylist()
    for row, decoded in zip(samples, decode_with_dali(list(members(out).values())), strict=True):
        size = (75, 50) if row["key"] == "a/wide.png" else (50, 100)
        assert (row["width"], row["height"]) == size and decoded.shape == (size[1], size[0], 3)
        expected = np.asarray(large[row["key"]].resize(size, Image.Resampling.BICUBIC), int)
        difference = np.abs(expected - decoded).mean()
        assert difference == 0 if row["key"] == "a/wide.png" else difference < 3      # JPEG is decoded at half its size


def test_smaller_images_are_not_enlarged_and_quality_counts(tmp_path: Path) -> None:
    for number, class_name in enumerate("ab"):
        path = tmp_path / "s" / class_name / "x.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(KINDS["png"](number))
    low, high = (build(tmp_path / "s", tmp_path / q, "--short-side", "100", "--quality", q) for q in ("20", "95"))
    sizes = [pq.read_table(out / "samples.parquet") for out in (low, high)]
    assert sizes[0]["width"].to_pylist() == [24, 24]
    assert sizes[0]["size"].to_numpy().sum() < 0.9 * sizes[1]["size"].to_numpy().sum()


def test_an_image_that_the_format_cannot_hold_is_rejected(tmp_path: Path) -> None:
    write_photos(tmp_path / "s", num=30, broken=False)
    (tmp_path / "s/train/cat/long.png").write_bytes(encoded(Image.new("L", (20_000, 20)), "PNG"))
    out = build(tmp_path / "s", tmp_path / "o", "--encode", "webp")
    (row,) = pq.read_table(out / "rejected.parquet").to_pylist()
    assert (row["key"], row["reason"]) == ("train/cat/long.png", "not_encodable") and "20000 x 20" in row["detail"]


def test_header_check_lets_damaged_pixels_through_but_not_cut_files(tmp_path: Path) -> None:
    write_photos(tmp_path / "s", num=30, broken=False)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = encoded(Image.fromarray(noise), "JPEG", exif=with_orientation(6))
    scan = whole.index(b"\xff\xda")
    damaged = whole[: scan + 100] + bytes(range(40, 60)) * 20 + whole[scan + 500 :]
    (tmp_path / "s/train/cat/damaged.jpg").write_bytes(damaged)
    (tmp_path / "s/train/cat/cut.jpg").write_bytes(whole[:-300])
    (tmp_path / "s/train/cat/garbage.jpg").write_bytes(b"\xff\xd8\xff" + bytes(1000))
    out = build(tmp_path / "s", tmp_path / "o", "--check", "header")
    reasons = {row["key"]: row["reason"] for row in pq.read_table(out / "rejected.parquet").to_pylist()}
    assert reasons == {"train/cat/cut.jpg": "truncated", "train/cat/garbage.jpg": "damaged"}
    row = next(r for r in pq.read_table(out / "samples.parquet").to_pylist() if r["key"].endswith("damaged.jpg"))
    assert (row["width"], row["height"]) == (64, 64)


def test_exact_duplicates_are_counted_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_photos(tmp_path / "s", num=30, broken=False)
    shutil.copy(tmp_path / "s/train/cat/0000.jpg", tmp_path / "s/train/cat/again.jpg")
    shutil.copy(tmp_path / "s/train/cat/0000.jpg", tmp_path / "s/test/dog/leak.jpg")
    out = build(tmp_path / "s", tmp_path / "o")
    printed = capsys.readouterr().out
    across = 1 if "1 across" in printed else 2        # the shuffle decides which of the three is the first
    assert f"2 exact duplicates, {across} across splits" in printed
    assert "\nwarning: 1 images of test are in training too, byte for byte\n" in printed and "of val" not in printed
    assert schema.read_marker(out)["num_samples"] == 32


@pytest.mark.parametrize("name", ["folder", "table"])
def test_copies_of_held_out_images_are_left_out_if_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    source = tmp_path / "s"
    write_photos(source, num=30, broken=False)
    for split, copied in (("train", "val/cat/0003.gray.jpg"), ("train", "test/dog/0004.cmyk.jpg"),
                          ("val", "test/dog/0004.cmyk.jpg"), ("test", "test/dog/0004.cmyk.jpg")):
        shutil.copy(source / copied, source / split / "cat" / f"of-{Path(copied).name}")
    if name == "table":
        rows = [f"{path.relative_to(source)},{path.parts[-2]},{path.parts[-3]}" for path in source.rglob("*.*")]
        source /= "t.csv"
        source.write_text("\n".join(["path,label,split", *rows, ""]))
    command = ["build", str(source), "--format", name, "--workers", "1"]
    assert main([*command, str(tmp_path / "kept")]) == 0
    assert "with --drop-leaks, and another OUT" in capsys.readouterr().out
    assert main([*command, str(tmp_path / "kept"), "--drop-leaks"]) == 2
    assert main([*command, str(tmp_path / "o"), "--drop-leaks"]) == 0
    rejected = pq.read_table(tmp_path / "o" / "rejected.parquet").to_pylist()
    assert {row["key"]: row["reason"] for row in rejected} == dict.fromkeys(
        ["train/cat/of-0003.gray.jpg", "train/cat/of-0004.cmyk.jpg", "val/cat/of-0004.cmyk.jpg"], "leak")
    assert "warning" not in capsys.readouterr().out
    assert schema.read_marker(tmp_path / "o")["splits"] == {"noisy_train": 18, "val": 6, "test": 7}


def test_what_is_printed_at_the_end(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "s").symlink_to(photos)
    (photos / "train" / "empty class").mkdir(exist_ok=True)
    out = build(photos, tmp_path / "o")
    (photos / "train" / "empty class").rmdir()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines if line.startswith(("class", "dog", "all"))] == [
        ["class", "noisy_train", "val", "test", "all"], ["dog", "12", "4", "4", "20"], ["all", "36", "12", "12", "60"]]
    assert "note: class 'empty class' has no images" in lines
    assert any("3 format: not a JPEG, PNG or WebP image" in line for line in lines)
    assert "rejected: 10 (rejected.parquet names each one)" in lines
    assert f"next: python -m data_prep verify {out}" in lines


def test_what_comes_next_can_be_run_as_it_stands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_photos(tmp_path / "s", num=12, broken=False, splits=("train", "test"))
    for options, expected in [((), "photos.yaml "), (("--short-side", "96"), "photos-small.yaml --data.holdout=0.1 ")]:
        out = build(tmp_path / "s", tmp_path / f"o{len(options)}", *options)
        assert f"--config configs/{expected}--data.dataset {out}" in capsys.readouterr().out


def test_a_dry_run_writes_nothing(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = build(photos, tmp_path / "o", "--dry-run")
    assert not out.exists()
    assert any(line.split() == ["all", "42", "14", "14", "70"] for line in capsys.readouterr().out.splitlines())


def test_names_that_are_no_text_or_command_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [b"a\xff.png", "ä ö.png".encode(), b"new\nline.png", b"\x1b[31mred.png", b"bad\x1b[2J"]
    for number, name in enumerate([b"/" + name for name in names] * 2):
        path = tmp_path / "s" / "xy"[number // 5] / os.fsdecode(name[1:])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(KINDS["png"](number) if name.endswith(b"png") else b"")
    out = build(tmp_path / "s", tmp_path / "o")
    keys = set(pq.read_table(out / "samples.parquet")["key"].to_pylist())
    assert {"x/a\\xff.png", "x/ä ö.png", "x/new\nline.png", "x/\x1b[31mred.png"} < keys and len(keys) == 8
    (tmp_path / "s" / "y").rename(tmp_path / "s" / "\x1b[2Jy")
    build(tmp_path / "s", tmp_path / "o2", "--dry-run")
    build(tmp_path / "s", tmp_path / "o2")
    noise = ["--name", "n", "--kind", "symmetric", "--rate", "0.5", "--rng-seed", "0"]
    assert main(["noise", str(tmp_path / "o2"), *noise]) == 0
    assert "\x1b" not in capsys.readouterr().out
    assert main(["verify", str(out), "--workers", "1"]) == 0


def test_the_readers_example_in_the_description(intact: Path) -> None:
    text = (Path(data_prep.__file__).parent / "README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0].replace("data/photos", str(intact))
    names: dict[str, object] = {}
    exec(code, names)
    assert names["image"] == members(intact)[7]
    assert names["label"] == schema.read_labels(intact, "given").label[7]


def test_shards_without_any_accepted_image_leave_no_gap(tmp_path: Path) -> None:
    write_photos(tmp_path / "s", num=15, broken=False)
    for number in range(40):
        (tmp_path / "s/train/cat" / f"bad{number}.jpg").write_bytes(b"no image")
    out = build(tmp_path / "s", tmp_path / "o", "--shard-size", "2")
    assert main(["verify", str(out), "--workers", "1"]) == 0
    marker = schema.read_marker(out)
    assert marker["num_samples"] == 15 and marker["num_shards"] < 28
    assert len(list((out / "shards").iterdir())) == 2 * marker["num_shards"]
    assert digests(build(tmp_path / "s", tmp_path / "o2", "--shard-size", "2", "--workers", "2")) == digests(out)
