"""Which name was meant; as twostage.data.schema.nearest, which this package may not know."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def closest(name: str, legal: Iterable[str]) -> str | None:
    """The legal name that was probably meant; None where none is near."""
    close = difflib.get_close_matches(name, sorted(legal), n=1, cutoff=0.5)
    return close[0] if close else None


def nearest(name: str, legal: Iterable[str], *, show: int = 20) -> str:
    """The legal name that was probably meant, and the first `show` of all; for error messages."""
    names = sorted(legal)
    meant = closest(name, names)
    hint = f"did you mean {meant!r}? " if meant is not None else ""
    more = f" and {len(names) - show} more" if len(names) > show else ""
    return f"{hint}allowed: {', '.join(names[:show]) or 'none'}{more}"
