"""`twostage predict`: the same answer as for a dataset and by hand, broken files apart, and what it refuses."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from untrained_run import AUGMENT, NAMES, photos, write_files, write_run

from data_prep.check import Limits, RejectionError, check_image
from tests.data.images import encoded, expected, noise, smooth, write_images
from tests.data_prep.photos import png_bomb
from twostage.__main__ import main
from twostage.config import AugmentConfig
from twostage.report.trained import open_trained


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("untrained") / "run")


def predicted(tmp_path: Path, *arguments: object, code: int = 0) -> dict[str, list[object]]:
    out = tmp_path / "out.parquet"
    assert main(["predict", *map(str, arguments), "--out", str(out)]) == code
    columns: dict[str, list[object]] = pq.read_table(out).to_pydict()
    return columns


def probs_of(run: Path, images: list[bytes], augment: AugmentConfig) -> np.ndarray:
    """By Pillow and the network alone."""
    model = open_trained(run).network()
    batch = torch.from_numpy(np.stack([expected(image, None, augment) for image in images])).float()
    with torch.no_grad():
        return model(batch).softmax(1).numpy()


def test_files_get_the_answer_of_the_dataset(run_dir: Path, tmp_path: Path) -> None:
    images = photos()
    write_files(tmp_path / "photos", images)
    dataset = write_images(tmp_path / "dataset", images, splits=["test"] * len(images))
    loose = predicted(tmp_path, run_dir, tmp_path / "photos", "--top-k", 9)
    stored = predicted(tmp_path, run_dir, dataset.path, "--top-k", 9)
    assert stored.pop("index") == list(range(len(images)))
    assert stored.pop("key") == [f"photos/{n}" for n in range(len(images))]
    assert loose.pop("path") == [str(tmp_path / "photos" / f"{n:03d}.jpg") for n in range(len(images))]
    assert loose == stored and len(loose) == 2 * len(NAMES) + 1 and len(set(loose["predicted"])) > 1


def test_answers_are_those_of_the_network_by_hand(tmp_path: Path) -> None:
    augment = dataclasses.replace(AUGMENT, resize=None)       # so that PNGs are the same pixels for Pillow and DALI
    run = write_run(tmp_path / "run", augment=augment)
    images = [encoded(noise(n, 12 + n, 25 - n)) for n in range(9)]
    paths = write_files(tmp_path / "photos", images)
    found = predicted(tmp_path, run, *reversed(paths), "--top-k", len(NAMES))
    probs = probs_of(run, images[::-1], augment)
    for row, order in enumerate(np.argsort(-probs, axis=1)):
        for place, number in enumerate(order):
            ending = f"_{place + 1}" if place else ""
            assert found[f"predicted{ending}"][row] == NAMES[number]
            assert found[f"probability{ending}"][row] == pytest.approx(probs[row, number], abs=1e-5)


def broken() -> dict[str, tuple[bytes, str]]:
    """Name -> (file, what must be said of it)."""
    whole, photo = encoded(smooth(1, 40, 40), "jpeg"), encoded(smooth(2, 40, 40))
    start = whole.index(b"\xff\xdb")                 # of the first quantisation table
    two = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(io.BytesIO(whole)).save(two, "jpeg", exif=exif)
    begin = two.getvalue().index(b"\xff\xe1")
    segment = two.getvalue()[begin : begin + 2 + int.from_bytes(two.getvalue()[begin + 2 : begin + 4], "big")]
    chunk = struct.pack(">I4s26s", 26, b"eXIf", segment[10:36])
    chunk += struct.pack(">I", zlib.crc32(chunk[4:]))
    animation = io.BytesIO()
    frames = [Image.fromarray(np.full((9, 9), value, np.uint8)) for value in (1, 2, 3)]
    frames[0].save(animation, "png", save_all=True, append_images=frames[1:], default_image=True)
    return {
        "cut.jpg": (whole[: len(whole) // 2], "runcated"),
        "empty.png": (b"", "0 bytes"),
        "text.jpg": (b"<html>404</html>", "not a JPEG, PNG or WebP image"),
        "header.png": (photo[:10], "damaged"),
        "old.gif": (b"GIF89a", "not a JPEG, PNG or WebP image"),
        "gap.jpg": (whole[:start] + b"\0\0\0" + whole[start:], "DALI"),      # Pillow reads it
        "exif.jpg": (whole[:2] + segment + segment + whole[2:], "more than one EXIF"),
        "exif.png": (photo[:33] + chunk + chunk + photo[33:], "more than one eXIf"),
        "default.png": (animation.getvalue(), "an animation whose default image"),
        "bomb.png": (png_bomb(12_000, 12_000), "12000 x 12000 pixels, the limit is 100000000"),
        "larger.png": (png_bomb(), "the limit is 100000000"),
    }


def test_broken_files_are_listed_and_the_rest_is_predicted(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, images = tmp_path / "photos", photos(40)
    write_files(folder, images)
    alone = predicted(tmp_path, run_dir, folder)
    for name, (data, _) in broken().items():
        (folder / "0").mkdir(exist_ok=True)
        (folder / "0" / name).write_bytes(data)
    (folder / "0" / "gone.jpg").symlink_to("nowhere")
    (folder / "notes.txt").write_text("a")
    capsys.readouterr()
    found = predicted(tmp_path, run_dir, folder, "--batch-size", 16, code=3)
    printed = capsys.readouterr().out
    problems = {Path(str(path)).name: why for path, why in zip(found["path"], found["problem"], strict=True) if why}
    wanted = {name: why for name, (_, why) in broken().items()} | {"gone.jpg": "No such file"}
    assert problems.keys() == wanted.keys()
    for name, why in wanted.items():
        assert why in str(problems[name]), name
        assert f"{folder / '0' / name}: {problems[name]}" in printed
    assert "40 predicted" in printed and "12 cannot be read" in printed
    assert "1 other files passed over (1 .txt)" in printed
    good = [row for row, why in enumerate(found["problem"]) if why is None]
    assert [found["path"][row] for row in good] == alone["path"]
    assert [found["predicted"][row] for row in good] == alone["predicted"]
    assert np.allclose([found["probability"][row] for row in good], alone["probability"], atol=1e-6)
    assert all(found["predicted"][row] is None and found["probability_2"][row] is None
               for row in range(len(found["path"])) if row not in good)


def test_damage_anywhere_never_stops_it(run_dir: Path, tmp_path: Path) -> None:
    """Several damaged files in one of DALI's batches can end the process; what `build` takes is predicted."""
    rng = np.random.default_rng(1)
    files = []
    for n in range(400):
        orientation = 1 + n % 8 if n % 5 == 0 else None
        data = bytearray(encoded(smooth(n, 24 + n % 9, 30), ("jpeg", "png", "webp")[n % 3], orientation=orientation))
        for position in rng.integers(2, len(data), n % 4):
            data[position] = int(rng.integers(256))
        files.append(bytes(data if n % 17 else data[: int(rng.integers(1, len(data)))]))
    write_files(tmp_path / "photos", files)
    found = predicted(tmp_path, run_dir, tmp_path / "photos", "--batch-size", 64, code=3)
    assert all((name is None) != (why is None) for name, why in zip(found["predicted"], found["problem"], strict=True))
    limits, accepted = Limits(max_bytes=1 << 20, max_pixels=1 << 20, decode=True), []
    for number, data in enumerate(files):
        with contextlib.suppress(RejectionError):
            check_image(data, limits)
            accepted.append(number)
    good = {number for number, why in enumerate(found["problem"]) if why is None}
    assert set(accepted) <= good and len(good) <= len(accepted) + 4 and 150 < len(good) < 300


