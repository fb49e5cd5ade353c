"""Two finished runs that nobody trained: a plain one, and one whose every name tries to break the page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fake_run import coloured_square, make_dataset, make_run

NAMES = ("dress", "hat", "shirt", "t-shirt")
HOSTILE = ("<script>alert(1)</script>", '" onmouseover="alert(2)', "{{ 7 * 7 }}{% raw %}", "帽子 & </style>")
HOSTILE_KEY = "<img src=x onerror=alert(3)>/{}.png"
NUM_IMAGES = 240


def make(folder: Path, names: tuple[str, ...], key: str = "photos/{}.png", rng_seed: int = 0) -> Path:
    """Writes a dataset and a run over it; returns the run folder."""
    rng = np.random.default_rng(rng_seed)
    clean = rng.integers(0, len(names), NUM_IMAGES)
    noisy = np.where(rng.random(NUM_IMAGES) < 0.3, (clean + 1) % len(names), clean)
    images = [coloured_square(int(label), number) for number, label in enumerate(clean)]
    make_dataset(folder / "dataset", images, [key.format(number) for number in range(NUM_IMAGES)])
    make_run(folder / "run", folder / "dataset", names, clean, noisy)
    return folder / "run"


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with everything; tests that change it copy it first."""
    return make(tmp_path_factory.mktemp("plain"), NAMES)


@pytest.fixture(scope="session")
def hostile_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose class names, keys, configuration and command are markup."""
    run = make(tmp_path_factory.mktemp("hostile"), HOSTILE, HOSTILE_KEY)
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config + "# </pre><script>alert(4)</script>\n")
    return run
