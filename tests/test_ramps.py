"""Ramps against the values of the temporal-ensembling code: 300 epochs, 80 up, 50 down."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twostage.ramps import linear_ramp_up, ramp_down, sigmoid_ramp_up

RAMPS = (sigmoid_ramp_up, ramp_down, linear_ramp_up)
lengths = st.floats(0, 1e6, allow_subnormal=False)
positions = st.floats(-1e6, 1e6)


@pytest.mark.parametrize(
    ("epoch", "value"), [(0, 0.0067), (10, 0.0218), (20, 0.0601), (40, 0.2865), (60, 0.7316), (80, 1.0), (299, 1.0)]
)
def test_sigmoid_ramp_up_has_the_published_values(epoch: int, value: float) -> None:
    assert sigmoid_ramp_up(epoch, 80) == pytest.approx(value, abs=5e-5)


@pytest.mark.parametrize(
    ("epoch", "value"), [(0, 1.0), (250, 1.0), (260, 0.6065), (270, 0.1353), (280, 0.0111), (299, 6.1e-6)]
)
def test_ramp_down_has_the_published_values(epoch: int, value: float) -> None:
    assert ramp_down(300 - epoch, 50) == pytest.approx(value, rel=0.01)


def test_linear_ramp_up_is_the_share_that_has_passed() -> None:
    assert [linear_ramp_up(t, 4) for t in (-1, 0, 1, 2, 4, 9)] == [0, 0, 0.25, 0.5, 1, 1]


@pytest.mark.parametrize("ramp", RAMPS)
@given(a=positions, b=positions, length=lengths)
def test_a_ramp_never_falls_nor_leaves_0_to_1(ramp, a: float, b: float, length: float) -> None:
    low, high = ramp(min(a, b), length), ramp(max(a, b), length)
    assert 0 <= low <= high <= 1


@pytest.mark.parametrize("ramp", RAMPS)
def test_no_length_is_no_ramp_and_a_negative_one_is_refused(ramp) -> None:
    assert ramp(0, 0) == 1
    assert ramp(7, 7) == 1
    with pytest.raises(ValueError, match="length -1"):
        ramp(0, -1)


@pytest.mark.parametrize("ramp", RAMPS)
def test_the_unit_does_not_matter(ramp) -> None:
    assert ramp(30, 80) == ramp(30 * 390, 80 * 390)
