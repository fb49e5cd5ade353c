"""Made-up images: the same whatever the workers and crashes, and like photographs to an encoder."""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, JpegImagePlugin

from data_prep import synth
from data_prep.canvas import Painter, one_over_f
from tests.data_prep.shared_data import shared_file
from twostage.data.schema import InputError

NUM, CLASSES = 250, 3


def run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    synth.add_arguments(parser)
    return synth.main(parser.parse_args([str(argument) for argument in arguments]))


def make(out: Path, *more: object, num: int = NUM) -> dict[str, bytes]:
    assert run(out, "--num", num, "--size", "40x24", "--classes", CLASSES, "--workers", 1, *more) == 0
    return files(out)


def files(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    out = tmp_path_factory.mktemp("synth") / "out"
    return out, make(out)


def test_every_image_is_there_once_in_its_class_and_no_two_are_alike(made: tuple[Path, dict[str, bytes]]) -> None:
    _, found = made
    expected = {f"class_{number % CLASSES}/00000/{number:09d}.jpg" for number in range(NUM)}
    assert set(found) == expected
    assert len(set(found.values())) == NUM
    for data in found.values():
        with Image.open(io.BytesIO(data)) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (40, 24))
            assert JpegImagePlugin.get_sampling(image) == 2           # 4:2:0
            assert b"--size 40x24 --classes 3 --quality 90 --rng-seed 0" in image.info["comment"]
            image.load()


