"""What `check_image` makes of changed image files."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping

from data_prep.check import REASONS, CheckedImage, Encoding, Limits, RejectionError, check_image


def reason(data: bytes, limits: Limits, encoding: Encoding | None = None) -> str:
    """The reason of rejection, or "" for an accepted image."""
    try:
        check_image(data, limits, encoding)
    except RejectionError as error:
        assert error.reason in REASONS and error.detail
        return error.reason
    return ""


def judged(
    kinds: Mapping[str, bytes], times: int, change: Callable[[bytes, random.Random], bytes], limits: Limits
) -> tuple[list[tuple[str, CheckedImage]], Counter[str]]:
    """The accepted ones of each kind's `times` changed files, by name, and how often each reason came ("": none)."""
    rng = random.Random(1)
    accepted: list[tuple[str, CheckedImage]] = []
    reasons: Counter[str] = Counter()
    for name, data in kinds.items():
        for _ in range(times):
            image = change(data, rng)
            found = reason(image, limits)
            reasons[found] += 1
            if not found:
                accepted.append((name, check_image(image, limits)))
    return accepted, reasons
