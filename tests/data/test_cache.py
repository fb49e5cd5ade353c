"""The table in device memory: what is cut out of it, when it is filled, and when it is given back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twostage.config import AugmentConfig
from twostage.data import plan
from twostage.data.cache import CachedImages, cut, mirrored, scale_tensors, shown
from twostage.data.schema import InputError

CPU = torch.device("cpu")
AUGMENT = AugmentConfig(resize=None, size=3, mean=[0.0] * 3, std=[1 / 255] * 3)


@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
    size=st.integers(1, 8),
    reach=st.integers(0, 12),
    together=st.booleans(),
    rng_seed=st.integers(0, 999),
)
def test_squares_are_cut_out_and_black_outside(
    shape: tuple[int, int, int, int], size: int, reach: int, together: bool, rng_seed: int
) -> None:
    rng = np.random.default_rng(rng_seed)
    images = rng.integers(1, 256, shape, dtype=np.uint8)        # no black inside
    top, left = rng.integers(-reach, reach + 1, (2, shape[0]))
    if together:
        top[:], left[:] = top[0], left[0]
    squares = cut(torch.from_numpy(images), top, left, size).numpy()
    assert squares.shape == (*shape[:2], size, size)
    right = np.zeros_like(squares)
    for slot, channel, y, x in np.ndindex(right.shape):
        row, column = top[slot] + y, left[slot] + x
        if 0 <= row < shape[2] and 0 <= column < shape[3]:
            right[slot, channel, y, x] = images[slot, channel, row, column]
    assert np.array_equal(squares, right)


@given(st.lists(st.booleans(), min_size=1, max_size=6))
def test_only_the_chosen_are_mirrored(mirror: list[bool]) -> None:
    images = torch.randint(0, 256, (len(mirror), 3, 4, 5), dtype=torch.uint8)
    before = images.clone()
    turned = mirrored(images, np.array(mirror))
    for slot, flipped in enumerate(mirror):
        assert torch.equal(turned[slot], before[slot].flip(2) if flipped else before[slot])
    assert torch.equal(images, before), "the table itself was changed"


class Source:
    """Images that follow from their index; notes what is decoded."""

    def __init__(self, num_samples: int) -> None:
        self.images = torch.randint(0, 256, (num_samples, 4, 4, 3), dtype=torch.uint8)
        self.decoded: list[int] = []
        self.closed = 0

    def decode(self, indices: plan.Indices) -> Iterator[tuple[plan.Indices, torch.Tensor]]:
        for start in range(0, len(indices), 3):
            part = indices[start : start + 3]
            self.decoded += part.tolist()
            yield part, self.images[torch.from_numpy(part)]

    def close(self) -> None:
        self.closed += 1


def cached(source: Source, augment: AugmentConfig = AUGMENT) -> CachedImages:
    scale = scale_tensors(augment, None, CPU)
    return CachedImages(len(source.images), 4, 4, augment, scale, False, CPU, source.decode, source.close)


def test_each_image_is_decoded_once_when_it_is_first_needed() -> None:
    source = Source(10)
    loader = cached(source)
    for part, decoded in (([7, 2, 2], [2, 7]), ([2, 3], [2, 7, 3]), ([7], [2, 7, 3])):
        (((images,), index),) = loader.batches([np.array(part)], training=False)
        assert index.tolist() == part and source.decoded == decoded
        assert torch.equal(images, source.images[part, :3, :3].permute(0, 3, 1, 2).float())
    assert source.closed == 0, "more may be needed"
    for _ in range(2):
        assert len(list(loader.batches(plan.fixed_batches(np.arange(10), 4), training=False))) == 3
    assert sorted(source.decoded) == list(range(10)) and source.closed == 1


def test_only_what_the_rest_of_a_pass_touches_is_decoded() -> None:
    source = Source(10)
    draws = np.zeros((1, 2, 5), dtype=np.float32)
    plan_ = np.array([[0, 1], [2, 3], [4, 5]])
    passed = list(cached(source).batches(plan_, training=True, draws=lambda step: draws, first_step=1))
    assert [index.tolist() for _, index in passed] == [[2, 3], [4, 5]] and sorted(source.decoded) == [2, 3, 4, 5]


def test_memory_is_given_back() -> None:
    source = Source(10)
    loader = cached(source)
    list(loader.batches([np.arange(10)], training=False))
    loader.close()
    assert loader._table is None
    list(loader.batches([np.array([1])], training=False))
    assert source.decoded.count(1) == 2, "a closed cache hands out images that it no longer holds"


def test_too_little_memory_is_said_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> torch.Tensor:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(torch, "empty", fail)
    with pytest.raises(InputError, match=r"loader\.cache: no 0\.0 GiB on cpu for 10 images of 4 × 4 .* never"):
        list(cached(Source(10)).batches([np.arange(3)], training=False))


def test_progress_of_a_long_decoding_is_said_in_plain_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [(np.arange(3), torch.zeros(3)), (np.arange(2), torch.zeros(2))]
    assert len(list(shown(iter(parts), 5))) == 2 and capsys.readouterr().err == ""
    monkeypatch.setattr("twostage.data.cache.LINE_EVERY", 0.0)
    list(shown(iter(parts), 5))
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["decoding into memory: 3 of 5 images", "decoding into memory: 5 of 5 images"]
