"""The loader: what it hands out is what numpy and Pillow say, stays valid, and costs nothing when one stops early."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.data.images import Pixels, decoded, encoded, expected, noise, smooth, write_images
from twostage.config import AugmentConfig
from twostage.data import pipeline, plan
from twostage.data.augment import Draws
from twostage.data.dataset import Dataset
from twostage.data.loader import ImageLoader, StreamedImages, open_loader
from twostage.data.pipeline import choose_backend
from twostage.data.reader import ShardReader
from twostage.data.schema import InputError
from twostage.machine_config import LoaderConfig

CPU = torch.device("cpu")
STREAMED = LoaderConfig(cache="never", prefetch=3)
CACHED = LoaderConfig(cache="always")
PLAIN: dict[str, Any] = {"resize": None, "mean": [0.0] * 3, "std": [1 / 255] * 3}       # the network sees pixels 0..255
NUM = 13


@pytest.fixture(scope="module")
def files() -> list[bytes]:
    """Lossless images of mixed sizes, some smaller than the window."""
    return [encoded(noise(index, 6 + index % 5, 5 + index % 7), ("png", "webp")[index % 2], lossless=True)
            for index in range(NUM)]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory, files: list[bytes]) -> Dataset:
    return write_images(tmp_path_factory.mktemp("loader") / "d", files)


@pytest.fixture(scope="module")
def equal(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Images of one size, of which the cache can hold all."""
    images = [encoded(noise(100 + index, 9, 12)) for index in range(NUM)]
    return write_images(tmp_path_factory.mktemp("loader") / "d", images)


def draws_for(batch_size: int, num_views: int) -> Callable[[int], Draws]:
    return lambda step: plan.draws(batch_size, rng_seed=5, epoch=0, step=step, num_views=num_views)


def batches_of(num_samples: int, batch_size: int, epoch: int = 0) -> plan.Indices:
    return plan.epoch_batches(np.arange(num_samples), batch_size=batch_size, rng_seed=1, epoch=epoch)


def one_pass(
    loader: ImageLoader, batches: plan.Indices, num_views: int = 1, draws: Any = None, first_step: int = 0
) -> list[tuple[tuple[torch.Tensor, ...], torch.Tensor]]:
    """A training pass, kept whole."""
    draws = draws or draws_for(batches.shape[1], num_views)
    return list(loader.batches(batches, training=True, num_views=num_views, draws=draws, first_step=first_step))


# ---------------------------------------------------------------------------------------------------- what it hands out


@pytest.mark.parametrize(
    "augment",
    [
        AugmentConfig(**PLAIN, size=6),
        AugmentConfig(**PLAIN, size=7, shift=2, flip=False),
        AugmentConfig(**PLAIN, size=9, shift=3, crop="center"),
    ],
    ids=["crop and flip", "crop and shift", "shift and pad"],
)
def test_pixels_are_those_of_numpy_and_pillow(mixed: Dataset, files: list[bytes], augment: AugmentConfig) -> None:
    loader = open_loader(mixed, augment, STREAMED, CPU)
    batches, draws = batches_of(NUM, 4), draws_for(4, 2)
    passed = one_pass(loader, batches, 2, draws)
    assert [index.tolist() for _, index in passed] == batches.tolist()
    for step, (views, index) in enumerate(passed):
        assert len(views) == 2 and index.dtype == torch.int64
        for view, images in enumerate(views):
            assert images.shape == (4, 3, augment.size, augment.size) and images.dtype == torch.float32
            for slot, number in enumerate(index.tolist()):
                right = expected(files[number], draws(step)[view, slot], augment)
                assert np.array_equal(images[slot].numpy(), np.round(right)), (step, view, number)
    for (images,), index in loader.batches(plan.fixed_batches(np.arange(NUM), 4), training=False):
        for slot, number in enumerate(index.tolist()):
            assert np.array_equal(images[slot].numpy(), np.round(expected(files[number], None, augment)))
    loader.close()