def test_nothing_readable(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = write_files(tmp_path / "photos", [b"x", b""])
    assert main(["predict", str(run_dir), *map(str, paths)]) == 3
    printed = capsys.readouterr().out
    assert "0 predicted, 2 cannot be read" in printed and f"cannot be read: {paths[1]}: 0 bytes" in printed


def test_names_of_files_and_classes_are_inert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ('c,"at"', "\x1b[2Jdog", "帽子", "d")
    run = write_run(tmp_path / "run", class_names=names)
    folder = tmp_path / "photos"
    folder.mkdir()
    keys = [os.fsencode(folder) + b"/" + name for name in (b"a,\"b\".png", b"c\nd.png", b"\xff.png", b".hidden.png")]
    for number, key in enumerate(keys):
        with open(key, "wb") as file:                   # noqa: PTH123  (bytes that are no text)
            file.write(encoded(noise(number, 20, 20)))
    out = tmp_path / "out.csv"
    assert main(["predict", str(run), str(folder), "--out", str(out)]) == 0
    found = pyarrow.csv.read_csv(out, parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True)).to_pydict()
    assert found["path"] == [f"{folder}/a,\"b\".png", f"{folder}/c\nd.png", f"{folder}/\\xff.png"]
    assert set(found["predicted"]) <= set(names)
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and "c\nd" not in printed and "1 other files passed over" in printed


def test_the_final_model_is_taken_unless_another_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", models=("pretrain", "train", "finetune", "baseline_unhinged"))
    image = encoded(noise(1, 20, 20))
    paths = write_files(tmp_path / "photos", [image])

    def first(*more: str) -> object:
        return predicted(tmp_path, run, paths[0], *more)["probability"][0]

    by_name = {name: first("--model", name) for name in ("pretrain", "train", "finetune", "baseline_unhinged")}
    assert len(set(by_name.values())) == 4
    assert first() == by_name["finetune"]
    shutil.rmtree(run / "finetune")
    assert first() == by_name["train"]
    (run / "train" / "done.json").unlink()
    assert first() == by_name["pretrain"]


