"""For all tests: one thread for each process, as tests share few cores and waiting OpenMP threads spin."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
