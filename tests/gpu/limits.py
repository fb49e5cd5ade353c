"""Part: what the card can do at most, and from all that was measured, what a million images would take."""

from __future__ import annotations

from typing import Any

import torch

from tests.gpu.part import Part, Row
from tests.gpu.training import RATE, REAL

FORWARD_FLOP = 8.18e9
"""of ResNet-50 at 224 pixels: 4.09 G multiply-adds, two each; a training step takes three times as many"""
MILLION = 1_000_000
SUB_EPOCHS = 100


def main() -> None:
    """Measures the matrix rate and the memory's bandwidth, then divides."""
    part = Part("limits")
    matrices = part.do("matrix product, bf16", lambda: matrix_rate(part))
    part.do("copy within memory", lambda: bandwidth(part))
    rows = {row["what"]: row for name in ("training", "ranking") for row in part.earlier(name) if row.get("ok")}
    for what, row in rows.items():
        for kind in (RATE, REAL):
            if kind in row and not part.toy:
                passes = 1 if what.startswith(("forward", "evaluation")) else 6 if "Π step" in what else 3
                part.do(f"{what}: {kind}", lambda r=row[kind], n=passes: share(r * n * FORWARD_FLOP, matrices))
    part.do("a million images, from the rates with real shards", lambda: stages(rows))


def matrix_rate(part: Part) -> Row:
    """Floating point operations per second of a large product."""
    side = 256 if part.toy else 8192
    a, b = (torch.randn(side, side, device=part.device, dtype=torch.bfloat16) for _ in range(2))
    count = 1 if part.toy else 20

    def run() -> int:
        for _ in range(count):
            a @ b
        return count

    return {"tflop_per_second": round(2 * side**3 * part.rate(run, seconds=0.1 if part.toy else 2) / 1e12, 4)}


def bandwidth(part: Part) -> Row:
    """Bytes per second that are read and written."""
    a = torch.empty(1 << 20 if part.toy else 1 << 30, device=part.device, dtype=torch.uint8)
    b = torch.empty_like(a)

    def run() -> int:
        b.copy_(a)
        return 2 * a.numel()

    return {"gb_per_second": round(part.rate(run, seconds=0.1 if part.toy else 1) / 1e9, 1)}


def share(flop_per_second: float, matrices: Row) -> Row:
    """How much of the matrix rate that is."""
    tera = flop_per_second / 1e12
    return {"tflop_per_second": round(tera, 1), "of_matrix_rate": round(tera / matrices["tflop_per_second"], 3)}


def stages(rows: dict[str, Row]) -> Row:
    """Hours: an epoch of stage 1, a ranking, and stage 2 where half of the labels are kept (half of each batch)."""
    def best(*words: str) -> float | None:
        found = [row[REAL] for what, row in rows.items() if REAL in row and "plain" not in what
                 and all(word in what for word in words)]
        return max(found, default=None)

    hours: dict[str, Any] = {}
    for name, images, rate in (
        ("stage_1_epoch", MILLION, best("supervised step")),
        ("ranking", MILLION, best("evaluation")),
        ("sub_epoch", MILLION, best("Π step")),
        ("stage_2", SUB_EPOCHS * MILLION, best("Π step")),
    ):
        hours[f"{name}_hours"] = None if rate is None else round(images / rate / 3600, 3)
    return hours


if __name__ == "__main__":
    main()
