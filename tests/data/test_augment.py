"""From draws to windows, against the same rules one sample at a time; and wrong sections of a configuration."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from twostage.config import AugmentConfig
from twostage.data import plan
from twostage.data.augment import check_augment, pixel_scale, resized_shape, window
from twostage.data.schema import InputError

draw = st.floats(0, 1, exclude_max=True, width=32)
lengths = st.integers(1, 60)


@given(
    height=lengths,
    width=lengths,
    draws=st.tuples(draw, draw, draw, draw, draw),
    size=st.integers(1, 40),
    shift=st.integers(0, 5),
    crop=st.sampled_from(["random", "center"]),
    flip=st.booleans(),
)
@example(height=9, width=9, draws=(0.0, 0.0, 0.45454543828964233, 0.0, 0.0), size=5, shift=5, crop="center", flip=False)
def test_window_by_the_rules(
    height: int, width: int, draws: tuple[float, ...], size: int, shift: int, crop: Any, flip: bool
) -> None:
    augment = AugmentConfig(size=size, shift=shift, crop=crop, flip=flip)
    top, left, mirror = window([height], [width], np.array([draws], dtype=np.float32), augment)
    for length, corner, place, move in ((height, top[0], draws[0], draws[2]), (width, left[0], draws[1], draws[3])):
        slack = length - size
        base = math.floor(slack / 2)
        if crop == "random" and slack >= 0:
            base = math.floor(Fraction(place) * (slack + 1))
        assert corner == base + math.floor(Fraction(move) * (2 * shift + 1)) - shift
    assert mirror[0] == (flip and draws[4] < 0.5)
    top, left, mirror = window([height], [width], None, augment)
    assert (top[0], left[0]) == (math.floor((height - size) / 2), math.floor((width - size) / 2)) and not mirror[0]


@given(height=lengths, width=lengths, size=st.integers(1, 60), rng_seed=st.integers(0, 99))
def test_without_shift_the_window_stays_inside(height: int, width: int, size: int, rng_seed: int) -> None:
    augment = AugmentConfig(size=size)
    draws = plan.draws(64, rng_seed=rng_seed, epoch=0, step=0, num_views=1)[0]
    draws[0] = np.nextafter(np.float32(1), np.float32(0))       # the largest there is
    top, left, _ = window(np.full(64, height), np.full(64, width), draws, augment)
    for corner, length in ((top, height), (left, width)):
        if length >= size:
            assert (corner >= 0).all() and (corner <= length - size).all()


def test_every_place_and_both_sides_are_equally_likely() -> None:
    augment = AugmentConfig(size=5, shift=1)
    draws = np.concatenate([plan.draws(1000, rng_seed=3, epoch=0, step=s, num_views=1)[0] for s in range(12)])
    tops, _, mirror = window(np.full(12000, 9), np.full(12000, 5), draws, augment)
    crops = Counter(tops.tolist())
    assert sorted(crops) == list(range(-1, 6))
    ways = {-1: 1, 0: 2, 1: 3, 2: 3, 3: 3, 4: 2, 5: 1}          # of 5 places and 3 shifts to come to each
    assert all(abs(crops[top] - 12000 * n / 15) < 5 * math.sqrt(12000 * n / 15) for top, n in ways.items())
    assert abs(mirror.mean() - 0.5) < 0.02
    assert abs(np.corrcoef(tops, mirror)[0, 1]) < 0.05


@given(height=st.integers(1, 5000), width=st.integers(1, 5000), resize=st.integers(1, 600))
def test_resizing_keeps_the_shape_of_the_image(height: int, width: int, resize: int) -> None:
    new_height, new_width = (int(length) for length in resized_shape(height, width, resize))
    shorter = min(height, width)
    assert (new_height, new_width)[height > width] == resize
    for before, after in ((height, new_height), (width, new_width)):
        assert abs(Fraction(before * resize, shorter) - after) <= Fraction(1, 2)
    assert [int(length) for length in resized_shape(height, width, None)] == [height, width]


def test_pixel_scale_is_per_channel_or_the_mean_image() -> None:
    mean, inverse = pixel_scale(AugmentConfig(mean=[0.1, 0.2, 0.3], std=[1.0, 0.5, 0.25]))
    assert mean.shape == inverse.shape == (3, 1, 1) and mean.dtype == inverse.dtype == np.float32
    assert np.allclose(mean.ravel(), [25.5, 51, 76.5]) and np.allclose(inverse.ravel(), [1 / 255, 2 / 255, 4 / 255])
    image = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    assert pixel_scale(AugmentConfig(mean="image"), image)[0] is image


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mean": [0.5]}, r"augment\.mean: \[0\.5\] has 1 values, but augment\.channels 'rgb' needs 3"),
        ({"channels": "gray"}, r"augment\.mean: .* has 3 values, but augment\.channels 'gray' needs 1"),
        ({"channels": "gray", "mean": "image"}, r"augment\.std: .* has 3 values"),
        ({"std": [0.2, 0.0, 0.2]}, r"augment\.std: .* more than 0"),
        ({"size": 0}, r"augment\.size: 0: .* at least one pixel"),
        ({"resize": 0}, r"augment\.resize: 0: must be at least 1, or null"),
        ({"shift": -1}, r"augment\.shift: -1: must be 0 or more"),
    ],
)
def test_a_section_that_makes_no_sense_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_augment(dataclasses.replace(AugmentConfig(), **changed))
    check_augment(AugmentConfig())
