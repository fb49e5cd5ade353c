"""Which rank fails first: the others fail of its absence, and what they would say only hides the reason."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

KEY = "twostage/failures"


def store() -> Store | None:
    """What all ranks write into without waiting for each other; None without a process group. Imports no torch."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    found: Store = distributed.distributed_c10d._get_default_store()
    return found


_answer: bool | None = None


def is_first() -> bool | None:
    """Whether no other rank has failed before this one; None where nobody can know. Always the same answer.

    Where all fail alike, one of them is the first.
    """
    global _answer
    if _answer is None:
        with suppress(Exception):       # the rank that keeps the store is gone
            common = store()
            if common is not None:
                _answer = bool(common.add(KEY, 1) == 1)
    return _answer


def claim() -> None:
    """Says that this process has failed and told why: whatever else goes wrong in it follows from that."""
    global _answer
    is_first()
    _answer = False