@pytest.mark.parametrize("config", [STREAMED, CACHED], ids=["streamed", "cached"])
def test_normalised_per_channel(equal: Dataset, config: LoaderConfig) -> None:
    augment = AugmentConfig(resize=None, size=8, mean=[0.5, 0.4, 0.1], std=[0.2, 0.3, 1.0])
    raw = AugmentConfig(**PLAIN, size=8)
    seen, pixels = (one_pass(open_loader(equal, a, config, CPU), batches_of(NUM, 5)) for a in (augment, raw))
    for ((images,), _), ((values,), _) in zip(seen, pixels, strict=True):
        mean, std = np.reshape([0.5, 0.4, 0.1], (3, 1, 1)), np.reshape([0.2, 0.3, 1.0], (3, 1, 1))
        right = (values.double().numpy() / 255 - mean) / std
        assert np.allclose(images.numpy(), right, rtol=0, atol=2e-6)


@pytest.mark.parametrize("config", [STREAMED, CACHED], ids=["streamed", "cached"])
def test_the_mean_image_is_subtracted_where_the_network_sees_it(equal: Dataset, config: LoaderConfig) -> None:
    mean = np.random.default_rng(0).uniform(0, 255, (3, 8, 8)).astype(np.float32)
    augment = AugmentConfig(resize=None, size=8, mean="image", std=[1 / 255, 2 / 255, 0.5 / 255])
    centred = one_pass(open_loader(equal, augment, config, CPU, mean_image=mean), batches_of(NUM, 5))
    pixels = one_pass(open_loader(equal, AugmentConfig(**PLAIN, size=8), config, CPU), batches_of(NUM, 5))
    for ((images,), _), ((values,), _) in zip(centred, pixels, strict=True):
        right = (values.numpy() - mean) / np.reshape([1, 2, 0.5], (3, 1, 1))
        assert np.allclose(images.numpy(), right, rtol=0, atol=1e-4)


@pytest.mark.parametrize("mean", [[0.5, 0.4, 0.1], "image"], ids=["channels", "image"])
@pytest.mark.parametrize("half", [False, True])
def test_cache_and_streaming_give_the_same_bits(equal: Dataset, mean: Any, half: bool) -> None:
    augment = AugmentConfig(resize=7, size=8, shift=2, mean=mean, std=[0.2, 0.3, 0.25])
    image = np.random.default_rng(0).uniform(0, 255, (3, 8, 8)).astype(np.float32) if mean == "image" else None
    streamed, cached = (
        open_loader(equal, augment, config, CPU, half=half, mean_image=image) for config in (STREAMED, CACHED)
    )
    assert (streamed.kind, cached.kind) == ("dali-cpu", "cache")
    for epoch in range(3):
        batches = batches_of(NUM, 4, epoch)
        for one, other in zip(one_pass(streamed, batches, 2), one_pass(cached, batches, 2), strict=True):
            assert torch.equal(one[1], other[1])
            for a, b in zip(one[0], other[0], strict=True):
                assert a.dtype == b.dtype == (torch.float16 if half else torch.float32) and torch.equal(a, b)
        fixed = plan.fixed_batches(np.arange(NUM), 4)
        for one, other in zip(*(x.batches(fixed, training=False) for x in (streamed, cached)), strict=True):
            assert torch.equal(one[0][0], other[0][0]) and torch.equal(one[1], other[1])


@pytest.mark.parametrize("config", [STREAMED, CACHED], ids=["streamed", "cached"])
def test_two_views_from_one_decode_equal_two_passes(equal: Dataset, config: LoaderConfig) -> None:
    loader = open_loader(equal, AugmentConfig(resize=None, size=8, shift=1), config, CPU)
    batches, draws = batches_of(NUM, 4), draws_for(4, 2)
    both = one_pass(loader, batches, 2, draws)
    apart = [one_pass(loader, batches, 1, lambda step, v=v: draws(step)[v : v + 1]) for v in (0, 1)]
    for step, (views, _) in enumerate(both):
        assert all(torch.equal(views[v], apart[v][step][0][0]) for v in (0, 1))
        assert not torch.equal(*views)


@pytest.mark.parametrize("config", [STREAMED, CACHED], ids=["streamed", "cached"])
def test_starting_at_a_step_is_skipping_to_it(equal: Dataset, config: LoaderConfig) -> None:
    loader = open_loader(equal, AugmentConfig(resize=None, size=8, shift=1), config, CPU)
    batches = batches_of(NUM, 3)
    whole = one_pass(loader, batches)
    for first_step in range(len(batches) + 2):
        fresh = open_loader(equal, AugmentConfig(resize=None, size=8, shift=1), config, CPU)
        rest = one_pass(fresh, batches, first_step=first_step)
        assert len(rest) == max(0, len(batches) - first_step)
        for one, other in zip(rest, whole[first_step:], strict=True):
            assert torch.equal(one[0][0], other[0][0]) and torch.equal(one[1], other[1])


