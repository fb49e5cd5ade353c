"""Which rank fails first: the others fail of its absence, and what they would say only hides the reason."""

from __future__ import annotations

import os
import socket
import sys
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

KEY: Final = "twostage/failures"
SETTLE: Final = 0.2     # seconds in which a process that is ending closes all that it has open
REACH: Final = 3.0      # seconds within which the rank that keeps the store is reached


def store() -> Store | None:
    """What all ranks write into without waiting for each other; None without a process group. Imports no torch."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    found: Store = distributed.distributed_c10d._get_default_store()
    return found


_answer: bool | None = None
_gone = False


def is_first() -> bool | None:
    """Whether no other rank has failed before this one; None where the ranks have not met. Always the same answer.

    Where all fail alike, one of them is the first. Where the rank that keeps the store is gone, it was that one.
    """
    global _answer, _gone
    common = store()
    if _answer is None and common is not None:
        try:
            _gone = not _answers(common)
            _answer = not _gone and common.add(KEY, 1) == 1
        except Exception:
            _answer, _gone = False, True
    return _answer


def _answers(common: Store) -> bool:
    """Whether somebody listens where the store is kept. torch prints pages of frames when it asks one that is gone."""
    while hasattr(common, "underlying_store"):
        common = common.underlying_store
    host, port = getattr(common, "host", None), getattr(common, "port", None)
    if host is None or port is None or os.environ.get("RANK") == "0":
        return True
    time.sleep(SETTLE)
    try:
        socket.create_connection((host, port), timeout=REACH).close()
    except OSError:
        return False
    return True


def first_is_gone() -> bool:
    """Whether the rank that keeps the store had ended before this one failed: it said why, unless it was killed."""
    return _gone


def claim() -> None:
    """Says that this process has failed and told why: whatever else goes wrong in it follows from that."""
    global _answer
    is_first()
    _answer = False
