"""Mining a million samples of 14 classes: seconds, and the most memory that the process held.

A ranking of 64 parts in a temporary folder, mined in a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.bench.contest import Contest, Scale, Target

NUM_SAMPLES, NUM_CLASSES, NUM_PARTS = 1_000_000, 14, 64
MEASURED = """
import json, resource, sys, time
from pathlib import Path
import numpy as np
from twostage.config import MineConfig
from twostage.stage1.mine import mine
folder, names = Path(sys.argv[1]), [f"class {c}" for c in range(int(sys.argv[2]))]
clean = np.load(folder / "clean.npy")
seconds, busy = [], []
for _ in range(5):
    started, used = time.perf_counter(), time.process_time()
    _, results = mine(folder / "rank", folder / "mine", class_names=names, config=MineConfig(), clean=clean)
    seconds.append(time.perf_counter() - started)
    busy.append(time.process_time() - used)
mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"first": seconds[0], "best": min(seconds), "cpu": min(busy), "mib": mib, "kept": results["kept"]}))
"""


def compare(scale: Scale, folder: Path) -> Iterator[Contest]:
    """Our mining of a million samples."""
    found = measure()
    yield Contest(
        "mining 1 M samples of 14 classes",
        "samples/s",
        {"ours": [NUM_SAMPLES / found["best"]]},
        mib={"ours": found["mib"]},
        targets=(
            Target("under 1 s", at_least=NUM_SAMPLES),
            Target("within 500 MiB", of="mib", at_most=500),
        ),
    )


def measure(num_samples: int = NUM_SAMPLES) -> dict[str, Any]:
    """Seconds of the first and of the best of five runs, processor seconds, and the largest resident size in MiB."""
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder), num_samples)
        command = [sys.executable, "-c", MEASURED, folder, str(NUM_CLASSES)]
        found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def _write(folder: Path, num_samples: int) -> None:
    rng = np.random.default_rng(0)
    sizes = np.arange(1, NUM_CLASSES + 1)       # the largest class is 14 times as large as the smallest
    clean = rng.choice(NUM_CLASSES, num_samples, p=sizes / sizes.sum())
    label = np.where(rng.random(num_samples) < 0.61, clean, rng.integers(0, NUM_CLASSES, num_samples))
    predicted = np.where(rng.random(num_samples) < 0.7, clean, label)
    np.save(folder / "clean.npy", clean)
    (folder / "rank").mkdir()
    for number, rows in enumerate(np.array_split(np.arange(num_samples), NUM_PARTS)):
        probs = rng.dirichlet(np.full(NUM_CLASSES, 0.2), len(rows)).astype(np.float32)
        table = pa.table(
            {
                "index": rows,
                "label": label[rows],
                "predicted": predicted[rows],
                "score": probs.max(axis=1),
                "probs": pa.FixedSizeListArray.from_arrays(pa.array(probs.reshape(-1)), NUM_CLASSES),
                "held_out": rows % 10 == 0,
            }
        )
        pq.write_table(table, folder / "rank" / f"part-{number:05d}-of-{NUM_PARTS:05d}.parquet", compression="zstd")
