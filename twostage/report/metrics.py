"""Reads what a stage logged while it trained. Imports no torch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from twostage.report.ranking import Floats


def read_metrics(path: Path) -> dict[str, tuple[Floats, Floats]]:
    """Reads metrics.jsonl: metric -> (steps, values), steps increasing.

    A line that a crash cut short is left out; of a step that was run again after a crash, the later value counts.
    """
    values: dict[str, dict[int, float]] = {}
    for line in path.read_text(errors="replace").splitlines():
        try:
            record = json.loads(line)
            step = int(record["step"])
        except (ValueError, KeyError, TypeError):
            continue
        for name, value in record.items():
            if name != "step" and isinstance(value, int | float):
                values.setdefault(name, {})[step] = float(value)
    return {
        name: (np.array(sorted(points), dtype=np.float64), np.array([points[s] for s in sorted(points)]))
        for name, points in values.items()
    }
