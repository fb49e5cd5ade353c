"""`twostage reproduce` with the fake program; a process of its own, so that it can be killed."""

from __future__ import annotations

import sys
from pathlib import Path

from twostage.data.schema import InputError
from twostage.reproduce.command import main

if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:], python=(sys.executable, str(Path(__file__).with_name("fake_program.py")))))
    except InputError as error:
        sys.exit(f"error: {error}")