def test_resized_as_pillow_does_but_for_rounding(tmp_path: Path) -> None:
    """Within 2 levels of 255 everywhere and 0.3 on average: both smooth with a triangle as wide as the reduction."""
    sizes = [(40, 60), (90, 50), (64, 64), (20, 31), (33, 200)]
    images = [encoded(smooth(number, *size)) for number, size in enumerate(sizes)]
    augment = AugmentConfig(**{**PLAIN, "resize": 32}, size=32)
    loader = open_loader(write_images(tmp_path / "d", images), augment, STREAMED, CPU)
    for (seen,), index in loader.batches([np.arange(5)], training=False):
        for slot, number in enumerate(index.tolist()):
            apart = np.abs(seen[slot].numpy() - expected(images[number], None, augment))
            assert apart.max() <= 2 and apart.mean() < 0.3, (sizes[number], apart.max(), apart.mean())


def test_jpeg_decodes_as_pillow_does_but_for_rounding(tmp_path: Path) -> None:
    images = [encoded(smooth(number, 48, 40), "jpeg", quality=90, subsampling=number % 3) for number in range(6)]
    augment = AugmentConfig(**PLAIN, size=40)
    loader = open_loader(write_images(tmp_path / "d", images), augment, STREAMED, CPU)
    for (seen,), _ in loader.batches([np.arange(6)], training=False):
        for slot, data in enumerate(images):
            apart = np.abs(seen[slot].numpy() - expected(data, None, augment))
            assert apart.max() <= 3 and apart.mean() < 0.5


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_exif_orientation_is_applied(tmp_path: Path, kind: str) -> None:
    options = {"lossless": True} if kind == "webp" else {}
    images = [encoded(smooth(1, 12, 20), kind, orientation, **options) for orientation in range(1, 9)]
    augment = AugmentConfig(**PLAIN, size=12)
    dataset = write_images(tmp_path / "d", images)
    loader = open_loader(dataset, augment, STREAMED, CPU)
    (((seen,), _),) = loader.batches([np.arange(8)], training=False)
    for slot, data in enumerate(images):
        assert np.abs(seen[slot].numpy() - expected(data, None, augment)).max() <= 3, f"orientation {slot + 1}"


def stored_kinds() -> dict[str, Pixels | bytes]:
    gray = noise(3, 9, 9, 1)
    return {"gray": encoded(gray), "gray_jpeg": encoded(gray, "jpeg"), "rgb": encoded(noise(4, 9, 9)),
            "rgb_jpeg": encoded(smooth(4, 9, 9), "jpeg", progressive=True)}


@pytest.mark.parametrize("channels", ["gray", "rgb"])
def test_gray_and_colour_become_what_the_network_takes(tmp_path: Path, channels: Any) -> None:
    images = [bytes(data) for data in stored_kinds().values()]
    number = {"gray": 1, "rgb": 3}[channels]
    augment = AugmentConfig(channels=channels, resize=None, size=9, mean=[0.0] * number, std=[1 / 255] * number)
    dataset = write_images(tmp_path / "d", images)
    for config in (STREAMED, CACHED):
        (((seen,), _),) = open_loader(dataset, augment, config, CPU).batches([np.arange(4)], training=False)
        assert seen.shape == (4, number, 9, 9)
        for slot, data in enumerate(images):
            apart = np.abs(seen[slot].numpy() - np.moveaxis(decoded(data, augment), 2, 0))
            assert apart.max() <= 3, list(stored_kinds())[slot]


# ------------------------------------------------------------------------------------------------------------ lifetime


def test_tensors_stay_what_they_were(mixed: Dataset, equal: Dataset) -> None:
    for dataset, config in ((mixed, STREAMED), (equal, CACHED)):
        loader = open_loader(dataset, AugmentConfig(resize=None, size=8), config, CPU)
        kept, copies = [], []
        for epoch in range(4):
            for views, index in one_pass(loader, batches_of(NUM, 4, epoch), 2):
                kept += [*views, index]
                copies += [tensor.clone() for tensor in (*views, index)]
        loader.close()
        del loader
        gc.collect()
        scratch = [torch.full((4, 3, 8, 8), 7.0) for _ in range(50)]
        assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True)) and len(scratch) == 50
        assert len({tensor.data_ptr() for tensor in kept}) == len(kept), "two batches share their memory"


