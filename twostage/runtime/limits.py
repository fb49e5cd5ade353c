"""Which values the section `runtime` may have."""

from __future__ import annotations

from typing import Final

from twostage.data.schema import InputError
from twostage.machine_config import RuntimeConfig

LEAST: Final = {"keep_checkpoints": 1, "checkpoint_steps": 1, "log_steps": 1, "max_skipped_steps": 0}


def check_runtime(runtime: RuntimeConfig) -> None:
    """Checks what would otherwise end a run when it first writes, or would take its watchdog away.

    Raises:
        InputError: names the field, its value and what it may be.
    """
    for name, least in LEAST.items():
        value = getattr(runtime, name)
        if value is not None and value < least:
            raise InputError(f"runtime.{name} is {value}; it must be at least {least}")
    for name in ("start_seconds", "watchdog_seconds"):
        value = getattr(runtime, name)
        if value is not None and not value > 0:
            never = ", or null to wait for ever" if name == "watchdog_seconds" else ""
            raise InputError(f"runtime.{name} is {value}; it must be more than 0{never}")
