"""What takes long, but moves, is not ended."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests import digit_runs
from tests.digit_runs import ROOT

SLOWLY_DECODED = """
import sys, time
from twostage.__main__ import main
from twostage.data import loader

def slow(self, indices, decoded=loader.StreamedImages.decoded):
    for batch in decoded(self, indices):
        time.sleep(1)
        yield batch

loader.StreamedImages.decoded = slow
sys.exit(main(sys.argv[1:]))
"""


def test_decoding_into_memory_may_take_longer_than_the_watchdog_waits(digits: Path, tmp_path: Path) -> None:
    settings = {"model.name": "mlp", "pretrain.epochs": "1", "loader.cache": "always", "runtime.watchdog_seconds": "4"}
    arguments = digit_runs.arguments("pretrain", digits, tmp_path / "run", settings)     # decodes six batches
    done = subprocess.run(
        [sys.executable, "-c", SLOWLY_DECODED, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