def resources() -> tuple[int, int, int]:
    """Threads and descriptors of this process, and resident KiB."""
    gc.collect()
    status = Path("/proc/self/status").read_text()
    resident = int(status.split("VmRSS:")[1].split()[0])
    return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd")), resident  # noqa: PTH208


@pytest.mark.parametrize("config", [STREAMED, CACHED], ids=["streamed", "cached"])
def test_many_passes_leave_nothing_behind(equal: Dataset, config: LoaderConfig) -> None:
    """240 passes; of these a quarter stops early and half evaluate."""
    loader = open_loader(equal, AugmentConfig(resize=None, size=8, shift=1), config, CPU)
    batches, fixed = batches_of(NUM, 4), plan.fixed_batches(np.arange(NUM), 4)

    def some(number: int) -> None:
        for turn in range(number):
            for step, _ in enumerate(loader.batches(batches, training=True, draws=draws_for(4, 1))):
                if turn % 2 and step == 1:
                    break
            for _ in loader.batches(fixed, training=False):
                pass

    some(30)
    before = resources()
    some(90)
    after = resources()
    assert after[:2] == before[:2], "threads or files"
    assert after[2] - before[2] < 4096, "KiB of memory"
    loader.close()


def test_loaders_leave_nothing_behind(equal: Dataset) -> None:
    def use(number: int) -> None:
        for _ in range(number):
            loader = open_loader(equal, AugmentConfig(resize=None, size=8), STREAMED, CPU)
            next(iter(loader.batches(batches_of(NUM, 4), training=True, draws=draws_for(4, 1))))
            loader.close()

    use(3)
    before = resources()
    use(10)
    assert resources()[:2] == before[:2]
    before_threads = threading.active_count()
    assert before_threads == 1 or not [t for t in threading.enumerate() if t.name.startswith("shard-reader")]


def test_a_consumer_that_stops_early_leaves_nothing_under_way(equal: Dataset) -> None:
    loader = StreamedImages(equal, AugmentConfig(resize=None, size=8), STREAMED, CPU)
    passing = loader.batches(batches_of(NUM, 2), training=True, draws=draws_for(2, 1))
    next(passing)
    (pipeline,) = loader._pipelines.values()
    assert pipeline.in_flight
    passing.close()  # type: ignore[attr-defined]
    assert not pipeline.in_flight


def test_a_new_pass_after_one_that_was_left(equal: Dataset) -> None:
    loader = open_loader(equal, AugmentConfig(resize=None, size=8), STREAMED, CPU)
    whole = one_pass(loader, batches_of(NUM, 4))
    left = loader.batches(batches_of(NUM, 4, 1), training=True, draws=draws_for(4, 1))
    next(left)                                      # still open, with batches under way
    again = one_pass(loader, batches_of(NUM, 4))
    assert all(torch.equal(a[0][0], b[0][0]) for a, b in zip(again, whole, strict=True))
    with pytest.raises(RuntimeError, match="a later pass"):
        next(left)


def test_training_and_evaluation_may_take_turns(equal: Dataset) -> None:
    loader = open_loader(equal, AugmentConfig(resize=None, size=8), STREAMED, CPU)
    fixed = plan.fixed_batches(np.arange(NUM), 5)
    trained, evaluated = one_pass(loader, batches_of(NUM, 4)), list(loader.batches(fixed, training=False))
    interleaved = []
    for number, batch in enumerate(loader.batches(batches_of(NUM, 4), training=True, draws=draws_for(4, 1))):
        interleaved.append(batch)
        if number == 1:
            for one, other in zip(loader.batches(fixed, training=False), evaluated, strict=True):
                assert torch.equal(one[0][0], other[0][0])
    assert all(torch.equal(a[0][0], b[0][0]) for a, b in zip(interleaved, trained, strict=True))


# -------------------------------------------------------------------------------------------------------------- damage


def damaged(tmp_path: Path, bad: bytes, **notes: Any) -> Dataset:
    images = [encoded(smooth(number, 10, 10), "jpeg") for number in range(9)]
    images[6] = bad
    return write_images(tmp_path / "d", images, sizes={6: (10, 10)}, **notes)


