"""What every part of the check is given, and how it notes its results: at once, so that nothing is lost with it."""

from __future__ import annotations

import argparse
import gc
import json
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Row = dict[str, Any]


class Part:
    """One part's run: what it may use, and the rows that it notes."""

    def __init__(self, name: str) -> None:
        parser = argparse.ArgumentParser(prog=f"tests.gpu.{name}")
        parser.add_argument("--work", type=Path, required=True, help="folder with what earlier parts left")
        parser.add_argument("--seconds", type=float, default=60, help="no measurement is begun after this time")
        parser.add_argument("--toy", action="store_true", help="sizes for a CPU, where only running to the end counts")
        arguments = parser.parse_args()
        self.name, self.work, self.toy = name, arguments.work, arguments.toy
        self.on_gpu = torch.cuda.is_available()
        self.device = torch.device("cuda", 0) if self.on_gpu else torch.device("cpu")
        self.dataset = self.work / "dataset"
        self._until = time.monotonic() + arguments.seconds
        self._rows: list[Row] = []

    def do(self, what: str, action: Callable[[], Row]) -> Row:
        """Notes a row of the results: what `action` returns, or how it failed, which ends nothing else.

        `ok` is True unless the action says otherwise, False where it raised, None where its turn came too late.
        """
        row: Row = {"what": what}
        started = time.monotonic()
        if started > self._until:
            row |= {"ok": None, "error": "skipped: no time left"}
        else:
            try:
                row |= {"ok": True} | action()
            except Exception as error:
                row |= {"ok": False, "error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
                traceback.print_exc()
        row["seconds"] = round(time.monotonic() - started, 2)
        self._rows.append(row)
        print(json.dumps(row), flush=True)
        aside = self.work / f".{self.name}.json"
        aside.write_text(json.dumps(self._rows))
        aside.replace(self.work / f"{self.name}.json")
        return row

    def earlier(self, name: str) -> list[Row]:
        """The rows of an earlier part, none where there are none."""
        path = self.work / f"{name}.json"
        rows: list[Row] = json.loads(path.read_text()) if path.exists() else []
        return rows

    def synchronize(self) -> None:
        """Waits for the GPU."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def rate(self, run: Callable[[], int], *, seconds: float) -> float:
        """Images per second of `run`, which says how many it handled: once unmeasured, then again until time is up."""
        run()
        self.synchronize()
        images, started = 0, time.perf_counter()
        while images == 0 or time.perf_counter() - started < seconds:
            images += run()
            self.synchronize()
        return images / (time.perf_counter() - started)

    def fresh(self) -> None:
        """Lets go of what an earlier measurement left on the GPU."""
        gc.collect()
        torch.compiler.reset()
        if self.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_gib(self) -> float | None:
        """Most GPU memory that PyTorch's tensors took since `fresh`, in GiB; None on a CPU."""
        return round(torch.cuda.max_memory_allocated(self.device) / 2**30, 2) if self.on_gpu else None