@pytest.mark.parametrize("baselines", [["cross_entropy", "forward"], ["forward"]])
def test_of_a_run_of_baselines_the_last_is_taken(tmp_path: Path, baselines: list[str]) -> None:
    """`forward` trains `cross_entropy` first, whether that is named or not."""
    run = write_run(tmp_path / "run", models=("baseline_cross_entropy", "baseline_forward"))
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["run"]["baselines"] = baselines
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert open_trained(run).name == "baseline_forward"
    shutil.rmtree(run / "baseline_forward")
    assert open_trained(run).name == "baseline_cross_entropy"


def test_mean_image_and_gray(tmp_path: Path) -> None:
    augment = AugmentConfig(channels="gray", resize=None, size=16, mean="image", std=[0.5])
    run = write_run(tmp_path / "run", augment=augment)
    images = [encoded(noise(n, 16 + n, 20, channels=1)) for n in range(3)]
    found = predicted(tmp_path, run, *write_files(tmp_path / "photos", images))
    trained = open_trained(run)
    assert trained.mean_image is not None
    plain = dataclasses.replace(augment, mean=[0.0], std=[1.0])
    pixels = np.stack([expected(image, None, plain) for image in images])
    with torch.no_grad():
        batch = torch.from_numpy((pixels - trained.mean_image / 255) / 0.5).float()
        probs = trained.network()(batch).softmax(1).numpy()
    assert found["predicted"] == [NAMES[c] for c in probs.argmax(1)]
    assert np.allclose(found["probability"], probs.max(1), atol=1e-5)


def test_class_names_come_from_the_dataset_where_nothing_was_tested(tmp_path: Path) -> None:
    images = photos(4)
    dataset = write_images(tmp_path / "dataset", images, splits=["val"] * 4, class_names=NAMES)
    run = write_run(tmp_path / "run", dataset=dataset.path)
    shutil.rmtree(run / "evaluate")
    assert set(predicted(tmp_path, run, dataset.path, "--split", "val")["predicted"]) <= set(NAMES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}x", "{a}"], "did you mean 'run'?"),
        (["{photos}", "{a}"], "is no model"),
        (["{run}", "{photos}/00.jpg"], "did you mean '000.jpg'?"),
        (["{run}", "{empty}"], "no image (.jpg, .png, .webp)"),
        (["{run}", "{a}", "--model", "trian"], "did you mean 'train'?"),
        (["{run}", "{a}", "--split", "test"], "only a dataset"),
        (["{run}", "{dataset}", "--split", "tset"], "did you mean 'test'?"),
        (["{run}", "{dataset}", "{a}"], "by itself"),
        (["{run}", "{a}", "--out", "x.txt"], "allowed: .csv, .parquet"),
        (["{run}", "{a}", "--out", "{photos}/no/x.csv"], "make it first"),
        (["{run}", "{a}", "--top-k", "0"], "--top-k 0: must be at least 1"),
        (["{run}", "{a}", "--batch-size", "-1"], "--batch-size -1: must be at least 1"),
        (["{run}", "{a}", "--topk", "1"], "did you mean '--top-k'?"),
        (["{run}"], "PATHS"),
    ],
)
def test_wrong_input_is_named(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (photo,) = write_files(tmp_path / "photos", photos(1))
    (tmp_path / "empty").mkdir()
    write_images(tmp_path / "dataset", photos(2), splits=["test", "val"])
    places = {"run": run_dir, "a": photo, "photos": tmp_path / "photos", "empty": tmp_path / "empty",
              "dataset": tmp_path / "dataset"}
    assert main(["predict", *(argument.format(**places) for argument in arguments)]) == 2
    assert message in capsys.readouterr().err


def test_damaged_runs_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = str(write_files(tmp_path / "photos", photos(1))[0])
    for name, damage, message in [
        ("a", lambda run: (run / "train" / "model.safetensors").write_bytes(b"x"), "not a safetensors file"),
        ("b", lambda run: (run / "train" / "model.safetensors").unlink(), "is gone"),
        ("c", lambda run: (run / "evaluate" / "train" / "test.json").write_text("{"), "names of the classes"),
        ("d", lambda run: (run / "evaluate" / "train" / "test.json").write_text(json.dumps({"class_names": ["a"]})),
         "do not fit"),
        ("f", lambda run: (run / "config.yaml").write_text("augment: {size: many}"), "is not the configuration"),
        ("g", lambda run: (run / "config.yaml").write_text("a: [b"), "is not the configuration"),
        ("e", lambda run: [(run / m / "done.json").unlink() for m in ("pretrain", "train")], "no trained model yet"),
    ]:
        run = write_run(tmp_path / name)
        damage(run)
        assert main(["predict", str(run), photo]) == 2
        assert message in capsys.readouterr().err