@pytest.mark.parametrize("bad", ["truncated", "not an image", "empty"])
@pytest.mark.parametrize("config", [STREAMED, CACHED], ids=["streamed", "cached"])
def test_a_damaged_image_is_named(tmp_path: Path, bad: str, config: LoaderConfig) -> None:
    data = {"truncated": encoded(noise(0, 10, 10), "jpeg")[:-60], "not an image": b"<html>404</html>" * 9, "empty": b""}
    dataset = damaged(tmp_path, data[bad])
    loader = open_loader(dataset, AugmentConfig(resize=None, size=8), config, CPU)
    place = rf"sample 6 \('photos/6'; .*000001\.tar, {len(data[bad])} bytes at \d+\) cannot be decoded; run .* verify"
    good = plan.fixed_batches(np.array([0, 1, 2, 3, 4, 5, 7, 8]), 4)
    for _ in range(2):
        with pytest.raises(InputError, match=place):
            for _ in loader.batches([np.array([0, 6, 7]), np.array([1, 2, 3])], training=False):
                pytest.fail("a batch with a damaged image was handed out")
        assert [index.tolist() for _, index in loader.batches(good, training=False)] == [[0, 1, 2, 3], [4, 5, 7, 8]]
    with pytest.raises(InputError, match="sample 6"):
        one_pass(loader, np.array([[1, 2], [6, 3], [4, 5]]), 2)
    loader.close()