def test_workers_and_a_second_run_change_nothing(
    made: tuple[Path, dict[str, bytes]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, found = made
    assert make(tmp_path / "two", "--workers", 2) == found
    capsys.readouterr()
    assert make(out) == found
    assert f"{NUM} images in {out}, 0 of them written now" in capsys.readouterr().out


def test_missing_and_empty_files_are_made_again_and_others_left(tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = make(out, num=20)
    lost, empty, kept = (out / name for name in list(first)[:3])
    lost.unlink()
    empty.write_bytes(b"")                          # as a crash of the machine leaves it
    before = kept.stat().st_mtime_ns
    more = make(out, num=30)
    assert {name: more[name] for name in first} == first and len(more) == 30
    assert kept.stat().st_mtime_ns == before


def test_seed_size_and_quality_matter(made: tuple[Path, dict[str, bytes]], tmp_path: Path) -> None:
    _, found = made
    other = make(tmp_path / "seed", "--rng-seed", 1, num=10)
    assert not set(other.values()) & set(found.values())
    coarse = make(tmp_path / "quality", "--quality", 30, num=10)
    assert sum(map(len, coarse.values())) < 0.8 * sum(len(found[name]) for name in coarse)


@given(num=st.integers(1, 25_000), classes=st.integers(1, 40))
def test_jobs_hold_every_number_once_and_folders_at_most_a_thousand(num: int, classes: int) -> None:
    plan = synth.Plan(out=Path("o"), width=16, height=16, classes=classes, quality=90, rng_seed=0)
    seen: list[int] = []
    per_folder: dict[str, int] = {}
    for job in synth.list_jobs(num, classes):
        numbers = range(job.first, job.end, classes)
        assert 0 < len(numbers) <= synth.PER_JOB and len({plan.folder(n) for n in (numbers[0], numbers[-1])}) == 1
        per_folder[plan.folder(job.first)] = per_folder.get(plan.folder(job.first), 0) + len(numbers)
        seen += numbers
    assert sorted(seen) == list(range(num))
    assert max(per_folder.values()) <= 1000


def test_killed_at_random_instants_and_run_again_gives_the_same(
    made: tuple[Path, dict[str, bytes]], tmp_path: Path
) -> None:
    _, found = made
    out = tmp_path / "out"
    command = [sys.executable, "-m", "data_prep", "synth", out, "--num", NUM, "--size", "40x24", "--classes", CLASSES,
               "--workers", 2]
    kills = 0
    for pause in np.random.default_rng().uniform(0.0, 0.04, 3):
        process = subprocess.Popen(list(map(str, command)), cwd=Path(__file__).parents[2])
        before = sum(1 for _ in out.rglob("*.jpg")) if out.exists() else 0
        while process.poll() is None and (not out.exists() or sum(1 for _ in out.rglob("*.jpg")) == before < NUM):
            time.sleep(0.005)
        time.sleep(pause)
        process.kill()
        kills += process.wait() == -9
    assert kills > 0, "no kill struck: the test says nothing"
    assert make(out) == found


def test_a_disk_that_fills_up_leaves_no_part_of_a_file(made: tuple[Path, dict[str, bytes]], tmp_path: Path) -> None:
    _, found = made
    limit = sorted(map(len, found.values()))[NUM // 2]      # bytes that fit into a file
    code = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); " \
           "import sys; from data_prep.__main__ import main; sys.exit(main())"
    arguments = ["synth", str(tmp_path / "out"), "--num", str(NUM), "--size", "40x24", "--classes", str(CLASSES)]
    result = subprocess.run([sys.executable, "-c", code, *arguments, "--workers", "1"], cwd=Path(__file__).parents[2],
                            capture_output=True, text=True, check=False)
    assert result.returncode == 1 and "File too large" in result.stderr
    there = {name: data for name, data in files(tmp_path / "out").items() if not Path(name).name.startswith(".")}
    assert there and all(found[name] == data for name, data in there.items())
    assert make(tmp_path / "out") == found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--size", "big"), r"--size big: give pixels, as 256, or 400x300"),
        (("--size", "8"), r"--size 8: give 16 to 4096"),
        (("--num", "0"), r"--num 0: give 1 to"),
        (("--classes", "0"), r"--classes 0: give 1 to"),
        (("--quality", "101"), r"--quality 101: give 1 to 100"),
        (("--rng-seed", "-1"), r"--rng-seed -1: give 0 to"),
        (("--workers", "0"), r"--workers 0: give 1 to"),
    ],
)
def test_wrong_options_are_named(tmp_path: Path, arguments: Sequence[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(tmp_path / "out", "--num", 5, "--size", 16, *arguments)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_else_in_it_is_refused(made: tuple[Path, dict[str, bytes]], tmp_path: Path) -> None:
    out, found = made
    with pytest.raises(InputError, match=r"class_0/00000/000000000.jpg is 'made up .* --quality 90 .*--quality 91"):
        make(out, "--quality", 91)
    with pytest.raises(InputError, match=r"beyond --num 100: give --num \d+ or more"):
        make(out, num=100)
    assert files(out) == found
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(tmp_path / "photos" / "cat" / "1.jpg")
    with pytest.raises(InputError, match=r"photos holds other files: .*cat/1.jpg is not made by data_prep synth"):
        make(tmp_path / "photos")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file: give a folder"):
        make(tmp_path / "file")


def slope_and_correlation(images: Sequence[npt.NDArray[np.uint8]]) -> tuple[float, float]:
    """How the light's amplitude falls with frequency (log-log), and how red goes with green."""
    side = images[0].shape[0]
    window = np.hanning(side)[:, None] * np.hanning(side)
    power = np.zeros((side, side))
    for image in images:
        light = image.mean(axis=2)
        power += np.abs(np.fft.fft2((light - light.mean()) * window)) ** 2
    ring = np.rint(np.hypot(*np.meshgrid(*[np.fft.fftfreq(side) * side] * 2))).astype(int).ravel()
    amplitude = np.sqrt(np.bincount(ring, power.ravel()) / np.bincount(ring))
    rings = np.arange(4, side // 3)
    pixels = np.concatenate([image.reshape(-1, 3) for image in images])
    slope = np.polyfit(np.log(rings), np.log(amplitude[rings]), 1)[0]
    return float(slope), float(np.corrcoef(pixels.T)[0, 1])


def photographs(side: int, count: int) -> list[Image.Image]:
    """Centre crops of real ones."""
    found = []
    with tarfile.open(shared_file("clothing/clothing-dataset-small.valtest.tar")) as archive:
        for member in [member for member in archive if member.name.endswith(".jpg")][:count]:
            file = archive.extractfile(member)
            assert file is not None
            with Image.open(file) as image:
                image.draft("RGB", (side * 2, side * 2))
                scale = side / min(image.size)
                small = image.convert("RGB").resize((round(image.width * scale), round(image.height * scale)))
            left, upper = (small.width - side) // 2, (small.height - side) // 2
            found.append(small.crop((left, upper, left + side, upper + side)))
    return found


def test_they_compress_like_photographs_and_have_their_spectra() -> None:
    side, count = 128, 120
    sizes = {}
    images = {"real": photographs(side, count)}
    painter = Painter(side, side, 90, rng_seed=0)
    images["made"] = [painter.image(number) for number in range(count)]
    for kind, pictures in images.items():
        sizes[kind] = []
        for picture in pictures:
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG", quality=90, subsampling="4:2:0")
            sizes[kind].append(len(buffer.getvalue()) / side**2)
    real, made = (np.quantile(sizes[kind], [0.1, 0.5, 0.9]) for kind in ("real", "made"))
    np.testing.assert_allclose(made, real, rtol=0.25)
    np.testing.assert_allclose(np.mean(sizes["made"]), np.mean(sizes["real"]), rtol=0.15)
    slope, correlation = slope_and_correlation([np.asarray(image) for image in images["made"]])
    assert -1.6 < slope < -0.9              # photographs: -1.1; white noise: 0; a smooth ramp: -2 or steeper
    assert 0.7 < correlation < 0.95         # photographs of clothes: 0.78


@pytest.mark.parametrize("slope", [0.8, 1.0, 2.0])
def test_textures_fall_as_asked(slope: float) -> None:
    noise = one_over_f(128, slope, np.random.default_rng(0))
    assert noise.dtype == np.float32 and abs(noise.std() - 1) < 1e-3 and abs(noise.mean()) < 1e-3
    power = np.abs(np.fft.fft2(noise)) ** 2
    ring = np.rint(np.hypot(*np.meshgrid(*[np.fft.fftfreq(128) * 128] * 2))).astype(int).ravel()
    amplitude = np.sqrt(np.bincount(ring, power.ravel()) / np.bincount(ring))
    assert np.polyfit(np.log(np.arange(3, 60)), np.log(amplitude[3:60]), 1)[0] == pytest.approx(-slope, abs=0.08)
