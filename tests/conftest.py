"""For all tests: one thread for each process, as tests share few cores and waiting OpenMP threads spin; no deadline for
hypothesis' examples, as a busy machine would miss it."""

from __future__ import annotations

import os

from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