@pytest.mark.parametrize("config", [STREAMED, CACHED], ids=["streamed", "cached"])
def test_a_shard_that_is_damaged_after_building_is_named_before_dali_sees_it(
    tmp_path: Path, config: LoaderConfig
) -> None:
    """Many damaged JPEGs in one batch: DALI might end the process."""
    images = [encoded(smooth(number, 40, 40), "jpeg") for number in range(24)]
    dataset = write_images(tmp_path / "d", images, per_shard=8)
    with dataset.shard_paths[1].open("r+b") as file:
        for index in range(8, 16):
            file.seek(int(dataset.offset[index]) + len(images[index]) // 2)
            file.write(b"\xff\xc4\xff\xda" * 10)
    loader = open_loader(dataset, AugmentConfig(resize=None, size=32), config, CPU)
    with pytest.raises(InputError, match=r"sample (8|9|1[0-5]): .*000001\.tar is damaged: .*run .* verify"):
        list(loader.batches([np.arange(24)], training=False))
    good = np.concatenate([np.arange(8), np.arange(16, 24)])
    assert [index.tolist() for _, index in loader.batches([good], training=False)] == [good.tolist()]
    loader.close()


def test_a_damaged_image_that_nobody_asked_for_is_nobodys(tmp_path: Path) -> None:
    dataset = damaged(tmp_path, b"no image")
    loader = open_loader(dataset, AugmentConfig(resize=None, size=8), STREAMED, CPU)
    for index in ([0, 1], [2, 3]):
        batches = loader.batches([np.array(index), np.array([6, 7])], training=False)
        assert next(iter(batches))[1].tolist() == index         # the damaged one is under way meanwhile
        batches.close()  # type: ignore[attr-defined]


def test_another_size_than_noted_is_named(tmp_path: Path) -> None:
    images = [encoded(noise(number, 10, 14)) for number in range(4)]
    dataset = write_images(tmp_path / "d", images, sizes={2: (14, 10)})
    loader = open_loader(dataset, AugmentConfig(resize=None, size=8), STREAMED, CPU)
    message = r"sample 2 .* has 14 × 10 pixels, but samples\.parquet says 10 × 14; run .* verify"
    with pytest.raises(InputError, match=message):
        list(loader.batches([np.arange(4)], training=False))


def test_an_image_that_would_grow_to_gigabytes_is_refused(tmp_path: Path) -> None:
    dataset = write_images(tmp_path / "d", [encoded(noise(1, 3, 3000)), encoded(noise(1, 9, 9))])
    with pytest.raises(InputError, match=r"sample 0 .* has 3000 × 3 pixels, 640000 × 640 after augment\.resize 640"):
        open_loader(dataset, AugmentConfig(resize=640), STREAMED, CPU)
    open_loader(dataset, AugmentConfig(resize=64), STREAMED, CPU)


# ----------------------------------------------------------------------------------------------------- waiting, options


def test_data_wait_says_who_is_slow(equal: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = open_loader(equal, AugmentConfig(resize=None, size=8), STREAMED, CPU)
    one_pass(loader, batches_of(NUM, 2))                        # builds the pipeline

    def share(step_seconds: float) -> float:
        for _ in loader.batches(batches_of(NUM, 2), training=True, draws=draws_for(2, 1)):
            assert 0 <= loader.data_wait <= 1
            time.sleep(step_seconds)
        return loader.data_wait

    slow_model = share(0.02)
    whole = ShardReader._read

    def slowly(self: ShardReader, indices: plan.Indices) -> Any:
        time.sleep(0.2)
        return whole(self, indices)

    monkeypatch.setattr(ShardReader, "_read", slowly)
    slow_reader = share(0)
    assert slow_model < 0.5 < slow_reader
    monkeypatch.undo()
    assert share(0.02) < 0.5, "what was waited in an earlier pass counts"
    loader.reset_meters()
    assert loader.data_wait < 0.5


def test_streams_what_does_not_fit_and_caches_what_does(mixed: Dataset, equal: Dataset) -> None:
    augment = AugmentConfig(resize=None, size=8)
    needed = NUM * 9 * 12 * 3 / 2**30
    assert open_loader(equal, augment, LoaderConfig(cache_gib=needed * 1.01), CPU).kind == "cache"
    assert open_loader(equal, augment, LoaderConfig(cache_gib=needed * 0.99), CPU).kind == "dali-cpu"
    assert open_loader(mixed, augment, LoaderConfig(), CPU).kind == "dali-cpu"
    with pytest.raises(InputError, match=r"loader\.cache: always, but .* differ in size .* set loader\.cache"):
        open_loader(mixed, augment, CACHED, CPU)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"read_threads": 0}, r"loader\.read_threads: 0: must be at least 1"),
        ({"decode_threads": -1}, r"loader\.decode_threads: -1: must be at least 1"),
        ({"prefetch": 0}, r"loader\.prefetch: 0: must be at least 1"),
        ({"hw_decoder_load": 1.5}, r"loader\.hw_decoder_load: 1\.5 is not a share between 0 and 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(equal: Dataset, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_loader(equal, AugmentConfig(), LoaderConfig(**changed), CPU)
    with pytest.raises(InputError, match=r"augment\.size"):
        open_loader(equal, AugmentConfig(size=0), LoaderConfig(), CPU)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine where DALI finds no GPU")
def test_without_a_gpu_for_dali_the_cpu_decodes_and_one_line_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    assert choose_backend(torch.device("cuda", 0), LoaderConfig()) == "cpu"
    lines = [line for line in capfd.readouterr().err.splitlines() if "DALI cannot use cuda:0" in line]
    assert len(lines) == 1 and "decoded and augmented on the CPU" in lines[0] and "nvidia-dali-cuda wheel" in lines[0]
    assert choose_backend(CPU, LoaderConfig()) == "cpu"
    assert capfd.readouterr().err == "", "no GPU was asked for"


@pytest.mark.parametrize("fancy", [True, False])
def test_a_gpu_decodes_as_the_settings_say(monkeypatch: pytest.MonkeyPatch, fancy: bool) -> None:
    """Without a GPU, as far as the decoder's own arguments; `tests/gpu` compares the pixels."""
    asked: dict[str, Any] = {}
    monkeypatch.setattr(pipeline.fn.decoders, "image", lambda encoded, **options: asked.update(options) or encoded)
    loader = LoaderConfig(hw_decoder_load=0.3, fancy_upsampling=fancy)
    pipeline._decoded(None, AugmentConfig(), loader, "mixed")
    assert (asked["device"], asked["hw_decoder_load"], asked["jpeg_fancy_upsampling"]) == ("mixed", 0.3, fancy)
    asked.clear()
    pipeline._decoded(None, AugmentConfig(), loader, "cpu")
    assert asked["device"] == "cpu" and not {"hw_decoder_load", "jpeg_fancy_upsampling"} & set(asked)


def test_streamed_images_say_what_they_are(mixed: Dataset) -> None:
    assert StreamedImages(mixed, AugmentConfig(), LoaderConfig(decoder="cpu"), CPU).kind == "dali-cpu"
